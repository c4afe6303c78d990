"""Measures the product beside a bare-SQL floor, PostgreSQL and ClickHouse's engine; see README.md here."""
