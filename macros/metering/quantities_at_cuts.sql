{# The quantity of a metric from the start of the service period up to each cut, for each combination of dimension_columns.
   cuts has service_period_id, metric_code and cut_at. The CTEs end with quantities_at_cuts. #}
{% macro quantities_at_cuts(cuts, dimension_columns) -%}
    {%- set group_keys = ['service_period_id', 'metric_code', 'cut_at'] + dimension_columns -%}
    usage_up_to_cuts {{ as_inlined() }} (

        select
            usage.service_period_id,
            usage.metric_code,
            {% for column in dimension_columns -%}
            usage.{{ column }},
            {% endfor -%}
            cuts.cut_at,
            usage.aggregation,
            definitions.percentile,
            case definitions.metering_period
                when 'hour' then {{ dbt.date_trunc('hour', 'usage.window_start_at') }}
                when 'day' then {{ dbt.date_trunc('day', utc_to_local('usage.window_start_at', 'usage.time_zone')) }}
                when 'month' then {{ dbt.date_trunc('month', utc_to_local('usage.window_start_at', 'usage.time_zone')) }}
            end as metering_period_start_at,
            usage.distinct_value,
            {# A level counts by the microseconds for which it has lasted until the cut. #}
            case
                when usage.aggregation = 'weighted_sum'
                    then cast(
                        usage.quantity_microseconds
                        + usage.quantity * {{ dbt.datediff(
                            'usage.window_end_at', 'least(cuts.cut_at, usage.part_end_at)', 'microsecond'
                        ) }} as {{ quantity_total_type() }}
                    )
                else usage.quantity
            end as quantity,
            usage.event_count,
            usage.event_keys_hash,
            usage.first_event_at,
            usage.last_event_at
        from {{ ref('int_usage_in_service_periods') }} as usage
        inner join {{ cuts }} as cuts
            on
                usage.service_period_id = cuts.service_period_id
                and usage.metric_code = cuts.metric_code
                and usage.window_start_at < cuts.cut_at
        inner join {{ ref('int_metric_definitions') }} as definitions
            on usage.metric_code = definitions.metric_code

    ),

    quantities_by_metering_period as (

        {{ roll_up_usage('usage_up_to_cuts', group_keys + ['metering_period_start_at']) | indent(8) }}

    ),

    quantities_with_periods as (

        select
            quantities.*,
            definitions.aggregation,
            definitions.period_aggregation,
            definitions.percentile,
            case definitions.metering_period
                {%- for period in ['hour', 'day', 'month'] %}
                {%- set first = 'periods.service_period_start_at' if period == 'hour' else utc_to_local('periods.service_period_start_at', 'periods.time_zone') %}
                {%- set last = instant_before('periods.service_period_end_at') if period == 'hour' else utc_to_local(instant_before('periods.service_period_end_at'), 'periods.time_zone') %}
                when '{{ period }}' then {{ dbt.datediff(first, last, period) }} + 1
                {%- endfor %}
            end as metering_period_count,
            {{ dbt.datediff('periods.full_period_start_at', 'periods.full_period_end_at', 'microsecond') }}
                as full_period_microseconds
        from quantities_by_metering_period as quantities
        inner join {{ ref('int_metric_definitions') }} as definitions
            on quantities.metric_code = definitions.metric_code
        inner join {{ ref('int_service_periods') }} as periods
            on quantities.service_period_id = periods.service_period_id

    ),

    quantities_of_metering_periods_ranked as (

        select
            *,
            {# Metering periods without usage have quantity 0 and so come first. #}
            metering_period_count - count(*) over (partition by {{ group_keys | join(', ') }}) as empty_period_count,
            row_number() over (partition by {{ group_keys | join(', ') }} order by quantity) as quantity_rank
        from quantities_with_periods
        where period_aggregation is not null

    ),

    quantities_at_cuts as (

        select
            {{ group_keys | join(',\n            ') }},
            case
                when aggregation = 'weighted_sum' then {{ divide_quantity('quantity', 'full_period_microseconds') }}
                else quantity
            end as quantity,
            event_count,
            event_keys_hash,
            first_event_at,
            last_event_at
        from quantities_with_periods
        where period_aggregation is null

        union all

        select
            {{ group_keys | join(',\n            ') }},
            cast(
                case max(period_aggregation)
                    when 'sum' then sum(quantity)
                    when 'max' then max(quantity)
                    when 'min' then case when max(empty_period_count) > 0 then 0 else min(quantity) end
                    when 'average' then {{ divide_quantity('sum(quantity)', 'max(metering_period_count)') }}
                    when 'percentile'
                        then case
                            when max(empty_period_count) >= max(percentile) * max(metering_period_count) then 0
                            else min(
                                case
                                    when empty_period_count + quantity_rank >= percentile * metering_period_count then quantity
                                end
                            )
                        end
                end as {{ quantity_total_type() }}
            ) as quantity,
            cast(sum(event_count) as bigint) as event_count,
            cast(sum(event_keys_hash) as {{ event_keys_hash_type() }}) as event_keys_hash,
            min(first_event_at) as first_event_at,
            max(last_event_at) as last_event_at
        from quantities_of_metering_periods_ranked
        group by {{ group_keys | join(', ') }}

    )
{%- endmacro %}
