{# 0 to 9,999 from digits: engines differ in how they generate series. #}
with

digits as (

    {% for digit in range(10) -%}
    select {{ digit }} as digit
    {% if not loop.last %}union all{% endif %}
    {% endfor %}

),

numbers as (

    select thousands.digit * 1000 + hundreds.digit * 100 + tens.digit * 10 + ones.digit as number
    from digits as thousands
    cross join digits as hundreds
    cross join digits as tens
    cross join digits as ones

)

select * from numbers
