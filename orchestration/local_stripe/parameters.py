"""Reads request parameters: bracket notation into nested values, checked against Stripe's parameter sets.

The names that Stripe knows come from the typed parameters of the installed `stripe` package, generated from
Stripe's OpenAPI description; the names that this server acts on are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeAlias

from stripe import RequestOptions
from stripe.params import (
    AccountRetrieveCurrentParams,
    CustomerCreateParams,
    CustomerListParams,
    CustomerRetrieveParams,
    InvoiceAddLinesParams,
    InvoiceAddLinesParamsLine,
    InvoiceAddLinesParamsLinePriceData,
    InvoiceCreateParams,
    InvoiceFinalizeInvoiceParams,
    InvoiceItemCreateParams,
    InvoiceItemListParams,
    InvoiceItemRetrieveParams,
    InvoiceLineItemListParams,
    InvoiceListParams,
    InvoiceRetrieveParams,
    ProductCreateParams,
    ProductListParams,
    ProductRetrieveParams,
)

from .errors import ApiError

FormValue: TypeAlias = "str | dict[str, FormValue]"
Reader: TypeAlias = Callable[[str, FormValue], Any]

KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
# Stripe API reference, "Bulk add invoice line items": non-negative, "at most 12 decimal places".
DECIMAL = re.compile(r"[0-9]{1,18}(\.[0-9]{1,12})?")
CURRENCY = re.compile(r"[a-z]{3}")

# Stripe API reference, "Metadata".
METADATA_KEYS = 50
METADATA_KEY_CHARACTERS = 40
METADATA_VALUE_CHARACTERS = 500


def nest(pairs: list[tuple[str, str]]) -> dict[str, FormValue]:
    """Turn `[("period[start]", "1")]` into `{"period": {"start": "1"}}`; `x[]` counts its elements from 0.

    Raises:
        ApiError: 400 when a name is malformed, or is used both as a value and as a group.
    """
    nested: dict[str, FormValue] = {}
    for name, value in pairs:
        match = KEY.fullmatch(name)
        if match is None:
            raise ApiError(400, f"Invalid parameter name: {name}", param=name)
        group = nested
        path = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        for depth, part in enumerate(path, start=1):
            key = part if part != "" else str(len(group))
            if depth < len(path):
                inner = group.setdefault(key, {})
                if not isinstance(inner, dict):
                    raise ApiError(400, f"Invalid {name}: used both as a value and as a group", param=name)
                group = inner
            elif isinstance(group.get(key), dict):
                raise ApiError(400, f"Invalid {name}: used both as a value and as a group", param=name)
            else:
                group[key] = value
    return nested


def read_string(name: str, value: FormValue) -> str:
    """A non-empty string."""
    if isinstance(value, dict):
        raise ApiError(400, f"Invalid string: {name} is a group of values", param=name)
    if value == "":
        raise ApiError(
            400,
            f"You passed an empty string for '{name}'. Leave the parameter out instead.",
            code="parameter_invalid_empty",
            param=name,
        )
    return value


def read_integer(name: str, value: FormValue) -> int:
    """A whole number of at most 18 digits."""
    text = read_string(name, value)
    if INTEGER.fullmatch(text) is None:
        raise ApiError(400, f"Invalid integer: {text}", code="parameter_invalid_integer", param=name)
    return int(text)


def read_decimal(name: str, value: FormValue) -> Decimal:
    """A decimal number, not negative, of at most 18 digits before the point and 12 after it."""
    text = read_string(name, value)
    if DECIMAL.fullmatch(text) is None:
        raise ApiError(400, f"Invalid decimal: {text}", code="parameter_invalid_decimal", param=name)
    return Decimal(text)


def read_boolean(name: str, value: FormValue) -> bool:
    """`true` or `false`."""
    text = read_string(name, value)
    if text not in ("true", "false"):
        raise ApiError(400, f"Invalid boolean: {text}", param=name)
    return text == "true"


def read_currency(name: str, value: FormValue) -> str:
    """Three letters, returned in lower case. Whether the currency exists is not checked."""
    text = read_string(name, value).lower()
    if CURRENCY.fullmatch(text) is None:
        raise ApiError(400, f"Invalid currency: {text}", param=name)
    return text


def read_metadata(name: str, value: FormValue) -> dict[str, str]:
    """String to string, within Stripe's limits; an empty value leaves its key out."""
    if value == "":
        return {}
    if not isinstance(value, dict):
        raise ApiError(400, f"Invalid {name}: must be a group of values", param=name)
    metadata: dict[str, str] = {}
    for key, text in value.items():
        where = f"{name}[{key}]"
        if isinstance(text, dict):
            raise ApiError(400, f"Invalid {where}: metadata values are strings", param=where)
        if len(key) > METADATA_KEY_CHARACTERS:
            raise ApiError(400, f"Invalid {where}: keys have at most {METADATA_KEY_CHARACTERS} characters", param=where)
        if len(text) > METADATA_VALUE_CHARACTERS:
            raise ApiError(
                400,
                f"Invalid {where}: values have at most {METADATA_VALUE_CHARACTERS} characters",
                param=where,
            )
        if text != "":
            metadata[key] = text
    if len(metadata) > METADATA_KEYS:
        raise ApiError(400, f"Invalid {name}: at most {METADATA_KEYS} keys, got {len(metadata)}", param=name)
    return metadata


