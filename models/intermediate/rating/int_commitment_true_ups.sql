with

commitments_due as (

    select * from {{ ref('int_commitments_due') }}

),

commitment_true_ups as (

    select
        {{ surrogate_key(['commitment_code', 'service_period_id', "'commitment'"]) }} as line_id,
        commitment_code,
        currency_code,
        service_period_id,
        committed_minor,
        spent_minor,
        shortfall_minor as amount_minor
    from commitments_due
    where shortfall_minor > 0

)

select * from commitment_true_ups
