{# What each slice of a price has to price: usage by its growth or as a whole, events, recurring fees, and charges without
   usage. #}
with

slices as (

    select * from {{ ref('int_rating_slices') }}

),

service_periods as (

    select * from {{ ref('int_service_periods') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

usage_at_cuts as (

    select * from {{ ref('int_usage_at_cuts') }}

),

usage_by_service_period as (

    select * from {{ ref('int_usage_by_service_period') }}

),

usage_in_service_periods as (

    select * from {{ ref('int_usage_in_service_periods') }}

),

event_fees as (

    select * from {{ ref('int_event_fees') }}

),

tier_sets as (

    select * from {{ ref('int_tier_sets') }}

),

included_quantities as (

    select * from {{ ref('int_included_quantities') }}

),

rolled_over_quantities as (

    select * from {{ ref('int_rolled_over_quantities') }}

),

charges as (

    select * from {{ ref('charges') }}

),

slices_with_periods as (

    select
        slices.*,
        charges.charge_name,
        charges.zero_usage,
        charges.proration,
        service_periods.full_days,
        service_periods.active_days,
        service_periods.service_period_start_at,
        service_periods.service_period_end_at,
        service_periods.billing_period,
        service_periods.advance_billing_period,
        {{ local_days('slices.segment_start_at', 'slices.slice_start_at', 'slices.time_zone') }} as days_before,  -- noqa: LT05
        {{ local_days('slices.segment_start_at', 'slices.slice_end_at', 'slices.time_zone') }} as days_through  -- noqa: LT05
    from slices
    inner join service_periods
        on slices.service_period_id = service_periods.service_period_id
    inner join charges
        on
            slices.charge_code = charges.charge_code
            and slices.price_version = charges.price_version

),

slices_with_usage as (

    select
        slices.*,
        usage.dimensions,
        tier_sets.tier_set_id,
        definitions.is_cumulative,
        definitions.unit_size,
        definitions.quantity_rounding,
        definitions.quantity_rounding_step,
        coalesce(included_quantities.included_quantity, 0) + coalesce(rolled_over_quantities.rolled_over_quantity, 0)
            as entitled_quantity,
        usage.quantity as period_quantity,
        usage.billable_units as period_units,
        coalesce(usage_before.quantity, 0) as quantity_before,
        coalesce(usage_through.quantity, 0) as quantity_through,
        usage.event_count as period_event_count,
        coalesce(usage_through.event_count, 0) - coalesce(usage_before.event_count, 0) as event_count,
        coalesce(usage_through.event_keys_hash, 0) - coalesce(usage_before.event_keys_hash, 0) as event_keys_hash,
        usage.first_event_at as period_first_event_at,
        usage_through.last_event_at
    from slices_with_periods as slices
    inner join definitions
        on slices.metric_code = definitions.metric_code
    inner join usage_by_service_period as usage
        on
            slices.service_period_id = usage.service_period_id
            and slices.metric_code = usage.metric_code
    inner join tier_sets
        on
            slices.charge_code = tier_sets.charge_code
            and slices.price_version = tier_sets.price_version
            and usage.dimensions = tier_sets.dimensions
    left join usage_at_cuts as usage_before
        on
            slices.service_period_id = usage_before.service_period_id
            and slices.metric_code = usage_before.metric_code
            and usage.dimensions = usage_before.dimensions
            and slices.slice_start_at = usage_before.cut_at
    left join usage_at_cuts as usage_through
        on
            slices.service_period_id = usage_through.service_period_id
            and slices.metric_code = usage_through.metric_code
            and usage.dimensions = usage_through.dimensions
            and slices.slice_end_at = usage_through.cut_at
    left join included_quantities
        on
            slices.service_period_id = included_quantities.service_period_id
            and slices.charge_code = included_quantities.charge_code
    left join rolled_over_quantities
        on
            slices.service_period_id = rolled_over_quantities.service_period_id
            and slices.charge_code = rolled_over_quantities.charge_code
            and usage.dimensions = rolled_over_quantities.dimensions
    where slices.charge_model <> 'percentage'

),

{# A slice that does not begin with the service period must look for its own first event. #}
first_events as (

    select
        slices.price_segment_id,
        slices.slice_start_at,
        usage.dimensions,
        min(usage.first_event_at) as first_event_at
    from slices_with_periods as slices
    inner join usage_in_service_periods as usage
        on
            slices.service_period_id = usage.service_period_id
            and slices.metric_code = usage.metric_code
            and slices.slice_start_at <= usage.window_start_at
            and slices.slice_end_at > usage.window_start_at
    where slices.slice_start_at > slices.service_period_start_at
    group by
        slices.price_segment_id,
        slices.slice_start_at,
        usage.dimensions

),

slices_with_units as (

    select
        *,
        case
            when is_cumulative
                then {{ billable_units('quantity_before', 'unit_size', 'quantity_rounding', 'quantity_rounding_step') }}
            else 0
        end as units_before,
        case
            when is_cumulative
                then {{ billable_units('quantity_through', 'unit_size', 'quantity_rounding', 'quantity_rounding_step') }}
            else period_units
        end as units_through
    from slices_with_usage
    where
        (is_cumulative and (event_count > 0 or quantity_through <> quantity_before))
        or (not is_cumulative and period_event_count > 0)

),

metered_slices as (

    select
        slices.price_segment_id,
        slices.slice_start_at,
        slices.dimensions,
        slices.tier_set_id,
        case when slices.is_cumulative then slices.quantity_through - slices.quantity_before else slices.period_quantity end
            as metered_quantity,
        slices.units_through - slices.units_before as metered_units,
        greatest(slices.units_before - slices.entitled_quantity, 0) as billable_before,
        greatest(slices.units_through - slices.entitled_quantity, 0) as billable_through,
        greatest(slices.period_units - slices.entitled_quantity, 0) as period_billable,
        slices.event_count,
        slices.event_keys_hash,
        case
            when slices.event_count > 0 then coalesce(first_events.first_event_at, slices.period_first_event_at)
        end as first_event_at,
        case when slices.event_count > 0 then slices.last_event_at end as last_event_at,
        {# The share of a gauge's amount: by days, or all of it in the last segment of a service period without a full day. #}
        case
            when slices.is_cumulative then 0
            when slices.active_days > 0 then slices.days_before
            else 0
        end as share_before,
        case
            when slices.is_cumulative then 1
            when slices.active_days > 0 then slices.days_through
            when slices.segment_end_at = slices.service_period_end_at and slices.slice_start_at = slices.segment_start_at then 1
            else 0
        end as share_through,
        case when slices.is_cumulative or slices.active_days = 0 then 1 else slices.active_days end as share_whole,
        not slices.is_cumulative as has_whole_quantity,
        cast(null as {{ amount_type() }}) as fee_amount
    from slices_with_units as slices
    left join first_events
        on
            slices.price_segment_id = first_events.price_segment_id
            and slices.slice_start_at = first_events.slice_start_at
            and slices.dimensions = first_events.dimensions

),

percentage_slices as (

    select
        price_segment_id,
        slice_start_at,
        dimensions,
        tier_set_id,
        quantity as metered_quantity,
        quantity as metered_units,
        0 as billable_before,
        quantity - free_quantity as billable_through,
        quantity - free_quantity as period_billable,
        event_count,
        event_keys_hash,
        first_event_at,
        last_event_at,
        0 as share_before,
        1 as share_through,
        1 as share_whole,
        false as has_whole_quantity,
        fee_amount
    from event_fees

),

flat_slices as (

    select
        slices.price_segment_id,
        slices.slice_start_at,
        '{}' as dimensions,
        tiers.tier_set_id,
        0 as metered_quantity,
        1 as metered_units,
        0 as billable_before,
        1 as billable_through,
        1 as period_billable,
        0 as event_count,
        0 as event_keys_hash,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at,
        case when slices.proration = 'by_day' then slices.days_before else 0 end as share_before,
        case
            when slices.proration = 'by_day' then slices.days_through
            when slices.slice_start_at = slices.service_period_start_at then 1
            else 0
        end as share_through,
        case when slices.proration = 'by_day' then slices.full_days else 1 end as share_whole,
        true as has_whole_quantity,
        cast(null as {{ amount_type() }}) as fee_amount
    from slices_with_periods as slices
    inner join {{ ref('int_charge_tiers_bounded') }} as tiers
        on
            slices.charge_code = tiers.charge_code
            and slices.price_version = tiers.price_version
    where slices.charge_model = 'flat'

),

slices_with_something as (

    select * from metered_slices

    union all

    select * from percentage_slices

    union all

    select * from flat_slices

),

charges_with_lines as (

    select distinct
        slices.service_period_id,
        slices.charge_code
    from slices_with_something
    inner join slices
        on
            slices_with_something.price_segment_id = slices.price_segment_id
            and slices_with_something.slice_start_at = slices.slice_start_at

),

{# A line without usage lies in the last segment, as a whole. #}
last_segments as (

    select
        *,
        row_number() over (
            partition by service_period_id, charge_code
            order by segment_start_at desc, slice_start_at asc
        ) as slice_rank
    from slices_with_periods

),

zero_usage_slices as (

    select
        last_segments.price_segment_id,
        last_segments.slice_start_at,
        '{}' as dimensions,
        tiers.tier_set_id,
        0 as metered_quantity,
        0 as metered_units,
        0 as billable_before,
        0 as billable_through,
        0 as period_billable,
        0 as event_count,
        0 as event_keys_hash,
        cast(null as datetime) as first_event_at,
        cast(null as datetime) as last_event_at,
        0 as share_before,
        1 as share_through,
        1 as share_whole,
        false as has_whole_quantity,
        case when last_segments.charge_model = 'percentage' then cast(0 as {{ amount_type() }}) end as fee_amount
    from last_segments
    left join charges_with_lines
        on
            last_segments.service_period_id = charges_with_lines.service_period_id
            and last_segments.charge_code = charges_with_lines.charge_code
    left join {{ ref('int_charge_tiers_bounded') }} as tiers
        on
            last_segments.charge_code = tiers.charge_code
            and last_segments.price_version = tiers.price_version
            and tiers.tier_number = 1
            and tiers.dimension_1_value is null
            and tiers.dimension_2_value is null
            and tiers.dimension_3_value is null
    where
        last_segments.slice_rank = 1
        and last_segments.zero_usage <> 'no_line'
        and charges_with_lines.charge_code is null

),

all_slices as (

    select * from slices_with_something

    union all

    select * from zero_usage_slices

),

billable_quantities as (

    select
        {{ surrogate_key(['slices.price_segment_id', 'all_slices.dimensions', timestamp_text('all_slices.slice_start_at')]) }}
            as slice_id,
        {{ surrogate_key(['slices.price_segment_id', 'all_slices.dimensions']) }} as line_id,
        slices.service_period_id,
        slices.subscription_id,
        slices.customer_id,
        slices.plan_code,
        slices.charge_code,
        slices.price_version,
        slices.metric_code,
        slices.charge_name,
        slices.charge_model,
        slices.billing_timing,
        slices.zero_usage,
        all_slices.dimensions,
        all_slices.tier_set_id,
        slices.time_zone,
        case when slices.billing_timing = 'in_advance' then slices.advance_billing_period else slices.billing_period end
            as billing_period,
        cast(all_slices.metered_quantity as {{ quantity_total_type() }}) as metered_quantity,
        cast(
            all_slices.metered_units - (all_slices.billable_through - all_slices.billable_before)
            as {{ quantity_total_type() }}
        ) as included_quantity_used,
        cast(all_slices.billable_before as {{ quantity_total_type() }}) as billable_before,
        cast(all_slices.billable_through as {{ quantity_total_type() }}) as billable_through,
        cast(all_slices.period_billable as {{ quantity_total_type() }}) as period_billable,
        all_slices.share_before,
        all_slices.share_through,
        all_slices.share_whole,
        {# Every slice of a gauge or a recurring fee has the whole quantity and a share of the amount. #}
        all_slices.has_whole_quantity,
        all_slices.fee_amount,
        all_slices.event_count,
        cast(all_slices.event_keys_hash as {{ event_keys_hash_type() }}) as event_keys_hash,
        all_slices.first_event_at,
        all_slices.last_event_at,
        {# With which line a flat amount that does not wait for usage is due. #}
        row_number() over (
            partition by slices.service_period_id, slices.charge_code, all_slices.dimensions
            order by all_slices.slice_start_at
        ) = 1 as is_first_slice,
        slices.service_period_start_at,
        slices.service_period_end_at,
        case when slices.billing_timing = 'in_advance' then slices.service_period_start_at else slices.service_period_end_at end
            as due_at,
        slices.segment_start_at,
        slices.segment_end_at,
        slices.slice_start_at,
        slices.slice_end_at
    from all_slices
    inner join slices_with_periods as slices
        on
            all_slices.price_segment_id = slices.price_segment_id
            and all_slices.slice_start_at = slices.slice_start_at

)

select * from billable_quantities
