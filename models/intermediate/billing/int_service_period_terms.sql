{# What the price book says about a service period, as one hash: a line that differs from the ledger although the hash is the
   same differs by its usage; where the hash differs, somebody changed a price or what makes an event valid, and has to approve what
   that does to closed lines. #}
with

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

charges as (

    select * from {{ ref('charges') }}

),

tiers as (

    select * from {{ ref('charge_tiers') }}

),

percentage_terms as (

    select * from {{ ref('percentage_terms') }}

),

included_quantities as (

    select * from {{ ref('int_included_quantities') }}

),

discounts as (

    select * from {{ ref('discounts') }}

),

commitments as (

    select * from {{ ref('commitments') }}

),

commitments_due as (

    select * from {{ ref('int_commitments_due') }}

),

credit_grants as (

    select * from {{ ref('int_credit_grants') }}

),

credit_grant_charges as (

    select * from {{ ref('credit_grant_charges') }}

),

plans as (

    select * from {{ ref('plans') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

event_contracts as (

    select * from {{ ref('stg_event_contracts') }}

),

event_policy as (

    select * from {{ ref('stg_event_policy') }}

),

event_types as (

    select * from {{ ref('event_types') }}

),

{# All versions of an event type: a change of one of them lets events of the past in or out. #}
rules_of_event_types as (

    select
        event_contracts.event_type,
        {{ dbt.listagg(
            surrogate_key([
                'event_contracts.schema_version', 'event_contracts.property_rules_hash',
                'coalesce(event_types.late_events, event_policy.late_event_policy)', 'event_policy.grace_period_hours',
                'event_policy.future_tolerance_minutes'
            ]),
            "','",
            'order by event_contracts.schema_version'
        ) }} as event_rules
    from event_contracts
    inner join event_types
        on
            event_contracts.event_type = event_types.event_type
            and event_contracts.schema_version = event_types.schema_version
    cross join event_policy
    group by event_contracts.event_type

),

tiers_by_version as (

    select
        charge_code,
        price_version,
        {{ dbt.listagg(
            surrogate_key([
                'dimension_1_value', 'dimension_2_value', 'dimension_3_value', 'tier_number', 'up_to', 'package_size',
                'unit_amount', 'flat_amount'
            ]),
            "','",
            'order by dimension_1_value, dimension_2_value, dimension_3_value, tier_number'
        ) }} as tier_terms
    from tiers
    group by charge_code, price_version

),

{# Service periods of charges with rollover, in their order; each that lets nothing through begins a chain of its own. #}
charges_with_rollover as (

    select distinct
        service_periods.subscription_id,
        service_periods.plan_code,
        included_quantities.charge_code
    from included_quantities
    inner join service_periods
        on included_quantities.service_period_id = service_periods.service_period_id
    where included_quantities.rollover_limit > 0

),

entitlements_in_order as (

    select
        service_periods.service_period_id,
        service_periods.subscription_id,
        service_periods.plan_code,
        charges_with_rollover.charge_code,
        service_periods.service_period_number,
        {{ event_key_number(surrogate_key([
            'service_periods.service_period_number', 'included_quantities.included_quantity', 'included_quantities.rollover_limit'
        ])) }} as entitlement_number,
        lag(coalesce(included_quantities.rollover_limit, 0), 1, 0) over (
            partition by
                service_periods.subscription_id, service_periods.plan_code, charges_with_rollover.charge_code
            order by service_periods.service_period_number
        ) as rollover_limit_before
    from charges_with_rollover
    inner join service_periods
        on
            charges_with_rollover.subscription_id = service_periods.subscription_id
            and charges_with_rollover.plan_code = service_periods.plan_code
    left join included_quantities
        on
            service_periods.service_period_id = included_quantities.service_period_id
            and charges_with_rollover.charge_code = included_quantities.charge_code

),

entitlement_chains as (

    select
        *,
        sum(case when rollover_limit_before > 0 then 0 else 1 end) over (
            partition by subscription_id, plan_code, charge_code
            order by service_period_number
            rows between unbounded preceding and current row
        ) as chain_number
    from entitlements_in_order

),

rolled_over_terms as (

    select
        service_period_id,
        charge_code,
        rollover_limit_before,
        sum(entitlement_number) over (
            partition by subscription_id, plan_code, charge_code, chain_number
            order by service_period_number
            rows between unbounded preceding and current row
        ) as chain_terms
    from entitlement_chains

),

charges_of_grants as (

    select
        grant_code,
        {{ dbt.listagg('charge_code', "','", 'order by charge_code') }} as charge_codes
    from credit_grant_charges
    group by grant_code

),

charges_of_periods as (

    select distinct
        service_period_id,
        charge_code
    from price_segments

),

terms as (

    select
        service_periods.service_period_id,
        'period' as term_kind,
        {{ surrogate_key([
            'service_periods.plan_code', 'service_periods.time_zone', 'service_periods.full_days',
            timestamp_text('service_periods.service_period_start_at'), timestamp_text('service_periods.service_period_end_at'),
            'plans.billing_interval', 'plans.currency_code', 'currencies.minor_units'
        ]) }} as term
    from service_periods
    inner join plans
        on service_periods.plan_code = plans.plan_code
    inner join currencies
        on plans.currency_code = currencies.currency_code

    union all

    select
        price_segments.service_period_id,
        'price' as term_kind,
        {{ surrogate_key([
            'price_segments.charge_code', timestamp_text('price_segments.segment_start_at'),
            timestamp_text('price_segments.segment_end_at'), 'charges.charge_name', 'charges.charge_model',
            'charges.billing_timing', 'charges.proration', 'charges.zero_usage', 'charges.minimum_amount',
            'charges.maximum_amount', 'tiers_by_version.tier_terms', 'percentage_terms.free_events',
            'percentage_terms.free_amount', 'percentage_terms.event_fixed_amount', 'percentage_terms.event_minimum_amount',
            'percentage_terms.event_maximum_amount', 'definitions.definition_hash', 'definitions.unit_size',
            'definitions.quantity_rounding', 'definitions.quantity_rounding_step', 'definitions.metering_period',
            'definitions.period_aggregation', 'definitions.percentile', 'rules_of_event_types.event_rules'
        ]) }} as term
    from price_segments
    inner join charges
        on
            price_segments.charge_code = charges.charge_code
            and price_segments.price_version = charges.price_version
    left join tiers_by_version
        on
            price_segments.charge_code = tiers_by_version.charge_code
            and price_segments.price_version = tiers_by_version.price_version
    left join percentage_terms
        on
            price_segments.charge_code = percentage_terms.charge_code
            and price_segments.price_version = percentage_terms.price_version
    left join definitions
        on price_segments.metric_code = definitions.metric_code
    left join rules_of_event_types
        on definitions.event_type = rules_of_event_types.event_type

    union all

    {# A version that retires after the grace takes nothing from the period that has been billed. #}
    select distinct
        price_segments.service_period_id,
        'retirement' as term_kind,
        {{ surrogate_key([
            'event_contracts.event_type', 'event_contracts.schema_version', timestamp_text('event_contracts.retired_at')
        ]) }} as term
    from price_segments
    inner join service_periods
        on price_segments.service_period_id = service_periods.service_period_id
    inner join definitions
        on price_segments.metric_code = definitions.metric_code
    inner join event_contracts
        on definitions.event_type = event_contracts.event_type
    cross join event_policy
    where
        event_contracts.retired_at
        <= {{ dbt.dateadd('hour', 'event_policy.grace_period_hours', 'service_periods.service_period_end_at') }}

    union all

    select
        service_period_id,
        'entitlement' as term_kind,
        {{ surrogate_key(['charge_code', 'included_quantity', 'rollover_limit']) }} as term
    from included_quantities

    union all

    {# What earlier service periods may have left over came by their entitlements. #}
    select
        service_period_id,
        'rollover' as term_kind,
        {{ surrogate_key(['charge_code', 'chain_terms']) }} as term
    from rolled_over_terms
    where rollover_limit_before > 0

    union all

    select
        service_periods.service_period_id,
        'discount' as term_kind,
        {{ surrogate_key([
            'discounts.discount_code', 'discounts.charge_code', 'discounts.discount_type', 'discounts.percentage',
            'discounts.amount'
        ]) }} as term
    from service_periods
    inner join plans
        on service_periods.plan_code = plans.plan_code
    inner join discounts
        on
            (discounts.customer_id is null or service_periods.customer_id = discounts.customer_id)
            and (discounts.plan_code is null or service_periods.plan_code = discounts.plan_code)
            and (discounts.currency_code is null or plans.currency_code = discounts.currency_code)
            and service_periods.service_period_start_at >= {{ local_to_utc('discounts.valid_from', 'service_periods.time_zone') }}
            and (
                discounts.valid_to is null
                or service_periods.service_period_start_at < {{ local_to_utc('discounts.valid_to', 'service_periods.time_zone') }}
            )
    {# A discount on a charge that the service period does not have is none of its terms. #}
    left join charges_of_periods
        on
            service_periods.service_period_id = charges_of_periods.service_period_id
            and discounts.charge_code = charges_of_periods.charge_code
    where discounts.charge_code is null or charges_of_periods.charge_code is not null

    union all

    select
        service_periods.service_period_id,
        'commitment' as term_kind,
        {{ surrogate_key([
            'commitments.commitment_code', 'commitments.currency_code', 'commitments.amount', 'commitments.true_up',
            timestamp_text('commitments.valid_from'), timestamp_text('commitments.valid_to')
        ]) }} as term
    from service_periods
    inner join commitments
        on
            service_periods.subscription_id = commitments.subscription_id
            and service_periods.service_period_end_at
            > {{ local_to_utc('commitments.valid_from', 'service_periods.time_zone') }}
            and (
                commitments.valid_to is null
                or service_periods.service_period_start_at
                < {{ local_to_utc('commitments.valid_to', 'service_periods.time_zone') }}
            )

    union all

    {# By the days of all phases in the full period, also those of another plan. That of a term is its amount. #}
    select
        service_period_id,
        'true-up' as term_kind,
        {{ surrogate_key(['commitment_code', 'committed_minor']) }} as term
    from commitments_due
    where true_up = 'service_period'

    union all

    select
        service_periods.service_period_id,
        'credit' as term_kind,
        {{ surrogate_key([
            'credit_grants.credit_grant_id', 'credit_grants.currency_code', 'credit_grants.amount', 'credit_grants.priority',
            'credit_grants.cost_basis', timestamp_text('credit_grants.created_at'),
            timestamp_text('credit_grants.instance_end_at'), 'charges_of_grants.charge_codes'
        ]) }} as term
    from service_periods
    inner join credit_grants
        on
            service_periods.customer_id = credit_grants.customer_id
            and service_periods.service_period_end_at > credit_grants.instance_start_at
            and (
                credit_grants.instance_end_at is null
                or service_periods.service_period_start_at < credit_grants.instance_end_at
            )
    left join charges_of_grants
        on credit_grants.grant_code = charges_of_grants.grant_code

),

service_period_terms as (

    select
        service_period_id,
        {{ dbt.hash(dbt.listagg('term', "','", 'order by term_kind, term')) }} as terms_hash
    from terms
    group by service_period_id

)

select * from service_period_terms
