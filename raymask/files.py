"""Files under names of their own, as a file system that only reads: what DuckDB and Arrow see of an output.

Whatever a statement asks for, there is nothing else in it: no other names, no writing, no listing of folders.
"""

from __future__ import annotations

import datetime
import io
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from fsspec import AbstractFileSystem

from raymask.storage import read_version

PROTOCOL = "raymask"
LONG_AGO = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)  # the files do not change while they are open


class Bytes(Protocol):
    """Bytes that lie somewhere. size: how many."""

    size: int

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start .. stop - 1, fewer where there are not so many. Any number of threads may call it at once."""
        ...


class Stored:
    """An object of a store or a file of this machine, of the version that it had when it was first read."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size = url, size
        self._etag: str | None = None

    def read(self, start: int, stop: int) -> bytes:
        data, etag = read_version(self.url, start, stop)
        if self._etag is None:
            self._etag = etag
        if etag != self._etag:
            raise OSError(f"{self.url} has been replaced since it was opened; open the output again")
        return data


class Spool:
    """Bytes put behind each other into a file without a name, which is gone with this object, or with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="raymask-")  # noqa: SIM115 - closed with this object
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self._file.close()

    def add(self, data: bytes) -> Bytes:
        """Put bytes behind all others; returns what reads them."""
        start = self._file.seek(0, io.SEEK_END)
        self._file.write(data)
        self._file.flush()
        return _Spooled(self, start, len(data))

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start .. stop - 1 of all."""
        with self._lock:
            self._file.seek(start)
            return self._file.read(stop - start)


class _Spooled:
    def __init__(self, spool: Spool, offset: int, size: int) -> None:
        self._spool, self._offset, self.size = spool, offset, size

    def read(self, start: int, stop: int) -> bytes:
        return self._spool.read(self._offset + start, self._offset + min(stop, self.size))


class Files(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The given files, as `raymask://NAME`."""

    protocol = PROTOCOL
    cachable = False  # two of them hold different files

    def __init__(self, files: Mapping[str, Bytes]) -> None:
        super().__init__()
        self._files = dict(files)

    def _named(self, path: str) -> Bytes:
        name = self._strip_protocol(path)
        if name not in self._files:
            raise FileNotFoundError(f"there is no {path}; the tables are images and instances")
        return self._files[name]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.RawIOBase:
        if mode != "rb":
            raise PermissionError(f"cannot write {path}; an output is only read")
        return _Reading(self._named(path))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """The name and the size of a file."""
        return {"name": self._strip_protocol(path), "size": self._named(path).size, "type": "file"}

    def glob(self, path: str, **options: Any) -> list[str]:
        """The path itself: names are no patterns."""
        return [path] if self._strip_protocol(path) in self._files else []

    def modified(self, path: str) -> datetime.datetime:
        """One time for all."""
        return LONG_AGO

    def ls(self, path: str, detail: bool = True, **options: Any) -> NoReturn:
        raise PermissionError("the files of an output are not listed; the tables are images and instances")


class _Reading(io.RawIOBase):
    """An open file. DuckDB uses one in several threads, each of which seeks before it reads: a place for each."""

    def __init__(self, source: Bytes) -> None:
        super().__init__()
        self._source = source
        self._place = threading.local()

    @property
    def size(self) -> int:
        return self._source.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        at: int = getattr(self._place, "at", 0)
        return at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._source.size}[whence]
        self._place.at = start + offset
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        stop = self._source.size if size is None or size < 0 else min(start + size, self._source.size)
        if stop <= start:
            return b""
        data = self._source.read(start, stop)
        self._place.at = start + len(data)
        return data
