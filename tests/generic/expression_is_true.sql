{# A returned row is one for which the expression is false or null. On a column, the expression follows the column's name. #}
{% test expression_is_true(model, expression, column_name=none) %}

select *
from {{ model }}
where not coalesce(({{ column_name or '' }} {{ expression }}), false)

{% endtest %}