def read_period(name: str, value: FormValue) -> dict[str, int]:
    """`{"start": seconds, "end": seconds}`, both inclusive (Stripe API reference, "Invoice Items")."""
    if not isinstance(value, dict):
        raise ApiError(400, f"Invalid {name}: must be a group of values", param=name)
    for member in value:
        if member not in ("start", "end"):
            raise unknown_parameter(f"{name}[{member}]")
    for member in ("start", "end"):
        if member not in value:
            raise missing_parameter(f"{name}[{member}]")
    period = {member: read_integer(f"{name}[{member}]", value[member]) for member in ("start", "end")}
    if period["end"] < period["start"]:
        raise ApiError(400, f"Invalid {name}: end {period['end']} is before start {period['start']}", param=name)
    return period


def read_automatic_tax(name: str, value: FormValue) -> bool:
    """`{"enabled": boolean}`, and nothing else of what Stripe has there."""
    if not isinstance(value, dict) or value.keys() != {"enabled"}:
        raise ApiError(400, f"Invalid {name}: the local Stripe server takes {name}[enabled] alone", param=name)
    return read_boolean(f"{name}[enabled]", value["enabled"])


def read_created(name: str, value: FormValue) -> dict[str, int]:
    """`{"gt" | "gte" | "lt" | "lte": seconds}`; a bare number means both `gte` and `lte`."""
    if not isinstance(value, dict):
        seconds = read_integer(name, value)
        return {"gte": seconds, "lte": seconds}
    for member in value:
        if member not in ("gt", "gte", "lt", "lte"):
            raise unknown_parameter(f"{name}[{member}]")
    return {member: read_integer(f"{name}[{member}]", seconds) for member, seconds in value.items()}


def read_limit(name: str, value: FormValue) -> int:
    """1 to 100 (Stripe API reference, "Pagination")."""
    limit = read_integer(name, value)
    if not 1 <= limit <= 100:
        raise ApiError(400, f"Invalid {name}: {limit} is not between 1 and 100", param=name)
    return limit


def one_of(*allowed: str) -> Reader:
    """A reader that accepts only the given strings."""

    def read(name: str, value: FormValue) -> str:
        text = read_string(name, value)
        if text not in allowed:
            raise ApiError(400, f"Invalid {name}: must be one of {', '.join(allowed)}", param=name)
        return text

    return read


