"""Concurrency pools."""

# DuckDB takes one writing process at a time: whatever opens the warehouse shares a pool of one (dagster.yaml).
WAREHOUSE_POOL = "warehouse"
