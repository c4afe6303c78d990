{# Two rows a build, so that one that died in between shows. #}
{% macro log_build(step, results=[]) %}
    {% if execute and flags.WHICH in ('build', 'run', 'seed') %}
        {% set failed = [] %}
        {% for result in results if result.status in ('error', 'fail', 'runtime error', 'skipped') %}
            {% do failed.append(result.node.unique_id) %}
        {% endfor %}
        {% do run_query(
            "insert into ops.build_log values ('" ~ invocation_id ~ "', '" ~ step ~ "', "
            ~ "cast('" ~ modules.datetime.datetime.utcnow().strftime('%Y-%m-%d %H:%M:%S.%f') ~ "' as timestamp), "
            ~ as_of() ~ ", " ~ (failed | length if step == 'finished' else 'null') ~ ")"
        ) %}
    {% endif %}
{% endmacro %}
