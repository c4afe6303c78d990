{% macro cast_timestamp_text(text) -%}
    {{ return(adapter.dispatch('cast_timestamp_text', 'metering')(text)) }}
{%- endmacro %}

{# A cast to timestamp would leave the offset out of account. #}
{% macro duckdb__cast_timestamp_text(text) -%}
    timezone('UTC', try_cast({{ text }} as timestamptz))
{%- endmacro %}

{# In parts, with a format for each: what Snowflake reads without one, and in which zone, is up to the session. The pattern of
   matches_timestamp fixes where the date, the time of day and the rest of the text begin. #}
{% macro snowflake__cast_timestamp_text(text) -%}
    {%- set rest -%} substr({{ text }}, 17) {%- endset -%}
    {%- set offset -%} regexp_substr({{ rest }}, '[+-][0-9]{2}(:?[0-9]{2})?$') {%- endset -%}
    dateadd(
        minute,
        case when left({{ offset }}, 1) = '-' then 1 else -1 end
        * coalesce(
            cast(substr({{ offset }}, 2, 2) as integer) * 60
            + case when length({{ offset }}) > 3 then cast(right({{ offset }}, 2) as integer) else 0 end,
            0
        ),
        try_to_timestamp_ntz(
            left({{ text }}, 10) || ' ' || substr({{ text }}, 12, 5)
            || case when left({{ rest }}, 1) = ':' then left({{ rest }}, 3) else ':00' end
            || '.' || rpad(coalesce(substr(regexp_substr({{ rest }}, '[.][0-9]+'), 2, 6), ''), 6, '0'),
            'YYYY-MM-DD HH24:MI:SS.FF6'
        )
    )
{%- endmacro %}
