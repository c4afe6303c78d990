{# Prints, for each failed test, the file, the rule and up to five failing rows: a count alone sends people digging. #}
{% macro report_failing_rows(results) %}
    {% if execute %}
        {% for result in results if result.node.resource_type == 'test' and result.status in ('fail', 'warn') %}
            {% set test = result.node %}
            {% set tested = graph.nodes.get(test.attached_node) if test.attached_node else none %}
            {% set file = tested.original_file_path if tested else test.original_file_path %}
            {% set rule = (test.description or test.name) | replace('\n', ' ') | trim %}
            {% set failing = run_query("select * from (" ~ test.compiled_code ~ ") as failing limit 5") %}
            {{ log(file ~ ": " ~ rule ~ " [" ~ result.failures ~ " failing]", info=true) }}
            {% for row in failing.rows %}
                {% set cells = [] %}
                {% for column in failing.column_names %}
                    {% do cells.append(column ~ "=" ~ row[column]) %}
                {% endfor %}
                {{ log("    row: " ~ cells | join(", "), info=true) }}
            {% endfor %}
        {% endfor %}
    {% endif %}
{% endmacro %}
