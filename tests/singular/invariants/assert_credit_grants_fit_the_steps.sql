{{ config(
    group='metering',
    meta={
        'rule': 'no more credit grants of a customer compete for the same amounts than the variable credit_burn_steps provides for; raise it in dbt_project.yml',
        'dagster': {'ref': {'name': 'credit_grants'}}
    }
) }}
-- A returned row is an instance of a grant that comes too late in the order to be burnt.

select
    credit_grants.grant_code,
    credit_grants.customer_id,
    burndown.burn_step
from {{ ref('int_credit_burndown') }} as burndown
inner join {{ ref('int_credit_grants') }} as credit_grants
    on burndown.credit_grant_id = credit_grants.credit_grant_id
where burndown.burn_step > {{ var('credit_burn_steps') }}
