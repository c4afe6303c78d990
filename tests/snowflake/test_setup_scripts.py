"""The scripts of docs/snowflake run top to bottom, and again, on the stand-in.

What that shows: databases, schemas, tables, views, stages and file formats are made, and the SQL inside the task runs. The stand-in
accepts roles, users, warehouses, grants and resource monitors without keeping them; it checks no privilege and applies no row access
policy. Those statements are held to a grammar of their own here, and every name they use must have been made before. It lacks row
access policies, streams, tasks, pipes and ALTER SCHEMA SET; what stands in their bodies runs without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import snowflake.connector
import yaml
from snowflake.connector import SnowflakeConnection
from sqlglot.dialects.snowflake import Snowflake
from sqlglot.tokens import TokenType

from orchestration.lib.warehouse import raw_and_ops_table_statements
from tests.snowflake.standin import Standin

PROJECT_DIR = Path(__file__).resolve().parents[2]
SCRIPTS = ["setup.sql", "tables.sql", "landing.sql", "customer_views.sql"]

# Roles that every account has.
SYSTEM_ROLES = {"accountadmin", "securityadmin", "sysadmin", "useradmin"}

NAME = r"[a-z_]+(?:\.[a-z_]+)*"
VALUE = r"(?:\('ALL'\)|'[^']*'|[a-z_]+|[0-9]+)"
PRIVILEGES = (
    r"(?:usage|execute task|read, write|monitor, operate|select|select, insert|select, insert, update|create schema|create table|create stage"
    r"|create file format)"
)

# The statements that the stand-in accepts and ignores.
IGNORED = [
    rf"use (role|database) ({NAME})",
    rf"create (role|user|warehouse) if not exists ({NAME})(?: type = service| warehouse_size = xsmall initially_suspended = true)?",
    rf"create resource monitor if not exists {NAME} with credit_quota = [0-9]+ frequency = monthly start_timestamp = immediately"
    r" triggers(?: on [0-9]+ percent do (?:notify|suspend))+",
    rf"alter (user|warehouse) ({NAME}) set(?:,? [a-z_]+ = {VALUE})+",
    rf"grant role ({NAME}) to (role|user) ({NAME})",
    rf"grant {PRIVILEGES} on account to role ({NAME})",
    rf"grant {PRIVILEGES} on (database|schema|warehouse|table|stage|pipe) ({NAME}) to role ({NAME})",
    rf"grant select on (?:all|future) (?:tables|views) in schema ({NAME}) to role ({NAME})",
]

# The statements that the stand-in does not know.
ABSENT = [
    rf"alter schema {NAME} set data_retention_time_in_days = [0-9]+",
    rf"create row access policy if not exists {NAME} as \([a-z_]+ varchar\) returns boolean -> exists \(.*\)",
    rf"create stream if not exists {NAME} on view {NAME} append_only = true show_initial_rows = true",
    rf"create task if not exists {NAME} warehouse = {NAME} schedule = 'using cron [0-9*, /]+ UTC' allow_overlapping_execution = false"
    rf" when system\$stream_has_data\('{NAME}'\) as insert into .*",
    rf"alter task {NAME} resume",
    rf"create pipe if not exists {NAME} as copy into .* file_format = \(format_name = '{NAME}'\) on_error = skip_file",
    rf"create pipe if not exists ({NAME}) as copy into \1 \([a-z_, ]+\) from"
    r" \(select [$A-Z0-9_:, ]+ from table\(data_source\(type => 'STREAMING'\)\)\)",
]


def statements(script: str) -> list[str]:
    """The statements of a script, without the comments before them."""
    text = (PROJECT_DIR / "docs" / "snowflake" / script).read_text()
    found: list[str] = []
    start: int | None = None
    for token in Snowflake().tokenize(text):
        if token.token_type == TokenType.SEMICOLON and start is not None:
            found.append(text[start : token.start])
            start = None
        elif start is None:
            start = token.start
    assert start is None, f"{script} does not end in a semicolon"
    return found


def one_line(statement: str) -> str:
    return " ".join(re.sub(r"--[^\n]*", "", statement).split())


def fits(statement: str, grammar: list[str]) -> bool:
    return any(re.fullmatch(pattern, one_line(statement)) for pattern in grammar)


def the_statement(script: str, beginning: str) -> str:
    (found,) = [statement for statement in statements(script) if statement.startswith(beginning)]
    return found


def rows(connection: SnowflakeConnection, sql: str) -> list[Any]:
    return connection.cursor().execute(sql).fetchall()


def create_raw_and_ops_tables(connection: SnowflakeConnection) -> None:
    for statement in raw_and_ops_table_statements(PROJECT_DIR):
        rows(connection, statement)


def create_marts(connection: SnowflakeConnection) -> None:
    """Empty marts, from their contracts."""
    for path in sorted((PROJECT_DIR / "models" / "marts").rglob("*.yml")):
        for model in (yaml.safe_load(path.read_text()) or {}).get("models", []):
            columns = ", ".join(f"{column['name']} {column['data_type']}" for column in model["columns"])
            rows(connection, f"create or replace table metering.marts.{model['name']} ({columns})")


def run(connection: SnowflakeConnection, script: str) -> None:
    for statement in statements(script):
        if not fits(statement, ABSENT):
            rows(connection, statement)


@pytest.fixture(scope="module")
def account(standin: Standin) -> Iterator[SnowflakeConnection]:
    """An account on which all scripts have run twice. No other test uses the database that they name."""
    with snowflake.connector.connect(**standin.connection_parameters("METERING")) as connection:
        for _ in range(2):
            run(connection, "setup.sql")
            create_raw_and_ops_tables(connection)
            run(connection, "tables.sql")
            run(connection, "landing.sql")
            create_marts(connection)
            run(connection, "customer_views.sql")
        yield connection


@pytest.mark.parametrize(
    "relation",
    [
        "raw.landed_lines",
        "raw.landed_kafka_records",
        "raw.landed_records",
        "customer.customer_readers",
        "customer.usage_hourly",
        "customer.usage_by_service_period",
        "customer.usage_breakdown",
        "customer.invoice_lines",
        "customer.invoices",
    ],
)
def test_what_the_scripts_make_can_be_read(account: SnowflakeConnection, relation: str) -> None:
    assert len(rows(account, f"select count(*) from metering.{relation}")) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_statements_that_do_not_run_for_real_fit_a_grammar(script: str) -> None:
    real = re.compile(r"create (or replace secure view|(database|schema|table|view|stage|file format) if not exists) ")
    unknown = [
        one_line(statement)
        for statement in statements(script)
        if not (real.match(one_line(statement)) or fits(statement, IGNORED) or fits(statement, ABSENT))
    ]
    assert unknown == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_run_again(script: str) -> None:
    """Only views are replaced: a role, user, warehouse, table, stream or pipe that is made anew has lost what it held."""
    for statement in statements(script):
        text = one_line(statement)
        if text.startswith("create "):
            assert " if not exists " in text or text.startswith("create or replace secure view "), text
        assert not text.startswith(("drop ", "revoke ")), text


def test_names_are_made_before_they_are_used() -> None:
    made: dict[str, set[str]] = {"role": set(SYSTEM_ROLES), "user": set(), "warehouse": set(), "schema": set()}
    made["database"] = set()
    for script in SCRIPTS:
        for statement in statements(script):
            text = one_line(statement)
            creation = re.match(rf"create (role|user|warehouse|schema|database) if not exists ({NAME})", text)
            if creation:
                made[creation[1]].add(creation[2])
                continue
            for kind, name in re.findall(rf"\b(?<!create )(role|user|warehouse|database|schema)(?: =)? ({NAME})", text):
                if not text.startswith(("create row", "create or replace", "create table", "create view")):
                    assert name in made[kind], f"{script}: {text}: the {kind} {name} is not made before"
            for key, name in re.findall(r"\bdefault_(role|warehouse) = ([a-z_]+)", text):
                assert name in made[key], f"{script}: {text}: the {key} {name} is not made before"


def test_roles_only_add_rows() -> None:
    """No role but the owner of a table may change or remove what stands in raw, ops and ledger, but for a lock's row."""
    for script in SCRIPTS:
        for statement in statements(script):
            if statement.startswith("grant "):
                allowed = re.sub(
                    r"update on table metering\.(ledger\.close_lock|ops\.stripe_sync_lock) ", "", one_line(statement)
                )
                assert not re.search(r"\b(update|delete|truncate|all privileges|ownership)\b", allowed)


