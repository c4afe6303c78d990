with

lines as (

    select * from {{ ref('int_invoice_lines') }}

),

rated_lines as (

    select
        ---------- ids
        line_id,
        service_period_id,
        subscription_id,
        customer_id,
        plan_code,
        charge_code,
        metric_code,
        commitment_code,
        credit_grant_code,
        paid_line_id,

        ---------- strings
        line_type,
        description,
        charge_model,
        dimensions,
        discount_codes,
        time_zone,
        billing_period,
        currency_code,

        ---------- numerics
        price_version,
        metered_quantity,
        included_quantity_used,
        billable_quantity,
        unrounded_amount,
        gross_amount,
        discount_amount,
        maximum_reduction_amount,
        amount,
        amount_minor,
        event_count,
        event_keys_hash,

        ---------- timestamps
        first_event_at,
        last_event_at,
        service_period_start_at,
        service_period_end_at,
        segment_start_at as price_start_at,
        segment_end_at as price_end_at,
        credit_grant_start_at,
        due_at
    from lines

)

select * from rated_lines
