{# Two rows a build, so that one that died in between shows. It is whole once each seed, model and data test has a result of
its own: what was selected does not tell, since dbt retry runs what failed only. Unit tests prove the models, not the data. #}
{% macro log_build(step, results=[]) %}
    {% if execute and flags.WHICH in ('build', 'run', 'seed') and not var('schema_prefix') %}
        {% set failed = [] %}
        {% set done = [] %}
        {% for result in results %}
            {% do done.append(result.node.unique_id) %}
            {% if result.status in ('error', 'fail', 'runtime error', 'skipped') %}
                {% do failed.append(result.node.unique_id) %}
            {% endif %}
        {% endfor %}
        {% set left_out = graph.nodes.values()
            | selectattr('resource_type', 'in', ['seed', 'model', 'test'])
            | rejectattr('unique_id', 'in', set(done)) | list %}
        {% set is_whole = flags.WHICH == 'build'
            and not invocation_args_dict.empty and not invocation_args_dict.sample and left_out | length == 0 %}
        {% set price_book = price_book_hash() %}
        {% set revision = env_var('METERING_CODE_REVISION', '') %}
        {% do run_query(
            "insert into ops.build_log ("
            ~ "invocation_id, step, is_whole, logged_at, as_of, failed_nodes, price_book_hash, code_revision"
            ~ ") values ('" ~ invocation_id ~ "', '" ~ step ~ "', " ~ is_whole | lower ~ ", "
            ~ "cast('" ~ modules.datetime.datetime.utcnow().strftime('%Y-%m-%d %H:%M:%S.%f') ~ "' as datetime), "
            ~ as_of() ~ ", " ~ (failed | length if step == 'finished' else 'null') ~ ", "
            ~ ("'" ~ price_book ~ "'" if price_book else 'null') ~ ", "
            ~ ("'" ~ revision ~ "'" if revision else 'null') ~ ")"
        ) %}
    {% endif %}
{% endmacro %}
