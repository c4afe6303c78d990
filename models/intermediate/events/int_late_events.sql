{# Nothing is looked for where late events count anyway: with the default policy and no decision, history is not read. #}
with

events {{ as_inlined() }} (

    select
        idempotency_key,
        customer_id,
        batch_id,
        event_type,
        schema_version,
        occurred_at,
        received_at
    from {{ ref('stg_usage_events') }}

),

chains as (

    select * from {{ ref('int_correction_chains') }}

),

reviews as (

    select * from {{ ref('late_event_reviews') }}

),

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

event_types as (

    select
        event_types.event_type,
        event_types.schema_version,
        coalesce(event_types.late_events, event_policy.late_event_policy) as late_event_policy,
        event_policy.grace_period_hours
    from {{ ref('event_types') }} as event_types
    cross join {{ ref('stg_event_policy') }} as event_policy

),

event_types_held as (

    select * from event_types
    where late_event_policy <> 'adjust'

),

few_event_types_held as (

    {{ few_rows('event_types_held', ['event_type', 'schema_version', 'grace_period_hours']) }}

),

reviewed_events as (

    select * from reviews
    where idempotency_key is not null

),

few_reviewed_events as (

    {{ few_rows('reviewed_events', ['idempotency_key']) }}

),

reviewed_batches as (

    select * from reviews
    where batch_id is not null

),

few_reviewed_batches as (

    {{ few_rows('reviewed_batches', ['batch_id']) }}

),

{# What was received before even the grace from its own time was over is not late for any service period. A correction may be late
   by the event that it corrects. #}
candidates as (

    select events.*
    from events
    inner join few_event_types_held as event_types
        on
            events.event_type = event_types.event_type
            and events.schema_version = event_types.schema_version
    where events.received_at > {{ dbt.dateadd('hour', 'event_types.grace_period_hours', 'events.occurred_at') }}

    union

    select events.*
    from events
    inner join few_reviewed_events as reviewed_events
        on events.idempotency_key = reviewed_events.idempotency_key

    union

    select events.*
    from events
    inner join few_reviewed_batches as reviewed_batches
        on events.batch_id = reviewed_batches.batch_id

    union

    select
        idempotency_key,
        customer_id,
        batch_id,
        event_type,
        schema_version,
        occurred_at,
        received_at
    from chains

),

candidates_with_decisions as (

    select
        candidates.*,
        event_types.late_event_policy,
        event_types.grace_period_hours,
        coalesce(reviewed_events.decision, reviewed_batches.decision) as decision,
        {%- for column in ['decided_by', 'decided_on', 'reason'] %}
        case
            when reviewed_events.decision is not null then reviewed_events.{{ column }}
            else reviewed_batches.{{ column }}
        end as {{ 'decision_reason' if column == 'reason' else column }},
        {%- endfor %}
        chains.corrected_occurred_at
    from candidates
    inner join event_types
        on
            candidates.event_type = event_types.event_type
            and candidates.schema_version = event_types.schema_version
    left join reviewed_events
        on candidates.idempotency_key = reviewed_events.idempotency_key
    left join reviewed_batches
        on candidates.batch_id = reviewed_batches.batch_id
    left join chains
        on candidates.idempotency_key = chains.idempotency_key

),

candidates_that_may_be_listed as (

    select * from candidates_with_decisions
    where late_event_policy <> 'adjust' or decision is not null

),

{# A later correction takes away what an earlier replacement counts. #}
instants as (

    select
        idempotency_key,
        customer_id,
        event_type,
        cast(null as varchar) as replacement_key,
        occurred_at as instant
    from candidates_that_may_be_listed

    union

    select
        idempotency_key,
        customer_id,
        event_type,
        cast(null as varchar) as replacement_key,
        corrected_occurred_at as instant
    from candidates_that_may_be_listed
    where corrected_occurred_at is not null

    union

    select
        candidates.idempotency_key,
        candidates.customer_id,
        candidates.event_type,
        replacements.idempotency_key as replacement_key,
        replacements.occurred_at as instant
    from candidates_that_may_be_listed as candidates
    inner join chains
        on candidates.idempotency_key = chains.idempotency_key
    inner join chains as replacements
        on
            chains.corrected_key = replacements.corrected_key
            and (
                chains.received_at > replacements.received_at
                or (
                    chains.received_at = replacements.received_at
                    and (
                        chains.batch_id > replacements.batch_id
                        or (chains.batch_id = replacements.batch_id and chains.line_number > replacements.line_number)
                    )
                )
            )
    where
        replacements.correction = 'replace'
        and replacements.customer_id = replacements.corrected_customer_id
        and replacements.event_type = replacements.corrected_event_type

),

{# Usage that no service period prices can be late for none. #}
priced_event_types as (

    select distinct
        plan_charges.subscription_id,
        plan_charges.plan_code,
        definitions.event_type
    from plan_charges
    inner join definitions
        on plan_charges.metric_code = definitions.metric_code

),

service_periods_of_instants as (

    select
        instants.idempotency_key,
        instants.replacement_key,
        service_periods.service_period_id,
        service_periods.subscription_id,
        service_periods.billing_period,
        service_periods.service_period_start_at,
        service_periods.service_period_end_at
    from instants
    inner join parts
        on
            instants.customer_id = parts.customer_id
            and instants.instant >= parts.part_start_at
            and instants.instant < parts.part_end_at
    inner join priced_event_types
        on
            parts.subscription_id = priced_event_types.subscription_id
            and parts.plan_code = priced_event_types.plan_code
            and instants.event_type = priced_event_types.event_type
    inner join service_periods
        on parts.service_period_id = service_periods.service_period_id

),

{# A replacement that was rejected for being late has never counted. #}
rejected_by_themselves as (

    select candidates.idempotency_key
    from candidates_that_may_be_listed as candidates
    inner join service_periods_of_instants as instants
        on candidates.idempotency_key = instants.idempotency_key
    where
        instants.replacement_key is null
        and coalesce(candidates.decision, candidates.late_event_policy) = 'reject'
    group by
        candidates.idempotency_key,
        candidates.received_at,
        candidates.grace_period_hours
    having candidates.received_at > {{ dbt.dateadd(
        'hour', 'candidates.grace_period_hours', 'min(instants.service_period_end_at)'
    ) }}

),

service_periods_of_candidates as (

    select
        instants.*,
        row_number() over (
            partition by instants.idempotency_key
            order by instants.service_period_end_at, instants.service_period_id
        ) as ending
    from service_periods_of_instants as instants
    left join rejected_by_themselves
        on instants.replacement_key = rejected_by_themselves.idempotency_key
    where rejected_by_themselves.idempotency_key is null

),

candidates_in_service_periods as (

    select
        candidates.*,
        service_periods.service_period_id,
        service_periods.subscription_id,
        service_periods.billing_period,
        service_periods.service_period_start_at,
        service_periods.service_period_end_at
    from candidates_that_may_be_listed as candidates
    inner join service_periods_of_candidates as service_periods
        on
            candidates.idempotency_key = service_periods.idempotency_key
            and service_periods.ending = 1

),

candidates_with_deadlines as (

    select
        *,
        {{ dbt.dateadd('hour', 'grace_period_hours', 'service_period_end_at') }} as grace_ended_at
    from candidates_in_service_periods

),

late_events as (

    select
        ---------- ids
        idempotency_key,
        customer_id,
        batch_id,
        subscription_id,
        service_period_id,

        ---------- strings
        event_type,
        billing_period,
        late_event_policy,
        decision,
        decided_by,
        decision_reason,
        case
            when decision = 'accept' then 'accepted'
            when decision = 'reject' or late_event_policy = 'reject' then 'rejected'
            else 'waiting'
        end as status,

        ---------- numerics
        {{ dbt.datediff('grace_ended_at', 'received_at', 'second') }} as late_seconds,  -- noqa: LT05

        ---------- timestamps
        decided_on,
        occurred_at,
        received_at,
        service_period_start_at,
        service_period_end_at,
        grace_ended_at
    from candidates_with_deadlines
    where received_at > grace_ended_at

)

select * from late_events
