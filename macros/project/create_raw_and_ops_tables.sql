{% macro create_raw_and_ops_tables() %}
    {% if execute and flags.WHICH in ('build', 'run', 'seed', 'test', 'run-operation') %}
        {% for statement in raw_and_ops_table_statements() %}
            {% do run_query(statement) %}
        {% endfor %}
    {% endif %}
{% endmacro %}
