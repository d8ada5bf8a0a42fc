"""Files on this machine that are whole or not there, through kills and power cuts."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import uuid
from collections.abc import Iterator
from typing import Any

TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """`folder` locked against others who do the same; the kernel unlocks it for those who die."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_file(path: str, data: bytes) -> Iterator[str]:
    """A file beside `path` that holds `data`, synced to the disk; gone at the end unless it was renamed."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


class WholeFile(io.BufferedWriter):
    """A file on this machine, written in pieces; it has its name once it is closed after every write went well.

    A process that is killed before leaves what was there, and a temporary name beside it.
    """

    def __init__(self, path: str) -> None:
        self._path, self._failed = path, False
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        self._temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        super().__init__(io.FileIO(self._temporary, "xb"))

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BaseException:
            self._failed = True
            raise

    def give_up(self) -> None:
        """Close it without its name."""
        self._failed = True
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(ValueError):  # it could not be opened
            self.give_up()  # nobody closed it

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
            os.fsync(self.fileno())
            if not self._failed:
                os.replace(self._temporary, self._path)
                _sync_folder(os.path.dirname(self._path))
        finally:
            super().close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)


def _sync_folder(folder: str) -> None:
    """Make names in `folder` last through a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
