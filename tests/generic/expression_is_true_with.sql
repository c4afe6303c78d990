{# A returned row is one for which, with a row that it refers to, the expression is false or null. The expression calls the two
   tested and referred. A row that refers to none is left to refers_to. #}
{% test expression_is_true_with(model, columns, to, to_columns, expression) %}

select distinct tested.*
from {{ model }} as tested
inner join {{ to }} as referred
    on
    {%- for column in columns %}
        {{ 'and ' if not loop.first }}tested.{{ column }} = referred.{{ to_columns[loop.index0] }}
    {%- endfor %}
where not coalesce(({{ expression }}), false)

{% endtest %}
