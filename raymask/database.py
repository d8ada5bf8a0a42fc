"""The tables of an output in DuckDB: views over exactly its files, in a database that reaches nothing else."""

from __future__ import annotations

import atexit
import contextlib
import tempfile
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from raymask.duckdb import register
from raymask.files import PROTOCOL, Files

_OPEN: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()


def connect(
    files: Files, tables: Mapping[str, Sequence[str]], allow_external: bool = False, memory: str | None = None
) -> duckdb.DuckDBPyConnection:
    """A database in memory with a view of each table over its files, and the functions on masks.

    Statements read the views and may keep tables of their own in memory. Other files, networks, extensions, settings
    and Python's variables are out of their reach; with `allow_external` all but the last are in it.
    memory: how much of it DuckDB takes before it puts results aside on the disk, such as "512MiB"; by itself, most of
    the machine's.
    """
    connection = duckdb.connect()
    _OPEN.add(connection)
    connection.register_filesystem(files)
    register(connection)
    for table, paths in tables.items():
        urls = ", ".join(_literal(f"{PROTOCOL}://{path}") for path in paths)
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet([{urls}])")
    settings = {"python_enable_replacements": "false", "temp_directory": _literal(_room_for_large_results())}
    if memory is not None:
        settings["memory_limit"] = _literal(memory)
    if not allow_external:
        settings |= {"allowed_directories": f"[{_literal(f'{PROTOCOL}://')}]", "enable_external_access": "false"}
        settings |= {"lock_configuration": "true"}  # last, since nothing can be set after it
    for name, value in settings.items():
        connection.execute(f"SET {name} = {value}")
    return connection


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _room_for_large_results() -> str:
    """A folder that DuckDB makes where memory is not enough, and removes; by itself it takes one in the current."""
    return str(Path(tempfile.gettempdir()) / f"raymask-{uuid.uuid4().hex}")


@atexit.register
def _close_all() -> None:
    """Before Python goes, since DuckDB complains on standard error of connections that are open then."""
    for connection in list(_OPEN):
        with contextlib.suppress(duckdb.Error):
            connection.close()
