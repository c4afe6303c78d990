"""Dagster definitions by area."""
