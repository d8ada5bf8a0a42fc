"""Statements run so that Ctrl-C stops them, and what is wrong with one said as people can use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import duckdb

from raymask.errors import ConfigError

T = TypeVar("T")

TRACEBACK = "Traceback (most recent call last)"


def interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], T]) -> T:
    """`work()`, which runs statements on the connection; KeyboardInterrupt once Ctrl-C has stopped them."""
    # DuckDB sees no signals, and Python's are for its main thread, which has to be free for them. It looks up now and
    # then, since a signal that comes just before a wait does not end it.
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    try:
        while not future.done():
            wait([future], timeout=0.1)
        return future.result()
    except KeyboardInterrupt:
        while not future.done():
            connection.interrupt()  # what is between two statements does not feel it
            wait([future], timeout=0.1)
        raise
    finally:
        pool.shutdown(wait=False)


@contextlib.contextmanager
def said_plainly(all_columns: str) -> Iterator[None]:
    """Turn DuckDB's errors inside into a ConfigError: its own words with the place, and where to look next.

    all_columns: what to type to see them.
    """
    try:
        yield
    except duckdb.Error as error:
        text = str(error).strip()
        if TRACEBACK in text:  # of the file system that DuckDB reads through
            text = text.splitlines()[-1]
        raise ConfigError(f"{text}{_advice(error, text, all_columns)}") from error


def _advice(error: duckdb.Error, text: str, all_columns: str) -> str:
    if isinstance(error, duckdb.PermissionException) or "configuration has been locked" in text:
        return "\nStatements reach the output alone; --allow-external lifts that."
    if isinstance(error, duckdb.CatalogException) and text.startswith("Catalog Error: Table"):
        return "\nThe tables are images and instances."
    if isinstance(error, duckdb.BinderException) and "Referenced column" in text:
        return f"\nAll columns: {all_columns}"
    return ""
