{# Which grant pays which amount. Each grant takes the earliest amounts it may pay, in the order of the grants. A grant without
   rivals does so at once; rivals are worked off one after the other, in a chain of steps, since recursion with window functions is
   not portable. Grants that never compete for an amount share a step. The test assert_credit_grants_fit_the_steps fails where the
   steps do not suffice. #}
{% set steps = var('credit_burn_steps') %}

with

amounts as (

    select * from {{ ref('int_creditable_amounts') }}

),

grants_rounded as (

    select
        credit_grants.*,
        currencies.minor_units,
        {{ round_to_minor_units('credit_grants.amount', 'currencies.minor_units') }} as granted_amount
    from {{ ref('int_credit_grants') }} as credit_grants
    inner join {{ ref('currencies') }} as currencies
        on credit_grants.currency_code = currencies.currency_code

),

credit_grants as (

    select
        *,
        {{ in_minor_units('granted_amount', 'minor_units') }} as granted_minor
    from grants_rounded

),

grant_charges as (

    select * from {{ ref('credit_grant_charges') }}

),

grants_restricted as (

    select distinct grant_code
    from grant_charges

),

payable as (

    select
        amounts.creditable_amount_id,
        amounts.counts_at,
        amounts.due_at,
        amounts.line_id,
        amounts.amount_minor,
        credit_grants.credit_grant_id,
        credit_grants.customer_id,
        credit_grants.currency_code,
        credit_grants.granted_minor,
        credit_grants.priority,
        credit_grants.instance_end_at,
        credit_grants.cost_basis,
        credit_grants.created_at,
        credit_grants.grant_code,
        credit_grants.instance_start_at
    from amounts
    inner join credit_grants
        on
            amounts.customer_id = credit_grants.customer_id
            and amounts.currency_code = credit_grants.currency_code
            and amounts.counts_at >= credit_grants.instance_start_at
            and (credit_grants.instance_end_at is null or amounts.counts_at < credit_grants.instance_end_at)
    left join grants_restricted
        on credit_grants.grant_code = grants_restricted.grant_code
    left join grant_charges
        on
            credit_grants.grant_code = grant_charges.grant_code
            and amounts.charge_code = grant_charges.charge_code
    where grants_restricted.grant_code is null or grant_charges.grant_code is not null

),

grants_in_use as (

    select
        credit_grant_id,
        customer_id,
        currency_code,
        granted_minor,
        priority,
        instance_end_at,
        cost_basis,
        created_at,
        grant_code,
        instance_start_at,
        min(counts_at) as first_counts_at,
        max(counts_at) as last_counts_at
    from payable
    group by
        credit_grant_id,
        customer_id,
        currency_code,
        granted_minor,
        priority,
        instance_end_at,
        cost_basis,
        created_at,
        grant_code,
        instance_start_at

),

grants_after_a_gap as (

    select
        *,
        case
            when
                first_counts_at <= max(last_counts_at) over (
                    partition by customer_id, currency_code
                    order by first_counts_at, credit_grant_id
                    rows between unbounded preceding and 1 preceding
                )
                then 0
            else 1
        end as begins_group
    from grants_in_use

),

grant_groups as (

    select
        *,
        sum(begins_group) over (
            partition by customer_id, currency_code
            order by first_counts_at, credit_grant_id
            rows between unbounded preceding and current row
        ) as group_number
    from grants_after_a_gap

),

grants_ranked as (

    select
        *,
        count(*) over (partition by customer_id, currency_code, group_number) as rival_count,
        row_number() over (
            partition by customer_id, currency_code, group_number
            order by
                priority,
                coalesce(instance_end_at, cast('9999-12-31' as datetime)),
                cost_basis,
                created_at,
                grant_code,
                instance_start_at
        ) as burn_rank
    from grant_groups

),

{# Instances of one grant do not hold at the same time, so those that follow each other in the order share a step. #}
grants_after_another as (

    select
        *,
        case
            when
                lag(grant_code) over (partition by customer_id, currency_code, group_number order by burn_rank) = grant_code
                and lag(instance_end_at) over (partition by customer_id, currency_code, group_number order by burn_rank)
                <= instance_start_at
                then 0
            else 1
        end as begins_step
    from grants_ranked

),

grants_in_order as (

    select
        *,
        sum(begins_step) over (
            partition by customer_id, currency_code, group_number
            order by burn_rank
            rows between unbounded preceding and current row
        ) as burn_step
    from grants_after_another

),

payable_in_order as (

    select
        payable.creditable_amount_id,
        payable.counts_at,
        payable.due_at,
        payable.line_id,
        payable.amount_minor,
        payable.credit_grant_id,
        payable.granted_minor,
        grants_in_order.rival_count,
        grants_in_order.burn_step
    from payable
    inner join grants_in_order
        on payable.credit_grant_id = grants_in_order.credit_grant_id

),

payable_without_rivals as (

    select
        *,
        sum(amount_minor) over (
            partition by credit_grant_id
            order by counts_at, due_at, line_id
            rows between unbounded preceding and current row
        ) as running_minor
    from payable_in_order
    where rival_count = 1

),

burnt_without_rivals as (

    select
        credit_grant_id,
        line_id,
        burn_step,
        least(running_minor, granted_minor) - least(running_minor - amount_minor, granted_minor) as burnt_minor
    from payable_without_rivals

),

payable_with_rivals as (

    select * from payable_in_order
    where rival_count > 1

),

left_after_step_0 as (

    select distinct
        creditable_amount_id,
        counts_at,
        due_at,
        line_id,
        amount_minor as left_minor
    from payable_with_rivals

),

{% for step in range(1, steps + 1) %}
burnt_in_step_{{ step }} as (

    select
        amounts_left.*,
        case
            when payable.credit_grant_id is null then 0
            else least(
                amounts_left.left_minor,
                greatest(
                    payable.granted_minor - coalesce(
                        sum(amounts_left.left_minor) over (
                            partition by coalesce(payable.credit_grant_id, amounts_left.creditable_amount_id)
                            order by amounts_left.counts_at, amounts_left.due_at, amounts_left.line_id
                            rows between unbounded preceding and 1 preceding
                        ),
                        0
                    ),
                    0
                )
            )
        end as burnt_{{ step }}
    from left_after_step_{{ step - 1 }} as amounts_left
    left join payable_with_rivals as payable
        on
            amounts_left.creditable_amount_id = payable.creditable_amount_id
            and payable.burn_step = {{ step }}

),

left_after_step_{{ step }} as (

    select
        creditable_amount_id,
        counts_at,
        due_at,
        line_id,
        {%- for earlier in range(1, step + 1) %}
        burnt_{{ earlier }},
        {%- endfor %}
        left_minor - burnt_{{ step }} as left_minor
    from burnt_in_step_{{ step }}

),
{% endfor %}

burnt as (

    select
        payable.credit_grant_id,
        payable.line_id,
        payable.burn_step,
        case payable.burn_step
            {%- for step in range(1, steps + 1) %}
            when {{ step }} then amounts_left.burnt_{{ step }}
            {%- endfor %}
        end as burnt_minor
    from payable_with_rivals as payable
    inner join left_after_step_{{ steps }} as amounts_left
        on payable.creditable_amount_id = amounts_left.creditable_amount_id

    union all

    select * from burnt_without_rivals

),

credit_burndown as (

    select
        credit_grant_id,
        line_id as paid_line_id,
        burn_step,
        cast(sum(burnt_minor) as bigint) as burnt_minor
    from burnt
    group by
        credit_grant_id,
        line_id,
        burn_step

)

select * from credit_burndown
