"""Billing assets: invoice lines into Stripe."""
