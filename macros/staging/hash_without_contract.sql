{# A type that the catalog lacks and a version that it lacks are rejected for different reasons. #}
{% macro hash_without_contract(known_event_type) -%}
    case when {{ known_event_type }} is null then 'none' else 'no_version' end
{%- endmacro %}
