{# Slices together are the lines of the invoice: what a charge costs, before discounts. #}
with

billable_quantities as (

    select * from {{ ref('int_billable_quantities') }}

),

rated_tiers as (

    select * from {{ ref('int_rated_tiers') }}

),

plans as (

    select * from {{ ref('plans') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

amounts_by_slice as (

    select
        slice_id,
        cast(sum(amount) as {{ amount_type() }}) as amount
    from rated_tiers
    group by slice_id

),

{%- set line_columns = [
    'line_id', 'service_period_id', 'subscription_id', 'customer_id', 'plan_code', 'charge_code', 'price_version', 'metric_code',
    'charge_name', 'charge_model', 'dimensions', 'time_zone', 'billing_period', 'service_period_start_at', 'service_period_end_at',
    'due_at', 'segment_start_at', 'segment_end_at'
] %}

lines as (

    select
        {%- for column in line_columns %}
        billable_quantities.{{ column }},
        {%- endfor %}
        {%- for quantity in ['metered_quantity', 'included_quantity_used'] %}
        cast(
            case
                when max(case when billable_quantities.has_whole_quantity then 1 else 0 end) = 1
                    then max(billable_quantities.{{ quantity }})
                else sum(billable_quantities.{{ quantity }})
            end as {{ quantity_total_type() }}
        ) as {{ quantity }},
        {%- endfor %}
        cast(
            case
                when max(case when billable_quantities.has_whole_quantity then 1 else 0 end) = 1
                    then max(billable_quantities.period_billable)
                else sum(billable_quantities.billable_through - billable_quantities.billable_before)
            end as {{ quantity_total_type() }}
        ) as billable_quantity,
        cast(sum(coalesce(amounts_by_slice.amount, 0)) as {{ amount_type() }}) as unrounded_amount,
        cast(sum(billable_quantities.event_count) as bigint) as event_count,
        cast(sum(billable_quantities.event_keys_hash) as {{ event_keys_hash_type() }}) as event_keys_hash,
        min(billable_quantities.first_event_at) as first_event_at,
        max(billable_quantities.last_event_at) as last_event_at
    from billable_quantities
    left join amounts_by_slice
        on billable_quantities.slice_id = amounts_by_slice.slice_id
    group by
        billable_quantities.{{ line_columns | join(',\n        billable_quantities.') }}

),

rated_charges as (

    select
        lines.*,
        plans.currency_code,
        currencies.minor_units,
        {{ round_to_minor_units('lines.unrounded_amount', 'currencies.minor_units') }} as gross_amount
    from lines
    inner join plans
        on lines.plan_code = plans.plan_code
    inner join currencies
        on plans.currency_code = currencies.currency_code

)

select * from rated_charges
