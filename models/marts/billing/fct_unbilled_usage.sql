with

usage_not_priced as (

    select
        usage_not_priced.*,
        definitions.percentile,
        {{ dbt.date_trunc('month', 'usage_not_priced.window_start_at') }} as month_start_at
    from {{ ref('int_usage_not_priced') }} as usage_not_priced
    left join {{ ref('int_metric_definitions') }} as definitions
        on usage_not_priced.metric_code = definitions.metric_code

),

{%- set keys = [
    'metric_code', 'customer_id', 'dimensions', 'subscription_id', 'charge_code', 'reason_code', 'month_start_at'
] %}

usage_by_month as (

    {{ roll_up_usage('usage_not_priced', keys) }}

),

levels_not_priced as (

    select * from {{ ref('int_levels_not_priced') }}

),

usage_and_levels as (

    select
        {{ keys | join(',\n        ') }},
        quantity,
        event_count,
        first_event_at,
        last_event_at
    from usage_by_month

    union all

    select
        {{ keys | join(',\n        ') }},
        quantity,
        event_count,
        first_event_at,
        last_event_at
    from levels_not_priced

),

unbilled_usage as (

    select
        {{ surrogate_key(keys[:-1] + [timestamp_text('month_start_at')]) }} as unbilled_usage_id,
        metric_code,
        customer_id,
        dimensions,
        subscription_id,
        charge_code,
        reason_code,
        case reason_code
            when 'no_metric' then 'No billable metric counts these events'
            when 'no_subscription' then 'The customer has no subscription that covers the time of the usage'
            when 'no_charge' then 'No plan of the customer has a charge for the metric'
            when 'no_price'
                then 'The charge has no price that is valid at the time of the usage and fits its dimension values'
            when 'no_price_for_level'
                then 'The level lasted while the charge had no price that fits: the part of the quantity that none covers'
        end as reason_message,
        quantity,
        event_count,
        first_event_at,
        last_event_at,
        month_start_at
    from usage_and_levels

)

select * from unbilled_usage
