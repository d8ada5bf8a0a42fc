"""Files behind any fsspec URL: resolve, read, put whole objects atomically, list, and decide what is worth a retry."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")

ATTEMPTS = 6  # with the waits below, some 12 s of a store saying "slow down"
FIRST_WAIT_S = 0.2

_FINAL_ERRNOS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ELOOP,
        errno.ENOSPC,
        errno.EROFS,
        errno.EDQUOT,
    }
)
_NETWORK_MODULES = ("aiobotocore", "aiohttp", "botocore", "http", "requests", "urllib3", "google", "azure", "gcsfs")
# Errors of the network libraries that another attempt cannot mend: no credentials, an impossible request.
_FINAL_NAMES = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound", "InvalidURL"}
)


def resolve(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url` and the path in it. Credentials and endpoints come from the environment."""
    protocol, separator, _ = url.partition("://")
    if not separator or protocol == "file":
        return _file_system("file"), os.path.abspath(url.removeprefix("file://"))
    return _file_system(protocol), fsspec.core.strip_protocol(url)


@lru_cache
def _file_system(protocol: str) -> Any:
    # A directory cache would hide what other processes write, and hold a whole listing in memory.
    options = {} if protocol in ("file", "memory") else {"use_listings_cache": False}
    return fsspec.filesystem(protocol, **options)


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def absolute(url: str) -> str:
    """`url` as it means the same in another process: local paths become absolute, other URLs stay."""
    fs, path = resolve(url)
    return path if is_local(fs) else url


def join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: overload, timeouts, broken connections; not absence or refusal."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError):
        return error.errno not in _FINAL_ERRNOS and not isinstance(error, FileNotFoundError | PermissionError)
    return type(error).__module__.split(".")[0] in _NETWORK_MODULES and type(error).__name__ not in _FINAL_NAMES


def retried(call: Callable[[], T]) -> T:
    """`call()`, repeated while it fails with something worth a retry; waits double and are jittered."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            if attempt + 1 == ATTEMPTS or not is_transient(error):
                raise
        time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Folder:
    """A folder of whole objects, local or in a store. Names are relative, with "/" between the parts.

    A put is atomic: a reader sees the old object, the new one or none. On a store that is one request; on a local
    file system a temporary name in the same folder, synced, then renamed.
    """

    url: str

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        return resolve(self.url)

    def url_of(self, name: str) -> str:
        return join(self.url, name)

    def sub(self, name: str) -> Folder:
        return Folder(self.url_of(name))

    def read(self, name: str) -> bytes:
        """The whole object; FileNotFoundError where there is none."""
        fs, root = self._resolved
        data: bytes = retried(lambda: fs.cat_file(f"{root}/{name}"))
        return data

    def read_or_none(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write the object whole, over an older one."""
        fs, root = self._resolved
        path = f"{root}/{name}"
        if is_local(fs):
            temporary = _write_temporary(path, data)
            os.replace(temporary, path)
        else:
            retried(lambda: fs.pipe_file(path, data))

    def put_if_absent(self, name: str, data: bytes) -> bytes:
        """Create the object unless it is there; returns what it holds now, ours or another writer's.

        The object is read back in either case: a store whose answer was lost refuses the retry of its own success.
        """
        fs, root = self._resolved
        path = f"{root}/{name}"
        if is_local(fs):
            temporary = _write_temporary(path, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            finally:
                os.unlink(temporary)
        else:
            with contextlib.suppress(FileExistsError):
                retried(lambda: fs.pipe_file(path, data, mode="create"))
        return self.read(name)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(name, bytes) of every object directly in `prefix`, by name; nothing where the folder does not exist."""
        fs, root = self._resolved
        folder = f"{root}/{prefix}".rstrip("/")
        try:
            entries = retried(lambda: fs.ls(folder, detail=True))
        except FileNotFoundError:
            return
        files = (e for e in entries if e["type"] == "file")
        for name, size in sorted((e["name"].rsplit("/", 1)[-1], int(e["size"] or 0)) for e in files):
            yield (f"{prefix}/{name}" if prefix else name), size

    def delete(self, name: str) -> None:
        """Delete the object; nothing happens where there is none."""
        fs, root = self._resolved
        with contextlib.suppress(FileNotFoundError):
            retried(lambda: fs.rm_file(f"{root}/{name}"))


def _write_temporary(path: str, data: bytes) -> str:
    """Write `data` beside `path`, synced to the disk, and return the temporary name."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


TEMPORARY_PREFIX = ".tmp-"


@lru_cache
def _umask() -> int:
    # The process's mask can be read only by setting it; once, before threads write.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
