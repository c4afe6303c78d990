{# Nobody knows yet what will have been received. And an incremental model cannot forget rows, so it cannot go back in time: say so instead of mixing two states. #}
{% macro refuse_impossible_as_of() %}
    {% set deliveries = ref('stg_event_deliveries') %}
    {% if execute and var('as_of') and var('as_of') | string | replace('T', ' ') > run_started_at.strftime('%Y-%m-%d %H:%M:%S.%f') %}
        {{ exceptions.raise_compiler_error(
            "as_of " ~ var('as_of') ~ " lies after the start of the build, " ~ run_started_at.strftime('%Y-%m-%d %H:%M:%S')
            ~ " UTC: periods that still run would count as over. Give an instant that has passed."
        ) }}
    {% endif %}
    {% if execute and flags.WHICH in ('build', 'run') and not flags.FULL_REFRESH %}
        {% set staged = load_relation(deliveries) %}
        {% if staged %}
            {% set ahead = run_query(
                "select newest from (select max(received_at) as newest from " ~ staged ~ ") as staged where newest > " ~ as_of()
            ) %}
            {% if ahead.rows | length > 0 %}
                {{ exceptions.raise_compiler_error(
                    "as_of " ~ as_of() ~ " lies before deliveries that are already staged (newest received_at "
                    ~ ahead.rows[0][0] ~ " UTC). Build a past state with --full-refresh, into a database of its own "
                    ~ "if the present one must stay."
                ) }}
            {% endif %}
        {% endif %}
    {% endif %}
{% endmacro %}
