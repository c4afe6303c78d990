with

accuracy as (

    select
        'accuracy' as guard_code,
        metric_code || '|' || customer_id || '|' || dimensions || '|'
        || {{ timestamp_text('period_start_at') }} || '|' || {{ timestamp_text('period_end_at') }} || '|' || source as subject,
        relative_difference as measured
    from {{ ref('fct_usage_accuracy') }}

),

{# By the day of each delivery: a batch of a stream may span days. #}
deliveries_by_day as (

    select
        cast(received_at as date) as received_date,
        count(*) as deliveries,
        count(case when delivery_status = 'rejected' then 1 end) as rejected
    from {{ ref('stg_event_deliveries') }}
    group by cast(received_at as date)

),

ingestion_error_rate as (

    select
        'ingestion_error_rate' as guard_code,
        cast(received_date as varchar) as subject,
        {{ ratio('rejected', 'deliveries') }} as measured
    from deliveries_by_day

),

dropped_from_batches as (

    select
        'dropped_events' as guard_code,
        'batch|' || batch_id as subject,
        dropped as measured
    from {{ ref('fct_ingestion_health') }}

),

accepted_by_event_type as (

    select
        event_type,
        count(*) as events
    from {{ ref('stg_usage_events') }}
    group by event_type

),

not_metered_by_event_type as (

    select
        event_type,
        count(*) as events
    from {{ ref('int_events_not_metered') }}
    group by event_type

),

metered_by_metric as (

    select
        metric_code,
        sum(event_count) as events
    from {{ ref('int_usage_hourly') }}
    group by metric_code

),

{# A metric without filters must have metered each accepted event of its type, but for those that are left out with a reason. #}
dropped_by_metering as (

    select
        'dropped_events' as guard_code,
        'metric|' || definitions.metric_code as subject,
        abs(
            accepted_by_event_type.events
            - coalesce(not_metered_by_event_type.events, 0)
            - coalesce(metered_by_metric.events, 0)
        ) as measured
    from {{ ref('int_metric_definitions') }} as definitions
    inner join accepted_by_event_type
        on definitions.event_type = accepted_by_event_type.event_type
    left join not_metered_by_event_type
        on definitions.event_type = not_metered_by_event_type.event_type
    left join metered_by_metric
        on definitions.metric_code = metered_by_metric.metric_code
    where not definitions.has_filters and not definitions.is_residual

),

stripe_amount as (

    select
        'stripe_amount' as guard_code,
        stripe_account || '|' || invoice_id || '|' || currency_code as subject,
        differing_amount as measured
    from {{ ref('int_stripe_invoice_differences') }}

),

stripe_ratio as (

    select
        'stripe_ratio' as guard_code,
        stripe_account || '|' || invoice_id || '|' || currency_code as subject,
        difference_ratio as measured
    from {{ ref('int_stripe_invoice_differences') }}

),

stripe_ratio_of_meters as (

    select
        'stripe_ratio' as guard_code,
        stripe_account || '|meter|' || event_name || '|' || customer_id || '|'
        || {{ timestamp_text('service_period_start_at') }} || '|' || {{ timestamp_text('service_period_end_at') }}
            as subject,
        difference_ratio as measured
    from {{ ref('int_stripe_meter_differences') }}

),

measurements as (

    select
        guard_code,
        subject,
        cast(measured as decimal(28, 9)) as measured
    from accuracy

    union all

    select
        guard_code,
        subject,
        cast(measured as decimal(28, 9)) as measured
    from stripe_amount

    union all

    select
        guard_code,
        subject,
        cast(measured as decimal(28, 9)) as measured
    from stripe_ratio

    union all

    select
        guard_code,
        subject,
        cast(measured as decimal(28, 9)) as measured
    from stripe_ratio_of_meters

    union all

    select
        guard_code,
        subject,
        cast(measured as decimal(28, 9)) as measured
    from ingestion_error_rate

    union all

    select
        guard_code,
        subject,
        cast(measured as decimal(28, 9)) as measured
    from dropped_from_batches

    union all

    select
        guard_code,
        subject,
        cast(measured as decimal(28, 9)) as measured
    from dropped_by_metering

),

guard_measurements as (

    select
        measurements.guard_code,
        measurements.subject,
        measurements.measured,
        guard_thresholds.threshold,
        guard_thresholds.unit,
        {# Without a threshold nothing can be said to hold. #}
        coalesce(measurements.measured > guard_thresholds.threshold, true) as is_breach,
        guard_exceptions.accepted_up_to,
        case when measurements.measured <= guard_exceptions.accepted_up_to then guard_exceptions.reason end
            as exception_reason
    from measurements
    left join {{ ref('guard_thresholds') }} as guard_thresholds
        on measurements.guard_code = guard_thresholds.guard_code
    left join {{ ref('guard_exceptions') }} as guard_exceptions
        on
            measurements.guard_code = guard_exceptions.guard_code
            and measurements.subject = guard_exceptions.subject

)

select * from guard_measurements
