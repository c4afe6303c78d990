{# Two rows a build, so that one that died in between shows. Only a build of everything, tests included, is whole. #}
{% macro log_build(step, results=[]) %}
    {% if execute and flags.WHICH in ('build', 'run', 'seed') and not var('schema_prefix') %}
        {% set failed = [] %}
        {% for result in results if result.status in ('error', 'fail', 'runtime error', 'skipped') %}
            {% do failed.append(result.node.unique_id) %}
        {% endfor %}
        {% set left_out = [] %}
        {% for option in ['select', 'exclude', 'selector', 'resource_types', 'exclude_resource_types'] %}
            {% set value = invocation_args_dict.get(option) or [] %}
            {% do left_out.extend([value] if value is string else value | list) %}
        {% endfor %}
        {# Dagster selects everything as fqn:*; unit tests prove the models, not the data. #}
        {% set is_whole = flags.WHICH == 'build'
            and left_out | map('string') | reject('in', ['fqn:*', 'unit_test']) | list | length == 0 %}
        {% set price_book = price_book_hash() %}
        {% do run_query(
            "insert into ops.build_log (invocation_id, step, is_whole, logged_at, as_of, failed_nodes, price_book_hash) values ('" ~ invocation_id ~ "', '" ~ step ~ "', " ~ is_whole | lower ~ ", "
            ~ "cast('" ~ modules.datetime.datetime.utcnow().strftime('%Y-%m-%d %H:%M:%S.%f') ~ "' as datetime), "
            ~ as_of() ~ ", " ~ (failed | length if step == 'finished' else 'null') ~ ", "
            ~ ("'" ~ price_book ~ "'" if price_book else 'null') ~ ")"
        ) %}
    {% endif %}
{% endmacro %}