# Which part of the product runs as which role: files of orchestration/lib.
COMMANDS_OF_ROLES = {
    "metering_loader": ["landing"],
    "metering_transformer": [
        "close",
        "explain",
        "guards",
        "ledger_export",
        "past",
        "price_book",
        "warehouse",
        "what_if",
    ],
    "metering_reader": ["adjustments", "invoices", "shadow", "statement", "warehouse"],
    "metering_sync": ["guards", "stripe_*", "sync", "warehouse"],
}
PRIVILEGE_OF_VERB = {"from": "select", "join": "select", "insert into": "insert", "update": "update"}


def privileges_in(sql: str) -> set[tuple[str, str]]:
    found = re.findall(r"\b(from|join|insert into|update)\s+((?:raw|ops|ledger)\.[a-z_]+)", sql)
    return {(PRIVILEGE_OF_VERB[verb], table) for verb, table in found}


def granted_privileges(role: str) -> set[tuple[str, str]]:
    """Privileges on tables whose schema the role may use."""
    texts = [one_line(statement) for script in SCRIPTS for statement in statements(script)]
    schemas = {
        schema
        for text in texts
        for schema in re.findall(rf"^grant usage on schema metering\.(\w+) to role {role}$", text)
    }
    return {
        (privilege, table)
        for text in texts
        for privileges, table in re.findall(rf"^grant ([a-z, ]+) on table metering\.([a-z_.]+) to role {role}$", text)
        for privilege in privileges.split(", ")
        if table.split(".")[0] in schemas
    }


