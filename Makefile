# Needs Python 3.11 to 3.13, make and git; everything else is installed into .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench-installed

export DO_NOT_TRACK = 1
export DBT_SEND_ANONYMOUS_USAGE_STATS = false
export DAGSTER_DISABLE_TELEMETRY = 1
export GX_ANALYTICS_ENABLED = false
export DBT_PROFILES_DIR = $(CURDIR)/profiles

# Constraints on views are for the reader: dbt enforces them on tables.
STRICT := --warn-error-options '{"error": ["Deprecations"], "silence": ["UnsupportedConstraintMaterialization"]}'

BOOKS ?= 20
RUNS ?= 1000
SEED ?= 1
LINES ?=
HISTORIES ?= 20
EVENTS ?=
REPEAT ?=
HISTORY ?=
ONLY ?=
BENCH_ARGS ?=
TOTALS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test parse-duckdb parse-snowflake test-dbt test-python test-snowflake conformance oracle chaos closes bench lint lint-snowflake parse dev lock clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	@echo "Installing into $(VENV); this takes a minute or two the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

setup: $(INSTALLED) ## Install everything into .venv

demo: $(INSTALLED) ## Raw events to draft invoices in a local Stripe server; EVENTS=file TOTALS=file for your own
	@$(BIN)/metering demo $(foreach file,$(EVENTS),--events '$(file)') $(if $(TOTALS),--totals '$(TOTALS)')

test: $(INSTALLED) ## Everything that must hold: lint, types, parse for both targets, all tests
	@$(MAKE) --jobs 2 lint parse-snowflake test-dbt
	@$(MAKE) test-python

lint: $(INSTALLED) ## ruff, mypy and sqlfluff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	METERING_TARGET=ci $(BIN)/python -m tests.console_script sqlfluff lint --disable-progress-bar --processes 2 models tests/singular

lint-snowflake: $(INSTALLED) ## sqlfluff in Snowflake's dialect, on what dbt compiles for the stand-in
	$(BIN)/python -m tests.snowflake.standin run \
		$(BIN)/python -m tests.console_script sqlfluff lint --disable-progress-bar --config tests/snowflake/sqlfluff.cfg models tests/singular

parse: parse-duckdb parse-snowflake ## Parse for DuckDB and Snowflake, with deprecations as errors

parse-duckdb: $(INSTALLED)
	$(BIN)/dbt --quiet $(STRICT) parse --target ci --no-partial-parse

parse-snowflake: $(INSTALLED)
	SNOWFLAKE_ACCOUNT=none SNOWFLAKE_USER=none SNOWFLAKE_PASSWORD=none \
		$(BIN)/dbt --quiet $(STRICT) parse --target prod --no-partial-parse \
		--target-path target/snowflake

# Data tests of an empty warehouse run in test_good_seeds_build, those of full ones in other tests of pytest.
test-dbt: $(INSTALLED) ## Parse for DuckDB and build an empty warehouse, with dbt's unit tests
	@rm -f target/empty.duckdb* && mkdir -p target
	set -o pipefail; METERING_DUCKDB_PATH=target/empty.duckdb \
		$(BIN)/python -m tests.console_script dbt --no-use-colors --log-level-file none --no-write-json $(STRICT) build \
		--exclude-resource-type test --no-partial-parse --target ci --target-path target/empty \
		| grep -vE ' of [0-9]+ (START|OK|PASS) |^[0-9:]{8} *$$'

test-python: $(INSTALLED) ## pytest: unit tests and integration tests on warehouses of their own
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-snowflake: $(INSTALLED) ## The whole project on Snowflake's adapter against a stand-in: dbt's tests, and the marts against DuckDB's
	$(BIN)/python -m tests.snowflake.standin run \
		$(BIN)/dbt --no-use-colors build --target standin --target-path target/standin \
		| grep -E 'Done|FAIL|ERROR|failing|row:' && test $${PIPESTATUS[0]} -eq 0
	$(BIN)/python -m pytest -n 2 tests/snowflake

conformance: $(INSTALLED) ## Rate the priced cases of public billing systems and say which run, agree, differ, or do not apply
	$(BIN)/python -m pytest tests/integration/test_conformance.py -q -n 0

oracle: $(INSTALLED) ## Rate BOOKS random price books (20 by default, about 800 cases each) and hold them against the oracle
	METERING_ORACLE_EXAMPLES=$(BOOKS) $(BIN)/python -m pytest tests/integration/test_rating_oracle.py -q -s

chaos: $(INSTALLED) ## Bring RUNS outboxes (1,000 by default) into Stripe through faults and kills (SEED), or measure the sync of LINES
	$(BIN)/python -m tests.chaos --runs $(RUNS) --seed $(SEED) $(if $(LINES),--lines $(LINES))

closes: $(INSTALLED) ## A year of closes with late events against the oracle, and HISTORIES random histories (20 by default)
	METERING_CLOSE_MONTHS=12 METERING_CLOSE_HISTORIES=$(HISTORIES) $(BIN)/python -m pytest -q -s -n 0 \
		tests/integration/test_close_year.py tests/integration/test_close_histories.py

$(BENCH_INSTALLED): $(INSTALLED) benchmarks/requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	@touch $@

bench: $(BENCH_INSTALLED) ## Measure beside bare SQL, ClickHouse and PostgreSQL; EVENTS, HISTORY (numbers), REPEAT, ONLY=floor,ours
	$(BIN)/python -m benchmarks $(if $(EVENTS),--events $(EVENTS)) $(if $(HISTORY),--history $(HISTORY)) \
		$(if $(REPEAT),--repeat $(REPEAT)) $(if $(ONLY),--only $(ONLY)) $(BENCH_ARGS)

dev: $(INSTALLED) ## Open the Dagster UI on loopback
	DAGSTER_HOME=$(CURDIR)/orchestration/home $(BIN)/dagster dev -m orchestration.definitions -h 127.0.0.1

# pip takes a pin with extras for the package with these extras only: each is repeated without them.
PIN_WITHOUT_EXTRAS = awk '{ print } /^[^ ]+\[/ { pin = $$0; sub(/\[[^]]*\]/, "", pin); next } \
	pin { pin = pin "\n" $$0; if ($$0 !~ /\\$$/) { print pin; pin = "" } }'

lock: $(INSTALLED) ## Resolve pyproject.toml anew into requirements.lock (needs uv)
	set -o pipefail; uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-annotate --no-header --no-strip-extras --quiet | $(PIN_WITHOUT_EXTRAS) > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])' \
		| uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-annotate --no-header --no-strip-extras --quiet -c requirements.lock -o benchmarks/requirements.lock

clean: ## Remove what builds and demos wrote; .venv stays
	rm -rf target logs data/demo data/ci.duckdb .pytest_cache .mypy_cache .ruff_cache
