{# Percentage charges price each event. The metering keeps a row for each event of their metrics, so that its value, its time and
   its place in the service period are known. #}
with

slices as (

    select * from {{ ref('int_rating_slices') }}
    where charge_model = 'percentage'

),

usage_in_service_periods as (

    select * from {{ ref('int_usage_in_service_periods') }}

),

tier_sets as (

    select * from {{ ref('int_tier_sets') }}

),

tiers as (

    select * from {{ ref('int_charge_tiers_bounded') }}

),

terms as (

    select * from {{ ref('percentage_terms') }}

),

percentage_metrics as (

    select distinct
        service_period_id,
        metric_code
    from slices

),

events_counted as (

    select
        usage.service_period_id,
        usage.metric_code,
        usage.dimensions,
        usage.window_start_at,
        usage.quantity,
        usage.event_keys_hash,
        usage.first_event_at as occurred_at,
        row_number() over (
            partition by usage.service_period_id, usage.metric_code, usage.dimensions
            order by usage.first_event_at, usage.distinct_value
        ) as event_number,
        sum(usage.quantity) over (
            partition by usage.service_period_id, usage.metric_code, usage.dimensions
            order by usage.first_event_at, usage.distinct_value
            rows between unbounded preceding and current row
        ) as running_quantity
    from usage_in_service_periods as usage
    inner join percentage_metrics
        on
            usage.service_period_id = percentage_metrics.service_period_id
            and usage.metric_code = percentage_metrics.metric_code

),

events_with_terms as (

    select
        slices.price_segment_id,
        slices.slice_start_at,
        events_counted.dimensions,
        events_counted.occurred_at,
        events_counted.quantity,
        events_counted.event_keys_hash,
        tiers.tier_set_id,
        tiers.unit_amount as rate,
        coalesce(terms.event_fixed_amount, 0) as event_fixed_amount,
        terms.event_minimum_amount,
        terms.event_maximum_amount,
        (terms.free_events is not null or terms.free_amount is not null)
        and events_counted.event_number <= coalesce(terms.free_events, events_counted.event_number)
        and events_counted.running_quantity <= coalesce(terms.free_amount, events_counted.running_quantity) as is_free,
        case
            when terms.free_events is null and terms.free_amount is null then 0
            when events_counted.event_number > terms.free_events then 0
            when terms.free_amount is null then events_counted.quantity
            else least(
                greatest(terms.free_amount - (events_counted.running_quantity - events_counted.quantity), 0),
                events_counted.quantity
            )
        end as free_quantity
    from events_counted
    inner join slices
        on
            events_counted.service_period_id = slices.service_period_id
            and events_counted.metric_code = slices.metric_code
            and events_counted.window_start_at >= slices.slice_start_at
            and events_counted.window_start_at < slices.slice_end_at
    inner join tier_sets
        on
            slices.charge_code = tier_sets.charge_code
            and slices.price_version = tier_sets.price_version
            and events_counted.dimensions = tier_sets.dimensions
    inner join tiers
        on tier_sets.tier_set_id = tiers.tier_set_id
    left join terms
        on
            slices.charge_code = terms.charge_code
            and slices.price_version = terms.price_version

),

event_fees as (

    select
        price_segment_id,
        slice_start_at,
        dimensions,
        tier_set_id,
        occurred_at,
        quantity,
        event_keys_hash,
        free_quantity,
        case
            when is_free then 0
            else least(
                greatest(
                    {{ multiply_amount('cast(quantity - free_quantity as ' ~ quantity_total_type() ~ ')', 'rate') }}
                    + event_fixed_amount,
                    coalesce(event_minimum_amount, 0)
                ),
                coalesce(
                    event_maximum_amount,
                    greatest(
                        {{ multiply_amount('cast(quantity - free_quantity as ' ~ quantity_total_type() ~ ')', 'rate') }}
                        + event_fixed_amount,
                        coalesce(event_minimum_amount, 0)
                    )
                )
            )
        end as fee_amount
    from events_with_terms

),

event_fees_by_slice as (

    select
        price_segment_id,
        slice_start_at,
        dimensions,
        tier_set_id,
        cast(sum(quantity) as {{ quantity_total_type() }}) as quantity,
        cast(sum(free_quantity) as {{ quantity_total_type() }}) as free_quantity,
        cast(sum(fee_amount) as {{ amount_type() }}) as fee_amount,
        cast(count(*) as bigint) as event_count,
        cast(sum(event_keys_hash) as {{ event_keys_hash_type() }}) as event_keys_hash,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at
    from event_fees
    group by
        price_segment_id,
        slice_start_at,
        dimensions,
        tier_set_id

)

select * from event_fees_by_slice
