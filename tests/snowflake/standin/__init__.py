"""A stand-in for Snowflake on loopback, so that the real adapter and connector run in the tests.

fakesnow's HTTP server speaks the connector's protocol and translates SQL to DuckDB. `shims` mends what it lacks or does otherwise
than Snowflake; `server` starts and stops it. What no stand-in can show stands in `shims` too, under "Not shown here".
"""

from tests.snowflake.standin.server import Standin

__all__ = ["Standin"]
