{# A returned row refers to a combination of columns that the other relation does not have. #}
{% test refers_to(model, columns, to, to_columns) %}

select referring.*
from {{ model }} as referring
left join {{ to }} as referred
    on
    {%- for column in columns %}
        {{ 'and ' if not loop.first }}referring.{{ column }} = referred.{{ to_columns[loop.index0] }}
    {%- endfor %}
where
    referred.{{ to_columns[0] }} is null
    and referring.{{ columns[0] }} is not null

{% endtest %}
