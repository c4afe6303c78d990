with

comparisons as (

    select * from {{ ref('int_shadow_comparisons') }}

),

windows as (

    select * from {{ ref('int_shadow_windows') }}

),

definitions as (

    select * from {{ ref('int_metric_definitions') }}

),

filters as (

    select * from {{ ref('metric_filters') }}

),

deliveries as (

    select * from {{ ref('stg_event_deliveries') }}

),

rejected_events as (

    select * from {{ ref('stg_rejected_events') }}

),

usage_hourly as (

    select * from {{ ref('int_usage_hourly') }}

),

usage_not_priced as (

    select * from {{ ref('int_usage_not_priced') }}

),

subscriptions as (

    select * from {{ ref('stg_subscriptions') }}

),

rated_lines as (

    select * from {{ ref('fct_rated_lines') }}

),

tier_sets as (

    select * from {{ ref('int_tier_sets') }}

),

tiers as (

    select * from {{ ref('int_charge_tiers_bounded') }}

),

{# Only amounts that differ and that both sides could have are looked into. #}
disputes as (

    select
        comparisons.*,
        definitions.event_type,
        definitions.aggregation,
        definitions.property_name,
        definitions.percentile,
        definitions.metering_period,
        coalesce(
            comparisons.theirs_quantity <> comparisons.ours_quantity,
            comparisons.theirs_event_count <> comparisons.ours_event_count,
            false
        ) as has_other_quantity
    from comparisons
    inner join definitions
        on comparisons.metric_code = definitions.metric_code
    where
        comparisons.ours_amount <> comparisons.theirs_amount
        and comparisons.unknown_here is null
        and comparisons.unknown_there is null

),

windows_with_other_quantity as (

    select
        disputes.shadow_billing_id,
        disputes.customer_id,
        disputes.charge_code,
        disputes.metric_code,
        disputes.event_type,
        disputes.aggregation,
        disputes.property_name,
        disputes.percentile,
        disputes.metering_period,
        disputes.theirs_quantity,
        disputes.theirs_event_count,
        windows.service_period_id,
        windows.time_zone,
        windows.full_period_start_at,
        windows.full_period_end_at,
        windows.window_start_at,
        windows.window_end_at
    from disputes
    inner join windows
        on
            disputes.customer_id = windows.customer_id
            and disputes.billing_period = windows.billing_period
            and disputes.charge_code = windows.charge_code
    where disputes.has_other_quantity

),

{# Duplicates: who does not look at idempotency keys counts each copy, with what the copy says. #}
duplicates_in_windows as (

    select
        windows.shadow_billing_id,
        windows.metric_code,
        deliveries.delivery_id,
        deliveries.properties,
        {%- set value_text = json_text('deliveries.properties', json_path('windows.property_name')) %}
        case windows.aggregation
            when 'count' then 1
            when 'sum' then {{ dbt.safe_cast(value_text, quantity_total_type()) }}
        end as quantity
    from windows_with_other_quantity as windows
    inner join deliveries
        on
            windows.customer_id = deliveries.customer_id
            and windows.event_type = deliveries.event_type
            and windows.window_start_at <= deliveries.occurred_at
            and windows.window_end_at > deliveries.occurred_at
    where deliveries.delivery_status = 'duplicate'

),

filter_groups as (

    select distinct
        metric_code,
        property_name,
        operator
    from filters

),

duplicate_values as (

    select
        duplicates.delivery_id,
        duplicates.metric_code,
        filter_groups.property_name,
        filter_groups.operator,
        {{ json_text('duplicates.properties', json_path('filter_groups.property_name')) }} as value_text
    from duplicates_in_windows as duplicates
    inner join filter_groups
        on duplicates.metric_code = filter_groups.metric_code

),

duplicates_filtered_out as (

    select distinct
        duplicate_values.delivery_id,
        duplicate_values.metric_code
    from duplicate_values
    left join filters
        on
            duplicate_values.metric_code = filters.metric_code
            and duplicate_values.property_name = filters.property_name
            and duplicate_values.operator = filters.operator
            and {{ filter_is_met('duplicate_values.value_text', 'filters.operator', 'filters.filter_value') }}
    where (filters.metric_code is null) <> (duplicate_values.operator = 'not_in')

),

duplicates_by_comparison as (

    select
        duplicates.shadow_billing_id,
        count(*) as duplicate_count,
        sum(duplicates.quantity) as duplicate_quantity
    from duplicates_in_windows as duplicates
    left join duplicates_filtered_out
        on
            duplicates.delivery_id = duplicates_filtered_out.delivery_id
            and duplicates.metric_code = duplicates_filtered_out.metric_code
    where duplicates_filtered_out.delivery_id is null
    group by duplicates.shadow_billing_id

),

{# What is not billed may lie outside of the subscription, so all of the month, quarter or year counts. #}
full_periods as (

    select
        shadow_billing_id,
        customer_id,
        charge_code,
        metric_code,
        event_type,
        aggregation,
        min(full_period_start_at) as from_at,
        max(full_period_end_at) as to_at
    from windows_with_other_quantity
    group by
        shadow_billing_id,
        customer_id,
        charge_code,
        metric_code,
        event_type,
        aggregation

),

{# Missing here: what we received and did not count. Without a time of its own an event is taken by that of its receipt. #}
rejected_by_comparison as (

    select
        full_periods.shadow_billing_id,
        count(*) as rejected_count
    from full_periods
    inner join rejected_events
        on
            full_periods.customer_id = rejected_events.customer_id
            and full_periods.event_type = rejected_events.event_type
            and full_periods.from_at <= coalesce(rejected_events.occurred_at, rejected_events.received_at)
            and full_periods.to_at > coalesce(rejected_events.occurred_at, rejected_events.received_at)
    group by full_periods.shadow_billing_id

),

{# Missing here, too: what was counted and no line prices. #}
unbilled_by_comparison as (

    select
        full_periods.shadow_billing_id,
        sum(usage_not_priced.event_count) as unbilled_count,
        sum(case when full_periods.aggregation in ('count', 'sum') then usage_not_priced.quantity end) as unbilled_quantity
    from full_periods
    inner join usage_not_priced
        on
            full_periods.customer_id = usage_not_priced.customer_id
            and full_periods.metric_code = usage_not_priced.metric_code
            and full_periods.charge_code = coalesce(usage_not_priced.charge_code, full_periods.charge_code)
            and full_periods.from_at <= usage_not_priced.window_start_at
            and full_periods.to_at > usage_not_priced.window_start_at
    group by full_periods.shadow_billing_id

),

{# Time zone: the same wall clocks, read in UTC or in another zone of our subscriptions. #}
candidate_zones as (

    select 'UTC' as candidate_zone

    union

    select time_zone as candidate_zone
    from subscriptions

),

wall_clocks as (

    select
        *,
        {{ utc_to_local('window_start_at', 'time_zone') }} as local_start_at,
        {{ utc_to_local('window_end_at', 'time_zone') }} as local_end_at
    from windows_with_other_quantity
    where aggregation <> 'weighted_sum' and metering_period is null

),

windows_in_other_zones as (

    select
        wall_clocks.shadow_billing_id,
        wall_clocks.service_period_id,
        wall_clocks.customer_id,
        wall_clocks.metric_code,
        wall_clocks.aggregation,
        wall_clocks.percentile,
        wall_clocks.theirs_quantity,
        wall_clocks.theirs_event_count,
        candidate_zones.candidate_zone,
        {{ local_to_utc('wall_clocks.local_start_at', 'candidate_zones.candidate_zone') }} as candidate_start_at,
        {{ local_to_utc('wall_clocks.local_end_at', 'candidate_zones.candidate_zone') }} as candidate_end_at
    from wall_clocks
    inner join candidate_zones
        on wall_clocks.time_zone <> candidate_zones.candidate_zone

),

usage_in_other_zones as (

    select
        windows.shadow_billing_id,
        windows.candidate_zone,
        windows.service_period_id,
        windows.percentile,
        usage_hourly.dimensions,
        usage_hourly.aggregation,
        usage_hourly.distinct_value,
        usage_hourly.quantity,
        usage_hourly.event_count,
        usage_hourly.event_keys_hash,
        usage_hourly.first_event_at,
        usage_hourly.last_event_at,
        usage_hourly.window_start_at < windows.candidate_start_at
        or usage_hourly.window_end_at > windows.candidate_end_at as is_cut
    from windows_in_other_zones as windows
    inner join usage_hourly
        on
            windows.customer_id = usage_hourly.customer_id
            and windows.metric_code = usage_hourly.metric_code
            and windows.candidate_start_at < usage_hourly.window_end_at
            and windows.candidate_end_at > usage_hourly.window_start_at
    where usage_hourly.event_count > 0

),

{# Usage is kept by the hour: a bound inside one, as in zones of half hours, tells nothing. #}
zones_cut as (

    select distinct
        shadow_billing_id,
        candidate_zone
    from usage_in_other_zones
    where is_cut

),

{%- set keys = ['shadow_billing_id', 'candidate_zone', 'service_period_id', 'dimensions'] %}

usage_by_service_period_and_zone as (

    {{ roll_up_usage('usage_in_other_zones', keys) }}

),

usage_by_zone as (

    select
        usage.shadow_billing_id,
        usage.candidate_zone,
        sum(usage.quantity) as quantity,
        sum(usage.event_count) as event_count
    from usage_by_service_period_and_zone as usage
    left join zones_cut
        on
            usage.shadow_billing_id = zones_cut.shadow_billing_id
            and usage.candidate_zone = zones_cut.candidate_zone
    where zones_cut.candidate_zone is null
    group by usage.shadow_billing_id, usage.candidate_zone

),

matching_zones as (

    select
        disputes.shadow_billing_id,
        usage_by_zone.candidate_zone,
        row_number() over (
            partition by disputes.shadow_billing_id
            order by case when usage_by_zone.candidate_zone = 'UTC' then 0 else 1 end, usage_by_zone.candidate_zone
        ) as precedence
    from disputes
    inner join usage_by_zone
        on disputes.shadow_billing_id = usage_by_zone.shadow_billing_id
    where
        coalesce(
            disputes.theirs_quantity = usage_by_zone.quantity, disputes.theirs_event_count = usage_by_zone.event_count, false
        )

),

{# Tier edge: the same quantity through the same tiers, with up_to read as exclusive, or volume and graduated taken for each
   other. #}
lines_with_same_quantity as (

    select
        disputes.shadow_billing_id,
        disputes.minor_units,
        rated_lines.line_id,
        rated_lines.charge_model,
        rated_lines.billable_quantity,
        rated_lines.unrounded_amount,
        rated_lines.amount,
        tiers.above,
        tiers.up_to,
        tiers.unit_amount,
        tiers.flat_amount,
        case when tiers.above > 0 then tiers.above - 1 else 0 end as exclusive_above,
        least(rated_lines.billable_quantity, coalesce(tiers.up_to, rated_lines.billable_quantity)) as inclusive_up_to,
        least(rated_lines.billable_quantity, coalesce(tiers.up_to - 1, rated_lines.billable_quantity)) as exclusive_up_to
    from disputes
    inner join rated_lines
        on
            disputes.customer_id = rated_lines.customer_id
            and disputes.billing_period = rated_lines.billing_period
            and disputes.charge_code = rated_lines.charge_code
            and disputes.currency_code = rated_lines.currency_code
    inner join tier_sets
        on
            rated_lines.charge_code = tier_sets.charge_code
            and rated_lines.price_version = tier_sets.price_version
            and rated_lines.dimensions = tier_sets.dimensions
    inner join tiers
        on tier_sets.tier_set_id = tiers.tier_set_id
    where
        not disputes.has_other_quantity
        and rated_lines.line_type = 'usage'
        and rated_lines.charge_model in ('graduated', 'volume', 'stairstep')
        and rated_lines.amount = rated_lines.gross_amount
        and rated_lines.billable_quantity > 0

),

tier_readings as (

    select
        shadow_billing_id,
        line_id,
        charge_model,
        minor_units,
        unrounded_amount,
        amount,
        cast(
            case
                when billable_quantity > above
                    then flat_amount + {{ multiply_amount('(inclusive_up_to - above)', 'unit_amount') }}
                else 0
            end as {{ amount_type() }}
        ) as graduated,
        cast(
            case
                when billable_quantity > exclusive_above
                    then flat_amount + {{ multiply_amount('(exclusive_up_to - exclusive_above)', 'unit_amount') }}
                else 0
            end as {{ amount_type() }}
        ) as graduated_exclusive,
        cast(
            case
                when billable_quantity > above and billable_quantity <= coalesce(up_to, billable_quantity)
                    then flat_amount + {{ multiply_amount('billable_quantity', 'unit_amount') }}
                else 0
            end as {{ amount_type() }}
        ) as volume,
        cast(
            case
                when billable_quantity >= above and (up_to is null or billable_quantity < up_to)
                    then flat_amount + {{ multiply_amount('billable_quantity', 'unit_amount') }}
                else 0
            end as {{ amount_type() }}
        ) as volume_exclusive
    from lines_with_same_quantity

),

line_readings as (

    select
        shadow_billing_id,
        line_id,
        charge_model,
        minor_units,
        unrounded_amount,
        amount,
        sum(graduated) as graduated,
        sum(graduated_exclusive) as graduated_exclusive,
        sum(volume) as volume,
        sum(volume_exclusive) as volume_exclusive
    from tier_readings
    group by
        shadow_billing_id,
        line_id,
        charge_model,
        minor_units,
        unrounded_amount,
        amount

),

other_readings as (

    select
        shadow_billing_id,
        minor_units,
        unrounded_amount,
        amount,
        case when charge_model = 'graduated' then graduated else volume end as plain_reading,
        case when charge_model = 'graduated' then graduated_exclusive else volume_exclusive end as exclusive_reading,
        case when charge_model = 'graduated' then volume else graduated end as other_model_reading
    from line_readings

),

{# Where the plain reading does not give our own amount (a price that begins or ends inside the period, a share of the days), the
   others would not give theirs. #}
readings_by_comparison as (

    select
        shadow_billing_id,
        sum({{ round_to_minor_units('exclusive_reading', 'minor_units') }} - amount) as exclusive_difference,
        sum({{ round_to_minor_units('other_model_reading', 'minor_units') }} - amount) as other_model_difference
    from other_readings
    where unrounded_amount = plain_reading
    group by shadow_billing_id

),

evidence as (

    select
        disputes.shadow_billing_id,
        disputes.aggregation,
        coalesce(duplicates.duplicate_count, 0) as duplicate_count,
        cast(duplicates.duplicate_quantity as {{ quantity_total_type() }}) as duplicate_quantity,
        coalesce(rejected.rejected_count, 0) as rejected_count,
        cast(coalesce(unbilled.unbilled_count, 0) as bigint) as unbilled_count,
        cast(unbilled.unbilled_quantity as {{ quantity_total_type() }}) as unbilled_quantity,
        matching_zones.candidate_zone as matching_time_zone,
        cast(disputes.ours_amount + nullif(readings.exclusive_difference, 0) as {{ quantity_total_type() }})
            as exclusive_amount,
        cast(disputes.ours_amount + nullif(readings.other_model_difference, 0) as {{ quantity_total_type() }})
            as other_model_amount
    from disputes
    left join duplicates_by_comparison as duplicates
        on disputes.shadow_billing_id = duplicates.shadow_billing_id
    left join rejected_by_comparison as rejected
        on disputes.shadow_billing_id = rejected.shadow_billing_id
    left join unbilled_by_comparison as unbilled
        on disputes.shadow_billing_id = unbilled.shadow_billing_id
    left join matching_zones
        on
            disputes.shadow_billing_id = matching_zones.shadow_billing_id
            and matching_zones.precedence = 1
    left join readings_by_comparison as readings
        on disputes.shadow_billing_id = readings.shadow_billing_id

)

select * from evidence
