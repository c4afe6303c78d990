with

comparisons as (

    select * from {{ ref('int_shadow_comparisons') }}

),

evidence as (

    select * from {{ ref('int_shadow_evidence') }}

),

thresholds as (

    select * from {{ ref('comparison_thresholds') }}

),

{# Where both give a quantity it decides; a number of events only where it is all there is. #}
comparisons_with_gaps as (

    select
        comparisons.*,
        evidence.aggregation,
        evidence.duplicate_count,
        evidence.duplicate_quantity,
        evidence.rejected_count,
        evidence.unbilled_count,
        evidence.unbilled_quantity,
        evidence.matching_time_zone,
        evidence.exclusive_amount,
        evidence.other_model_amount,
        comparisons.theirs_amount - comparisons.ours_amount as difference,
        comparisons.theirs_quantity - comparisons.ours_quantity as quantity_gap,
        comparisons.theirs_event_count - comparisons.ours_event_count as event_gap,
        coalesce(
            comparisons.theirs_quantity - comparisons.ours_quantity,
            cast(comparisons.theirs_event_count - comparisons.ours_event_count as {{ quantity_total_type() }})
        ) as gap,
        case
            when comparisons.theirs_quantity - comparisons.ours_quantity is null then ' events' else ''
        end as gap_unit,
        coalesce(evidence.rejected_count + evidence.unbilled_count, 0) as not_billed_count,
        {%- set tolerance = from_minor_units('comparisons.roundings', 'coalesce(comparisons.minor_units, 2)') %}
        cast({{ tolerance }} as {{ quantity_total_type() }})
            as rounding_tolerance
    from comparisons
    left join evidence
        on comparisons.shadow_billing_id = evidence.shadow_billing_id

),

{# Customer, charge or currency unknown to one side. #}
unmapped as (

    select
        shadow_billing_id,
        1 as precedence,
        'unmapped' as classification,
        case when unknown_here is not null then 'ours' else 'theirs' end as missing_side,
        coalesce(unknown_here, unknown_there) as explanation
    from comparisons_with_gaps
    where unknown_here is not null or unknown_there is not null

),

equal as (

    select
        shadow_billing_id,
        2 as precedence,
        'equal' as classification,
        cast(null as varchar) as missing_side,
        case
            when gap > 0 then 'the same amount, although they count ' || {{ plain_number('gap') }} || ' more'
            when gap < 0 then 'the same amount, although they count ' || {{ plain_number('-gap') }} || ' less'
            else 'the same amount'
        end as explanation
    from comparisons_with_gaps
    where difference = 0

),

{# At most one minor unit for each line, tier or fee of an event that they may have rounded; the quantity is no other. #}
rounding as (

    select
        shadow_billing_id,
        3 as precedence,
        'rounding' as classification,
        cast(null as varchar) as missing_side,
        'the difference of ' || {{ plain_number('abs(difference)') }} || ' is at most one minor unit for each of '
        || cast(roundings as varchar) || ' roundings' as explanation
    from comparisons_with_gaps
    where
        has_ours
        and has_theirs
        and coalesce(gap = 0, true)
        and abs(difference) <= rounding_tolerance

),

{# They count what we know to be copies. #}
duplicates as (

    select
        shadow_billing_id,
        4 as precedence,
        'duplicates' as classification,
        cast(null as varchar) as missing_side,
        'they count ' || {{ plain_number('gap') }} || gap_unit
        || ' more: exactly the ' || cast(duplicate_count as varchar) || ' duplicate deliveries of the period' as explanation
    from comparisons_with_gaps
    where
        duplicate_count > 0
        and gap > 0
        and case when quantity_gap is not null then quantity_gap = duplicate_quantity else event_gap = duplicate_count end

),

{# They bill exactly what we received and did not: rejected events, and usage that no line prices. #}
missing_here as (

    select
        shadow_billing_id,
        5 as precedence,
        'missing_events' as classification,
        'ours' as missing_side,
        'we bill ' || {{ plain_number('gap') }} || gap_unit || ' less: exactly what '
        || cast(rejected_count as varchar) || ' rejected and ' || cast(unbilled_count as varchar)
        || ' unbilled events of the period come to' as explanation
    from comparisons_with_gaps
    where
        not_billed_count > 0
        and gap > 0
        and case
            when quantity_gap is null or aggregation = 'count' then gap = not_billed_count
            when aggregation = 'sum' and rejected_count = 0 then quantity_gap = unbilled_quantity
            else event_gap = not_billed_count
        end

),

{# Their quantity is exactly our usage of the same dates in another time zone. Before what follows, which takes any quantity. #}
time_zone as (

    select
        shadow_billing_id,
        6 as precedence,
        'time_zone' as classification,
        cast(null as varchar) as missing_side,
        'they count ' || {{ plain_number('abs(gap)') }} || case when gap > 0 then ' more' else ' less' end
        || ': exactly our usage of the same dates in ' || matching_time_zone as explanation
    from comparisons_with_gaps
    where matching_time_zone is not null

),

{# Less usage, and less to pay for it, where more usage cannot be cheaper. #}
missing_there as (

    select
        shadow_billing_id,
        7 as precedence,
        'missing_events' as classification,
        'theirs' as missing_side,
        case when has_theirs then '' else system || ' has no amount; ' end
        || 'they count ' || {{ plain_number('abs(gap)') }} || gap_unit || ' less of '
        || {{ plain_number('case when quantity_gap is null then ours_event_count else ours_quantity end') }} as explanation
    from comparisons_with_gaps
    where
        gap < 0
        and (difference < 0 or charge_model in ('volume', 'stairstep'))

),

{# More usage there, and events here that we received and did not bill could be a part of it. #}
perhaps_missing_here as (

    select
        shadow_billing_id,
        8 as precedence,
        'missing_events' as classification,
        'ours' as missing_side,
        'we bill ' || {{ plain_number('gap') }} || gap_unit || ' less; '
        || cast(rejected_count as varchar) || ' rejected and ' || cast(unbilled_count as varchar)
        || ' unbilled events of the period can account for it' as explanation
    from comparisons_with_gaps
    where
        gap > 0
        and case
            when quantity_gap is null or aggregation = 'count' then gap <= not_billed_count
            else event_gap > 0 and event_gap <= not_billed_count
        end

),

{# A quantity that is the same. Events that are as many are the same usage where they are what is counted. #}
same_quantity as (

    select * from comparisons_with_gaps
    where
        has_ours
        and has_theirs
        and charge_code <> ''
        and coalesce(quantity_gap = 0, event_gap = 0 and aggregation = 'count', metric_code is null)

),

tier_edge as (

    select
        shadow_billing_id,
        9 as precedence,
        'tier_edge' as classification,
        cast(null as varchar) as missing_side,
        case
            when abs(theirs_amount - exclusive_amount) <= rounding_tolerance
                then 'the same quantity; up_to read as exclusive gives ' || {{ plain_number('exclusive_amount') }}
            else
                'the same quantity; tiers read as ' || case when charge_model = 'graduated' then 'volume' else 'graduated' end
                || ' instead of ' || charge_model || ' give ' || {{ plain_number('other_model_amount') }}
        end as explanation
    from same_quantity
    where
        abs(theirs_amount - exclusive_amount) <= rounding_tolerance
        or abs(theirs_amount - other_model_amount) <= rounding_tolerance

),

price as (

    select
        shadow_billing_id,
        10 as precedence,
        'price' as classification,
        cast(null as varchar) as missing_side,
        case
            when metric_code is null then 'a recurring fee'
            else 'the same quantity, ' || {{ plain_number('ours_quantity') }}
        end
        || ': they bill ' || {{ plain_number('theirs_amount') }} || ', we ' || {{ plain_number('ours_amount') }} as explanation
    from same_quantity

),

unexplained as (

    select
        shadow_billing_id,
        11 as precedence,
        'unexplained' as classification,
        cast(null as varchar) as missing_side,
        case
            when charge_code = '' then 'an invoice as a whole tells no more; amounts by charge, with their quantities, would'
            when not has_theirs then system || ' has no amount for it'
            when not has_ours then 'there is no amount for it here'
            when metric_code is not null and gap is null then 'they give no quantity'
            when gap = 0 then 'as many events; a quantity would tell usage and price apart'
            else
                'they count ' || {{ plain_number('abs(gap)') }} || case when gap > 0 then ' more' else ' less' end
                || '; here are ' || cast(duplicate_count as varchar) || ' duplicate, ' || cast(rejected_count as varchar)
                || ' rejected and ' || cast(unbilled_count as varchar) || ' unbilled events, and no time zone fits'
        end as explanation
    from comparisons_with_gaps

),

findings as (

    {%- for hypothesis in [
        'unmapped', 'equal', 'rounding', 'duplicates', 'missing_here', 'time_zone', 'missing_there', 'perhaps_missing_here',
        'tier_edge', 'price', 'unexplained'
    ] %}
    select * from {{ hypothesis }}
    {{ 'union all' if not loop.last }}
    {%- endfor %}

),

findings_ranked as (

    select
        *,
        row_number() over (partition by shadow_billing_id order by precedence) as finding_number
    from findings

),

shadow_billing as (

    select
        ---------- ids
        comparisons.shadow_billing_id,
        comparisons.system,
        comparisons.customer_id,
        nullif(comparisons.charge_code, '') as charge_code,

        ---------- strings
        comparisons.billing_period,
        comparisons.currency_code,
        findings.classification,
        findings.missing_side,
        findings.explanation,

        ---------- booleans
        comparisons.has_ours,
        comparisons.has_theirs,
        {# Without a threshold nothing can be said to hold. #}
        coalesce(
            abs(comparisons.difference)
            > cast(thresholds.threshold * abs(comparisons.ours_amount) as {{ quantity_total_type() }}),
            true
        ) as is_flagged,

        ---------- numerics
        cast(comparisons.ours_amount as {{ money_type() }}) as ours_amount,
        comparisons.theirs_amount,
        cast(comparisons.difference as {{ quantity_total_type() }}) as difference,
        case
            when comparisons.difference = 0 then cast(0 as decimal(18, 9))
            when comparisons.ours_amount = 0 then cast(1 as decimal(18, 9))
            else {{ ratio('abs(comparisons.difference)', 'abs(comparisons.ours_amount)') }}
        end as relative_difference,
        comparisons.ours_quantity,
        comparisons.theirs_quantity,
        comparisons.ours_event_count,
        comparisons.theirs_event_count
    from comparisons_with_gaps as comparisons
    inner join findings_ranked as findings
        on
            comparisons.shadow_billing_id = findings.shadow_billing_id
            and findings.finding_number = 1
    left join thresholds
        on thresholds.comparison_code = 'shadow_billing'

)

select * from shadow_billing
