{# A type that the catalog lacks and a version that it lacks are rejected for different reasons. #}
{% macro hash_without_contract(event_type) -%}
    case when {{ event_type }} in (select known.event_type from event_contracts as known) then 'no_version' else 'none' end
{%- endmacro %}
