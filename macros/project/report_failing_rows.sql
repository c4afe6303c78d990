{# Prints, for each failed test, the file, the rule and up to five failing rows: a count alone sends people digging. #}
{% macro report_failing_rows(results) %}
    {% if execute %}
        {% for result in results if result.node.resource_type == 'test' and result.status in ('fail', 'warn') %}
            {% set test = result.node %}
            {% set tested = graph.nodes.get(test.attached_node) or graph.sources.get(test.attached_node) %}
            {% set rule = (test.config.meta.get('rule') or test.description or test.name) | replace('\n', ' ') | trim %}
            {# A staging model over one seed says what is wrong with the seed. #}
            {% set origins = tested.depends_on.nodes if tested and tested.resource_type == 'model' else [] %}
            {% set origin = graph.nodes.get(origins[0]) if origins | length == 1 else none %}
            {% set said_of = origin if origin and origin.resource_type == 'seed' else (tested or test) %}
            {% do print(said_of.original_file_path ~ ": " ~ rule ~ " [" ~ result.failures ~ " failing]") %}
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
