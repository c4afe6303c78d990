{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key=['batch_id', 'line_number']
) }}

with

raw_deliveries {{ as_inlined() }} (

    select * from {{ source('raw', 'usage_events') }}
    where received_at <= {{ as_of() }}

),

event_contracts as (

    select * from {{ ref('stg_event_contracts') }}

),

known_event_types as (

    select distinct event_type from event_contracts

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

contracts_with_keys as (

    select {{ surrogate_key(['event_type', 'schema_version', 'contract_hash']) }} as contract_key
    from event_contracts

),

{# All that a judgement depends on beside the delivery, in one value. #}
rules_in_force as (

    select
        {{ surrogate_key([
            '(select sum(' ~ event_key_number('customers.customer_id') ~ ') from customers)',
            '(select sum(' ~ event_key_number('contracts_with_keys.contract_key') ~ ') from contracts_with_keys)',
            'future_tolerance_minutes'
        ]) }} as rules_hash
    from event_policy

),

{# The first properties of an event schema side by side, so that a delivery need not be multiplied by its properties. #}
{% set slots = range(8) %}
{% set rule_fields = [
    'property_path', 'data_type', 'allowed_values', 'allowed_fragments', 'minimum', 'maximum', 'is_required'
] %}
event_properties_numbered as (

    select
        *,
        {{ json_path('property_name') }} as property_path,
        {{ quoted_values('allowed_values') }} as allowed_fragments,
        row_number() over (partition by event_type, schema_version order by property_name) - 1 as slot
    from event_properties

),

property_rules as (

    select
        event_type,
        schema_version,
        {%- for slot in slots %}
        {%- for rule in rule_fields %}
        max(case when slot = {{ slot }} then {{ rule }} end) as {{ rule }}_{{ slot }},
        {%- endfor %}
        {%- endfor %}
        count(*) > {{ slots | length }} as has_more_properties
    from event_properties_numbered
    group by event_type, schema_version

),

{% if is_incremental() %}

staged {{ as_inlined() }} (

    select
        *,
        {{ row_address() }} as row_address
    from {{ this }}

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

few_incomplete_batches as (

    {{ few_rows('incomplete_batches', ['batch_id']) }}

),

staged_in_incomplete_batches as (

    select
        staged.batch_id,
        staged.line_number
    from staged
    inner join few_incomplete_batches as incomplete_batches
        on staged.batch_id = incomplete_batches.batch_id

),

unstaged_deliveries as (

    select raw_deliveries.*
    from raw_deliveries
    inner join few_incomplete_batches as incomplete_batches
        on raw_deliveries.batch_id = incomplete_batches.batch_id
    left join staged_in_incomplete_batches
        on
            raw_deliveries.batch_id = staged_in_incomplete_batches.batch_id
            and raw_deliveries.line_number = staged_in_incomplete_batches.line_number
    where staged_in_incomplete_batches.batch_id is null

),

{# What was staged last, and all that had been staged before, was right by the rules of that build, as far as raw still had it.
   While these hold, no judgement can be outdated, and history need not be read to find out. Builds that overlapped may have left
   the rules of each. #}
rules_of_last_build as (

    select
        min(rules_hash) as first_rules_hash,
        max(rules_hash) as last_rules_hash
    from staged
    where stage_sequence = (select max(staged_before.stage_sequence) from {{ this }} as staged_before)

),

changed_rules as (

    select rules_in_force.rules_hash
    from rules_in_force
    left join rules_of_last_build
        on
            rules_in_force.rules_hash = rules_of_last_build.first_rules_hash
            and rules_in_force.rules_hash = rules_of_last_build.last_rules_hash
    where rules_of_last_build.first_rules_hash is null

),

{# Few judgements differ, however many deliveries there are: they are compared with the rules of today in place of each delivery. #}
judgements as (

    select distinct
        event_type,
        schema_version,
        customer_id,
        contract_hash,
        future_tolerance_minutes,
        is_known_customer
    from staged
    cross join changed_rules

),

{# Judged by rules that have changed since: another event schema, or a customer who came or went. #}
outdated_judgements as (

    select judgements.*
    from judgements
    cross join event_policy
    left join event_contracts
        on
            judgements.event_type = event_contracts.event_type
            and judgements.schema_version = event_contracts.schema_version
    left join known_event_types
        on judgements.event_type = known_event_types.event_type
    left join customers
        on judgements.customer_id = customers.customer_id
    where
        judgements.contract_hash <> coalesce(
            event_contracts.contract_hash,
            {{ hash_without_contract('known_event_types.event_type') }}
        )
        or judgements.future_tolerance_minutes <> event_policy.future_tolerance_minutes
        or judgements.is_known_customer <> (customers.customer_id is not null)

),

few_outdated_judgements as (

    {{ few_rows('outdated_judgements', [
        'event_type', 'schema_version', 'customer_id', 'contract_hash', 'future_tolerance_minutes', 'is_known_customer'
    ]) }}

),

outdated_deliveries as (

    select
        staged.delivery_id,
        staged.batch_id,
        staged.line_number,
        staged.idempotency_key
    from staged
    inner join few_outdated_judgements as outdated_judgements
        on
            staged.contract_hash = outdated_judgements.contract_hash
            and staged.future_tolerance_minutes = outdated_judgements.future_tolerance_minutes
            and staged.is_known_customer = outdated_judgements.is_known_customer
            and coalesce(staged.event_type, '') = coalesce(outdated_judgements.event_type, '')
            and coalesce(staged.schema_version, -1) = coalesce(outdated_judgements.schema_version, -1)
            and coalesce(staged.customer_id, '') = coalesce(outdated_judgements.customer_id, '')

),

deliveries_to_judge as (

    select
        unstaged_deliveries.*,
        false as is_restated
    from unstaged_deliveries

    union all

    select
        raw_deliveries.*,
        true as is_restated
    from raw_deliveries
    inner join outdated_deliveries
        on
            raw_deliveries.batch_id = outdated_deliveries.batch_id
            and raw_deliveries.line_number = outdated_deliveries.line_number

),

{% else %}

{# A full refresh of a table that is there restates all of it: what later models took from it may have to go. #}
deliveries_to_judge {{ as_inlined() }} (

    select
        *,
        {{ 'true' if load_relation(this) else 'false' }} as is_restated
    from raw_deliveries

),

{% endif %}

deliveries_with_object {{ as_inlined() }} (

    select
        *,
        case when {{ is_json_object('properties') }} then properties end as properties_object,
        case
            when {{ matches_timestamp('occurred_at') }}
                then {{ cast_timestamp_text('occurred_at') }}
        end as occurred_at_utc
    from deliveries_to_judge

),

deliveries_with_fragments {{ as_inlined() }} (

    select
        deliveries.*,
        event_policy.future_tolerance_minutes,
        event_contracts.event_type is not null
        and coalesce(deliveries.received_at < event_contracts.retired_at, true) as is_contract_active,
        customers.customer_id is not null as is_known_customer,
        {%- for slot in slots %}
        {%- for rule in rule_fields %}
        property_rules.{{ rule }}_{{ slot }},
        {%- endfor %}
        {{ json_fragment('deliveries.properties_object', 'property_rules.property_path_' ~ slot) }} as fragment_{{ slot }},
        {%- endfor %}
        coalesce(property_rules.has_more_properties, false) as has_more_properties
    from deliveries_with_object as deliveries
    cross join event_policy
    left join event_contracts
        on
            deliveries.event_type = event_contracts.event_type
            and deliveries.schema_version = cast(event_contracts.schema_version as varchar)
    left join property_rules
        on
            event_contracts.event_type = property_rules.event_type
            and event_contracts.schema_version = property_rules.schema_version
    left join customers
        on deliveries.customer_id = customers.customer_id

),

{# Nearly all deliveries are plainly right, which one look at each field tells. The rules in full, with their messages, are for
   the rest: a clear delivery keeps them, an unclear one may. What starts above a blank is not blank. #}
unclear_deliveries {{ as_materialized() }} (

    select
        batch_id,
        line_number,
        source,
        received_at,
        idempotency_key,
        event_type,
        schema_version,
        customer_id,
        occurred_at,
        properties,
        corrects,
        correction,
        landing_error_code,
        landing_error,
        is_restated
    from deliveries_with_fragments
    where
        not coalesce(
            landing_error_code is null
            and corrects is null
            and correction is null
            and idempotency_key >= '!'
            and customer_id >= '!'
            and event_type >= '!'
            and is_contract_active
            and is_known_customer
            and occurred_at_utc <= {{ dbt.dateadd('minute', 'future_tolerance_minutes', 'received_at') }}
            and properties_object is not null
            and not has_more_properties
            {%- for slot in slots %}
            and {{ is_plainly_valid(slot) }}
            {%- endfor %},
            false
        )

),

{# Blanks and nothing else: what else trim takes off by itself differs between engines. #}
unclear_deliveries_typed as (

    select
        ---------- ids
        batch_id || ':' || cast(line_number as varchar) as delivery_id,
        batch_id,
        line_number,
        source,
        case when trim(idempotency_key, ' ') <> '' then idempotency_key end as idempotency_key,
        case when trim(customer_id, ' ') <> '' then customer_id end as customer_id,
        case when trim(corrects, ' ') <> '' then corrects end as corrects,

        ---------- strings
        case when trim(event_type, ' ') <> '' then event_type end as event_type,
        nullif(trim(correction, ' '), '') as correction,
        case
            when properties is null then '{}'
            when {{ is_json_object('properties') }} then properties
            {# A void has nothing to count. #}
            when trim(correction, ' ') = 'void' then '{}'
        end as properties,
        left(properties, 100) as properties_text,
        nullif(trim(schema_version, ' '), '') as schema_version_text,
        nullif(trim(occurred_at, ' '), '') as occurred_at_text,
        landing_error_code,
        landing_error,

        ---------- booleans
        is_restated,

        ---------- numerics
        case
            when
                cast({{ dbt.safe_cast('schema_version', 'integer') }} as varchar)
                = trim(schema_version, ' ')
                then {{ dbt.safe_cast('schema_version', 'integer') }}
        end as schema_version,

        ---------- timestamps
        {{ parse_timestamp("trim(occurred_at, ' ')") }} as occurred_at,
        received_at
    from unclear_deliveries

),

unclear_deliveries_with_rules as (

    select
        unclear_deliveries_typed.*,
        event_policy.future_tolerance_minutes,
        coalesce(
            event_contracts.contract_hash,
            {{ hash_without_contract('known_event_types.event_type') }}
        ) as contract_hash,
        event_contracts.event_type is not null as has_contract,
        event_contracts.retired_at,
        customers.customer_id is not null as is_known_customer,
        unclear_deliveries_typed.landing_error_code is null
        and unclear_deliveries_typed.idempotency_key is not null
        and unclear_deliveries_typed.occurred_at is not null
        and unclear_deliveries_typed.occurred_at
        <= {{ dbt.dateadd('minute', 'event_policy.future_tolerance_minutes', 'unclear_deliveries_typed.received_at') }}
        and unclear_deliveries_typed.properties is not null
        and (unclear_deliveries_typed.corrects is null) = (unclear_deliveries_typed.correction is null)
        and coalesce(unclear_deliveries_typed.correction in ('void', 'replace'), true)
        and coalesce(unclear_deliveries_typed.corrects <> unclear_deliveries_typed.idempotency_key, true)
        and event_contracts.event_type is not null
        and coalesce(unclear_deliveries_typed.received_at < event_contracts.retired_at, true)
        and customers.customer_id is not null as is_envelope_valid
    from unclear_deliveries_typed
    cross join event_policy
    left join event_contracts
        on
            unclear_deliveries_typed.event_type = event_contracts.event_type
            and unclear_deliveries_typed.schema_version = event_contracts.schema_version
    left join known_event_types
        on unclear_deliveries_typed.event_type = known_event_types.event_type
    left join customers
        on unclear_deliveries_typed.customer_id = customers.customer_id

),

invalid_envelopes as (

    select * from unclear_deliveries_with_rules
    where not is_envelope_valid

),

envelope_violations as (

    select
        delivery_id,
        landing_error_code as reason_code,
        landing_error as reason_message
    from invalid_envelopes
    where landing_error_code is not null

    {% for field in ['idempotency_key', 'event_type', 'customer_id', 'schema_version_text', 'occurred_at_text'] %}
    union all

    select
        delivery_id,
        'missing_required_field' as reason_code,
        '{{ field | replace("_text", "") }}: is missing or blank' as reason_message
    from invalid_envelopes
    where landing_error_code is null and {{ field }} is null
    {% endfor %}

    union all

    select
        invalid_envelopes.delivery_id,
        'unknown_event_type' as reason_code,
        'event_type: ''' || left(invalid_envelopes.event_type, 100) || ''' is not in the catalog'
            as reason_message
    from invalid_envelopes
    where
        landing_error_code is null
        and event_type is not null
        and event_type not in (select event_contracts.event_type from event_contracts)

    union all

    select
        delivery_id,
        case when has_contract then 'retired_schema_version' else 'unknown_schema_version' end as reason_code,
        'schema_version: ''' || left(schema_version_text, 100) || ''' of ' || event_type
        || case
            when has_contract then ' is retired since ' || {{ timestamp_text('retired_at') }} || ' UTC'
            else ' is not in the catalog'
        end as reason_message
    from invalid_envelopes
    where
        landing_error_code is null
        and schema_version_text is not null
        and event_type in (select event_contracts.event_type from event_contracts)
        and coalesce(received_at >= retired_at, not has_contract)

    union all

    select
        delivery_id,
        'unparseable_timestamp' as reason_code,
        'occurred_at: ''' || left(occurred_at_text, 100) || ''' is not an ISO 8601 date and time' as reason_message
    from invalid_envelopes
    where landing_error_code is null and occurred_at_text is not null and occurred_at is null

    union all

    select
        delivery_id,
        'timestamp_in_future' as reason_code,
        'occurred_at: ''' || left(occurred_at_text, 100) || ''' is more than '
        || cast(future_tolerance_minutes as varchar) || ' minutes after it was received at '
        || {{ timestamp_text('received_at') }} || ' UTC' as reason_message
    from invalid_envelopes
    where occurred_at > {{ dbt.dateadd('minute', 'future_tolerance_minutes', 'received_at') }}

    union all

    select
        delivery_id,
        'unparseable_json' as reason_code,
        'properties: ''' || properties_text || ''' is not a JSON object' as reason_message
    from invalid_envelopes
    where landing_error_code is null and properties is null

    union all

    select
        delivery_id,
        'unknown_customer' as reason_code,
        'customer_id: ''' || left(customer_id, 100) || ''' is not a known customer' as reason_message
    from invalid_envelopes
    where landing_error_code is null and customer_id is not null and not is_known_customer

    union all

    select
        delivery_id,
        'missing_required_field' as reason_code,
        case
            when corrects is null then 'corrects: is missing or blank beside correction'
            else 'correction: is missing or blank beside corrects'
        end as reason_message
    from invalid_envelopes
    where landing_error_code is null and (corrects is null) <> (correction is null)

    union all

    select
        delivery_id,
        'unknown_correction' as reason_code,
        'correction: ''' || left(correction, 100) || ''' is neither void nor replace' as reason_message
    from invalid_envelopes
    where landing_error_code is null and correction not in ('void', 'replace')

    union all

    select
        delivery_id,
        'corrects_itself' as reason_code,
        'corrects: ''' || left(corrects, 100) || ''' is the key of the correction itself' as reason_message
    from invalid_envelopes
    where landing_error_code is null and corrects = idempotency_key

),

property_fragments as (

    select
        unclear_deliveries.delivery_id,
        event_properties.*,
        {{ json_fragment('unclear_deliveries.properties', json_path('event_properties.property_name')) }} as fragment,
        {{ json_text('unclear_deliveries.properties', json_path('event_properties.property_name')) }} as value_text
    from unclear_deliveries_with_rules as unclear_deliveries
    inner join event_properties
        on
            unclear_deliveries.event_type = event_properties.event_type
            and unclear_deliveries.schema_version = event_properties.schema_version
    where
        unclear_deliveries.properties is not null
        and coalesce(unclear_deliveries.correction <> 'void', true)

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
                    or not contains('|' || allowed_values || '|', '|' || value_text || '|')
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

reasons_by_delivery {{ as_materialized() }} (

    select
        delivery_id,
        {{ dbt.listagg('reason_code', "'|'", 'order by reason_code') }} as reason_codes,
        {{ dbt.listagg('reason_messages', "'; '", 'order by reason_code') }} as reason_messages
    from reasons
    group by delivery_id

),

{# What was plainly right needs no more than a cast. #}
{% set judged_columns = [
    'batch_id', 'line_number', 'source', 'idempotency_key', 'customer_id', 'corrects', 'event_type', 'correction',
    'properties', 'contract_hash', 'schema_version', 'future_tolerance_minutes', 'is_known_customer', 'is_restated', 'occurred_at', 'received_at'
] %}
deliveries_judged {{ as_inlined() }} (

    select
        deliveries.batch_id,
        deliveries.line_number,
        deliveries.source,
        deliveries.idempotency_key,
        deliveries.customer_id,
        cast(null as varchar) as corrects,
        deliveries.event_type,
        cast(null as varchar) as correction,
        deliveries.properties,
        event_contracts.contract_hash,
        event_contracts.schema_version,
        event_policy.future_tolerance_minutes,
        true as is_known_customer,
        deliveries.is_restated,
        {{ cast_timestamp_text('deliveries.occurred_at') }} as occurred_at,
        deliveries.received_at,
        cast(null as varchar) as reason_codes,
        cast(null as varchar) as reason_messages
    from deliveries_to_judge as deliveries
    cross join event_policy
    left join event_contracts
        on
            deliveries.event_type = event_contracts.event_type
            and deliveries.schema_version = cast(event_contracts.schema_version as varchar)
    where
        not exists (
            select 1 from unclear_deliveries
            where
                unclear_deliveries.batch_id = deliveries.batch_id
                and unclear_deliveries.line_number = deliveries.line_number
        )

    union all

    select
        {%- for column in judged_columns %}
        unclear_deliveries.{{ column }},
        {%- endfor %}
        reasons_by_delivery.reason_codes,
        reasons_by_delivery.reason_messages
    from unclear_deliveries_with_rules as unclear_deliveries
    left join reasons_by_delivery
        on unclear_deliveries.delivery_id = reasons_by_delivery.delivery_id

),

{% if is_incremental() %}

{# Keys whose deliveries may change places: those just judged, and those whose former verdict is withdrawn. #}
keys_in_play as (

    select idempotency_key from deliveries_judged
    union
    select idempotency_key from outdated_deliveries

),

few_keys_in_play as (

    {{ few_rows('keys_in_play', ['idempotency_key']) }}

),

{# Keys first and nothing else, since this reads all that was ever staged. #}
staged_deliveries_in_play {{ as_materialized() }} (

    select
        staged.batch_id,
        staged.line_number,
        staged.row_address,
        staged.idempotency_key
    from staged
    inner join few_keys_in_play as keys_in_play
        on staged.idempotency_key = keys_in_play.idempotency_key
    where staged.delivery_status <> 'rejected'

),

staged_copies_found {{ as_materialized() }} (

    select staged_deliveries_in_play.*
    from staged_deliveries_in_play
    left join outdated_deliveries
        on
            staged_deliveries_in_play.batch_id = outdated_deliveries.batch_id
            and staged_deliveries_in_play.line_number = outdated_deliveries.line_number
    where outdated_deliveries.batch_id is null

),

staged_copies {{ as_materialized() }} (

    select
        staged_copies_found.batch_id,
        staged_copies_found.line_number,
        staged.source,
        staged_copies_found.idempotency_key,
        staged.customer_id,
        staged.corrects,
        staged.counted_delivery_id,
        staged.event_type,
        staged.correction,
        staged.properties,
        staged.contract_hash,
        staged.schema_version,
        staged.future_tolerance_minutes,
        staged.is_known_customer,
        staged.occurred_at,
        staged.received_at
    from staged
    inner join staged_copies_found
        on staged.row_address = staged_copies_found.row_address

),

{% endif %}

{# Few keys have copies: only those are ranked. #}
keys_with_copies {{ as_materialized() }} (

    select idempotency_key
    from (
        select idempotency_key from deliveries_to_judge
        {% if is_incremental() %}
        union all
        select idempotency_key from staged_copies
        {% endif %}
    ) as keys_of_deliveries
    group by idempotency_key
    having count(*) > 1

),

{% set content_fields = [
    'event_type', 'schema_version', 'customer_id', 'occurred_at', 'corrects', 'correction', 'properties'
] %}
valid_copies as (

    select
        {%- for field in content_fields %}
        deliveries_judged.{{ field }},
        {%- endfor %}
        deliveries_judged.idempotency_key,
        deliveries_judged.batch_id,
        deliveries_judged.line_number,
        deliveries_judged.received_at
    from deliveries_judged
    inner join keys_with_copies
        on deliveries_judged.idempotency_key = keys_with_copies.idempotency_key
    where deliveries_judged.reason_codes is null

    {% if is_incremental() %}
    union all

    select
        {%- for field in content_fields %}
        {{ field }},
        {%- endfor %}
        idempotency_key,
        batch_id,
        line_number,
        received_at
    from staged_copies
    {% endif %}

),

copies_ranked {{ as_materialized() }} (

    select
        *,
        row_number() over (
            partition by idempotency_key
            order by received_at, batch_id, line_number
        ) as arrival
    from valid_copies

),

copies_compared as (

    select
        copies.batch_id,
        copies.line_number,
        copies.arrival,
        first_copies.batch_id || ':' || cast(first_copies.line_number as varchar) as counted_delivery_id,
        {%- for field in content_fields if field != 'properties' %}
        {%- set is_nullable = field in ['corrects', 'correction'] %}
        {%- set ours = "coalesce(copies." ~ field ~ ", '')" if is_nullable else "copies." ~ field %}
        {%- set theirs = "coalesce(first_copies." ~ field ~ ", '')" if is_nullable else "first_copies." ~ field %}
        case when {{ ours }} <> {{ theirs }} then '{{ field }} ' else '' end ||
        {%- endfor %}
        case
            when
                copies.properties <> first_copies.properties
                and {{ json_canonical('copies.properties') }} <> {{ json_canonical('first_copies.properties') }}
                then 'properties '
            else ''
        end as conflicting_fields
    from copies_ranked as copies
    inner join copies_ranked as first_copies
        on
            copies.idempotency_key = first_copies.idempotency_key
            and first_copies.arrival = 1

),

judged_outcomes as (

    select
        ---------- ids
        deliveries_judged.batch_id || ':' || cast(deliveries_judged.line_number as varchar) as delivery_id,
        deliveries_judged.batch_id,
        deliveries_judged.line_number,
        deliveries_judged.source,
        deliveries_judged.idempotency_key,
        deliveries_judged.customer_id,
        deliveries_judged.corrects,
        case when copies_compared.arrival > 1 then copies_compared.counted_delivery_id end as counted_delivery_id,

        ---------- strings
        deliveries_judged.event_type,
        deliveries_judged.correction,
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
        deliveries_judged.is_restated,

        ---------- timestamps
        deliveries_judged.occurred_at,
        {{ dbt.date_trunc('hour', 'deliveries_judged.occurred_at') }} as occurred_hour_at,
        deliveries_judged.received_at
    from deliveries_judged
    left join copies_compared
        on
            deliveries_judged.batch_id = copies_compared.batch_id
            and deliveries_judged.line_number = copies_compared.line_number

),

{% if is_incremental() %}

{# Copies that were staged before and whose place changed, because an earlier copy turned up or an accepted one fell. #}
restated_outcomes as (

    select
        staged_copies.batch_id || ':' || cast(staged_copies.line_number as varchar) as delivery_id,
        staged_copies.batch_id,
        staged_copies.line_number,
        staged_copies.source,
        staged_copies.idempotency_key,
        staged_copies.customer_id,
        staged_copies.corrects,
        case when copies_compared.arrival > 1 then copies_compared.counted_delivery_id end as counted_delivery_id,
        staged_copies.event_type,
        staged_copies.correction,
        staged_copies.properties,
        case when copies_compared.arrival > 1 then 'duplicate' else 'accepted' end as delivery_status,
        cast(null as varchar) as reason_codes,
        cast(null as varchar) as reason_messages,
        nullif(trim(copies_compared.conflicting_fields), '') as conflicting_fields,
        staged_copies.contract_hash,
        staged_copies.schema_version,
        staged_copies.future_tolerance_minutes,
        staged_copies.is_known_customer,
        true as is_restated,
        staged_copies.occurred_at,
        {{ dbt.date_trunc('hour', 'staged_copies.occurred_at') }} as occurred_hour_at,
        staged_copies.received_at
    from staged_copies
    left join copies_compared
        on
            staged_copies.batch_id = copies_compared.batch_id
            and staged_copies.line_number = copies_compared.line_number
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
        {# Of a type that no value changes: a literal is of as many digits as it has on Snowflake. #}
        {% if load_relation(this) %}
        cast(
            (select coalesce(max(staged_before.stage_sequence), 0) + 1 from {{ this }} as staged_before) as bigint
        ) as stage_sequence,
        {% else %}
        cast(1 as bigint) as stage_sequence,
        {% endif %}
        (select rules_in_force.rules_hash from rules_in_force) as rules_hash
    from outcomes

)

select * from outcomes_sequenced
