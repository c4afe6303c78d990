with

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

boundaries as (

    select
        customer_id,
        service_period_start_at as boundary_at
    from service_periods

    union

    select
        customer_id,
        service_period_end_at as boundary_at
    from service_periods

    union

    select
        customer_id,
        segment_start_at as boundary_at
    from price_segments

    union

    select
        customer_id,
        segment_end_at as boundary_at
    from price_segments

),

boundaries_inside_an_hour as (

    select
        customer_id,
        boundary_at,
        {{ dbt.date_trunc('hour', 'boundary_at') }} as hour_start_at
    from boundaries
    where boundary_at <> {{ dbt.date_trunc('hour', 'boundary_at') }}

),

window_starts as (

    select
        customer_id,
        hour_start_at,
        hour_start_at as window_start_at
    from boundaries_inside_an_hour

    union

    select
        customer_id,
        hour_start_at,
        boundary_at as window_start_at
    from boundaries_inside_an_hour

),

windows as (

    select
        customer_id,
        hour_start_at,
        window_start_at,
        coalesce(
            lead(window_start_at) over (
                partition by customer_id, hour_start_at
                order by window_start_at
            ),
            {{ dbt.dateadd('hour', 1, 'hour_start_at') }}
        ) as window_end_at
    from window_starts

)

select * from windows
