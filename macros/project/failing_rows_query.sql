{# dbt's own column tests return values; the rows that hold them say more. On DuckDB a seed's rows also get their line. #}
{% macro failing_rows_query(test, tested) %}
    {% set name = test.test_metadata.name if test.test_metadata else none %}
    {% if tested and test.column_name and name in ('not_null', 'unique', 'accepted_values', 'relationships') %}
        {% set column = test.column_name %}
        {% set rows = tested.relation_name %}
        {% if tested.resource_type == 'seed' and adapter.type() == 'duckdb' %}
            {% set rows = "(select row_number() over (order by rowid) + 1 as csv_line, * from " ~ rows ~ ")" %}
        {% endif %}
        {% if name == 'not_null' %}
            {{ return("select * from " ~ rows ~ " as tested where " ~ column ~ " is null") }}
        {% endif %}
        {% set value = {'unique': 'unique_field', 'accepted_values': 'value_field', 'relationships': 'from_field'}[name] %}
        {{ return(
            "select tested.* from " ~ rows ~ " as tested where tested." ~ column ~ " in (select failing." ~ value
            ~ " from (" ~ test.compiled_code ~ ") as failing)"
        ) }}
    {% endif %}
    {{ return("select * from (" ~ test.compiled_code ~ ") as failing") }}
{% endmacro %}
