{# A product of decimals would need more digits than there are for amounts from 100 billion on. Whole digits do not: a million parts,
   of which so many are kept. #}
{% macro reduce_by_fraction(amount, fraction) -%}
    {%- set digits = whole_digits('abs(' ~ amount ~ ')', amount_type()) -%}
    {%- set kept -%} cast((1 - {{ fraction }}) * 1000000 as {{ whole_number_type() }}) {%- endset -%}
    {%- set reduced -%}
        {{ whole_millions(digits) }} * {{ kept }}
        + {{ divide_whole('mod(' ~ digits ~ ', 1000000) * ' ~ kept ~ ' * 2 + 1000000', '2000000') }}
    {%- endset -%}
    (case when {{ amount }} < 0 then -1 else 1 end * {{ from_whole_digits(reduced, amount_type()) }})
{%- endmacro %}
