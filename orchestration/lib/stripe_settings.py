"""How invoices and meter events go to Stripe, as the environment says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

from orchestration.lib.stripe_errors import StripeSyncError

CollectionMethod = Literal["charge_automatically", "send_invoice"]
MeterApi = Literal["v1", "v2"]

# Below the 35 days within which Stripe takes events at all.
MOST_METER_GRACE_HOURS = 35 * 24 - 1


@dataclass(frozen=True)
class InvoiceSettings:
    """How invoices are made in Stripe, from the environment.

    Attributes:
        collection_method: METERING_STRIPE_COLLECTION_METHOD, charge_automatically or send_invoice.
        days_until_due: METERING_STRIPE_DAYS_UNTIL_DUE, with send_invoice alone.
        automatic_tax: METERING_STRIPE_AUTOMATIC_TAX=1 lets Stripe compute taxes.
        finalizes: METERING_STRIPE_FINALIZE=1 finalises an invoice once all its lines are on it; else it stays a draft.
        auto_advance: METERING_STRIPE_AUTO_ADVANCE=1 lets Stripe collect what has been finalised.
        shows_unit_prices: METERING_STRIPE_UNIT_PRICES=0 sends amounts alone; else quantity and unit price where they
            multiply to the amount, on a product for each metric.
        creates_customers: METERING_STRIPE_CREATE_CUSTOMERS=0 holds the lines of customers who are not mapped to one in
            Stripe; else a customer is created for them.
        meter_grace: METERING_STRIPE_METER_GRACE_HOURS, how long after the end of a service period Stripe counts meter
            events for it: the account's grace period for finalising invoices, by default Stripe's hour.
        meter_api: METERING_STRIPE_METER_API, v1 for a call for each meter event, or v2 for the stream.
    """

    collection_method: CollectionMethod = "charge_automatically"
    days_until_due: int | None = None
    automatic_tax: bool = False
    finalizes: bool = False
    auto_advance: bool = False
    creates_customers: bool = True
    shows_unit_prices: bool = True
    meter_grace: timedelta = timedelta(hours=1)
    meter_api: MeterApi = "v1"


def read_invoice_settings(environ: Mapping[str, str]) -> InvoiceSettings:
    """How invoices are made, from the METERING_STRIPE_ variables that `InvoiceSettings` names.

    Raises:
        StripeSyncError: a variable has a value that it cannot have; nothing was sent.
    """
    asked = environ.get("METERING_STRIPE_COLLECTION_METHOD", "charge_automatically")
    methods: tuple[CollectionMethod, ...] = get_args(CollectionMethod)
    method = next((method for method in methods if method == asked), None)
    days = environ.get("METERING_STRIPE_DAYS_UNTIL_DUE")
    if method is None:
        raise StripeSyncError(
            f"METERING_STRIPE_COLLECTION_METHOD is {asked!r}: set it to charge_automatically or send_invoice."
        )
    if (days is not None) is not (method == "send_invoice") or (days is not None and not days.isdecimal()):
        raise StripeSyncError(
            "METERING_STRIPE_DAYS_UNTIL_DUE goes with METERING_STRIPE_COLLECTION_METHOD=send_invoice: give a whole "
            "number of days with it, and none otherwise."
        )
    grace = environ.get("METERING_STRIPE_METER_GRACE_HOURS", "1")
    if not (grace.isascii() and grace.isdecimal() and 1 <= int(grace) <= MOST_METER_GRACE_HOURS):
        raise StripeSyncError(
            f"METERING_STRIPE_METER_GRACE_HOURS is {grace!r}: set it to the hours, from 1 to {MOST_METER_GRACE_HOURS}, "
            "after which the account finalises invoices of subscriptions (in Stripe's settings of invoices)."
        )
    asked_api = environ.get("METERING_STRIPE_METER_API", "v1")
    apis: tuple[MeterApi, ...] = get_args(MeterApi)
    meter_api = next((api for api in apis if api == asked_api), None)
    if meter_api is None:
        raise StripeSyncError(
            f"METERING_STRIPE_METER_API is {asked_api!r}: set it to v1, a call for each meter event, or v2, the stream."
        )
    return InvoiceSettings(
        collection_method=method,
        days_until_due=None if days is None else int(days),
        automatic_tax=_is_on(environ, "METERING_STRIPE_AUTOMATIC_TAX", default="0"),
        finalizes=_is_on(environ, "METERING_STRIPE_FINALIZE", default="0"),
        auto_advance=_is_on(environ, "METERING_STRIPE_AUTO_ADVANCE", default="0"),
        creates_customers=_is_on(environ, "METERING_STRIPE_CREATE_CUSTOMERS", default="1"),
        shows_unit_prices=_is_on(environ, "METERING_STRIPE_UNIT_PRICES", default="1"),
        meter_grace=timedelta(hours=int(grace)),
        meter_api=meter_api,
    )


def _is_on(environ: Mapping[str, str], name: str, *, default: Literal["0", "1"]) -> bool:
    value = environ.get(name, default)
    if value not in ("0", "1"):
        raise StripeSyncError(f"{name} is {value!r}: set it to 1 or 0, or leave it out for {default}.")
    return value == "1"
