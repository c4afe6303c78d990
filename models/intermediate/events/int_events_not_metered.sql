{# What is left of the metering, so that nothing is left out without a reason. #}
with

event_corrections as (

    select * from {{ ref('int_event_corrections') }}

),

applied_corrections as (

    select * from event_corrections
    where status = 'applied'

),

{# A replacement that applies counts; a void never does. #}
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

),

events_not_metered_by_hour as (

    select
        *,
        {{ dbt.date_trunc('hour', 'occurred_at') }} as occurred_hour_at
    from events_not_metered

)

select * from events_not_metered_by_hour
