"""Asset checks: Great Expectations over the guard measurements."""
