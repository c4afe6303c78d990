{# Two rows a build, so that one that died in between shows. Only a build of everything, tests included, is whole. #}
{% macro log_build(step, results=[]) %}
    {% if execute and flags.WHICH in ('build', 'run', 'seed') %}
        {% set failed = [] %}
        {% for result in results if result.status in ('error', 'fail', 'runtime error', 'skipped') %}
            {% do failed.append(result.node.unique_id) %}
        {% endfor %}
        {% set selection = (invocation_args_dict.get('select') or []) | list + (invocation_args_dict.get('exclude') or []) | list %}
        {% set is_whole = flags.WHICH == 'build' and (selection | reject('equalto', 'fqn:*') | list | length == 0) %}
        {% do run_query(
            "insert into ops.build_log values ('" ~ invocation_id ~ "', '" ~ step ~ "', " ~ is_whole | lower ~ ", "
            ~ "cast('" ~ modules.datetime.datetime.utcnow().strftime('%Y-%m-%d %H:%M:%S.%f') ~ "' as timestamp), "
            ~ as_of() ~ ", " ~ (failed | length if step == 'finished' else 'null') ~ ")"
        ) %}
    {% endif %}
{% endmacro %}
