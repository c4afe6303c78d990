with

independent_totals as (

    select * from {{ ref('stg_independent_totals') }}

),

{# Sources that counted the same are held against the same usage. #}
counted_subjects as (

    select distinct
        metric_code,
        customer_id,
        dimensions,
        period_start_at,
        period_end_at
    from independent_totals

),

usage_hourly as (

    select
        usage_hourly.*,
        definitions.percentile
    from {{ ref('int_usage_hourly') }} as usage_hourly
    inner join {{ ref('int_metric_definitions') }} as definitions
        on usage_hourly.metric_code = definitions.metric_code
    where usage_hourly.event_count > 0

),

{# The units of dimensions text are the metering's own; a total without dimensions spans all of them. #}
usage_in_totals as (

    select
        subjects.metric_code,
        subjects.customer_id,
        subjects.dimensions,
        subjects.period_start_at,
        subjects.period_end_at,
        usage_hourly.aggregation,
        usage_hourly.percentile,
        usage_hourly.distinct_value,
        usage_hourly.quantity,
        usage_hourly.event_count,
        usage_hourly.event_keys_hash,
        usage_hourly.first_event_at,
        usage_hourly.last_event_at
    from counted_subjects as subjects
    inner join usage_hourly
        on
            subjects.metric_code = usage_hourly.metric_code
            and subjects.customer_id = usage_hourly.customer_id
            and subjects.period_start_at <= usage_hourly.window_start_at
            and subjects.period_end_at > usage_hourly.window_start_at
            and (subjects.dimensions = '' or subjects.dimensions = usage_hourly.dimensions)

),

metered_totals as (

    {{ roll_up_usage('usage_in_totals', ['metric_code', 'customer_id', 'dimensions', 'period_start_at', 'period_end_at']) }}

),

usage_accuracy as (

    select
        {{ surrogate_key([
            'totals.metric_code',
            'totals.customer_id',
            'totals.dimensions',
            'totals.source',
            timestamp_text('totals.period_start_at'),
            timestamp_text('totals.period_end_at'),
        ]) }} as usage_accuracy_id,
        totals.metric_code,
        totals.customer_id,
        totals.dimensions,
        totals.source,
        coalesce(metered_totals.quantity, 0) as metered_quantity,
        totals.quantity as independent_quantity,
        coalesce(metered_totals.quantity, 0) - totals.quantity as difference,
        totals.period_start_at,
        totals.period_end_at
    from independent_totals as totals
    left join metered_totals
        on
            totals.metric_code = metered_totals.metric_code
            and totals.customer_id = metered_totals.customer_id
            and totals.dimensions = metered_totals.dimensions
            and totals.period_start_at = metered_totals.period_start_at
            and totals.period_end_at = metered_totals.period_end_at

),

usage_accuracy_with_ratio as (

    select
        usage_accuracy_id,
        metric_code,
        customer_id,
        dimensions,
        source,
        cast(metered_quantity as {{ quantity_total_type() }}) as metered_quantity,
        cast(independent_quantity as {{ quantity_total_type() }}) as independent_quantity,
        cast(difference as {{ quantity_total_type() }}) as difference,
        case
            when independent_quantity = 0 and metered_quantity = 0 then cast(0 as decimal(18, 9))
            when independent_quantity = 0 then cast(1 as decimal(18, 9))
            else {{ ratio('abs(difference)', 'abs(independent_quantity)') }}
        end as relative_difference,
        period_start_at,
        period_end_at
    from usage_accuracy

)

select * from usage_accuracy_with_ratio
