with

usage_in_service_periods as (

    select * from {{ ref('int_usage_in_service_periods') }}

),

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

{# A segment is priced by what the period's quantity grows by inside it, so that tier counters run through a price change and
   max and unique_count are not counted twice. #}
usage_by_price_segment as (

    select
        price_segments.subscription_id,
        price_segments.customer_id,
        price_segments.plan_code,
        price_segments.charge_code,
        price_segments.price_version,
        price_segments.metric_code,
        usage.dimensions,
        price_segments.time_zone,
        price_segments.billing_period,
        coalesce({{ roll_up_quantity('usage.window_start_at < price_segments.segment_start_at') }}, 0) as quantity_before,
        {{ roll_up_quantity('usage.window_start_at < price_segments.segment_end_at') }} as quantity_through,
        {{ roll_up_quantity() }} as service_period_quantity,
        cast(
            sum(
                case
                    when
                        usage.window_start_at >= price_segments.segment_start_at
                        and usage.window_start_at < price_segments.segment_end_at
                        then usage.event_count
                    else 0
                end
            ) as bigint
        ) as event_count,
        {% for bound, aggregate in [('first', 'min'), ('last', 'max')] -%}
        {{ aggregate }}(
            case
                when
                    usage.window_start_at >= price_segments.segment_start_at
                    and usage.window_start_at < price_segments.segment_end_at
                    then usage.{{ bound }}_event_at
            end
        ) as {{ bound }}_event_at,
        {% endfor -%}
        price_segments.service_period_start_at,
        price_segments.service_period_end_at,
        price_segments.segment_start_at,
        price_segments.segment_end_at
    from price_segments
    inner join usage_in_service_periods as usage
        on
            price_segments.subscription_id = usage.subscription_id
            and price_segments.service_period_start_at = usage.service_period_start_at
            and price_segments.metric_code = usage.metric_code
    group by
        price_segments.subscription_id,
        price_segments.customer_id,
        price_segments.plan_code,
        price_segments.charge_code,
        price_segments.price_version,
        price_segments.metric_code,
        usage.dimensions,
        price_segments.time_zone,
        price_segments.billing_period,
        price_segments.service_period_start_at,
        price_segments.service_period_end_at,
        price_segments.segment_start_at,
        price_segments.segment_end_at

),

segments_with_usage as (

    select * from usage_by_price_segment
    where event_count > 0

)

select * from segments_with_usage
