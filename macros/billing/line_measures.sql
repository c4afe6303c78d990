{# What of a line adds up over its entries in the ledger. #}
{% macro line_measures() %}
    {{ return([
        'metered_quantity', 'included_quantity_used', 'billable_quantity', 'unrounded_amount', 'gross_amount', 'discount_amount',
        'maximum_reduction_amount', 'amount', 'amount_minor', 'event_count', 'event_keys_hash'
    ]) }}
{% endmacro %}
