{# What a subscription's plan charges its customer for: the common price versions, and the customer's own. #}
with

charges as (

    select * from {{ ref('charges') }}

),

phases as (

    select * from {{ ref('stg_subscriptions') }}

),

subscriptions as (

    select distinct
        subscription_id,
        customer_id,
        plan_code,
        time_zone
    from phases

),

plan_charges as (

    select distinct
        subscriptions.subscription_id,
        subscriptions.customer_id,
        subscriptions.plan_code,
        charges.charge_code,
        charges.metric_code
    from subscriptions
    inner join charges
        on
            subscriptions.plan_code = charges.plan_code
            and (charges.customer_id is null or subscriptions.customer_id = charges.customer_id)

)

select * from plan_charges
