{# All lines of all kinds, in one shape. A view: the mart is the table. #}
{{ config(materialized='view') }}

with

rated_charges as (

    select * from {{ ref('int_rated_charges') }}

),

limited_charges as (

    select * from {{ ref('int_limited_charges') }}

),

minimum_true_ups as (

    select * from {{ ref('int_minimum_true_ups') }}

),

commitment_true_ups as (

    select * from {{ ref('int_commitment_true_ups') }}

),

credit_burndown as (

    select * from {{ ref('int_credit_burndown') }}
    where burnt_minor > 0

),

credit_grants as (

    select * from {{ ref('int_credit_grants') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

plans as (

    select * from {{ ref('plans') }}

),

currencies as (

    select * from {{ ref('currencies') }}

),

{%- set zero_quantities %}
        cast(0 as {{ quantity_total_type() }}) as metered_quantity,
        cast(0 as {{ quantity_total_type() }}) as included_quantity_used,
        cast(0 as {{ quantity_total_type() }}) as billable_quantity,
        cast(0 as bigint) as event_count,
        cast(0 as {{ event_keys_hash_type() }}) as event_keys_hash,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at
{%- endset %}

charge_lines as (

    select
        rated_charges.line_id,
        rated_charges.service_period_id,
        rated_charges.charge_code,
        rated_charges.metric_code,
        cast(null as varchar) as commitment_code,
        cast(null as varchar) as credit_grant_code,
        cast(null as varchar) as paid_line_id,
        case when rated_charges.charge_model = 'flat' then 'flat' else 'usage' end as line_type,
        rated_charges.charge_name
        || case when rated_charges.dimensions = '{}' then '' else ' ' || rated_charges.dimensions end as description,
        rated_charges.charge_model,
        rated_charges.dimensions,
        limited_charges.discount_codes,
        rated_charges.billing_period,
        rated_charges.price_version,
        rated_charges.metered_quantity,
        rated_charges.included_quantity_used,
        rated_charges.billable_quantity,
        rated_charges.event_count,
        rated_charges.event_keys_hash,
        rated_charges.first_event_at,
        rated_charges.last_event_at,
        rated_charges.unrounded_amount,
        rated_charges.gross_amount,
        {{ from_minor_units(
            in_minor_units('rated_charges.gross_amount', 'rated_charges.minor_units') ~ ' - limited_charges.discounted_minor',
            'rated_charges.minor_units'
        ) }} as discount_amount,
        {{ from_minor_units(
            'limited_charges.discounted_minor - limited_charges.amount_minor', 'rated_charges.minor_units'
        ) }} as maximum_reduction_amount,
        limited_charges.amount_minor,
        rated_charges.due_at,
        rated_charges.segment_start_at,
        rated_charges.segment_end_at,
        cast(null as datetime) as credit_grant_start_at
    from rated_charges
    inner join limited_charges
        on rated_charges.line_id = limited_charges.line_id

),

true_up_lines as (

    {% set true_ups = [('minimum', 'minimum_true_ups'), ('commitment', 'commitment_true_ups')] -%}
    {% for line_type, relation in true_ups -%}
    select
        true_ups.line_id,
        true_ups.service_period_id,
        {{ 'true_ups.charge_code' if line_type == 'minimum' else 'cast(null as varchar) as charge_code' }},
        {{ 'true_ups.metric_code' if line_type == 'minimum' else 'cast(null as varchar) as metric_code' }},
        {{ 'true_ups.commitment_code' if line_type == 'commitment' else 'cast(null as varchar) as commitment_code' }},
        cast(null as varchar) as credit_grant_code,
        cast(null as varchar) as paid_line_id,
        '{{ line_type }}' as line_type,
        {{ "true_ups.charge_name || ', up to the minimum'" if line_type == 'minimum'
            else "'Commitment ' || true_ups.commitment_code" }} as description,
        cast(null as varchar) as charge_model,
        '{}' as dimensions,
        cast(null as varchar) as discount_codes,
        service_periods.billing_period,
        cast(null as integer) as price_version,
        {{ zero_quantities }},
        cast({{ from_minor_units('true_ups.amount_minor', 'currencies.minor_units') }} as {{ amount_type() }})
            as unrounded_amount,
        {{ from_minor_units('true_ups.amount_minor', 'currencies.minor_units') }} as gross_amount,
        cast(0 as {{ money_type() }}) as discount_amount,
        cast(0 as {{ money_type() }}) as maximum_reduction_amount,
        true_ups.amount_minor,
        service_periods.service_period_end_at as due_at,
        service_periods.service_period_start_at as segment_start_at,
        service_periods.service_period_end_at as segment_end_at,
        cast(null as datetime) as credit_grant_start_at
    from {{ relation }} as true_ups
    inner join service_periods
        on true_ups.service_period_id = service_periods.service_period_id
    inner join plans
        on service_periods.plan_code = plans.plan_code
    inner join currencies
        on plans.currency_code = currencies.currency_code
    {% if not loop.last %}
    union all

    {% endif %}
    {%- endfor %}

),

lines_to_pay as (

    select * from charge_lines

    union all

    select * from true_up_lines

),

credit_lines as (

    select
        {{ surrogate_key(['credit_burndown.credit_grant_id', 'credit_burndown.paid_line_id']) }} as line_id,
        lines_to_pay.service_period_id,
        lines_to_pay.charge_code,
        lines_to_pay.metric_code,
        lines_to_pay.commitment_code,
        credit_grants.grant_code as credit_grant_code,
        credit_burndown.paid_line_id,
        'credit' as line_type,
        'Credit ' || credit_grants.grant_code || ': ' || lines_to_pay.description as description,
        cast(null as varchar) as charge_model,
        lines_to_pay.dimensions,
        cast(null as varchar) as discount_codes,
        lines_to_pay.billing_period,
        lines_to_pay.price_version,
        {{ zero_quantities }},
        cast({{ from_minor_units('-credit_burndown.burnt_minor', 'currencies.minor_units') }} as {{ amount_type() }})
            as unrounded_amount,
        {{ from_minor_units('-credit_burndown.burnt_minor', 'currencies.minor_units') }} as gross_amount,
        cast(0 as {{ money_type() }}) as discount_amount,
        cast(0 as {{ money_type() }}) as maximum_reduction_amount,
        -credit_burndown.burnt_minor as amount_minor,
        lines_to_pay.due_at,
        lines_to_pay.segment_start_at,
        lines_to_pay.segment_end_at,
        credit_grants.instance_start_at as credit_grant_start_at
    from credit_burndown
    inner join credit_grants
        on credit_burndown.credit_grant_id = credit_grants.credit_grant_id
    inner join currencies
        on credit_grants.currency_code = currencies.currency_code
    inner join lines_to_pay
        on credit_burndown.paid_line_id = lines_to_pay.line_id

),

all_lines as (

    select * from lines_to_pay

    union all

    select * from credit_lines

),

invoice_lines as (

    select
        all_lines.*,
        service_periods.subscription_id,
        service_periods.customer_id,
        service_periods.plan_code,
        service_periods.time_zone,
        service_periods.service_period_start_at,
        service_periods.service_period_end_at,
        plans.currency_code,
        currencies.minor_units,
        {{ from_minor_units('all_lines.amount_minor', 'currencies.minor_units') }} as amount
    from all_lines
    inner join service_periods
        on all_lines.service_period_id = service_periods.service_period_id
    inner join plans
        on service_periods.plan_code = plans.plan_code
    inner join currencies
        on plans.currency_code = currencies.currency_code

)

select * from invoice_lines