@pytest.mark.parametrize("role", COMMANDS_OF_ROLES)
def test_roles_may_do_what_their_commands_do(role: str) -> None:
    """Tables that stay, each with its own grant; those that builds make belong to the transformer, and others may read marts and seeds."""
    library = PROJECT_DIR / "orchestration" / "lib"
    files = [path for pattern in COMMANDS_OF_ROLES[role] for path in sorted(library.glob(f"{pattern}.py"))]
    assert len(files) >= len(COMMANDS_OF_ROLES[role])
    text = "\n".join(path.read_text() for path in files)
    needed = privileges_in(text)
    if role == "metering_transformer":
        needed |= privileges_in("\n".join(raw_and_ops_table_statements(PROJECT_DIR)))
        for path in (PROJECT_DIR / "models").rglob("*.sql"):
            needed |= {
                ("select", f"{schema}.{table}")
                for schema, table in re.findall(r"source\('(\w+)', '(\w+)'\)", path.read_text())
            }
    else:
        assert not re.search(r"\b(from|join)\s+(staging|intermediate)\.", text)
    assert needed - granted_privileges(role) == set()


def test_customers_see_nothing_without_the_policy() -> None:
    views = [one_line(s) for s in statements("customer_views.sql") if s.startswith("create or replace")]
    assert len(views) == 5
    for view in views:
        assert view.startswith("create or replace secure view metering.customer.")
        assert " with row access policy metering.customer.own_customers_only on (customer_id) as select " in view
        assert "stripe" not in view


def test_the_policy_lets_a_user_see_the_customers_listed_for_it(account: SnowflakeConnection) -> None:
    policy = one_line(the_statement("setup.sql", "create row access policy"))
    condition = (
        policy.split("-> ")[1]
        .replace("current_user()", "people.user_name")
        .replace("row_customer_id", "people.customer_id")
    )
    rows(account, "delete from metering.customer.customer_readers")
    rows(account, "insert into metering.customer.customer_readers values ('ANNA', 'cus_001'), ('ANNA', 'cus_002')")
    people = "values ('ANNA', 'cus_001'), ('ANNA', 'cus_003'), ('BERT', 'cus_001')"
    seen = rows(
        account, f"select user_name, customer_id from ({people}) as people (user_name, customer_id) where {condition}"
    )
    assert seen == [("ANNA", "cus_001")]


LANDED_AT = "2026-10-05 10:00:00.123456"
LINES = [
    '{"idempotency_key": "k1", "event_type": "api", "schema_version": 1, "customer_id": "c1",'
    ' "occurred_at": "2026-10-05T09:59:00Z", "properties": {"path": "a\\\\b", "tokens": 12345678901234567890}}',
    '{"idempotency_key": "k2", "properties": "not an object"}',
    '{"idempotency_key": "k3", "broken": ',
    "[1, 2]",
    "   ",
    '{"specversion": "1.0", "source": "/s", "id": "7", "type": "api", "subject": "c1", "time": "2026-10-05T09:00:00Z",'
    ' "data": {"tokens": 5}}',
]


