with

parts as (

    select * from {{ ref('int_service_period_parts') }}

),

charges as (

    select * from {{ ref('charges') }}

),

prices_in_parts as (

    select
        parts.service_period_id,
        parts.part_start_at,
        charges.charge_code,
        charges.price_version as version_id,
        charges.customer_id is not null as is_own,
        charges.valid_from as valid_from_at,
        greatest(parts.part_start_at, {{ local_to_utc('charges.valid_from', 'parts.time_zone') }}) as from_at,
        least(
            parts.part_end_at,
            coalesce({{ local_to_utc('charges.valid_to', 'parts.time_zone') }}, parts.part_end_at)
        ) as to_at
    from parts
    inner join charges
        on
            parts.plan_code = charges.plan_code
            and (charges.customer_id is null or parts.customer_id = charges.customer_id)

),

candidates as (

    select * from prices_in_parts
    where from_at < to_at

),

{{ versions_in_force('candidates', ['service_period_id', 'part_start_at', 'charge_code']) }},

price_segments as (

    select
        {{ surrogate_key(['versions.service_period_id', 'versions.charge_code', timestamp_text('versions.from_at')]) }}
            as price_segment_id,
        versions.service_period_id,
        parts.subscription_id,
        parts.customer_id,
        parts.plan_code,
        versions.charge_code,
        versions.version_id as price_version,
        charges.metric_code,
        charges.charge_model,
        charges.billing_timing,
        parts.time_zone,
        {{ local_days('versions.from_at', 'versions.to_at', 'parts.time_zone') }} as segment_days,  -- noqa: LT05
        versions.from_at as segment_start_at,
        versions.to_at as segment_end_at
    from versions_in_force as versions
    inner join parts
        on
            versions.service_period_id = parts.service_period_id
            and versions.part_start_at = parts.part_start_at
    inner join charges
        on
            versions.charge_code = charges.charge_code
            and versions.version_id = charges.price_version

)

select * from price_segments
