"""A local stand-in for Stripe over HTTP: customers, invoices and invoice items, with state on disk."""

from .control import Control, Fault
from .errors import LocalStripeError
from .server import LocalStripeServer

__all__ = ["Control", "Fault", "LocalStripeError", "LocalStripeServer"]
