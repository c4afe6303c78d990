"""A local stand-in for Stripe over HTTP: customers, draft invoices and invoice items, with state on disk."""

from .errors import LocalStripeError
from .server import LocalStripeServer

__all__ = ["LocalStripeError", "LocalStripeServer"]
