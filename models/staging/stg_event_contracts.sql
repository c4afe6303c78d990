with

event_types as (

    select * from {{ ref('event_types') }}

),

event_properties as (

    select * from {{ ref('event_properties') }}

),

property_rules as (

    select
        event_type,
        schema_version,
        {{ dbt.listagg(
            measure=surrogate_key([
                'property_name', 'data_type', 'is_required', 'minimum', 'maximum', 'allowed_values'
            ]),
            delimiter_text="','",
            order_by_clause='order by property_name'
        ) }} as rules
    from event_properties
    group by event_type, schema_version

),

contracts as (

    select
        event_types.event_type,
        event_types.schema_version,
        event_types.retired_at,
        {{ surrogate_key(['property_rules.rules']) }} as property_rules_hash,
        {{ surrogate_key([timestamp_text('event_types.retired_at'), 'property_rules.rules']) }} as contract_hash
    from event_types
    left join property_rules
        on
            event_types.event_type = property_rules.event_type
            and event_types.schema_version = property_rules.schema_version

)

select * from contracts
