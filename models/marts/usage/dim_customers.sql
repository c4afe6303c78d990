with

customers as (

    select * from {{ ref('stg_customers') }}

),

subscriptions as (

    select * from {{ ref('stg_subscriptions') }}

),

subscriptions_by_customer as (

    select
        customer_id,
        count(distinct subscription_id) as subscription_count,
        min(started_at) as first_subscribed_at
    from subscriptions
    group by customer_id

),

customers_with_subscriptions as (

    select
        customers.customer_id,
        customers.customer_name,
        customers.stripe_customer_id,
        coalesce(subscriptions_by_customer.subscription_count, 0) as subscription_count,
        subscriptions_by_customer.first_subscribed_at
    from customers
    left join subscriptions_by_customer
        on customers.customer_id = subscriptions_by_customer.customer_id

)

select * from customers_with_subscriptions
