"""The tables of an output as DuckDB sees them: views `images` and `instances`, and nothing else of this machine."""

from __future__ import annotations

import duckdb

from raymask.output import Masks
from raymask.storage import local_path

MEMORY = "384MiB"


def open_connection(out: str) -> duckdb.DuckDBPyConnection:
    masks = Masks(out)
    connection = duckdb.connect()
    for table in ("images", "instances"):
        files = [f"{local_path(out)}/{f.path}" for f in masks.published.files(table)]
        connection.read_parquet(files).create_view(table)
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    return connection
