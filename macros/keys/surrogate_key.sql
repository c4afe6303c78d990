{% macro surrogate_key(columns) -%}
    {%- set parts = [] -%}
    {%- for column in columns -%}
        {%- do parts.append("coalesce(replace(cast(" ~ column ~ " as varchar), '|', '||'), '|null')") -%}
    {%- endfor -%}
    {{ dbt.hash(parts | join(" || '|,' || ")) }}
{%- endmacro %}
