{# The pattern keeps out what engines read beyond ISO 8601: epoch numbers, 'infinity', dates alone, zone names. #}
{% macro parse_timestamp(text) -%}
    case
        when {{ matches_timestamp('upper(' ~ text ~ ')') }}
            then {{ cast_timestamp_text('upper(' ~ text ~ ')') }}
    end
{%- endmacro %}
