with

landed_deliveries as (

    select
        batch_id,
        min(source) as source,
        count(*) as deliveries,
        min(received_at) as first_received_at,
        max(received_at) as last_received_at
    from {{ source('raw', 'usage_events') }}
    where received_at <= {{ as_of() }}
    group by batch_id

),

load_batches as (

    select * from {{ source('raw', 'load_batches') }}
    where received_at <= {{ as_of() }}

),

staged_deliveries as (

    select
        batch_id,
        count(*) as deliveries
    from {{ ref('stg_event_deliveries') }}
    group by batch_id

),

{# Few: nearly all deliveries are accepted. #}
staged_without_effect as (

    select
        batch_id,
        count(case when delivery_status = 'duplicate' then 1 end) as duplicates,
        count(conflicting_fields) as conflicts,
        count(case when delivery_status = 'rejected' then 1 end) as rejected
    from {{ ref('stg_event_deliveries') }}
    where delivery_status <> 'accepted'
    group by batch_id

),

{# A batch may be known from any of the three sides; a side that lacks it is what should be seen. #}
batches as (

    select batch_id from landed_deliveries
    union
    select batch_id from load_batches
    union
    select batch_id from staged_deliveries

),

ingestion_health as (

    select
        batches.batch_id,
        coalesce(load_batches.source, landed_deliveries.source) as source,
        load_batches.deliveries as deliveries_in_file,
        coalesce(landed_deliveries.deliveries, 0) as deliveries,
        coalesce(staged_deliveries.deliveries, 0)
        - coalesce(staged_without_effect.duplicates, 0)
        - coalesce(staged_without_effect.rejected, 0) as accepted,
        coalesce(staged_without_effect.duplicates, 0) as duplicates,
        coalesce(staged_without_effect.conflicts, 0) as conflicts,
        coalesce(staged_without_effect.rejected, 0) as rejected,
        coalesce(landed_deliveries.first_received_at, load_batches.received_at) as first_received_at,
        coalesce(landed_deliveries.last_received_at, load_batches.received_at) as last_received_at
    from batches
    left join landed_deliveries
        on batches.batch_id = landed_deliveries.batch_id
    left join load_batches
        on batches.batch_id = load_batches.batch_id
    left join staged_deliveries
        on batches.batch_id = staged_deliveries.batch_id
    left join staged_without_effect
        on batches.batch_id = staged_without_effect.batch_id

),

ingestion_health_with_rates as (

    select
        batch_id,
        source,
        deliveries_in_file,
        deliveries,
        accepted,
        duplicates,
        conflicts,
        rejected,
        abs(coalesce(deliveries_in_file, deliveries) - deliveries)
        + abs(deliveries - accepted - duplicates - rejected) as dropped,
        {{ ratio('rejected', 'deliveries') }} as error_rate,
        first_received_at,
        last_received_at
    from ingestion_health

)

select * from ingestion_health_with_rates
