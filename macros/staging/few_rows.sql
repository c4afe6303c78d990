{% macro few_rows(relation, columns) -%}
    {{ return(adapter.dispatch('few_rows', 'metering')(relation, columns)) }}
{%- endmacro %}

{# DuckDB guesses how many rows a join has; a wrong guess makes it keep all of history in memory and look up these few in it. Rows
   that come out of one list are taken for few. The list takes memory: five million keys fit into 500 MB. #}
{% macro duckdb__few_rows(relation, columns) -%}
    select unnest(few, recursive := true)
    from (
        select list(struct_pack({% for column in columns %}{{ column }} := {{ column }}{{ ', ' if not loop.last }}{% endfor %})) as few
        from {{ relation }}
    ) as lists
{%- endmacro %}

{% macro default__few_rows(relation, columns) -%}
    select {{ columns | join(', ') }} from {{ relation }}
{%- endmacro %}
