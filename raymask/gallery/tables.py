"""The tables of an output as DuckDB sees them: views `images` and `instances`, and nothing else of this machine."""

from __future__ import annotations

import duckdb

from raymask.output import Masks
from raymask.storage import local_path

MEMORY = "384MiB"


def open_connection(out: str) -> duckdb.DuckDBPyConnection:
    """A connection that reaches the output's files alone; OutputError where nothing is published."""
    masks = Masks(out)
    connection = duckdb.connect()
    allowed = []
    for table in ("images", "instances"):
        files = [f"{local_path(out)}/{f.path}" for f in masks.published.files(table)]
        connection.read_parquet(files).create_view(table)
        allowed += files
    settings = {"memory_limit": f"'{MEMORY}'", "allowed_paths": str(allowed), "python_enable_replacements": "false"}
    settings |= {"enable_external_access": "false", "lock_configuration": "true"}
    for name, value in settings.items():
        connection.execute(f"SET {name} = {value}")
    return connection
