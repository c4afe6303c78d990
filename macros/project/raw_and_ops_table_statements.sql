{# Also read by orchestration/lib/warehouse.py, which has no dbt at hand: nothing but text in here. #}
{% macro raw_and_ops_table_statements() %}
    {{ return([
    "create schema if not exists raw",
    "create schema if not exists ops",
    "create schema if not exists ledger",
    "create table if not exists raw.usage_events (
        batch_id varchar not null,
        line_number bigint not null,
        source varchar not null,
        received_at datetime not null,
        idempotency_key varchar,
        event_type varchar,
        schema_version varchar,
        customer_id varchar,
        occurred_at varchar,
        properties varchar,
        corrects varchar,
        correction varchar,
        landing_error_code varchar,
        landing_error varchar,
        raw_record varchar
    )",
    "create table if not exists raw.load_batches (
        batch_id varchar not null,
        source varchar not null,
        file_sha256 varchar not null,
        file_bytes bigint not null,
        file_modified_ns bigint not null,
        deliveries bigint not null,
        received_at datetime not null
    )",
    "create table if not exists raw.independent_totals (
        batch_id varchar not null,
        line_number bigint not null,
        received_at datetime not null,
        metric_code varchar not null,
        customer_id varchar not null,
        dimensions varchar not null,
        period_start_at datetime not null,
        period_end_at datetime not null,
        quantity decimal(38, 9) not null,
        source varchar not null
    )",
    "create table if not exists ops.build_log (
        invocation_id varchar not null,
        step varchar not null,
        is_whole boolean not null,
        logged_at datetime not null,
        as_of datetime not null,
        failed_nodes bigint,
        price_book_hash varchar
    )",
    "create table if not exists ops.stripe_sync_log (
        attempt_id varchar not null,
        logged_at datetime not null,
        stripe_account varchar not null,
        entity varchar not null,
        entity_key varchar not null,
        step varchar not null,
        idempotency_key varchar,
        stripe_object_id varchar,
        request_id varchar,
        http_status integer,
        amount_minor bigint,
        currency varchar,
        customer_id varchar,
        billing_period varchar,
        error_code varchar,
        error_body varchar
    )",
    "create table if not exists ledger.price_books (
        price_book_hash varchar not null,
        seed varchar not null,
        content varchar not null,
        recorded_at datetime not null
    )",
    ]) }}
{% endmacro %}
