-- An empty Snowflake account made ready for metering: roles, warehouses, database, schemas, grants, service users.
-- Run it as a user with ACCOUNTADMIN. Running it again changes nothing but what differs from it.
-- Order: this script; the raw and ops tables (dbt run-operation); tables.sql; landing.sql where events arrive by Snowpipe or
-- Kafka; dbt build; customer_views.sql. docs/snowflake.md has the commands.
-- To use other names replace METERING throughout these scripts, and set the variables of the profile.

---------- roles
-- owner: raw, ops and ledger tables, landing, customer views. The others may only do what their part of the flow does.
use role useradmin;

create role if not exists metering_owner;
create role if not exists metering_loader;
create role if not exists metering_transformer;
create role if not exists metering_reader;
create role if not exists metering_sync;
create role if not exists metering_customer;

grant role metering_loader to role metering_owner;
grant role metering_transformer to role metering_owner;
grant role metering_reader to role metering_owner;
grant role metering_sync to role metering_owner;
grant role metering_owner to role sysadmin;

---------- warehouses
-- One for each kind of work, so that each is sized, capped and read on the bill by itself. Sixty seconds is the least that is
-- billed at each start, so suspending sooner saves nothing.
use role sysadmin;

create warehouse if not exists metering_load warehouse_size = xsmall initially_suspended = true;
create warehouse if not exists metering_build warehouse_size = xsmall initially_suspended = true;
create warehouse if not exists metering_read warehouse_size = xsmall initially_suspended = true;
alter warehouse metering_load set auto_suspend = 60 auto_resume = true statement_timeout_in_seconds = 3600;
alter warehouse metering_build set auto_suspend = 60 auto_resume = true statement_timeout_in_seconds = 14400;
alter warehouse metering_read set auto_suspend = 60 auto_resume = true statement_timeout_in_seconds = 600;

grant usage on warehouse metering_load to role metering_loader;
grant usage on warehouse metering_build to role metering_transformer;
grant usage on warehouse metering_read to role metering_reader;
grant usage on warehouse metering_read to role metering_sync;
grant usage on warehouse metering_read to role metering_customer;

---------- database and schemas
create database if not exists metering;
grant usage on database metering to role metering_owner;
grant create schema on database metering to role metering_owner;
grant usage on database metering to role metering_loader;
grant usage on database metering to role metering_transformer;
grant create schema on database metering to role metering_transformer;
grant usage on database metering to role metering_reader;
grant usage on database metering to role metering_sync;
grant usage on database metering to role metering_customer;

use role metering_owner;
create schema if not exists metering.raw;
create schema if not exists metering.ops;
create schema if not exists metering.ledger;
create schema if not exists metering.customer;
-- What cannot be computed again can be brought back for a day; Enterprise Edition allows up to 90.
alter schema metering.raw set data_retention_time_in_days = 1;
alter schema metering.ops set data_retention_time_in_days = 1;
alter schema metering.ledger set data_retention_time_in_days = 1;

use role metering_transformer;
create schema if not exists metering.main;
create schema if not exists metering.seeds;
create schema if not exists metering.staging;
create schema if not exists metering.intermediate;
create schema if not exists metering.marts;

---------- grants on schemas
-- Tables of marts are replaced by each build, which drops their grants; grants on future tables come back with the table.
-- No role may update or delete in raw, ops or ledger, but for the row that a close locks. Who may insert stands in tables.sql, table by table.
use role metering_owner;
grant usage on schema metering.raw to role metering_loader;
grant create stage on schema metering.raw to role metering_loader;
grant create file format on schema metering.raw to role metering_loader;
grant usage on schema metering.raw to role metering_transformer;
-- For the scheduler, which lands files too: what is made is made by its primary role.
grant create stage on schema metering.raw to role metering_transformer;
grant usage on schema metering.ops to role metering_transformer;
grant usage on schema metering.ledger to role metering_transformer;
grant usage on schema metering.raw to role metering_reader;
grant usage on schema metering.ops to role metering_reader;
grant usage on schema metering.ledger to role metering_reader;
grant usage on schema metering.ops to role metering_sync;
grant usage on schema metering.ledger to role metering_sync;
grant usage on schema metering.customer to role metering_customer;
-- Each build begins with CREATE TABLE IF NOT EXISTS on the raw, ops and ledger tables.
grant create table on schema metering.raw to role metering_transformer;
grant create table on schema metering.ops to role metering_transformer;
grant create table on schema metering.ledger to role metering_transformer;

use role metering_transformer;
grant usage on schema metering.marts to role metering_reader;
grant usage on schema metering.marts to role metering_sync;
-- metering invoices reads the currencies, the guards before a sync their thresholds.
grant usage on schema metering.seeds to role metering_reader;
grant usage on schema metering.seeds to role metering_sync;

