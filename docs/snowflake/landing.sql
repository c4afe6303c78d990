-- Continuous landing of JSON lines, from files by Snowpipe and from Kafka, into raw.usage_events. Can be run again.
-- Both arrive as text in tables of their own, where nothing can be malformed; one task reads them and moves each record once.
use role metering_owner;
use database metering;

---------- files
-- An internal stage. For a bucket: URL and STORAGE_INTEGRATION here, and AUTO_INGEST = TRUE on the pipe.
create stage if not exists raw.usage_event_files;

-- A line is one field, whatever it contains: no delimiter, no quotes, no escapes (the default would eat JSON's backslashes), and
-- bytes that are not UTF-8 are replaced instead of refused.
create file format if not exists raw.lines_of_text
    type = csv
    field_delimiter = none
    record_delimiter = '\n'
    field_optionally_enclosed_by = none
    escape = none
    escape_unenclosed_field = none
    trim_space = false
    null_if = ()
    empty_field_as_null = false
    replace_invalid_characters = true;

create table if not exists raw.landed_lines (
    file_name varchar not null,
    file_key varchar not null,
    line_number bigint not null,
    received_at timestamp_ntz not null,
    line varchar
);

---------- Kafka
-- The older connector (Snowpipe Streaming, classic) writes these two columns by itself. The present one would match names of the
-- record with names of columns and drop what has none; its pipe, which must be called like the table, keeps the record whole.
create table if not exists raw.landed_kafka_records (
    record_metadata variant,
    record_content variant
);

create pipe if not exists raw.landed_kafka_records as
copy into raw.landed_kafka_records (record_metadata, record_content)
from (select $1:RECORD_METADATA, $1 from table(data_source(type => 'STREAMING')));

---------- one form for both
create view if not exists raw.landed_records change_tracking = true as
select
    file_name || '@' || file_key as batch_id,
    line_number,
    file_name as source,
    received_at,
    line
from raw.landed_lines
union all
select
    'kafka/' || record_metadata:topic::varchar || '/' || record_metadata:partition::varchar || '/'
    || floor(record_metadata:offset::bigint / 100000)::bigint::varchar as batch_id,
    record_metadata:offset::bigint as line_number,
    'kafka/' || record_metadata:topic::varchar as source,
    to_timestamp_ntz(record_metadata:SnowflakeConnectorPushTime::bigint, 3) as received_at,
    -- A value that the connector took as text may stand in a member of its own.
    coalesce(record_content:RECORD_CONTENT, record_content)::varchar as line
from raw.landed_kafka_records;

-- Made before the pipe, and showing what is there already, so that no row escapes it. Reading it in an INSERT moves its offset in
-- the same transaction: each record is moved once, whatever fails.
create stream if not exists raw.landed_records_new on view raw.landed_records append_only = true show_initial_rows = true;

create task if not exists raw.move_landed_records
    warehouse = metering_load
    schedule = 'using cron 0 * * * * UTC'
    allow_overlapping_execution = false
    when system$stream_has_data('raw.landed_records_new')
as
insert into raw.usage_events (
    batch_id, line_number, source, received_at, idempotency_key, event_type, schema_version, customer_id, occurred_at,
    properties, corrects, correction, landing_error_code, landing_error, raw_record
)
with

records as (
    select
        batch_id,
        line_number,
        source,
        -- Never the producer's clock: where the connector gives no time, that of the move.
        coalesce(received_at, convert_timezone('UTC', current_timestamp())::timestamp_ntz) as received_at,
        line,
        try_parse_json(line) as record,
        coalesce(left(to_json(try_parse_json(line)), 1) = '{', false) as is_object,
        coalesce(try_parse_json(line):specversion::varchar is not null, false) as is_cloud_event
    from raw.landed_records_new
    where trim(line) <> ''
    -- Snowpipe forgets a file after 14 days and may then load it again; a line of a file still lands once.
    qualify row_number() over (partition by batch_id, line_number order by received_at) = 1
)

select
    records.batch_id,
    records.line_number,
    records.source,
    records.received_at,
    case
        when not records.is_cloud_event then records.record:idempotency_key::varchar
        -- Without one of the two there is no key: events that lack it would be taken for copies of one another.
        when trim(records.record:source::varchar) <> '' and trim(records.record:id::varchar) <> ''
            then '[' || to_json(to_variant(records.record:source::varchar))
                || ',' || to_json(to_variant(records.record:id::varchar)) || ']'
    end as idempotency_key,
    case when records.is_cloud_event then records.record:type::varchar else records.record:event_type::varchar end
        as event_type,
    case
        when records.is_cloud_event then coalesce(records.record:schemaversion::varchar, '1')
        else records.record:schema_version::varchar
    end as schema_version,
    case when records.is_cloud_event then records.record:subject::varchar else records.record:customer_id::varchar end
        as customer_id,
    case when records.is_cloud_event then records.record:time::varchar else records.record:occurred_at::varchar end
        as occurred_at,
    case when records.is_cloud_event then records.record:data::varchar else records.record:properties::varchar end
        as properties,
    records.record:corrects::varchar as corrects,
    records.record:correction::varchar as correction,
    case when not records.is_object then 'unparseable_json' end as landing_error_code,
    case
        when not records.is_object
            then 'line ' || records.line_number || ' is not a JSON object: ' || left(records.line, 100)
    end as landing_error,
    case when not records.is_object then records.line end as raw_record
from records
left join raw.usage_events as landed_before
    on
        records.batch_id = landed_before.batch_id
        and records.line_number = landed_before.line_number
where landed_before.batch_id is null;

alter task raw.move_landed_records resume;

-- SKIP_FILE: a file that cannot be read stays out as a whole and shows in COPY_HISTORY. CONTINUE would drop its bad lines in silence.
create pipe if not exists raw.usage_event_files_pipe as
copy into raw.landed_lines (file_name, file_key, line_number, received_at, line)
from (
    select
        metadata$filename,
        metadata$file_content_key,
        metadata$file_row_number,
        convert_timezone('UTC', metadata$start_scan_time)::timestamp_ntz,
        $1
    from @raw.usage_event_files
)
file_format = (format_name = 'raw.lines_of_text')
on_error = skip_file;

---------- who may fill them
grant read, write on stage raw.usage_event_files to role metering_loader;
grant monitor, operate on pipe raw.usage_event_files_pipe to role metering_loader;
grant select, insert on table raw.landed_kafka_records to role metering_loader;
grant monitor, operate on pipe raw.landed_kafka_records to role metering_loader;
