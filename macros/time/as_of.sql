{% macro as_of() -%}
    {%- if var('as_of') -%}
        cast('{{ var("as_of") }}' as datetime)
    {%- else -%}
        cast('{{ run_started_at.strftime("%Y-%m-%d %H:%M:%S.%f") }}' as datetime)
    {%- endif -%}
{%- endmacro %}
