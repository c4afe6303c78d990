"""What is not Dagster: pure functions and thin clients, importable without an orchestrator."""
