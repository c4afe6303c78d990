"""Concurrency pools."""

# DuckDB takes one writing process at a time: whatever opens the warehouse shares a pool with the limit 1 (dagster.yaml).
WAREHOUSE_POOL = "warehouse"
