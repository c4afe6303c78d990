"""A bad seed fails the build, and what is printed names the file, the row and the rule."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestration.lib.project import PROJECT_DIR

Row = dict[str, str]
Rows = dict[str, list[Row]]

# A good row of each seed. NAME becomes the name of the case, so that cases share no rows but the common ones.
GOOD_ROWS: dict[str, Row] = {
    "catalog/event_types": {"event_type": "NAME", "schema_version": "1"},
    "catalog/event_properties": {
        "event_type": "NAME",
        "schema_version": "1",
        "property_name": "amount",
        "data_type": "decimal",
        "is_required": "true",
        "minimum": "0",
    },
    "catalog/billable_metrics": {
        "metric_code": "NAME",
        "metric_name": "Sum",
        "event_type": "tested",
        "aggregation": "sum",
        "property_name": "amount",
        "unit": "unit",
    },
    "catalog/metric_dimensions": {
        "metric_code": "NAME",
        "purpose": "pricing",
        "dimension_position": "1",
        "property_name": "region",
    },
    "catalog/metric_filters": {
        "metric_code": "NAME",
        "property_name": "region",
        "operator": "in",
        "filter_value": "eu",
    },
    "accounts/customers": {"customer_id": "NAME", "customer_name": "Customer"},
    "accounts/subscriptions": {
        "subscription_id": "NAME",
        "customer_id": "NAME",
        "plan_code": "tested-usd",
        "time_zone": "UTC",
        "started_at": "2026-09-01 00:00:00",
    },
    "pricing/plans": {
        "plan_code": "NAME",
        "plan_family": "NAME",
        "plan_version": "1",
        "plan_name": "Plan",
        "billing_interval": "month",
        "currency_code": "USD",
    },
    "pricing/charges": {
        "charge_code": "NAME",
        "price_version": "1",
        "plan_code": "tested-usd",
        "metric_code": "tested",
        "charge_name": "Charge",
        "charge_model": "per_unit",
        "billing_timing": "in_arrears",
        "proration": "by_day",
        "zero_usage": "no_line",
        "valid_from": "2026-01-01 00:00:00",
    },
    "pricing/charge_tiers": {
        "charge_code": "NAME",
        "price_version": "1",
        "tier_number": "1",
        "unit_amount": "1",
        "flat_amount": "0",
    },
    "pricing/percentage_terms": {"charge_code": "NAME", "price_version": "1"},
    "pricing/entitlements": {
        "charge_code": "NAME",
        "included_quantity": "10",
        "proration": "by_day",
        "valid_from": "2026-01-01 00:00:00",
    },
    "pricing/commitments": {
        "commitment_code": "NAME",
        "subscription_id": "tested",
        "currency_code": "USD",
        "amount": "100",
        "true_up": "service_period",
        "valid_from": "2026-01-01 00:00:00",
    },
    "pricing/discounts": {
        "discount_code": "NAME",
        "plan_code": "discounted",
        "discount_type": "percentage",
        "percentage": "0.1",
        "valid_from": "2026-01-01 00:00:00",
    },
    "pricing/credit_grants": {
        "grant_code": "NAME",
        "customer_id": "tested",
        "currency_code": "USD",
        "amount": "10",
        "priority": "1",
        "cost_basis": "0.5",
        "created_at": "2026-08-20 00:00:00",
        "effective_at": "2026-09-01 00:00:00",
    },
    "pricing/credit_grant_charges": {"grant_code": "NAME", "charge_code": "tested"},
    "policy/stripe_routes": {"subscription_id": "NAME", "billing_route": "invoice_item"},
    "policy/stripe_meters": {
        "charge_code": "NAME",
        "event_name": "NAME",
        "display_name": "Meter",
        "units_per_quantity": "1",
    },
    "policy/guard_exceptions": {
        "guard_code": "accuracy",
        "subject": "NAME",
        "accepted_up_to": "0.03",
        "reason": "Known",
        "approved_on": "2026-11-01",
    },
    "policy/late_event_reviews": {
        "idempotency_key": "NAME",
        "decision": "accept",
        "decided_by": "finance",
        "decided_on": "2026-11-01",
        "reason": "Agreed",
    },
}
SEEDS = {Path(seed).name: seed for seed in GOOD_ROWS}

# Rows that a row of the seed refers to by NAME; a case has one good row of each unless it gives its own.
COMPANIONS = {
    "metric_dimensions": ["billable_metrics"],
    "metric_filters": ["billable_metrics"],
    "charges": ["charge_tiers"],
    "charge_tiers": ["charges"],
    "percentage_terms": ["charges", "charge_tiers"],
    "entitlements": ["charges", "charge_tiers"],
    "subscriptions": ["customers"],
    "credit_grant_charges": ["credit_grants"],
}

COMMON: Rows = {
    "event_types": [{}],
    "event_properties": [
        {},
        {"property_name": "change", "minimum": ""},
        {"property_name": "region", "data_type": "string", "is_required": "false", "minimum": ""},
        {"property_name": "zone", "data_type": "string", "is_required": "false", "minimum": ""},
        {"property_name": "user", "data_type": "string", "minimum": ""},
        {"property_name": "tip", "is_required": "false"},
    ],
    "billable_metrics": [{}],
    "customers": [{}],
    "subscriptions": [{}],
    "plans": [
        {"plan_code": "tested-usd"},
        {"plan_code": "tested-eur", "plan_version": "2", "currency_code": "EUR"},
        {"plan_code": "discounted", "plan_version": "3", "currency_code": "EUR"},
    ],
    "charges": [{}],
    "charge_tiers": [{}],
}


class BadSeed(NamedTuple):
    """Rows of which one breaks a rule. Cases of the same `build` are built together."""

    seed: str
    rule: str
    rows: Rows
    named: str = ""
    build: str = "all"


def bad(seed: str, rule: str, *rows: Row, named: str = "", build: str = "all", **others: list[Row]) -> BadSeed:
    """A case with these rows in its seed, completed from GOOD_ROWS, and these in others.

    Args:
        seed: the seed that is named.
        rule: what is printed of the rule.
        rows: rows of the seed.
        named: what is printed of the row; the key of the first one by default.
        build: the build that the case is part of.
        others: rows of other seeds.
    """
    companions: Rows = {companion: [{}] for companion in COMPANIONS.get(seed, []) if companion not in others}
    return BadSeed(seed, rule, {seed: list(rows), **others, **companions}, named, build)


FLAT = {"charge_model": "flat", "metric_code": ""}
PERCENTAGE = {"charge_model": "percentage"}
FIXED = {"discount_type": "fixed", "percentage": "", "amount": "5", "currency_code": "EUR"}
MARCH = "2026-03-01 00:00:00"
APRIL = "2026-04-01 00:00:00"
FIRST = {"valid_to": MARCH}
SECOND = {"price_version": "2", "valid_from": MARCH}
TWO_TIERS = [{}, {"price_version": "2"}]

CATALOG_CASES = {
    "property without a type": bad(
        "event_properties",
        "not_null_event_properties_data_type",
        {"property_name": "NAME", "data_type": "", "minimum": ""},
        named="property_name=NAME,",
        event_types=[{}],
    ),
    "property of no event type": bad(
        "event_properties",
        "not_null_event_properties_event_type",
        {"event_type": "", "property_name": "NAME"},
        named="property_name=NAME,",
    ),
    "metric twice": bad("billable_metrics", "unique", {}, {}),
    "metric of no event type": bad(
        "billable_metrics", "event_type stands in event_types.csv", {"event_type": "nothing"}
    ),
    "unknown aggregation": bad(
        "billable_metrics", "aggregation is count, sum, max, min, average, unique_count,", {"aggregation": "median"}
    ),
    "count of a property": bad("billable_metrics", "count has no property_name", {"aggregation": "count"}),
    "sum of nothing": bad("billable_metrics", "every other aggregation has one", {"property_name": ""}),
    "percentile left out": bad("billable_metrics", "percentile is given exactly when", {"aggregation": "percentile"}),
    "percentile across left out": bad(
        "billable_metrics",
        "percentile is given exactly when",
        {"metering_period": "day", "period_aggregation": "percentile"},
    ),
    "percentile of a sum": bad("billable_metrics", "percentile is given exactly when", {"percentile": "0.95"}),
    "percentile above 1": bad(
        "billable_metrics", "percentile is above 0 and at most 1", {"aggregation": "percentile", "percentile": "95"}
    ),
    "percentile of 0": bad(
        "billable_metrics", "percentile is above 0 and at most 1", {"aggregation": "percentile", "percentile": "0"}
    ),
    "unknown metering period": bad(
        "billable_metrics",
        "metering_period is hour, day or month",
        {"metering_period": "week", "period_aggregation": "sum"},
    ),
    "unknown period aggregation": bad(
        "billable_metrics",
        "period_aggregation is sum, max, min, average or percentile",
        {"metering_period": "day", "period_aggregation": "latest"},
    ),
    "metering period alone": bad(
        "billable_metrics", "given exactly when metering_period is", {"metering_period": "hour"}
    ),
    "period aggregation alone": bad(
        "billable_metrics", "given exactly when metering_period is", {"period_aggregation": "max"}
    ),
    "weighted sum by the hour": bad(
        "billable_metrics",
        "weighted_sum has no metering_period",
        {"aggregation": "weighted_sum", "metering_period": "hour", "period_aggregation": "sum"},
    ),
    "unit size of 0": bad("billable_metrics", "unit_size is above 0", {"unit_size": "0"}),
    "unknown rounding": bad(
        "billable_metrics", "quantity_rounding is ceil, floor or half_up", {"quantity_rounding": "half_even"}
    ),
    "rounding to 10 decimals": bad(
        "billable_metrics", "quantity_scale is between -9 and 9", {"quantity_rounding": "ceil", "quantity_scale": "10"}
    ),
    "scale without rounding": bad(
        "billable_metrics", "quantity_scale is given only with a quantity_rounding", {"quantity_scale": "2"}
    ),
    "sum over text": bad("billable_metrics", "it is a number except for unique_count", {"property_name": "user"}),
    "sum that may shrink": bad(
        "billable_metrics", "with a minimum of at least 0 except for", {"property_name": "change"}
    ),
    "sum over what may be missing": bad(
        "billable_metrics", "required in every schema version", {"property_name": "tip"}
    ),
    "sum over what a retired version lacks": bad(
        "billable_metrics",
        "required in every schema version",
        {"event_type": "NAME"},
        event_types=[{}, {"schema_version": "2", "retired_at": "2026-10-01 00:00:00"}],
        event_properties=[{}],
    ),
    "level of text": bad(
        "billable_metrics",
        "it is a number except for unique_count",
        {"aggregation": "weighted_sum", "property_name": "user"},
    ),
    "dimension of no metric": bad(
        "metric_dimensions", "metric_code stands in billable_metrics.csv", {}, billable_metrics=[]
    ),
    "unknown purpose": bad("metric_dimensions", "purpose is pricing or presentation", {"purpose": "display"}),
    "fourth dimension": bad("metric_dimensions", "dimension_position is 1, 2 or 3", {"dimension_position": "4"}),
    "position twice": bad(
        "metric_dimensions", "each dimension_position once for a purpose", {}, {"property_name": "zone"}
    ),
    "property twice": bad(
        "metric_dimensions", "a property is a dimension of a metric once", {}, {"purpose": "presentation"}
    ),
    "undeclared dimension": bad(
        "metric_dimensions", "name properties that event_properties.csv declares", {"property_name": "colour"}
    ),
    "filter of no metric": bad("metric_filters", "metric_code stands in billable_metrics.csv", {}, billable_metrics=[]),
    "undeclared filter": bad(
        "metric_filters", "name properties that event_properties.csv declares", {"property_name": "colour"}
    ),
    "unknown operator": bad("metric_filters", "operator is equals, in, not_in,", {"operator": "like"}),
    "comparison with nothing": bad(
        "metric_filters", "empty exactly for is_present and is_absent", {"filter_value": ""}
    ),
    "presence of a value": bad(
        "metric_filters", "empty exactly for is_present and is_absent", {"operator": "is_present"}
    ),
    "two values at once": bad(
        "metric_filters",
        "only in and not_in have several rows",
        {"operator": "equals"},
        {"operator": "equals", "filter_value": "us"},
    ),
    "filter twice": bad("metric_filters", "a filter row stands once", {}, {}),
    "text above a number": bad(
        "metric_filters", "compare an integer or decimal property", {"operator": "greater_than", "filter_value": "10"}
    ),
    "number below text": bad(
        "metric_filters",
        "with a number of at most 19 digits",
        {"property_name": "amount", "operator": "less_than", "filter_value": "three"},
    ),
    "too many decimals": bad(
        "metric_filters",
        "9 after the point",
        {"property_name": "amount", "operator": "at_most", "filter_value": "0.0000000001"},
    ),
    "too many digits": bad(
        "metric_filters",
        "at most 19 digits before",
        {"property_name": "amount", "operator": "at_least", "filter_value": "1e19"},
    ),
}

ACCOUNT_CASES = {
    "subscription of nobody": bad("subscriptions", "customer_id stands in stg_customers", {}, customers=[]),
    "subscription to nothing": bad("subscriptions", "plan_code stands in plans.csv", {"plan_code": "nothing"}),
    "subscription that ends before it starts": bad(
        "subscriptions", "started_at lies before ended_at", {"ended_at": "2026-09-01 00:00:00"}
    ),
    "phase twice": bad("subscriptions", "a subscription has one phase from an instant on", {}, {}),
    "overlapping phases": bad(
        "subscriptions",
        "phases of a subscription do not overlap",
        {"ended_at": "2026-10-01 00:00:01"},
        {"started_at": "2026-10-01 00:00:00"},
    ),
    "phase of another customer": bad(
        "subscriptions",
        "have the same customer_id, time_zone and anchor_date",
        {"ended_at": "2026-10-01 00:00:00"},
        {"started_at": "2026-10-01 00:00:00", "customer_id": "NAME other"},
        customers=[{}, {"customer_id": "NAME other"}],
    ),
    "phase in another time zone": bad(
        "subscriptions",
        "have the same customer_id, time_zone and anchor_date",
        {"ended_at": "2026-10-01 00:00:00"},
        {"started_at": "2026-10-01 00:00:00", "time_zone": "Asia/Tokyo"},
    ),
    "phase with another anchor": bad(
        "subscriptions",
        "have the same customer_id, time_zone and anchor_date",
        {"ended_at": "2026-10-01 00:00:00", "anchor_date": "2026-09-15"},
        {"started_at": "2026-10-01 00:00:00", "anchor_date": "2026-09-16"},
    ),
    "phase without the anchor": bad(
        "subscriptions",
        "have the same customer_id, time_zone and anchor_date",
        {"ended_at": "2026-10-01 00:00:00", "anchor_date": "2026-09-15"},
        {"started_at": "2026-10-01 00:00:00"},
    ),
    "usage billed twice": bad(
        "subscriptions",
        "its usage would be billed twice",
        {"ended_at": "2026-10-01 00:00:00", "plan_code": "discounted"},
        {"started_at": "2026-10-01 00:00:00", "plan_code": "NAME"},
        {"subscription_id": "NAME again", "started_at": "2026-11-01 00:00:00", "plan_code": "NAME"},
        named="subscription_id=NAME, other_subscription_id=NAME again, started_at=2026-10-01 00:00:00",
        plans=[{}],
        charges=[{"plan_code": "NAME"}],
        charge_tiers=[{}],
    ),
    "unknown time zone": bad(
        "subscriptions",
        "time_zone is a name of the IANA time zone database",
        {"time_zone": "Mars/Olympus"},
        build="with errors",
    ),
}

CHARGE_CASES = {
    "plan twice": bad("plans", "unique", {}, {"plan_version": "2"}),
    "unknown currency": bad("plans", "currency_code stands in currencies.csv", {"currency_code": "EUX"}),
    "unknown interval": bad("plans", "billing_interval is month, quarter or year", {"billing_interval": "week"}),
    "plan version twice": bad(
        "plans",
        "a plan_family has each plan_version once",
        {},
        {"plan_code": "NAME again"},
        named="plan_family=NAME, plan_version=1",
    ),
    "charge of no plan": bad("charges", "plan_code stands in plans.csv", {"plan_code": "nothing"}),
    "unknown metric": bad("charges", "metric_code stands in billable_metrics.csv", {"metric_code": "nothing"}),
    "price of nobody": bad("charges", "customer_id stands in stg_customers", {"customer_id": "nobody"}),
    "unknown charge model": bad("charges", "charge_model is per_unit, graduated,", {"charge_model": "magic"}),
    "fee for a metric": bad("charges", "metric_code is empty exactly for flat charges", {"charge_model": "flat"}),
    "price of no metric": bad("charges", "metric_code is empty exactly for flat charges", {"metric_code": ""}),
    "unknown timing": bad("charges", "billing_timing is in_arrears or in_advance", {"billing_timing": "at_once"}),
    "usage in advance": bad("charges", "only flat charges are billed in_advance", {"billing_timing": "in_advance"}),
    "unknown proration": bad("charges", "proration is by_day or none", {"proration": "by_hour"}),
    "unknown zero usage": bad("charges", "zero_usage is no_line, zero_line or first_tier_flat", {"zero_usage": "0"}),
    "zero usage of a fee": bad(
        "charges",
        "flat and percentage charges do not have zero_usage first_tier_flat",
        FLAT | {"zero_usage": "first_tier_flat"},
    ),
    "zero usage of a percentage": bad(
        "charges",
        "flat and percentage charges do not have zero_usage first_tier_flat",
        PERCENTAGE | {"zero_usage": "first_tier_flat"},
    ),
    "negative minimum": bad("charges", "minimum_amount is not negative", {"minimum_amount": "-1"}),
    "negative maximum": bad("charges", "maximum_amount is not negative", {"maximum_amount": "-0.01"}),
    "minimum above maximum": bad(
        "charges", "minimum_amount is not above maximum_amount", {"minimum_amount": "2", "maximum_amount": "1.99"}
    ),
    "price that ends before it starts": bad(
        "charges", "valid_from lies before valid_to", {"valid_to": "2025-12-31 00:00:00"}
    ),
    "two prices at once": bad(
        "charges",
        "price versions of a charge do not overlap",
        {"valid_to": "2026-03-01 00:00:01"},
        SECOND,
        charge_tiers=TWO_TIERS,
    ),
    "two prices of a customer at once": bad(
        "charges",
        "neither the common ones nor those of a customer",
        {"customer_id": "tested"},
        SECOND | {"customer_id": "tested"},
        charge_tiers=TWO_TIERS,
    ),
    "price version twice": bad("charges", "a charge has each price_version once", FIRST, {"valid_from": MARCH}),
    "price without tiers": bad("charges", "every price version has tiers", {}, charge_tiers=[]),
    "charge that changes its plan": bad(
        "charges",
        "have the same plan_code, metric_code and zero_usage",
        FIRST,
        SECOND | {"plan_code": "tested-eur"},
        charge_tiers=TWO_TIERS,
    ),
    "charge that becomes a fee": bad(
        "charges", "have the same plan_code, metric_code and zero_usage", FIRST, SECOND | FLAT, charge_tiers=TWO_TIERS
    ),
    "charge that changes its zero usage": bad(
        "charges",
        "have the same plan_code, metric_code and zero_usage",
        FIRST,
        SECOND | {"zero_usage": "zero_line"},
        charge_tiers=TWO_TIERS,
    ),
    "percentage of a maximum": bad(
        "charges",
        "a percentage charge prices a sum metric without",
        PERCENTAGE | {"metric_code": "NAME"},
        billable_metrics=[{"aggregation": "max"}],
    ),
    "percentage of thousands": bad(
        "charges",
        "a percentage charge prices a sum metric without",
        PERCENTAGE | {"metric_code": "NAME"},
        billable_metrics=[{"unit_size": "1000"}],
    ),
    "percentage of days": bad(
        "charges",
        "a percentage charge prices a sum metric without",
        PERCENTAGE | {"metric_code": "NAME"},
        billable_metrics=[{"metering_period": "day", "period_aggregation": "sum"}],
    ),
}

TIER_CASES = {
    "tier of no charge": bad("charge_tiers", "charge_code and price_version stand in charges.csv", {}, charges=[]),
    "gap in tier numbers": bad(
        "charge_tiers",
        "are numbered from 1 without gaps",
        {"up_to": "10"},
        {"tier_number": "3"},
        charges=[{"charge_model": "graduated"}],
    ),
    "overlapping tiers": bad(
        "charge_tiers",
        "up_to is above 0 and rises",
        {"up_to": "10"},
        {"tier_number": "2", "up_to": "9"},
        {"tier_number": "3"},
        charges=[{"charge_model": "graduated"}],
    ),
    "empty first tier": bad(
        "charge_tiers",
        "up_to is above 0",
        {"dimension_1_value": "eu", "up_to": "0"},
        {"dimension_1_value": "eu", "tier_number": "2"},
        charges=[{"charge_model": "graduated", "metric_code": "NAME"}],
        billable_metrics=[{}],
        metric_dimensions=[{}],
    ),
    "bounded last tier": bad("charge_tiers", "only the last tier has none", {"up_to": "10"}),
    "unbounded first tier": bad(
        "charge_tiers", "only the last tier has none", {}, {"tier_number": "2"}, charges=[{"charge_model": "volume"}]
    ),
    "tier twice": bad(
        "charge_tiers",
        "each tier_number once for the same dimension values",
        {},
        {},
        charges=[{"charge_model": "volume"}],
        build="with errors",
    ),
    "second tier of per_unit": bad(
        "charge_tiers", "have one tier for the same dimension values", {"up_to": "10"}, {"tier_number": "2"}
    ),
    "second tier of a matrix": bad(
        "charge_tiers",
        "have one tier for the same dimension values",
        {"dimension_1_value": "eu", "up_to": "10"},
        {"dimension_1_value": "eu", "tier_number": "2"},
        charges=[{"charge_model": "matrix", "metric_code": "NAME"}],
        billable_metrics=[{}],
        metric_dimensions=[{}],
    ),
    "stairs with a unit price": bad(
        "charge_tiers", "stairstep tiers have unit_amount 0", {}, charges=[{"charge_model": "stairstep"}]
    ),
    "package without size": bad(
        "charge_tiers",
        "package_size stands on every tier of package charges",
        {},
        charges=[{"charge_model": "package"}],
    ),
    "size without package": bad("charge_tiers", "and nowhere else", {"package_size": "100"}),
    "package of 0": bad(
        "charge_tiers", "package_size is above 0", {"package_size": "0"}, charges=[{"charge_model": "package"}]
    ),
    "value of no dimension": bad(
        "charge_tiers",
        "has a pricing dimension of the metric at that position",
        {"dimension_2_value": "eu"},
        charges=[{"metric_code": "NAME"}],
        billable_metrics=[{}],
        metric_dimensions=[{}, {"dimension_position": "2", "purpose": "presentation", "property_name": "zone"}],
    ),
    "dimension of a fee": bad("charge_tiers", "flat charges have none", {"dimension_1_value": "eu"}, charges=[FLAT]),
    "matrix without dimensions": bad(
        "charge_tiers", "at least one tier with a dimension value", {}, charges=[{"charge_model": "matrix"}]
    ),
    "negative price": bad("charge_tiers", "unit_amount is not negative", {"unit_amount": "-3"}),
    "price that would be rounded": bad(
        "charge_tiers", "unit_amount has at most 12 decimals", {"unit_amount": "0.0000000000001"}
    ),
    "flat amount that would be rounded": bad(
        "charge_tiers", "flat_amount has at most 12 decimals", {"flat_amount": "0.0000000000001"}
    ),
    "negative flat amount": bad("charge_tiers", "flat_amount is not negative", {"flat_amount": "-3"}),
    "fee in the wrong column": bad(
        "charge_tiers",
        "flat and percentage tiers have flat_amount 0",
        {"unit_amount": "0", "flat_amount": "10"},
        charges=[FLAT],
    ),
    "terms of no charge": bad(
        "percentage_terms",
        "charge_code and price_version stand in charges.csv",
        {"price_version": "2"},
        charges=[PERCENTAGE],
    ),
    "terms of per_unit": bad("percentage_terms", "only percentage charges have percentage terms", {}),
    "terms twice": bad(
        "percentage_terms", "a price version has its percentage terms once", {}, {}, charges=[PERCENTAGE]
    ),
    **{
        f"negative {column}": bad("percentage_terms", f"{column} is not negative", {column: "-1"}, charges=[PERCENTAGE])
        for column in (
            "free_events",
            "free_amount",
            "event_fixed_amount",
            "event_minimum_amount",
            "event_maximum_amount",
        )
    },
    "event minimum above maximum": bad(
        "percentage_terms",
        "event_minimum_amount is not above event_maximum_amount",
        {"event_minimum_amount": "2", "event_maximum_amount": "1"},
        charges=[PERCENTAGE],
    ),
    "entitlement of no charge": bad(
        "entitlements", "charge_code stands in charges.csv", {}, charges=[], charge_tiers=[]
    ),
    "entitlement of a fee": bad("entitlements", "flat and percentage charges have no entitlement", {}, charges=[FLAT]),
    "entitlement of a percentage": bad(
        "entitlements", "flat and percentage charges have no entitlement", {}, charges=[PERCENTAGE]
    ),
    "entitlement of nobody": bad("entitlements", "customer_id stands in stg_customers", {"customer_id": "nobody"}),
    "unknown proration of an entitlement": bad("entitlements", "proration is by_day or none", {"proration": "by_hour"}),
    "negative entitlement": bad("entitlements", "included_quantity is not negative", {"included_quantity": "-1"}),
    "negative rollover": bad("entitlements", "rollover_limit is not negative", {"rollover_limit": "-1"}),
    "entitlement that ends before it starts": bad(
        "entitlements", "valid_from lies before valid_to", {"valid_to": "2026-01-01 00:00:00"}
    ),
    "not a number": bad(
        "entitlements",
        'Error when converting column "included_quantity"',
        {"included_quantity": "ten"},
        named="Original Line: NAME,",
        build="with errors",
    ),
    "entitlement twice": bad("entitlements", "a charge has one entitlement from an instant on", {}, {}),
    "two entitlements at once": bad(
        "entitlements", "entitlements of a charge do not overlap", {}, {"valid_from": MARCH}
    ),
    "two entitlements of a customer at once": bad(
        "entitlements",
        "entitlements of a charge do not overlap",
        {"customer_id": "tested", "valid_to": APRIL},
        {"customer_id": "tested", "valid_from": MARCH},
    ),
}

CREDIT_CASES = {
    "commitment twice": bad("commitments", "unique", {}, {}),
    "commitment of nobody": bad(
        "commitments", "subscription_id stands in stg_subscriptions", {"subscription_id": "nothing"}
    ),
    "commitment in another currency": bad(
        "commitments", "that of every plan of its subscription", {"currency_code": "EUR"}
    ),
    "commitment of 0": bad("commitments", "amount is above 0", {"amount": "0"}),
    "unknown true-up": bad("commitments", "true_up is service_period or term", {"true_up": "year"}),
    "term without end": bad("commitments", "a term has a valid_to", {"true_up": "term"}),
    "commitment that ends before it starts": bad(
        "commitments", "valid_from lies before valid_to", {"valid_to": "2026-01-01 00:00:00"}
    ),
    "discount twice": bad("discounts", "unique", {}, {}),
    "unknown discount type": bad("discounts", "discount_type is percentage or fixed", {"discount_type": "gift"}),
    "percentage discount with an amount": bad(
        "discounts", "a percentage discount has a percentage and neither", {"amount": "5", "currency_code": "EUR"}
    ),
    "percentage discount of nothing": bad(
        "discounts", "a percentage discount has a percentage and neither", {"percentage": ""}
    ),
    "fixed discount of nothing": bad("discounts", "a fixed discount has an amount above 0", FIXED | {"amount": "0"}),
    "fixed discount without currency": bad(
        "discounts", "a fixed discount has an amount above 0 and a currency_code", FIXED | {"currency_code": ""}
    ),
    "fixed discount of a charge": bad(
        "discounts", "and neither percentage nor charge_code", FIXED | {"charge_code": "tested"}
    ),
    "discount of 15 instead of 15 %": bad("discounts", "percentage is between 0 and 1", {"percentage": "15"}),
    "discount that would be rounded": bad(
        "discounts", "percentage has at most 6 decimals", {"percentage": "0.1234567"}
    ),
    "discount for nothing": bad(
        "discounts",
        "a discount names a customer_id, plan_code or charge_code",
        {"plan_code": "", "valid_from": "2020-01-01 00:00:00", "valid_to": "2020-02-01 00:00:00"},
    ),
    "discount of nobody": bad("discounts", "customer_id stands in stg_customers", {"customer_id": "nobody"}),
    "discount of no plan": bad("discounts", "plan_code stands in plans.csv", {"plan_code": "nothing"}),
    "discount of no charge": bad("discounts", "charge_code stands in charges.csv", {"charge_code": "nothing"}),
    "discount in no currency": bad(
        "discounts", "currency_code stands in currencies.csv", FIXED | {"currency_code": "EUX"}
    ),
    "discount in another currency than the plan": bad(
        "discounts", "a fixed discount has the currency of its plan", FIXED | {"currency_code": "USD"}
    ),
    "discount in another currency than the customer": bad(
        "discounts",
        "that of at least one plan its customer subscribes to",
        FIXED | {"customer_id": "tested", "plan_code": ""},
    ),
    "discount that ends before it starts": bad(
        "discounts", "valid_from lies before valid_to", {"valid_to": "2026-01-01 00:00:00"}
    ),
    "six discounts at once": bad(
        "discounts",
        "at most five percentage discounts hold for a charge of a customer at once",
        {"discount_code": "NAME 1", "plan_code": "", "customer_id": "NAME"},
        {"discount_code": "NAME 2", "plan_code": "", "charge_code": "NAME", "valid_to": "2026-06-01 00:00:01"},
        {"discount_code": "NAME 3", "plan_code": "NAME"},
        {"discount_code": "NAME 4", "plan_code": "NAME", "customer_id": "NAME"},
        {"discount_code": "NAME 5", "plan_code": "NAME", "charge_code": "NAME"},
        {"discount_code": "NAME 6", "plan_code": "NAME", "valid_from": "2026-06-01 00:00:00"},
        named="discount_code=NAME 6, customer_id=NAME, plan_code=NAME, charge_code=NAME",
        plans=[{}],
        charges=[{"plan_code": "NAME"}],
        charge_tiers=[{}],
        customers=[{}],
        subscriptions=[{"plan_code": "NAME"}],
    ),
    "grant twice": bad("credit_grants", "unique", {}, {}),
    "grant of nobody": bad("credit_grants", "customer_id stands in stg_customers", {"customer_id": "nobody"}),
    "grant in no currency": bad("credit_grants", "currency_code stands in currencies.csv", {"currency_code": "EUX"}),
    "grant in another currency": bad(
        "credit_grants", "at least one plan that its customer subscribes to", {"currency_code": "EUR"}
    ),
    "grant of 0": bad("credit_grants", "amount is above 0", {"amount": "0"}),
    "grant without priority": bad("credit_grants", "not_null_credit_grants_priority", {"priority": ""}),
    "grant without cost basis": bad("credit_grants", "not_null_credit_grants_cost_basis", {"cost_basis": ""}),
    "negative cost basis": bad("credit_grants", "cost_basis is not negative", {"cost_basis": "-0.5"}),
    "grant of an unknown time": bad("credit_grants", "not_null_credit_grants_created_at", {"created_at": ""}),
    "grant from nowhen": bad("credit_grants", "not_null_credit_grants_effective_at", {"effective_at": ""}),
    "grant that expires before it is in force": bad(
        "credit_grants", "effective_at lies before expires_at", {"expires_at": "2026-08-31 00:00:00"}
    ),
    "unknown recurrence": bad(
        "credit_grants", "recurrence is day, week, month, quarter or year", {"recurrence": "hour"}
    ),
    "charge of no grant": bad("credit_grant_charges", "grant_code stands in credit_grants.csv", {}, credit_grants=[]),
    "grant for no charge": bad("credit_grant_charges", "charge_code stands in charges.csv", {"charge_code": "nothing"}),
    "charge twice": bad("credit_grant_charges", "a grant names each charge once", {}, {}),
    "grant for a charge in another currency": bad(
        "credit_grant_charges",
        "has the currency of the grant",
        {"charge_code": "NAME"},
        charges=[{"plan_code": "tested-eur"}],
        charge_tiers=[{}],
    ),
}

POLICY_CASES = {
    "unknown route to Stripe": bad(
        "stripe_routes", "billing_route is invoice_item or meter_event", {"billing_route": "invoice"}
    ),
    "route of an unknown subscription": bad("stripe_routes", "subscription_id stands in stg_subscriptions", {}),
    "meter route without a meter": bad(
        "stripe_routes",
        "usage charges in the plans of subscriptions that go by meter_event stand in stripe_meters.csv",
        {"billing_route": "meter_event"},
        subscriptions=[{"customer_id": "tested"}],
    ),
    "meter of a gauge": bad(
        "stripe_meters",
        "charges in stripe_meters.csv price what grows over the service period",
        {"charge_code": "NAME"},
        billable_metrics=[{"aggregation": "latest"}],
        charges=[{"metric_code": "NAME"}],
        charge_tiers=[{}],
    ),
    "meter of an unknown charge": bad("stripe_meters", "charge_code stands in charges.csv", {}),
    "meter without units": bad("stripe_meters", "units_per_quantity is positive", {"units_per_quantity": "0"}),
    "exception without reason": bad(
        "guard_exceptions", "not_null_guard_exceptions_reason", {"reason": ""}, named="subject=NAME,"
    ),
    "exception without a limit": bad(
        "guard_exceptions",
        "not_null_guard_exceptions_accepted_up_to",
        {"accepted_up_to": ""},
        named="subject=NAME,",
    ),
    "unknown treatment of late events": bad(
        "event_types", "late_events is adjust, review or reject", {"late_events": "ignore"}
    ),
    "event decided on twice": bad("late_event_reviews", "an event is decided on once", {}, {"decision": "reject"}),
    "batch decided on twice": bad(
        "late_event_reviews",
        "a batch is decided on once",
        {"idempotency_key": "", "batch_id": "NAME"},
        {"idempotency_key": "", "batch_id": "NAME"},
        named="batch_id=NAME,",
    ),
    "unknown decision": bad("late_event_reviews", "decision is accept or reject", {"decision": "perhaps"}),
    "decision on an event and a batch": bad(
        "late_event_reviews", "has an idempotency_key or a batch_id, and not both", {"batch_id": "NAME"}
    ),
    "decision on nothing": bad(
        "late_event_reviews",
        "has an idempotency_key or a batch_id, and not both",
        {"idempotency_key": "", "reason": "NAME"},
        named="reason=NAME",
    ),
}

CASES = {**CATALOG_CASES, **ACCOUNT_CASES, **CHARGE_CASES, **TIER_CASES, **CREDIT_CASES, **POLICY_CASES}

# What no rule may refuse.
GOOD_CASES: dict[str, Rows] = {
    "metrics": {
        "billable_metrics": [
            {"metric_code": "NAME level", "aggregation": "weighted_sum", "property_name": "change"},
            {"metric_code": "NAME users", "aggregation": "unique_count", "property_name": "user"},
            {
                "metric_code": "NAME peak",
                "aggregation": "percentile",
                "percentile": "0.95",
                "metering_period": "hour",
                "period_aggregation": "percentile",
                "unit_size": "1000",
                "quantity_rounding": "ceil",
                "quantity_scale": "-1",
            },
            {"metric_code": "NAME days", "metering_period": "day", "period_aggregation": "average"},
        ],
        "metric_filters": [
            {"metric_code": "NAME level", "operator": "not_in"},
            {"metric_code": "NAME level", "operator": "not_in", "filter_value": "us"},
            {"metric_code": "NAME users", "property_name": "amount", "operator": "at_least", "filter_value": "0.5"},
            {"metric_code": "NAME users", "property_name": "amount", "operator": "less_than", "filter_value": "1e3"},
            {"metric_code": "NAME days", "operator": "is_absent", "filter_value": ""},
        ],
        "metric_dimensions": [
            {"metric_code": "NAME days"},
            {"metric_code": "NAME days", "purpose": "presentation", "property_name": "zone"},
        ],
    },
    "versions": {
        "charges": [FIRST, SECOND, {"price_version": "3", "customer_id": "tested"}],
        "charge_tiers": [{"price_version": version} for version in ("1", "2", "3")],
        "entitlements": [FIRST, {"valid_from": MARCH}, {"customer_id": "tested", "included_quantity": "0"}],
    },
    "matrix": {
        "billable_metrics": [{}],
        "metric_dimensions": [{}, {"dimension_position": "2", "property_name": "zone"}],
        "charges": [{"charge_model": "matrix", "metric_code": "NAME"}],
        "charge_tiers": [
            {"dimension_1_value": "eu", "dimension_2_value": "a"},
            {"dimension_1_value": "eu"},
            {"dimension_2_value": "b"},
            {},
        ],
    },
    "stairs": {
        "charges": [{"charge_model": "stairstep", "zero_usage": "first_tier_flat"}],
        "charge_tiers": [
            {"up_to": "10", "unit_amount": "0", "flat_amount": "5"},
            {"tier_number": "2", "unit_amount": "0", "flat_amount": "8"},
        ],
    },
    "packages": {
        "charges": [{"charge_model": "volume", "minimum_amount": "1", "maximum_amount": "1"}],
        "charge_tiers": [{"up_to": "100", "package_size": "10"}, {"tier_number": "2", "package_size": "50"}],
    },
    "fee": {"charges": [FLAT | {"billing_timing": "in_advance"}], "charge_tiers": [{}]},
    "percentage": {
        "charges": [PERCENTAGE],
        "charge_tiers": [{"unit_amount": "0.029"}],
        "percentage_terms": [{"free_events": "3", "event_minimum_amount": "1", "event_maximum_amount": "1"}],
    },
    "credits": {
        "credit_grants": [{"recurrence": "month", "expires_at": "2027-01-01 00:00:00"}],
        "credit_grant_charges": [{}],
        "guard_exceptions": [{}],
        "late_event_reviews": [{}, {"idempotency_key": "", "batch_id": "NAME", "decision": "reject"}],
        "event_types": [{"late_events": "review"}],
    },
    "phases": {
        "customers": [{}],
        "subscriptions": [
            {"ended_at": "2026-09-10 00:00:00", "anchor_date": "2026-08-31"},
            {"started_at": "2026-09-10 00:00:00", "anchor_date": "2026-08-31", "ended_at": "2026-10-01 00:00:00"},
            {"subscription_id": "NAME again", "started_at": "2026-10-01 00:00:00"},
        ],
        "commitments": [{"subscription_id": "NAME", "true_up": "term", "valid_to": "2027-01-01 00:00:00"}],
        "discounts": [FIXED | {"customer_id": "NAME", "plan_code": "tested-usd", "currency_code": "USD"}]
        + [{"discount_code": f"NAME {number}", "plan_code": "", "customer_id": "NAME"} for number in range(5)],
    },
}


def append_rows(project: Path, name: str, rows: Rows) -> None:
    """Add the rows of a case, completed and with its name put in."""
    for seed, changes in rows.items():
        path = project / "seeds" / f"{SEEDS[seed]}.csv"
        with path.open(newline="") as stream:
            columns = next(csv.reader(stream))
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            for change in changes:
                row = GOOD_ROWS[SEEDS[seed]] | change
                writer.writerow({column: value.replace("NAME", name) for column, value in row.items()})


def leave_the_sample_accounts(project: Path) -> None:
    """Point the staging models at tables of another name, as production does: no rule may look at the sample seeds."""
    accounts, staging = project / "seeds" / "accounts", project / "models" / "staging"
    description = accounts / "_accounts__seeds.yml"
    for name in ("customers", "subscriptions"):
        (accounts / f"{name}.csv").rename(accounts / f"own_{name}.csv")
        description.write_text(description.read_text().replace(f"- name: {name}\n", f"- name: own_{name}\n"))
        model = staging / f"stg_{name}.sql"
        model.write_text(model.read_text().replace(f"ref('{name}')", f"ref('own_{name}')"))


class Build(NamedTuple):
    project: Path
    returncode: int
    output: str

    def report(self, file: str, rule: str) -> list[str]:
        """The lines that are printed under a rule, or an error, of a file."""
        blocks = re.findall(r"^\S.*\n(?:[ ].*\n)*", self.output, re.MULTILINE)
        return [line for block in blocks if file in block and rule in block for line in block.splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Build]:
    """The outcome of a dbt build over the bad seeds of a group."""

    @cache
    def build(group: str) -> Build:
        project = tmp_path_factory.mktemp("project")
        for folder in ("models", "macros", "seeds", "profiles", "tests/generic", "tests/singular"):
            # Unit tests prove the models, not the data.
            shutil.copytree(PROJECT_DIR / folder, project / folder, ignore=shutil.ignore_patterns("*unit_tests.yml"))
        shutil.copy(PROJECT_DIR / "dbt_project.yml", project)
        (project / "data").mkdir()
        cases = {name: case.rows for name, case in CASES.items() if case.build == group}
        if group == "good":
            cases = GOOD_CASES
        if group == "all":
            policy = project / "seeds" / "policy" / "event_policy.csv"
            lines = policy.read_text().splitlines(keepends=True)
            policy.write_text("".join(line for line in lines if not line.startswith("grace_period,")))
        for name, rows in {"tested": COMMON, **cases}.items():
            append_rows(project, name, rows)
        if group == "with errors":
            leave_the_sample_accounts(project)
        completed = subprocess.run(
            [
                str(Path(sys.executable).with_name("dbt")),
                "--quiet",
                "--no-use-colors",
                "build",
                "--profiles-dir",
                "profiles",
                "--target",
                "ci",
            ],
            cwd=project,
            env={"PATH": "/usr/bin:/bin", "HOME": str(project), "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Build(project, completed.returncode, completed.stdout)

    return build


@pytest.mark.parametrize("name", CASES)
def test_bad_seed_fails_the_build_with_file_row_and_rule(built: Callable[[str], Build], name: str) -> None:
    case = CASES[name]
    build = built(case.build)
    assert build.returncode == 1
    seed = SEEDS[case.seed]
    key = next(iter(GOOD_ROWS[seed]))
    named = (case.named or f"{key}=NAME,").replace("NAME", name)
    report = build.report(f"seeds/{seed}.csv", case.rule)
    rows = [line for line in report if named in line]
    assert rows, "\n".join(report) or build.output
    for row in rows:
        if csv_line := re.search(r"csv_line=(\d+)", row):
            lines = (build.project / "seeds" / f"{seed}.csv").read_text().splitlines()
            assert name in lines[int(csv_line[1]) - 1]


def test_missing_policy_fails_the_build(built: Callable[[str], Build]) -> None:
    build = built("all")
    assert "    row: future_tolerance_minutes=5, grace_period_hours=None, late_event_policy=adjust" in build.report(
        "seeds/policy/event_policy.csv", "event_policy.csv has a row grace_period"
    )


def test_good_seeds_build(built: Callable[[str], Build]) -> None:
    build = built("good")
    assert (build.returncode, build.output) == (0, ""), build.output
