{# Usage by presentation dimensions, for the metrics that have any. #}
with

definitions as (

    select * from {{ ref('int_metric_definitions') }}
    where
        presentation_1_property is not null
        or presentation_2_property is not null
        or presentation_3_property is not null

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

plan_charges as (

    select * from {{ ref('int_plan_charges') }}

),

cuts as (

    select distinct
        service_periods.service_period_id,
        plan_charges.metric_code,
        service_periods.service_period_end_at as cut_at
    from service_periods
    inner join plan_charges
        on
            service_periods.subscription_id = plan_charges.subscription_id
            and service_periods.plan_code = plan_charges.plan_code
    inner join definitions
        on plan_charges.metric_code = definitions.metric_code

),

{{ quantities_at_cuts('cuts', ['dimensions', 'presentation_dimensions']) }}

select * from quantities_at_cuts
