-- Grants on the raw, ops and ledger tables, once dbt run-operation create_raw_and_ops_tables has made them. Can be run again.
use role metering_owner;

grant select, insert on table metering.raw.usage_events to role metering_loader;
grant select, insert on table metering.raw.load_batches to role metering_loader;
grant select, insert on table metering.raw.independent_totals to role metering_loader;
grant select, insert on table metering.raw.shadow_billing to role metering_loader;

grant select on table metering.raw.usage_events to role metering_transformer;
grant select on table metering.raw.load_batches to role metering_transformer;
grant select on table metering.raw.independent_totals to role metering_transformer;
grant select on table metering.raw.shadow_billing to role metering_transformer;
grant select, insert on table metering.ops.build_log to role metering_transformer;
grant select, insert on table metering.ops.what_if_lines to role metering_transformer;
-- Builds read what the sync logged and read back, and put the row of the lock there if it is missing.
grant select on table metering.ops.stripe_sync_log to role metering_transformer;
grant select on table metering.ops.stripe_readback to role metering_transformer;
grant select on table metering.ops.stripe_meter_readback to role metering_transformer;
grant select, insert on table metering.ops.stripe_sync_lock to role metering_transformer;
grant select, insert on table metering.ledger.price_books to role metering_transformer;
grant select, insert on table metering.ledger.billing_runs to role metering_transformer;
grant select, insert on table metering.ledger.closed_periods to role metering_transformer;
grant select, insert on table metering.ledger.closed_terms to role metering_transformer;
grant select, insert on table metering.ledger.billing_ledger to role metering_transformer;
grant select, insert, update on table metering.ledger.close_lock to role metering_transformer;

grant select on table metering.ledger.billing_runs to role metering_reader;
grant select on table metering.ledger.billing_ledger to role metering_reader;
-- The commands that finance runs: a statement names units by the seeds of its run, and each says when the last build failed.
grant select on table metering.ledger.price_books to role metering_reader;
grant select on table metering.ops.build_log to role metering_reader;
grant select on table metering.raw.shadow_billing to role metering_reader;

grant select on table metering.ops.build_log to role metering_sync;
grant select on table metering.ledger.billing_ledger to role metering_sync;
grant select, insert on table metering.ops.stripe_sync_log to role metering_sync;
grant select, insert, update on table metering.ops.stripe_sync_lock to role metering_sync;
grant select, insert on table metering.ops.stripe_readback to role metering_sync;
grant select, insert on table metering.ops.stripe_meter_readback to role metering_sync;
