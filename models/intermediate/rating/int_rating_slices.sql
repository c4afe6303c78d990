{# Price segments, cut where a credit grant of the customer begins or ends: it only pays what was used while it was in force. #}
with

price_segments as (

    select * from {{ ref('int_price_segments') }}

),

credit_grants as (

    select * from {{ ref('int_credit_grants') }}

),

grant_boundaries as (

    select
        customer_id,
        instance_start_at as boundary_at
    from credit_grants

    union

    select
        customer_id,
        instance_end_at as boundary_at
    from credit_grants
    where instance_end_at is not null

),

slice_starts as (

    select
        price_segment_id,
        segment_start_at as slice_start_at
    from price_segments

    union

    select
        price_segments.price_segment_id,
        grant_boundaries.boundary_at as slice_start_at
    from price_segments
    inner join grant_boundaries
        on
            price_segments.customer_id = grant_boundaries.customer_id
            and price_segments.segment_start_at < grant_boundaries.boundary_at
            and price_segments.segment_end_at > grant_boundaries.boundary_at
    where price_segments.billing_timing <> 'in_advance'

),

slices as (

    select
        price_segments.*,
        slice_starts.slice_start_at,
        lead(slice_starts.slice_start_at, 1, price_segments.segment_end_at) over (
            partition by slice_starts.price_segment_id
            order by slice_starts.slice_start_at
        ) as slice_end_at
    from slice_starts
    inner join price_segments
        on slice_starts.price_segment_id = price_segments.price_segment_id

)

select * from slices
