"""dbt assets: seeds, models and their tests."""
