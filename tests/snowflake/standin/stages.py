"""Stages in the stand-in: fakesnow has PUT, LIST and COPY INTO, and lacks DROP STAGE.

Where the rest departs from Snowflake: a temporary stage is not dropped with its session, and COPY INTO ignores the options of a
Parquet file format. Snowflake reads timestamps as seconds without USE_LOGICAL_TYPE, and the text \\N as null without NULL_IF = ().
"""

from __future__ import annotations

import atexit
import re
import shutil
from typing import Any

from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.transforms import stage

_DROP_STAGE = re.compile(r"\s*drop\s+stage\s+(if\s+exists\s+)?(?P<name>[\w.]+)\s*;?\s*", re.IGNORECASE)


def drop_stage(cursor: FakeSnowflakeCursor, name: str) -> None:
    """Forget a stage and delete its files, as Snowflake does. One that is not there is no error, with IF EXISTS or without."""
    database, schema, stage_name = stage.parts_from_var(name, cursor._conn.database, cursor._conn._schema)
    cursor._duck_conn.execute(
        "delete from _fs_global._fs_information_schema._fs_stages "
        "where database_name = ? and schema_name = ? and name = ?",
        [database, schema, stage_name],
    )
    shutil.rmtree(stage.internal_dir(f"{database}.{schema}.{stage_name}"), ignore_errors=True)


def install() -> None:
    """Add DROP STAGE to fakesnow in this process, and delete all staged files at its end."""
    atexit.register(shutil.rmtree, stage.LOCAL_BUCKET_PATH, ignore_errors=True)
    execute = FakeSnowflakeCursor.execute

    def execute_with_stages(self: FakeSnowflakeCursor, command: str, *arguments: Any, **options: Any) -> Any:
        dropped = _DROP_STAGE.fullmatch(command)
        if dropped is None:
            return execute(self, command, *arguments, **options)
        drop_stage(self, dropped["name"])
        return execute(self, "select 'Stage successfully dropped.' as status", server=True)

    FakeSnowflakeCursor.execute = execute_with_stages