def move(account: SnowflakeConnection) -> None:
    """The task's statement, over all landed records instead of those that its stream has not handed out yet."""
    body = the_statement("landing.sql", "create task").split("\nas\n", 1)[1]
    rows(account, body.replace("raw.landed_records_new", "raw.landed_records"))


def test_landed_lines_move_once_and_none_is_lost(account: SnowflakeConnection) -> None:
    for table in ("landed_lines", "landed_kafka_records", "usage_events"):
        rows(account, f"delete from raw.{table}")
    for number, line in enumerate(LINES, start=1):
        account.cursor().execute(
            "insert into raw.landed_lines values ('a.jsonl', 'abc', %s, %s, %s)", (number, LANDED_AT, line)
        )
    for number, lacking in enumerate(('"id":"7"', '"source":"/s"', '"source":"/s","id":" "'), start=7):
        line = '{"specversion":"1.0",' + lacking + "}"
        account.cursor().execute(
            "insert into raw.landed_lines values ('a.jsonl', 'abc', %s, %s, %s)", (number, LANDED_AT, line)
        )
    # Snowpipe loads the same file once more, weeks later.
    rows(
        account,
        "insert into raw.landed_lines select file_name, file_key, line_number, dateadd('day', 20, received_at), line"
        " from raw.landed_lines where line_number = 1",
    )
    move(account)
    move(account)

    moved = rows(
        account,
        "select batch_id, line_number, source, received_at, idempotency_key, event_type, schema_version, customer_id, occurred_at,"
        " properties, landing_error_code, landing_error, raw_record from raw.usage_events order by line_number",
    )
    at = datetime.fromisoformat(LANDED_AT)
    assert [row[:4] for row in moved] == [("a.jsonl@abc", number, "a.jsonl", at) for number in (1, 2, 3, 4, 6, 7, 8, 9)]
    first, text, broken, array, cloud, *without_key = [row[4:] for row in moved]
    assert first[:5] == ("k1", "api", "1", "c1", "2026-10-05T09:59:00Z")
    assert first[6:] == (None, None, None)
    assert yaml.safe_load(first[5]) == {"path": "a\\b", "tokens": 12345678901234567890}
    assert text[5] == "not an object"
    assert broken == (None,) * 6 + ("unparseable_json", f"line 3 is not a JSON object: {LINES[2]}", LINES[2])
    assert array[6:] == ("unparseable_json", "line 4 is not a JSON object: [1, 2]", "[1, 2]")
    assert cloud[:5] == ('["/s","7"]', "api", "1", "c1", "2026-10-05T09:00:00Z")
    assert yaml.safe_load(cloud[5]) == {"tokens": 5}
    assert [row[0] for row in without_key] == [None, None, None]


def test_kafka_records_are_known_by_topic_partition_and_offset(account: SnowflakeConnection) -> None:
    for table in ("landed_lines", "landed_kafka_records", "usage_events"):
        rows(account, f"delete from raw.{table}")
    # As values that the connector has parsed: cast to text, a VARIANT that holds text keeps its quotes on the stand-in alone.
    for offset, content in [
        (99999, '{"idempotency_key": "k1"}'),
        (100000, '{"idempotency_key": "k2"}'),
        (100001, "[1]"),
        (100002, '{"RECORD_METADATA": {}, "RECORD_CONTENT": {"idempotency_key": "k3"}}'),
    ]:
        account.cursor().execute(
            "insert into raw.landed_kafka_records select parse_json(%s), parse_json(%s)",
            (
                f'{{"topic": "usage", "partition": 3, "offset": {offset}, "SnowflakeConnectorPushTime": 1791194400123}}',
                content,
            ),
        )
    move(account)
    moved = rows(
        account,
        "select batch_id, line_number, source, received_at, idempotency_key, raw_record from raw.usage_events order by line_number",
    )
    at = datetime(2026, 10, 5, 10, 0, 0, 123000)
    assert moved == [
        ("kafka/usage/3/0", 99999, "kafka/usage", at, "k1", None),
        ("kafka/usage/3/1", 100000, "kafka/usage", at, "k2", None),
        ("kafka/usage/3/1", 100001, "kafka/usage", at, None, "[1]"),
        ("kafka/usage/3/1", 100002, "kafka/usage", at, "k3", None),
    ]
