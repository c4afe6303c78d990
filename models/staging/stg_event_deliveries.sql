{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='delivery_id'
) }}

with

raw_deliveries as (

    select * from {{ source('raw', 'usage_events') }}
    where received_at <= {{ as_of() }}

),

event_contracts as (

    select * from {{ ref('stg_event_contracts') }}

),

event_properties as (

    select * from {{ ref('event_properties') }}

),

event_policy as (

    select * from {{ ref('stg_event_policy') }}

),

customers as (

    select * from {{ ref('stg_customers') }}

),

{% if is_incremental() %}

staged as (

    select * from {{ this }}

),

raw_batches as (

    select
        batch_id,
        count(*) as deliveries
    from raw_deliveries
    group by batch_id

),

staged_batches as (

    select
        batch_id,
        count(*) as deliveries
    from staged
    group by batch_id

),

{# Batches commit out of order, so no watermark on time: a batch is done when all its deliveries are staged. #}
incomplete_batches as (

    select raw_batches.batch_id
    from raw_batches
    left join staged_batches
        on raw_batches.batch_id = staged_batches.batch_id
    where coalesce(staged_batches.deliveries, 0) <> raw_batches.deliveries

),

unstaged_deliveries as (

    select raw_deliveries.*
    from raw_deliveries
    inner join incomplete_batches
        on raw_deliveries.batch_id = incomplete_batches.batch_id
    left join staged
        on
            raw_deliveries.batch_id = staged.batch_id
            and raw_deliveries.line_number = staged.line_number
    where staged.delivery_id is null

),

{# Deliveries judged by rules that have changed since: another event schema, or a customer who came or went. #}
outdated_deliveries as (

    select
        staged.delivery_id,
        staged.batch_id,
        staged.line_number,
        staged.idempotency_key
    from staged
    cross join event_policy
    left join event_contracts
        on
            staged.event_type = event_contracts.event_type
            and staged.schema_version = event_contracts.schema_version
    left join customers
        on staged.customer_id = customers.customer_id
    where
        staged.contract_hash <> coalesce(
            event_contracts.contract_hash,
            {{ hash_without_contract('staged.event_type') }}
        )
        or staged.future_tolerance_minutes <> event_policy.future_tolerance_minutes
        or staged.is_known_customer <> (customers.customer_id is not null)

),

deliveries_to_judge as (

    select * from unstaged_deliveries

    union all

    select raw_deliveries.*
    from raw_deliveries
    inner join outdated_deliveries
        on
            raw_deliveries.batch_id = outdated_deliveries.batch_id
            and raw_deliveries.line_number = outdated_deliveries.line_number

),

{% else %}

deliveries_to_judge as (

    select * from raw_deliveries

),

{% endif %}

deliveries_typed as (

    select
        ---------- ids
        batch_id || ':' || cast(line_number as varchar) as delivery_id,
        batch_id,
        line_number,
        source,
        case when trim(idempotency_key) <> '' then idempotency_key end as idempotency_key,
        case when trim(customer_id) <> '' then customer_id end as customer_id,

        ---------- strings
        case when trim(event_type) <> '' then event_type end as event_type,
        case
            when properties is null then '{}'
            when {{ is_json_object('properties') }} then properties
        end as properties,
        left(properties, 100) as properties_text,
        nullif(trim(schema_version), '') as schema_version_text,
        nullif(trim(occurred_at), '') as occurred_at_text,
        coalesce(nullif(trim(corrects), ''), nullif(trim(correction), '')) as correction,
        landing_error_code,
        landing_error,

        ---------- numerics
        case
            when cast({{ dbt.safe_cast('schema_version', 'integer') }} as varchar) = trim(schema_version)
                then {{ dbt.safe_cast('schema_version', 'integer') }}
        end as schema_version,

        ---------- timestamps
        {{ parse_timestamp('trim(occurred_at)') }} as occurred_at,
        received_at
    from deliveries_to_judge

),

deliveries_with_rules as (

    select
        deliveries_typed.*,
        event_policy.future_tolerance_minutes,
        coalesce(
            event_contracts.contract_hash,
            {{ hash_without_contract('deliveries_typed.event_type') }}
        ) as contract_hash,
        event_contracts.status as contract_status,
        customers.customer_id is not null as is_known_customer,
        deliveries_typed.landing_error_code is null
        and deliveries_typed.idempotency_key is not null
        and deliveries_typed.occurred_at is not null
        and deliveries_typed.occurred_at
        <= {{ dbt.dateadd('minute', 'event_policy.future_tolerance_minutes', 'deliveries_typed.received_at') }}
        and deliveries_typed.properties is not null
        and deliveries_typed.correction is null
        and coalesce(event_contracts.status = 'active', false)
        and customers.customer_id is not null as is_envelope_valid
    from deliveries_typed
    cross join event_policy
    left join event_contracts
        on
            deliveries_typed.event_type = event_contracts.event_type
            and deliveries_typed.schema_version = event_contracts.schema_version
    left join customers
        on deliveries_typed.customer_id = customers.customer_id

),

deliveries_with_invalid_envelope as (

    select * from deliveries_with_rules
    where not is_envelope_valid

),

envelope_violations as (

    select
        delivery_id,
        landing_error_code as reason_code,
        landing_error as reason_message
    from deliveries_with_invalid_envelope
    where landing_error_code is not null

    {% for field in ['idempotency_key', 'event_type', 'customer_id', 'schema_version_text', 'occurred_at_text'] %}
    union all

    select
        delivery_id,
        'missing_required_field' as reason_code,
        '{{ field | replace("_text", "") }}: is missing or blank' as reason_message
    from deliveries_with_invalid_envelope
    where landing_error_code is null and {{ field }} is null
    {% endfor %}

    union all

    select
        deliveries_with_invalid_envelope.delivery_id,
        'unknown_event_type' as reason_code,
        'event_type: ''' || left(deliveries_with_invalid_envelope.event_type, 100) || ''' is not in the catalog'
            as reason_message
    from deliveries_with_invalid_envelope
    where
        landing_error_code is null
        and event_type is not null
        and event_type not in (select event_contracts.event_type from event_contracts)

    union all

    select
        delivery_id,
        case when contract_status = 'retired' then 'retired_schema_version' else 'unknown_schema_version' end as reason_code,
        'schema_version: ''' || left(schema_version_text, 100) || ''' of ' || event_type
        || case when contract_status = 'retired' then ' is retired' else ' is not in the catalog' end as reason_message
    from deliveries_with_invalid_envelope
    where
        landing_error_code is null
        and schema_version_text is not null
        and event_type in (select event_contracts.event_type from event_contracts)
        and coalesce(contract_status <> 'active', true)

    union all

    select
        delivery_id,
        'unparseable_timestamp' as reason_code,
        'occurred_at: ''' || left(occurred_at_text, 100) || ''' is not an ISO 8601 date and time' as reason_message
    from deliveries_with_invalid_envelope
    where landing_error_code is null and occurred_at_text is not null and occurred_at is null

    union all

    select
        delivery_id,
        'timestamp_in_future' as reason_code,
        'occurred_at: ''' || left(occurred_at_text, 100) || ''' is more than '
        || cast(future_tolerance_minutes as varchar) || ' minutes after it was received at '
        || {{ timestamp_text('received_at') }} || ' UTC' as reason_message
    from deliveries_with_invalid_envelope
    where occurred_at > {{ dbt.dateadd('minute', 'future_tolerance_minutes', 'received_at') }}

    union all

    select
        delivery_id,
        'unparseable_json' as reason_code,
        'properties: ''' || properties_text || ''' is not a JSON object' as reason_message
    from deliveries_with_invalid_envelope
    where landing_error_code is null and properties is null

    union all

    select
        delivery_id,
        'unknown_customer' as reason_code,
        'customer_id: ''' || left(customer_id, 100) || ''' is not a known customer' as reason_message
    from deliveries_with_invalid_envelope
    where landing_error_code is null and customer_id is not null and not is_known_customer

    union all

    select
        delivery_id,
        'unsupported_correction' as reason_code,
        'correction: ''' || left(correction, 100) || ''' asks to void or replace an event, which is not supported yet'
            as reason_message
    from deliveries_with_invalid_envelope
    where landing_error_code is null and correction is not null

),

property_fragments as (

    select
        deliveries_with_rules.delivery_id,
        event_properties.*,
        {{ json_fragment('deliveries_with_rules.properties', 'event_properties.property_name') }} as fragment,
        {{ json_text('deliveries_with_rules.properties', 'event_properties.property_name') }} as value_text
    from deliveries_with_rules
    inner join event_properties
        on
            deliveries_with_rules.event_type = event_properties.event_type
            and deliveries_with_rules.schema_version = event_properties.schema_version
    where deliveries_with_rules.properties is not null

),

{# Only text that is a JSON number is cast: engines read more, such as blanks and 1_000. A number in quotes is there for
   the sake of its digits and has no exponent. #}
property_values as (

    select
        *,
        fragment is null or fragment = 'null' as is_absent,
        left(fragment, 1) as fragment_start,
        data_type in ('integer', 'decimal') as is_numeric,
        case
            when
                data_type in ('integer', 'decimal')
                and {{ matches_number('value_text') }}
                and (left(fragment, 1) <> '"' or lower(value_text) not like '%e%')
                then {{ dbt.safe_cast('value_text', quantity_type()) }}
        end as numeric_value
    from property_fragments

),

property_violations as (

    select
        delivery_id,
        property_name,
        value_text,
        data_type,
        coalesce(cast(minimum as varchar), 'any') as lower_bound,
        coalesce(cast(maximum as varchar), 'any') as upper_bound,
        allowed_values,
        case
            when is_absent and is_required then 'missing_required_property'
            when is_absent then null
            when data_type = 'string' and fragment_start <> '"' then 'wrong_property_type'
            when data_type = 'boolean' and fragment not in ('true', 'false') then 'wrong_property_type'
            when is_numeric and fragment_start in ('{', '[', 't', 'f') then 'wrong_property_type'
            when is_numeric and numeric_value is null then 'not_a_number'
            when is_numeric and {{ has_more_decimals_than_quantity('value_text', 'numeric_value') }} then 'too_many_decimals'
            when data_type = 'integer' and numeric_value <> floor(numeric_value) then 'wrong_property_type'
            when numeric_value < minimum or numeric_value > maximum then 'out_of_range'
            when
                allowed_values is not null
                and (
                    value_text like '%|%'
                    or position('|' || value_text || '|' in '|' || allowed_values || '|') = 0
                )
                then 'value_not_allowed'
        end as reason_code
    from property_values

),

property_violations_described as (

    select
        delivery_id,
        reason_code,
        property_name || ': '
        || case when reason_code = 'missing_required_property' then '' else '''' || left(value_text, 100) || ''' ' end
        || case reason_code
            when 'missing_required_property' then 'is required and missing'
            when 'wrong_property_type' then 'is not of type ' || data_type
            when 'not_a_number' then 'is not a finite number of at most 19 digits before the point'
            when 'too_many_decimals' then 'has more than 9 decimals'
            when 'out_of_range' then 'is not between ' || lower_bound || ' and ' || upper_bound
            when 'value_not_allowed' then 'is none of ' || replace(allowed_values, '|', ', ')
        end as reason_message
    from property_violations
    where reason_code is not null

),

reasons as (

    select
        delivery_id,
        reason_code,
        {{ dbt.listagg('reason_message', "'; '", 'order by reason_message') }} as reason_messages
    from (
        select * from envelope_violations
        union all
        select * from property_violations_described
    ) as violations
    group by delivery_id, reason_code

),

reasons_by_delivery as (

    select
        delivery_id,
        {{ dbt.listagg('reason_code', "'|'", 'order by reason_code') }} as reason_codes,
        {{ dbt.listagg('reason_messages', "'; '", 'order by reason_code') }} as reason_messages
    from reasons
    group by delivery_id

),

deliveries_judged as (

    select
        deliveries_with_rules.*,
        reasons_by_delivery.reason_codes,
        reasons_by_delivery.reason_messages
    from deliveries_with_rules
    left join reasons_by_delivery
        on deliveries_with_rules.delivery_id = reasons_by_delivery.delivery_id

),

{% if is_incremental() %}

{# Keys whose deliveries may change places: those just judged, and those whose former verdict is withdrawn. #}
keys_in_play as (

    select idempotency_key from deliveries_judged
    union
    select idempotency_key from outdated_deliveries

),

staged_copies as (

    select staged.*
    from staged
    inner join keys_in_play
        on staged.idempotency_key = keys_in_play.idempotency_key
    left join outdated_deliveries
        on staged.delivery_id = outdated_deliveries.delivery_id
    where
        staged.delivery_status <> 'rejected'
        and outdated_deliveries.delivery_id is null

),

{% endif %}

valid_copies as (

    select
        delivery_id,
        idempotency_key,
        received_at,
        batch_id,
        line_number
    from deliveries_judged
    where reason_codes is null

    {% if is_incremental() %}
    union all

    select
        delivery_id,
        idempotency_key,
        received_at,
        batch_id,
        line_number
    from staged_copies
    {% endif %}

),

{# Few keys have copies: only those are ranked. #}
keys_with_copies as (

    select idempotency_key
    from valid_copies
    group by idempotency_key
    having count(*) > 1

),

copies_ranked as (

    select
        valid_copies.delivery_id,
        valid_copies.idempotency_key,
        row_number() over (
            partition by valid_copies.idempotency_key
            order by valid_copies.received_at, valid_copies.batch_id, valid_copies.line_number
        ) as arrival
    from valid_copies
    inner join keys_with_copies
        on valid_copies.idempotency_key = keys_with_copies.idempotency_key

),

copy_contents as (

    select
        delivery_id,
        event_type,
        schema_version,
        customer_id,
        occurred_at,
        properties
    from deliveries_judged
    where reason_codes is null

    {% if is_incremental() %}
    union all

    select
        delivery_id,
        event_type,
        schema_version,
        customer_id,
        occurred_at,
        properties
    from staged_copies
    {% endif %}

),

copies_compared as (

    select
        copies_ranked.delivery_id,
        copies_ranked.arrival,
        first_copies.delivery_id as counted_delivery_id,
        {%- for field in ['event_type', 'schema_version', 'customer_id', 'occurred_at'] %}
        case when copy_contents.{{ field }} <> first_contents.{{ field }} then '{{ field }} ' else '' end ||
        {%- endfor %}
        case
            when
                copy_contents.properties <> first_contents.properties
                and {{ json_canonical('copy_contents.properties') }} <> {{ json_canonical('first_contents.properties') }}
                then 'properties '
            else ''
        end as conflicting_fields
    from copies_ranked
    inner join copies_ranked as first_copies
        on
            copies_ranked.idempotency_key = first_copies.idempotency_key
            and first_copies.arrival = 1
    inner join copy_contents
        on copies_ranked.delivery_id = copy_contents.delivery_id
    inner join copy_contents as first_contents
        on first_copies.delivery_id = first_contents.delivery_id

),

judged_outcomes as (

    select
        ---------- ids
        deliveries_judged.delivery_id,
        deliveries_judged.batch_id,
        deliveries_judged.line_number,
        deliveries_judged.source,
        deliveries_judged.idempotency_key,
        deliveries_judged.customer_id,
        case when copies_compared.arrival > 1 then copies_compared.counted_delivery_id end as counted_delivery_id,

        ---------- strings
        deliveries_judged.event_type,
        deliveries_judged.properties,
        case
            when deliveries_judged.reason_codes is not null then 'rejected'
            when copies_compared.arrival > 1 then 'duplicate'
            else 'accepted'
        end as delivery_status,
        deliveries_judged.reason_codes,
        deliveries_judged.reason_messages,
        nullif(trim(copies_compared.conflicting_fields), '') as conflicting_fields,
        deliveries_judged.contract_hash,

        ---------- numerics
        deliveries_judged.schema_version,
        deliveries_judged.future_tolerance_minutes,

        ---------- booleans
        deliveries_judged.is_known_customer,

        ---------- timestamps
        deliveries_judged.occurred_at,
        deliveries_judged.received_at
    from deliveries_judged
    left join copies_compared
        on deliveries_judged.delivery_id = copies_compared.delivery_id

),

{% if is_incremental() %}

{# Copies that were staged before and whose place changed, because an earlier copy turned up or an accepted one fell. #}
restated_outcomes as (

    select
        staged_copies.delivery_id,
        staged_copies.batch_id,
        staged_copies.line_number,
        staged_copies.source,
        staged_copies.idempotency_key,
        staged_copies.customer_id,
        case when copies_compared.arrival > 1 then copies_compared.counted_delivery_id end as counted_delivery_id,
        staged_copies.event_type,
        staged_copies.properties,
        case when copies_compared.arrival > 1 then 'duplicate' else 'accepted' end as delivery_status,
        staged_copies.reason_codes,
        staged_copies.reason_messages,
        nullif(trim(copies_compared.conflicting_fields), '') as conflicting_fields,
        staged_copies.contract_hash,
        staged_copies.schema_version,
        staged_copies.future_tolerance_minutes,
        staged_copies.is_known_customer,
        staged_copies.occurred_at,
        staged_copies.received_at
    from staged_copies
    left join copies_compared
        on staged_copies.delivery_id = copies_compared.delivery_id
    where
        coalesce(case when copies_compared.arrival > 1 then copies_compared.counted_delivery_id end, 'none')
        <> coalesce(staged_copies.counted_delivery_id, 'none')

),

{% endif %}

outcomes as (

    select * from judged_outcomes

    {% if is_incremental() %}
    union all

    select * from restated_outcomes
    {% endif %}

),

{# Counts the builds that changed something, a full refresh included, so that later models know what is new without trusting
   a clock. #}
outcomes_sequenced as (

    select
        outcomes.*,
        {% if load_relation(this) %}
        (select coalesce(max(staged_before.stage_sequence), 0) + 1 from {{ this }} as staged_before) as stage_sequence
        {% else %}
        1 as stage_sequence
        {% endif %}
    from outcomes

)

select * from outcomes_sequenced
