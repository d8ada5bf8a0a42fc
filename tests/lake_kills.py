"""Publishers to lakes that are killed. In a module of its own since each of them imports it, and is short-lived."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pyarrow as pa

from raymask.lakes import publisher
from raymask.lakes.config import PublishConfig
from raymask.lakes.rows import read_rows

# What they need, loaded once in the process that they are forks of.
PRELOADED = ["pytest", "deltalake", "pyiceberg.catalog.sql", "pyiceberg.io.pyarrow", "raymask.lakes.publisher"]
PRELOADED += ["raymask.lakes.delta", "raymask.lakes.iceberg"]


class Points:
    """Counts how often a publisher comes by a place at which it may be killed, and kills it at the wanted one."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.passed = wanted, 0

    def reach(self) -> None:
        self.passed += 1
        if self.passed == self.wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def with_points(*arguments: Any, **options: Any) -> Any:
            self.reach()
            answer = plain(*arguments, **options)
            self.reach()
            return answer

        is_static = isinstance(inspect.getattr_static(owner, name), staticmethod)
        setattr(owner, name, staticmethod(with_points) if is_static else with_points)


def publish_until_killed(options: dict[str, Any], point: int) -> None:
    """Publish in this process, which dies at the point of this number, or ends if there are not so many."""
    points = Points(point)

    def with_points(*arguments: Any) -> Iterator[pa.RecordBatch]:
        for batch in read_rows(*arguments):
            points.reach()
            yield batch

    if options["format"] == "delta":
        import deltalake

        points.around(deltalake.DeltaTable, "create")
        points.around(deltalake, "write_deltalake")
    else:
        from pyiceberg.catalog.sql import SqlCatalog

        points.around(SqlCatalog, "create_table")
        points.around(SqlCatalog, "commit_table")
        points.around(SqlCatalog, "_write_metadata")  # in the middle of a commit
    with mock.patch("raymask.lakes.publisher.read_rows", with_points):  # in the middle of the data
        publisher.publish(PublishConfig(**options))