def unknown_parameter(name: str) -> ApiError:
    """Stripe's error for a parameter it does not know."""
    return ApiError(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def missing_parameter(name: str) -> ApiError:
    """Stripe's error for a required parameter that was not given."""
    return ApiError(400, f"Missing required param: {name}.", code="parameter_missing", param=name)


@dataclass(frozen=True)
class ParameterSet:
    """What one endpoint takes.

    Attributes:
        typed: the `stripe.params` class that lists every name Stripe knows for the endpoint.
        readers: the names that this server acts on, with what reads each.
        required: names that must be given.
    """

    typed: type
    readers: Mapping[str, Reader] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def read(self, pairs: list[tuple[str, str]]) -> dict[str, Any]:
        """Check and convert decoded name and value pairs; names that were not given are absent.

        Raises:
            ApiError: 400 with Stripe's code for an unknown, missing or malformed parameter, and a plain
                message for a parameter that Stripe knows and this server does not act on.
        """
        return self.read_group(nest(pairs))

    def read_group(self, values: Mapping[str, FormValue], within: str = "") -> dict[str, Any]:
        """The same for the members of a group; `within` is its name in bracket notation."""
        known = self.typed.__annotations__.keys() - RequestOptions.__annotations__.keys()
        named = {name: f"{within}[{name}]" if within else name for name in (*values, *self.required)}
        for name in values:
            if name not in known:
                raise unknown_parameter(named[name])
            if name not in self.readers:
                raise ApiError(
                    400,
                    f"The local Stripe server does not support the parameter '{named[name]}', which Stripe has. "
                    "Leave it out, or use a Stripe test key.",
                    param=named[name],
                )
        for name in self.required:
            if name not in values:
                raise missing_parameter(named[name])
        return {name: self.readers[name](named[name], value) for name, value in values.items()}


LINE_PRICE = ParameterSet(
    InvoiceAddLinesParamsLinePriceData,
    {"currency": read_currency, "product": read_string, "unit_amount_decimal": read_decimal},
    required=("currency", "product", "unit_amount_decimal"),
)


def read_line_price(name: str, value: FormValue) -> dict[str, Any]:
    """Currency, product and unit amount in minor units; of what Stripe has there, nothing else."""
    if not isinstance(value, dict):
        raise ApiError(400, f"Invalid {name}: must be a group of values", param=name)
    return LINE_PRICE.read_group(value, name)


LINE = ParameterSet(
    InvoiceAddLinesParamsLine,
    {
        "amount": read_integer,
        "description": read_string,
        "discountable": read_boolean,
        "metadata": read_metadata,
        "period": read_period,
        "price_data": read_line_price,
        "quantity_decimal": read_decimal,
    },
)


def read_lines(name: str, value: FormValue) -> list[dict[str, Any]]:
    """Lines in the order of their indices, each with an amount or with a price; a quantity goes with a price."""
    if not isinstance(value, dict):
        raise ApiError(400, f"Invalid {name}: must be a group of values", param=name)
    lines = []
    for index in sorted(value, key=int if all(index.isdecimal() for index in value) else str):
        where, members = f"{name}[{index}]", value[index]
        if not isinstance(members, dict):
            raise ApiError(400, f"Invalid {where}: must be a group of values", param=where)
        line = LINE.read_group(members, where)
        if ("amount" in line) is ("price_data" in line):
            raise ApiError(400, f"{where} needs one of amount and price_data.", param=f"{where}[amount]")
        if "quantity_decimal" in line and "price_data" not in line:
            quantity = f"{where}[quantity_decimal]"
            raise ApiError(400, f"{quantity} goes with {where}[price_data].", param=quantity)
        lines.append(line)
    return lines


PAGE: dict[str, Reader] = {"limit": read_limit, "starting_after": read_string, "created": read_created}

RETRIEVE_ACCOUNT = ParameterSet(AccountRetrieveCurrentParams)
RETRIEVE = {
    "customer": ParameterSet(CustomerRetrieveParams),
    "invoice": ParameterSet(InvoiceRetrieveParams),
    "invoiceitem": ParameterSet(InvoiceItemRetrieveParams),
    "product": ParameterSet(ProductRetrieveParams),
}
ADD_LINES = ParameterSet(InvoiceAddLinesParams, {"lines": read_lines}, required=("lines",))
LIST_LINES = ParameterSet(InvoiceLineItemListParams, {"limit": read_limit, "starting_after": read_string})
FINALIZE_INVOICE = ParameterSet(InvoiceFinalizeInvoiceParams, {"auto_advance": read_boolean})
LIST = {
    "customer": ParameterSet(CustomerListParams, PAGE),
    "invoice": ParameterSet(
        InvoiceListParams,
        {**PAGE, "customer": read_string, "status": one_of("draft", "open", "paid", "uncollectible", "void")},
    ),
    "invoiceitem": ParameterSet(
        InvoiceItemListParams,
        {**PAGE, "customer": read_string, "invoice": read_string, "pending": read_boolean},
    ),
    "product": ParameterSet(ProductListParams, PAGE),
}
CREATE = {
    "customer": ParameterSet(
        CustomerCreateParams,
        {
            "name": read_string,
            "email": read_string,
            "phone": read_string,
            "description": read_string,
            "metadata": read_metadata,
        },
    ),
    "invoice": ParameterSet(
        InvoiceCreateParams,
        {
            "customer": read_string,
            "currency": read_currency,
            "auto_advance": read_boolean,
            "automatic_tax": read_automatic_tax,
            "collection_method": one_of("charge_automatically", "send_invoice"),
            "days_until_due": read_integer,
            "description": read_string,
            "metadata": read_metadata,
            "pending_invoice_items_behavior": one_of("exclude", "include"),
        },
        required=("customer",),
    ),
    "invoiceitem": ParameterSet(
        InvoiceItemCreateParams,
        {
            "customer": read_string,
            "amount": read_integer,
            "currency": read_currency,
            "description": read_string,
            "discountable": read_boolean,
            "invoice": read_string,
            "metadata": read_metadata,
            "period": read_period,
        },
        required=("customer", "amount", "currency"),
    ),
    "product": ParameterSet(
        ProductCreateParams,
        {"id": read_string, "name": read_string, "metadata": read_metadata},
        required=("name",),
    ),
}
