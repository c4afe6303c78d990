with

credit_grants as (

    select * from {{ ref('credit_grants') }}

),

numbers as (

    select * from {{ ref('int_numbers') }}

),

{# A service period that has begun may last another year, and credits that begin in it count. #}
{% set horizon = dbt.dateadd('year', 1, as_of()) %}
{% set units = {'day': ('day', 1), 'week': ('day', 7), 'month': ('month', 1), 'quarter': ('month', 3), 'year': ('month', 12)} %}

recurring_grants as (

    {% for recurrence, (unit, length) in units.items() -%}
    select
        credit_grants.*,
        {{ dbt.dateadd(unit, 'numbers.number * ' ~ length, 'credit_grants.effective_at') }} as instance_start_at,
        {{ dbt.dateadd(unit, '(numbers.number + 1) * ' ~ length, 'credit_grants.effective_at') }} as next_instance_start_at
    from credit_grants
    inner join numbers
        on numbers.number * {{ length }} <= {{ dbt.datediff('credit_grants.effective_at', horizon, unit) }}
    where credit_grants.recurrence = '{{ recurrence }}'
    {% if not loop.last %}
    union all
    {% endif %}
    {%- endfor %}

),

instances as (

    select
        grant_code,
        customer_id,
        currency_code,
        amount,
        priority,
        cost_basis,
        created_at,
        instance_start_at,
        least(next_instance_start_at, coalesce(expires_at, next_instance_start_at)) as instance_end_at
    from recurring_grants
    where instance_start_at < coalesce(expires_at, next_instance_start_at)

    union all

    select
        grant_code,
        customer_id,
        currency_code,
        amount,
        priority,
        cost_basis,
        created_at,
        effective_at as instance_start_at,
        expires_at as instance_end_at
    from credit_grants
    where recurrence is null

),

instances_until_horizon as (

    select
        {{ surrogate_key(['grant_code', timestamp_text('instance_start_at')]) }} as credit_grant_id,
        *
    from instances
    where instance_start_at <= {{ horizon }}

)

select * from instances_until_horizon
