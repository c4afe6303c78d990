{# What is left out of the metering, so that nothing is left out without a reason. #}
with

event_corrections as (

    select * from {{ ref('int_event_corrections') }}

),

applied_corrections as (

    select * from event_corrections
    where status = 'applied'

),

late_events_held as (

    select * from {{ ref('int_late_events') }}
    where status in ('waiting', 'rejected')

),

{# A replacement that applies counts; a void never does. Of an event that is held and corrected in time, the correction counts. #}
events_not_metered as (

    select
        idempotency_key,
        customer_id,
        event_type,
        case when status = 'applied' then 'void' else status end as reason_code,
        occurred_at
    from event_corrections
    where status <> 'applied' or correction = 'void'

    union all

    select
        corrected_key as idempotency_key,
        customer_id,
        event_type,
        case when correction = 'void' then 'voided' else 'replaced' end as reason_code,
        corrected_occurred_at as occurred_at
    from applied_corrections

    union all

    select
        late_events_held.idempotency_key,
        late_events_held.customer_id,
        late_events_held.event_type,
        'late_' || late_events_held.status as reason_code,
        late_events_held.occurred_at
    from late_events_held
    left join event_corrections
        on late_events_held.idempotency_key = event_corrections.idempotency_key
    left join applied_corrections
        on late_events_held.idempotency_key = applied_corrections.corrected_key
    where event_corrections.idempotency_key is null and applied_corrections.corrected_key is null

),

events_not_metered_by_hour as (

    select
        *,
        {{ dbt.date_trunc('hour', 'occurred_at') }} as occurred_hour_at
    from events_not_metered

)

select * from events_not_metered_by_hour
