-- What customers may read of the marts, each only its own rows. Run after the first build, and again when a mart's columns change.
-- The policy hangs on the views. dbt replaces the tables below them, which would take a policy on a table with it; a view finds
-- the new table by its name. The marts themselves stay without one: guards and invoices must see every row.
-- On Standard Edition write, in place of the clause WITH ROW ACCESS POLICY, at the end of each view:
--     where exists (select 1 from metering.customer.customer_readers as readers
--                   where readers.user_name = current_user() and readers.customer_id = <mart>.customer_id)
use role metering_owner;

create or replace secure view metering.customer.usage_hourly
    with row access policy metering.customer.own_customers_only on (customer_id)
as
select
    customer_id,
    metric_code,
    dimensions,
    presentation_dimensions,
    quantity,
    unit,
    event_count,
    first_event_at,
    last_event_at,
    window_start_at,
    window_end_at
from metering.marts.fct_usage_hourly;

create or replace secure view metering.customer.usage_by_service_period
    with row access policy metering.customer.own_customers_only on (customer_id)
as
select
    customer_id,
    subscription_id,
    plan_code,
    metric_code,
    dimensions,
    time_zone,
    billing_period,
    quantity,
    unit,
    billable_units,
    event_count,
    first_event_at,
    last_event_at,
    service_period_start_at,
    service_period_end_at
from metering.marts.fct_usage_by_service_period;

create or replace secure view metering.customer.usage_breakdown
    with row access policy metering.customer.own_customers_only on (customer_id)
as
select
    customer_id,
    subscription_id,
    plan_code,
    metric_code,
    dimensions,
    presentation_dimensions,
    time_zone,
    billing_period,
    quantity,
    unit,
    event_count,
    first_event_at,
    last_event_at,
    service_period_start_at,
    service_period_end_at
from metering.marts.fct_usage_breakdown;

create or replace secure view metering.customer.invoice_lines
    with row access policy metering.customer.own_customers_only on (customer_id)
as
select
    customer_id,
    line_id,
    invoice_id,
    subscription_id,
    plan_code,
    charge_code,
    metric_code,
    line_type,
    line_state,
    description,
    dimensions,
    discount_codes,
    billing_period,
    currency_code,
    metered_quantity,
    included_quantity_used,
    billable_quantity,
    gross_amount,
    discount_amount,
    amount,
    event_count,
    first_event_at,
    last_event_at,
    service_period_start_at,
    service_period_end_at
from metering.marts.fct_invoice_lines;

create or replace secure view metering.customer.invoices
    with row access policy metering.customer.own_customers_only on (customer_id)
as
select
    customer_id,
    invoice_id,
    customer_name,
    billing_period,
    currency_code,
    invoice_state,
    line_count,
    total_amount,
    event_count,
    first_service_period_start_at,
    last_service_period_end_at
from metering.marts.fct_invoices;
