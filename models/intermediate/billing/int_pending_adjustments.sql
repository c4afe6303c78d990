{# A view for the same reason as int_line_differences. #}
{{ config(materialized='view') }}

with

adjustments as (

    select * from {{ ref('int_line_differences') }}
    where entry_kind = 'adjustment'

),

terms as (

    select * from {{ ref('int_service_period_terms') }}

),

closed_terms as (

    select
        service_period_id,
        billing_period,
        max_by(terms_hash, recorded_at) as terms_hash,
        max_by(run_id, recorded_at) as run_id
    from {{ source('ledger', 'closed_terms') }}
    group by service_period_id, billing_period

),

approvals as (

    select * from {{ ref('rerating_approvals') }}

),

adjustments_with_terms as (

    select
        adjustments.*,
        coalesce(terms.terms_hash, 'none') as terms_hash,
        coalesce(terms.terms_hash, 'none') <> coalesce(closed_terms.terms_hash, 'none') as is_rerated,
        {# The run that billed other terms is part of it: prices that come back need a new approval. #}
        {{ surrogate_key([
            'adjustments.service_period_id', 'adjustments.original_billing_period', 'terms.terms_hash', 'closed_terms.run_id'
        ]) }} as rerating_id
    from adjustments
    left join terms
        on adjustments.service_period_id = terms.service_period_id
    left join closed_terms
        on
            adjustments.service_period_id = closed_terms.service_period_id
            and adjustments.original_billing_period = closed_terms.billing_period

),

adjustments_with_approvals as (

    select
        adjustments_with_terms.*,
        approvals.approved_by,
        adjustments_with_terms.is_rerated and approvals.rerating_id is null as needs_approval
    from adjustments_with_terms
    left join approvals
        on adjustments_with_terms.rerating_id = approvals.rerating_id

),

{# Rollover, credits and commitments carry an unapproved price on into service periods that end after its own began, whose own
   terms are the same; also into longer ones that began before it. #}
first_unapproved as (

    select
        customer_id,
        min(service_period_start_at) as service_period_start_at
    from adjustments_with_approvals
    where needs_approval
    group by customer_id

),

{# A change that moves lines takes some back and bills others: half of it must not be billed. #}
subscriptions_with_unapproved as (

    select distinct subscription_id
    from adjustments_with_approvals
    where needs_approval

),

pending_adjustments as (

    select
        adjustments.*,
        case when adjustments.is_rerated then 're_rating' else 'usage' end as cause,
        case
            when adjustments.needs_approval then 'needs_approval'
            when first_unapproved.service_period_start_at < adjustments.service_period_end_at then 'behind_rerating'
            when adjustments.is_rerated and subscriptions_with_unapproved.subscription_id is not null then 'behind_rerating'
            else 'ready'
        end as adjustment_status
    from adjustments_with_approvals as adjustments
    left join first_unapproved
        on adjustments.customer_id = first_unapproved.customer_id
    left join subscriptions_with_unapproved
        on adjustments.subscription_id = subscriptions_with_unapproved.subscription_id

)

select * from pending_adjustments
