with

rated_charges as (

    select * from {{ ref('int_rated_charges') }}

),

invoice_lines as (

    select
        ---------- ids
        line_id,
        {{ invoice_id('customer_id', 'billing_period', 'currency_code') }} as invoice_id,
        subscription_id,
        customer_id,
        plan_code,
        charge_code,
        metric_code,

        ---------- strings
        'draft' as line_state,
        charge_name || case when dimensions = '{}' then '' else ' ' || dimensions end as description,
        charge_model,
        dimensions,
        time_zone,
        billing_period,
        currency_code,

        ---------- numerics
        price_version,
        package_size,
        metered_quantity,
        included_quantity_used,
        cast(billable_quantity as {{ quantity_total_type() }}) as billable_quantity,
        unrounded_amount,
        amount,
        {{ in_minor_units('amount', 'minor_units') }} as amount_minor,
        event_count,

        ---------- timestamps
        first_event_at,
        last_event_at,
        service_period_start_at,
        service_period_end_at,
        segment_start_at as price_start_at,
        segment_end_at as price_end_at
    from rated_charges

)

select * from invoice_lines
