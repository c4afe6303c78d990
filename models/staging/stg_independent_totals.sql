with

independent_totals as (

    select * from {{ source('raw', 'independent_totals') }}
    where received_at <= {{ as_of() }}

),

totals_ranked as (

    select
        *,
        row_number() over (
            partition by metric_code, customer_id, dimensions, source, period_start_at, period_end_at
            order by received_at desc, batch_id desc, line_number desc
        ) as recency
    from independent_totals

),

latest_totals as (

    select
        metric_code,
        customer_id,
        dimensions,
        source,
        quantity,
        period_start_at,
        period_end_at
    from totals_ranked
    where recency = 1

)

select * from latest_totals