use role securityadmin;
grant select on all tables in schema metering.marts to role metering_reader;
grant select on future tables in schema metering.marts to role metering_reader;
grant select on all views in schema metering.marts to role metering_reader;
grant select on future views in schema metering.marts to role metering_reader;
grant select on all tables in schema metering.marts to role metering_sync;
grant select on future tables in schema metering.marts to role metering_sync;
grant select on all views in schema metering.marts to role metering_sync;
grant select on future views in schema metering.marts to role metering_sync;
grant select on all tables in schema metering.seeds to role metering_reader;
grant select on future tables in schema metering.seeds to role metering_reader;
grant select on all tables in schema metering.seeds to role metering_sync;
grant select on future tables in schema metering.seeds to role metering_sync;
grant select on all views in schema metering.customer to role metering_customer;
grant select on future views in schema metering.customer to role metering_customer;

---------- service users
-- TYPE = SERVICE: no password and no second factor, key pairs only. ALTER USER ... SET RSA_PUBLIC_KEY gives them their keys.
use role useradmin;
create user if not exists metering_loader_service type = service;
create user if not exists metering_transformer_service type = service;
create user if not exists metering_sync_service type = service;
create user if not exists metering_scheduler_service type = service;
alter user metering_loader_service set default_role = metering_loader default_warehouse = metering_load;
alter user metering_transformer_service set default_role = metering_transformer default_warehouse = metering_build;
alter user metering_sync_service set default_role = metering_sync default_warehouse = metering_read;
grant role metering_loader to user metering_loader_service;
grant role metering_transformer to user metering_transformer_service;
grant role metering_sync to user metering_sync_service;
-- A scheduler that lands, builds, closes and sends in one process has all three roles at once. Its primary role is the one that
-- owns what builds make; the others are secondary.
alter user metering_scheduler_service set default_role = metering_transformer default_warehouse = metering_build default_secondary_roles = ('ALL');
grant role metering_loader to user metering_scheduler_service;
grant role metering_transformer to user metering_scheduler_service;
grant role metering_sync to user metering_scheduler_service;

-- The models take these for granted and dbt cannot set them: UTC, timestamps without a zone, text of times to the microsecond,
-- weeks that follow ISO 8601. A lock that a dead session left ends a build after ten minutes instead of twelve hours.
alter user metering_loader_service set timezone = 'UTC', timestamp_type_mapping = 'TIMESTAMP_NTZ', timestamp_input_format = 'AUTO', timestamp_ntz_output_format = 'YYYY-MM-DD HH24:MI:SS.FF6', date_input_format = 'YYYY-MM-DD', date_output_format = 'YYYY-MM-DD', week_start = 1, week_of_year_policy = 0, lock_timeout = 600;
alter user metering_transformer_service set timezone = 'UTC', timestamp_type_mapping = 'TIMESTAMP_NTZ', timestamp_input_format = 'AUTO', timestamp_ntz_output_format = 'YYYY-MM-DD HH24:MI:SS.FF6', date_input_format = 'YYYY-MM-DD', date_output_format = 'YYYY-MM-DD', week_start = 1, week_of_year_policy = 0, lock_timeout = 600;
alter user metering_sync_service set timezone = 'UTC', timestamp_type_mapping = 'TIMESTAMP_NTZ', timestamp_input_format = 'AUTO', timestamp_ntz_output_format = 'YYYY-MM-DD HH24:MI:SS.FF6', date_input_format = 'YYYY-MM-DD', date_output_format = 'YYYY-MM-DD', week_start = 1, week_of_year_policy = 0, lock_timeout = 600;
alter user metering_scheduler_service set timezone = 'UTC', timestamp_type_mapping = 'TIMESTAMP_NTZ', timestamp_input_format = 'AUTO', timestamp_ntz_output_format = 'YYYY-MM-DD HH24:MI:SS.FF6', date_input_format = 'YYYY-MM-DD', date_output_format = 'YYYY-MM-DD', week_start = 1, week_of_year_policy = 0, lock_timeout = 600;

---------- customers who read their own usage
-- Which Snowflake user may see which customer. Nobody is listed, so nobody sees anything, until an administrator inserts a row.
use role metering_owner;
create table if not exists metering.customer.customer_readers (
    user_name varchar not null,
    customer_id varchar not null,
    primary key (user_name, customer_id)
);

-- Row access policies need Enterprise Edition. On Standard Edition leave this statement out; customer_views.sql says what to
-- write instead.
create row access policy if not exists metering.customer.own_customers_only as (row_customer_id varchar) returns boolean ->
    exists (
        select 1
        from metering.customer.customer_readers as readers
        where readers.user_name = current_user() and readers.customer_id = row_customer_id
    );

---------- tasks of landing.sql
use role accountadmin;
grant execute task on account to role metering_owner;

---------- a ceiling on what can be spent
-- The quota counts credits of these warehouses in a month; Snowpipe and other serverless work is not part of it.
create resource monitor if not exists metering_monthly with credit_quota = 100 frequency = monthly start_timestamp = immediately triggers on 80 percent do notify on 100 percent do suspend;
alter warehouse metering_load set resource_monitor = metering_monthly;
alter warehouse metering_build set resource_monitor = metering_monthly;
alter warehouse metering_read set resource_monitor = metering_monthly;
