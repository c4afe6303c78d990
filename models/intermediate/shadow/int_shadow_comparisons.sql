with

shadow_billing as (

    select * from {{ ref('stg_shadow_billing') }}

),

rated_lines as (

    select * from {{ ref('fct_rated_lines') }}

),

rated_tiers as (

    select * from {{ ref('fct_rated_line_tiers') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

windows as (

    select * from {{ ref('int_shadow_windows') }}

),

customers as (

    select * from {{ ref('stg_customers') }}

),

plans as (

    select * from {{ ref('plans') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

charges as (

    select
        charges.charge_code,
        max(charges.metric_code) as metric_code,
        max(charges.charge_model) as charge_model,
        max(plans.currency_code) as currency_code
    from {{ ref('charges') }} as charges
    inner join plans
        on charges.plan_code = plans.plan_code
    group by charges.charge_code

),

{# A system is held against us where it has rows: in the periods it covers, and there by charge or by invoice, as it has them. #}
systems_in_periods as (

    select
        system,
        billing_period,
        max(case when charge_code <> '' then 1 else 0 end) = 1 as has_charges
    from shadow_billing
    group by system, billing_period

),

covered_periods as (

    select distinct billing_period from systems_in_periods

),

levels_of_customers as (

    select distinct
        system,
        billing_period,
        customer_id,
        charge_code <> '' as is_by_charge
    from shadow_billing

),

tiers_by_line as (

    select
        line_id,
        count(*) as tier_count
    from rated_tiers
    group by line_id

),

{# How often another system may have rounded what a line is: once, once a tier, or with each fee of an event. #}
lines_in_covered_periods as (

    select
        rated_lines.*,
        definitions.is_cumulative,
        greatest(coalesce(tiers_by_line.tier_count, 1), 1)
        + case
            when rated_lines.charge_model in ('percentage', 'graduated_percentage') then rated_lines.event_count
            else 0
        end as roundings
    from rated_lines
    left join definitions
        on rated_lines.metric_code = definitions.metric_code
    left join tiers_by_line
        on rated_lines.line_id = tiers_by_line.line_id
    inner join covered_periods
        on rated_lines.billing_period = covered_periods.billing_period

),

{# Each price of a service period has the whole quantity of a gauge. #}
quantities_by_service_period as (

    select
        customer_id,
        billing_period,
        charge_code,
        currency_code,
        case when is_cumulative then sum(metered_quantity) else max(metered_quantity) end as quantity
    from lines_in_covered_periods
    where line_type = 'usage'
    group by
        customer_id,
        billing_period,
        charge_code,
        currency_code,
        service_period_id,
        dimensions,
        is_cumulative

),

quantities_by_charge as (

    select
        customer_id,
        billing_period,
        charge_code,
        currency_code,
        cast(sum(quantity) as {{ quantity_total_type() }}) as quantity
    from quantities_by_service_period
    group by
        customer_id,
        billing_period,
        charge_code,
        currency_code

),

amounts_by_charge as (

    select
        customer_id,
        billing_period,
        charge_code,
        currency_code,
        sum(amount) as amount,
        sum(roundings) as roundings,
        sum(event_count) as event_count
    from lines_in_covered_periods
    where line_type in ('usage', 'flat', 'minimum')
    group by
        customer_id,
        billing_period,
        charge_code,
        currency_code

),

our_amounts as (

    select
        true as is_by_charge,
        amounts.customer_id,
        amounts.billing_period,
        amounts.charge_code,
        amounts.currency_code,
        quantities.quantity,
        case when quantities.quantity is not null then amounts.event_count end as event_count,
        amounts.amount,
        amounts.roundings
    from amounts_by_charge as amounts
    left join quantities_by_charge as quantities
        on
            amounts.customer_id = quantities.customer_id
            and amounts.billing_period = quantities.billing_period
            and amounts.charge_code = quantities.charge_code
            and amounts.currency_code = quantities.currency_code

    union all

    select
        false as is_by_charge,
        customer_id,
        billing_period,
        '' as charge_code,
        currency_code,
        null as quantity,
        null as event_count,
        sum(amount) as amount,
        sum(roundings) as roundings
    from lines_in_covered_periods
    group by customer_id, billing_period, currency_code

),

customers_in_periods as (

    select distinct
        system,
        billing_period,
        customer_id
    from levels_of_customers

),

our_amounts_in_scope as (

    select
        systems.system,
        our_amounts.*
    from our_amounts
    inner join systems_in_periods as systems
        on our_amounts.billing_period = systems.billing_period
    left join levels_of_customers as levels
        on
            systems.system = levels.system
            and our_amounts.billing_period = levels.billing_period
            and our_amounts.customer_id = levels.customer_id
            and our_amounts.is_by_charge = levels.is_by_charge
    left join customers_in_periods as present
        on
            systems.system = present.system
            and our_amounts.billing_period = present.billing_period
            and our_amounts.customer_id = present.customer_id
    where
        levels.system is not null
        or (present.system is null and our_amounts.is_by_charge = systems.has_charges)

),

both_sides as (

    select
        coalesce(ours.system, theirs.system) as system,  -- noqa: RF04
        coalesce(ours.customer_id, theirs.customer_id) as customer_id,
        coalesce(ours.billing_period, theirs.billing_period) as billing_period,
        coalesce(ours.charge_code, theirs.charge_code) as charge_code,
        coalesce(ours.currency_code, theirs.currency_code) as currency_code,
        ours.system is not null as has_ours,
        theirs.system is not null as has_theirs,
        coalesce(ours.amount, 0) as ours_amount,
        coalesce(theirs.amount, 0) as theirs_amount,
        ours.quantity as ours_quantity,
        theirs.quantity as theirs_quantity,
        ours.event_count as ours_event_count,
        theirs.event_count as theirs_event_count,
        coalesce(ours.roundings, 1) as roundings
    from our_amounts_in_scope as ours
    full outer join shadow_billing as theirs
        on
            ours.system = theirs.system
            and ours.customer_id = theirs.customer_id
            and ours.billing_period = theirs.billing_period
            and ours.charge_code = theirs.charge_code
            and ours.currency_code = theirs.currency_code

),

charges_in_covered_periods as (

    select distinct
        customer_id,
        billing_period,
        charge_code
    from windows

),

currencies_in_covered_periods as (

    select distinct
        windows.customer_id,
        windows.billing_period,
        plans.currency_code
    from windows
    inner join plans
        on windows.plan_code = plans.plan_code

),

{# What one side has and the other cannot have, since it knows no such customer, charge or currency. #}
comparisons_with_mapping as (

    select
        both_sides.*,
        charges.metric_code,
        charges.charge_model,
        currencies.minor_units,
        case
            when both_sides.has_ours then null
            when customers.customer_id is null then 'customer ' || both_sides.customer_id || ' is not known here'
            when currencies.currency_code is null then 'currency ' || both_sides.currency_code || ' is not known here'
            when both_sides.charge_code <> '' and charges.charge_code is null
                then 'charge ' || both_sides.charge_code || ' is not known here'
            when charges.currency_code <> both_sides.currency_code
                then 'charge ' || both_sides.charge_code || ' is billed in ' || charges.currency_code || ' here'
            when both_sides.charge_code <> '' and charged.charge_code is null
                then 'no subscription of the customer has charge ' || both_sides.charge_code || ' in this period here'
            when both_sides.charge_code = '' and billed_in.currency_code is null
                then 'no subscription of the customer is billed in ' || both_sides.currency_code || ' in this period here'
        end as unknown_here
    from both_sides
    left join customers
        on both_sides.customer_id = customers.customer_id
    left join charges
        on both_sides.charge_code = charges.charge_code
    left join currencies
        on both_sides.currency_code = currencies.currency_code
    left join charges_in_covered_periods as charged
        on
            both_sides.customer_id = charged.customer_id
            and both_sides.billing_period = charged.billing_period
            and both_sides.charge_code = charged.charge_code
    left join currencies_in_covered_periods as billed_in
        on
            both_sides.customer_id = billed_in.customer_id
            and both_sides.billing_period = billed_in.billing_period
            and both_sides.currency_code = billed_in.currency_code

),

known_there as (

    select
        system,
        'customer' as kind,
        customer_id as code
    from shadow_billing

    union

    select
        system,
        'charge' as kind,
        charge_code as code
    from shadow_billing

    union

    select
        system,
        'currency' as kind,
        currency_code as code
    from shadow_billing

),

other_currencies_there as (

    select
        system,
        customer_id,
        billing_period,
        charge_code,
        min(currency_code) as currency_code
    from shadow_billing
    group by
        system,
        customer_id,
        billing_period,
        charge_code

),

comparisons as (

    select
        {{ surrogate_key([
            'comparisons.system', 'comparisons.customer_id', 'comparisons.billing_period', 'comparisons.charge_code',
            'comparisons.currency_code'
        ]) }} as shadow_billing_id,
        comparisons.system,
        comparisons.customer_id,
        comparisons.billing_period,
        comparisons.charge_code,
        comparisons.currency_code,
        comparisons.metric_code,
        comparisons.charge_model,
        comparisons.minor_units,
        comparisons.has_ours,
        comparisons.has_theirs,
        cast(comparisons.ours_amount as {{ quantity_total_type() }}) as ours_amount,
        cast(comparisons.theirs_amount as {{ quantity_total_type() }}) as theirs_amount,
        {# No row is no usage, as far as usage is charged. #}
        cast(
            case
                when comparisons.has_ours or comparisons.metric_code is null then comparisons.ours_quantity
                else 0
            end as {{ quantity_total_type() }}
        ) as ours_quantity,
        cast(
            case
                when comparisons.has_theirs or comparisons.metric_code is null then comparisons.theirs_quantity
                else 0
            end as {{ quantity_total_type() }}
        ) as theirs_quantity,
        cast(
            case
                when comparisons.has_ours or comparisons.metric_code is null then comparisons.ours_event_count
                else 0
            end as bigint
        ) as ours_event_count,
        cast(
            case
                when comparisons.has_theirs or comparisons.metric_code is null then comparisons.theirs_event_count
                else 0
            end as bigint
        ) as theirs_event_count,
        cast(comparisons.roundings as bigint) as roundings,
        comparisons.unknown_here,
        case
            when comparisons.has_theirs then null
            when known_customers.code is null
                then 'customer ' || comparisons.customer_id || ' is not known to ' || comparisons.system
            when currencies_there.currency_code is not null
                then comparisons.system || ' bills it in ' || currencies_there.currency_code
            when known_charges.code is null
                then 'charge ' || comparisons.charge_code || ' is not known to ' || comparisons.system
            when known_currencies.code is null
                then 'currency ' || comparisons.currency_code || ' is not known to ' || comparisons.system
        end as unknown_there
    from comparisons_with_mapping as comparisons
    left join known_there as known_customers
        on
            comparisons.system = known_customers.system
            and known_customers.kind = 'customer'
            and comparisons.customer_id = known_customers.code
    left join known_there as known_charges
        on
            comparisons.system = known_charges.system
            and known_charges.kind = 'charge'
            and comparisons.charge_code = known_charges.code
    left join known_there as known_currencies
        on
            comparisons.system = known_currencies.system
            and known_currencies.kind = 'currency'
            and comparisons.currency_code = known_currencies.code
    left join other_currencies_there as currencies_there
        on
            comparisons.system = currencies_there.system
            and comparisons.customer_id = currencies_there.customer_id
            and comparisons.billing_period = currencies_there.billing_period
            and comparisons.charge_code = currencies_there.charge_code

)

select * from comparisons
