"""Errors in Stripe's shape, and the error of a state file that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping

DOC_URL = "https://stripe.com/docs/error-codes/"


class LocalStripeError(Exception):
    """The local Stripe server cannot start: its state file or its port cannot be used."""


class ApiError(Exception):
    """An answer other than success, as Stripe words it (Stripe API reference, "Errors").

    Args:
        status: HTTP status, 400 to 599.
        message: for people; never contains an API key.
        code: Stripe's error code (Stripe docs, "Error codes"), or None.
        param: the parameter at fault, in bracket notation, or None.
        error_type: Stripe's error type.
        headers: of the answer, beyond those that every answer has.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        error_type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.error_type = error_type
        self.headers = dict(headers or {})

    def body(self) -> str:
        """The JSON text `{"error": {...}}`, without the members that are None."""
        error: dict[str, str] = {"type": self.error_type, "message": self.message}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = DOC_URL + self.code.replace("_", "-")
        if self.param is not None:
            error["param"] = self.param
        return json.dumps({"error": error})


def missing_object(kind: str, object_id: str, *, param: str, in_path: bool = False) -> ApiError:
    """The `resource_missing` error: 404 for an id in the path, 400 for one in a parameter."""
    return ApiError(404 if in_path else 400, f"No such {kind}: '{object_id}'", code="resource_missing", param=param)
