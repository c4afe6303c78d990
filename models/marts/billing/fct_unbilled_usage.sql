with

usage_not_priced as (

    select
        *,
        {{ dbt.date_trunc('month', 'window_start_at') }} as month_start_at
    from {{ ref('int_usage_not_priced') }}

),

unbilled_usage as (

    select
        {{ surrogate_key([
            'metric_code', 'customer_id', 'dimensions', 'subscription_id', 'charge_code', 'reason_code', 'month_start_at'
        ]) }} as unbilled_usage_id,
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
            when 'no_price' then 'The charge has no price version that is valid at the time of the usage'
        end as reason_message,
        {{ roll_up_quantity() }} as quantity,
        cast(sum(event_count) as bigint) as event_count,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at,
        month_start_at
    from usage_not_priced
    group by
        metric_code,
        customer_id,
        dimensions,
        subscription_id,
        charge_code,
        reason_code,
        month_start_at

)

select * from unbilled_usage
