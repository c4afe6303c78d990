{# Prints, for each failed test, the file, the rule and up to five failing rows: a count alone sends people digging. #}
{% macro report_failing_rows(results) %}
    {% if execute %}
        {% for result in results if result.node.resource_type == 'test' and result.status in ('fail', 'warn') %}
            {% set test = result.node %}
            {% set tested = graph.nodes.get(test.attached_node) or graph.sources.get(test.attached_node) %}
            {% set rule = (test.config.meta.get('rule') or test.description or test.name) | replace('\n', ' ') | trim %}
            {% do print((tested or test).original_file_path ~ ": " ~ rule ~ " [" ~ result.failures ~ " failing]") %}
            {% set failing = run_query(failing_rows_query(test, tested) ~ " limit 5") %}
            {% for row in failing.rows %}
                {% set cells = [] %}
                {% for column in failing.column_names %}
                    {% do cells.append(column ~ "=" ~ row[column]) %}
                {% endfor %}
                {% do print("    row: " ~ cells | join(", ")) %}
            {% endfor %}
        {% endfor %}
    {% endif %}
{% endmacro %}
