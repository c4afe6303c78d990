with

shadow_billing as (

    select * from {{ source('raw', 'shadow_billing') }}
    where received_at <= {{ as_of() }}

),

rows_ranked as (

    select
        *,
        row_number() over (
            partition by system, customer_id, billing_period, charge_code, currency_code
            order by received_at desc, batch_id desc, line_number desc
        ) as recency
    from shadow_billing

),

latest_rows as (

    select
        ---------- ids
        system,
        customer_id,
        coalesce(charge_code, '') as charge_code,

        ---------- strings
        billing_period,
        currency_code,

        ---------- numerics
        quantity,
        event_count,
        amount
    from rows_ranked
    where recency = 1

)

select * from latest_rows
