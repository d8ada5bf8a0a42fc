"""Files behind any fsspec URL: resolve, read, put whole objects atomically, list, and decide what is worth a retry."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raymask.errors import ConfigError, OutputError, RaymaskError
from raymask.faults import (
    is_about_credentials,
    is_absence,
    is_beyond_end,
    is_full,
    is_refusal,
    is_transient,
    is_unknown_request,
    s3_code,
)
from raymask.urls import has_credentials, is_web, without_credentials

T = TypeVar("T")

# The waits add up to some 6 s. A store that is down or says "slow down" takes longer to say so, since botocore and s3fs
# try again on their own each time; PATIENCE_S bounds the whole.
ATTEMPTS = 6
FIRST_WAIT_S = 0.2
PATIENCE_S = 60.0

TEMPORARY_PREFIX = ".tmp-"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)


def resolve(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url` and the path in it. Credentials and endpoints come from the environment.

    ConfigError if there is no such protocol, a package for it is missing, or credentials stand in the URL.
    """
    check_no_credentials(url)
    path = local_path(url)
    if path is not None:
        return _file_system("file"), path
    fs = _file_system(url.partition("://")[0])
    return fs, fsspec.core.strip_protocol(url)


def check_no_credentials(url: str) -> None:
    if has_credentials(url):
        raise ConfigError(
            f"there are credentials in {without_credentials(url)}, which would be in tables and logs; take them out, "
            f"and give them by the environment"
        )


def local_path(url: str) -> str | None:
    """The absolute path that `url` names on this machine; None if it is the URL of a store."""
    if url.startswith("file://") or not _SCHEME.match(url):
        return os.path.abspath(url.removeprefix("file://"))
    return None


@lru_cache
def _file_system(protocol: str) -> Any:
    # A directory cache would hide what other processes write, and hold a whole listing in memory.
    try:
        if protocol in ("s3", "s3a"):
            from raymask.s3 import S3  # with a client that takes long to import, for those who use it

            # One request reads an object; with more of them s3fs would ask for its size first.
            return S3(use_listings_cache=False, max_concurrency=1)
        options: dict[str, Any] = {} if protocol in ("file", "memory") else {"use_listings_cache": False}
        if is_web(f"{protocol}://"):
            from raymask.web import public_session

            options["get_client"] = public_session
        return fsspec.filesystem(protocol, **options)
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise ConfigError(f"cannot open {protocol}:// URLs ({said(error)})") from error


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def is_s3(fs: Any) -> bool:
    return "s3" in fs.protocol


def absolute(url: str) -> str:
    """`url` as it means the same in another process: local paths become absolute, other URLs stay."""
    path = local_path(url)
    return url if path is None else path


def join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


@dataclass(frozen=True)
class Stat:
    """What is known of a file or an object without reading it.

    kind: "file", "directory", or "other" for what only pretends to be a file: a pipe, a socket, a device.
    etag: the store's word for this version; of a local file its modification time and size, as web servers do it.
    """

    kind: str
    size: int | None
    etag: str | None


def stat(url: str) -> Stat:
    """What `url` is; FileNotFoundError where there is nothing."""
    fs, path = resolve(url)
    if is_local(fs):
        return local_stat(os.stat(path))
    info = retried(lambda: _info(fs, path))
    return Stat(info["type"], info.get("size"), etag_of(info))


def _info(fs: Any, path: str) -> dict[str, Any]:
    """What the store says of an object; where it cannot, the reason in full."""
    try:
        info: dict[str, Any] = fs.info(path)
    except OSError as error:
        cause = error.__cause__
        if cause is not None and type(cause).__module__.startswith("aiohttp") and not is_absence(cause):
            raise cause from None  # of web servers fsspec says "not found", whatever happened
        if is_s3(fs) and s3_code(error) in ("400", "403"):
            fs.read_version(path, 0, 1)  # the answer to a HEAD has no room for the reason
        raise
    return info


def etag_of(info: Mapping[str, Any]) -> str | None:
    """The ETag in what a store says of an object, under the names that stores have for it."""
    return str(info.get("ETag") or info.get("etag") or "").strip('"') or None


def read_version(url: str, start: int | None = None, stop: int | None = None) -> tuple[bytes, str | None]:
    """Bytes start .. stop - 1, fewer where there are not so many, and the ETag of the version that they are of.

    The whole object without `start`. None for an ETag where the store does not say it together with the bytes.
    """
    fs, path = resolve(url)
    try:
        if is_local(fs):
            return retried(lambda: _read_file(path, start, stop))
        if is_s3(fs):
            data, etag = retried(lambda: fs.read_version(path, start, stop))
            return data, etag_of({"ETag": etag})
        return retried(lambda: fs.cat_file(path, start=start, end=stop)), None
    except Exception as error:
        if is_beyond_end(error):
            return b"", None
        raise


def _read_file(path: str, start: int | None, stop: int | None) -> tuple[bytes, str | None]:
    with open(path, "rb") as file:
        file.seek(start or 0)
        data = file.read() if stop is None else file.read(stop - (start or 0))
        return data, local_stat(os.fstat(file.fileno())).etag


def local_stat(status: os.stat_result) -> Stat:
    mode = status.st_mode
    kind = "file" if S_ISREG(mode) else "directory" if S_ISDIR(mode) else "other"
    return Stat(kind, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def s3_pages(fs: Any, bucket: str, prefix: str, delimiter: str = "") -> Iterator[list[dict[str, Any]]]:
    """The objects whose keys begin with `prefix`, by key, a page at a time; the next is asked for when it is wanted.

    fs.ls would gather all of them in one list first. With a `delimiter` only keys without another one are listed.
    """
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
    while True:
        page = retried(lambda: fs.call_s3("list_objects_v2", **request))
        yield page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def retried(call: Callable[[], T]) -> T:
    """`call()`, repeated while it fails with something worth a retry; waits double and are jittered."""
    started_s = time.monotonic()
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            patient = attempt + 1 < ATTEMPTS and time.monotonic() - started_s < PATIENCE_S
            if not patient or not is_transient(error):
                raise
        time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def said(error: BaseException) -> str:
    """An error of somebody else's in a line, without credentials that may be in it."""
    return without_credentials(f"{type(error).__name__}: {error}")[:300].replace("\n", " ")


@contextlib.contextmanager
def used_plainly(out: str) -> Iterator[None]:
    """Turn what a store or a disk raises inside into an OutputError that says what to do about the output."""
    try:
        yield
    except RaymaskError:
        raise
    except Exception as error:  # whatever a store's library raises
        if type(error).__module__.startswith("ray."):
            raise  # of a task, which is an OSError too where the task raised one
        if is_full(error):
            what_to_do = "make room there, then run the same command again, which goes on from what is done"
        elif is_about_credentials(error):
            what_to_do = "renew the credentials, then run the same command again, which goes on from what is done"
        elif is_refusal(error):
            what_to_do = "check its permissions and your keys, or choose another --out"
        elif is_transient(error):
            what_to_do = "check endpoint and network, then run the same command again, which goes on from what is done"
        elif isinstance(error, OSError):
            what_to_do = "check the name, or choose another --out"
        else:
            raise  # no word of a store's
        raise OutputError(f"cannot use {out!r} ({said(error)}); {what_to_do}") from error


@dataclass(frozen=True)
class Folder:
    """A folder of whole objects, local or in a store. Names are relative, with "/" between the parts.

    A put is atomic: a reader sees the old object, the new one or none. On a store that is one request; on a local
    file system a temporary name in the same folder, synced, then renamed.
    """

    url: str

    def __post_init__(self) -> None:
        # It travels to workers, which Ray starts in folders of their own.
        object.__setattr__(self, "url", absolute(self.url))

    def url_of(self, name: str) -> str:
        return join(self.url, name)

    def sub(self, name: str) -> Folder:
        return Folder(self.url_of(name))

    def _place(self, name: str) -> tuple[Any, str]:
        fs, root = resolve(self.url)
        return fs, join(root, name)

    def read(self, name: str) -> bytes:
        """The whole object; FileNotFoundError where there is none."""
        fs, path = self._place(name)
        data: bytes = retried(lambda: fs.cat_file(path))
        return data

    def read_or_none(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write the object whole, over an older one."""
        fs, path = self._place(name)
        if is_local(fs):
            with _temporary(path, data) as temporary:
                os.replace(temporary, path)
        else:
            retried(lambda: fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write the object whole unless there is one; whether it holds just `data` now.

        What is there is read back before another writer is believed in: a store whose answer was lost refuses the
        retry of its own success.
        """
        fs, path = self._place(name)
        if is_local(fs):
            with _temporary(path, data) as temporary, contextlib.suppress(FileExistsError):
                os.link(temporary, path)
                return True
            return self.read(name) == data
        try:
            retried(lambda: fs.pipe_file(path, data, mode="create"))
        except OSError:
            # Stores differ in how they say "it is there". If it is not, this was another error.
            there = self.read_or_none(name)
            if there is None:
                raise
            return there == data
        return True

    def put_if_absent(self, name: str, data: bytes) -> bytes:
        """Create the object unless it is there; returns what it holds now, ours or another writer's."""
        self.create(name, data)
        return self.read(name)

    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """Write the object whole if it still holds `old` (None: if there is none); whether it holds `new` now.

        In one step locally and on S3. On stores that know no `If-Match` it is looked at and then written, and another
        writer can come between.
        """
        if old is None:
            return self.create(name, new)
        fs, path = self._place(name)
        if is_local(fs):
            with _locked(os.path.dirname(path)):
                if self.read_or_none(name) != old:
                    return False
                self.put(name, new)
                return True
        try:
            version = stat(self.url_of(name)).etag  # before it is read: should another come between, this is refused
        except FileNotFoundError:
            return False
        if self.read_or_none(name) != old:
            return False
        try:
            retried(lambda: fs.pipe_file(path, new, **({"IfMatch": f'"{version}"'} if is_s3(fs) else {})))
        except OSError as error:
            there = self.read_or_none(name)  # as in `create`
            if there != old:
                return there == new
            if not is_unknown_request(error):
                raise
            self.put(name, new)
        return True

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(name, bytes) of every object directly in `prefix`, by name; nothing where the folder does not exist."""
        with contextlib.suppress(FileNotFoundError):
            for name, size in _objects_in(*resolve(self.url_of(prefix))):
                yield (f"{prefix}/{name}" if prefix else name), size

    def delete(self, name: str) -> None:
        """Delete the object; nothing happens where there is none."""
        fs, path = self._place(name)
        with contextlib.suppress(FileNotFoundError):
            retried(lambda: fs.rm_file(path))


def write_file(url: str, data: bytes) -> None:
    """Write one object whole, by its full URL or path."""
    folder, _, name = absolute(url).rpartition("/")
    Folder(folder or "/").put(name, data)


@contextlib.contextmanager
def whole_file(url: str) -> Iterator[BinaryIO]:
    """A file to write an object of any size through, in pieces: it has its name once the block has ended well.

    On its way to a store it lies on this machine, in the folder for temporary files, and is sent when it is done.
    """
    fs, path = resolve(url)
    if is_local(fs):
        with contextlib.closing(WholeFile(path)) as file:
            try:
                yield file
            except BaseException:
                file.give_up()
                raise
    else:
        with tempfile.NamedTemporaryFile(prefix="raymask-") as spooled:
            yield cast(BinaryIO, spooled)
            spooled.flush()
            retried(lambda: fs.put_file(spooled.name, path))


def _objects_in(fs: Any, folder: str) -> Iterator[tuple[str, int]]:
    if is_s3(fs):
        bucket, _, prefix = f"{folder}/".partition("/")
        for page in s3_pages(fs, bucket, prefix, delimiter="/"):
            yield from ((o["Key"].removeprefix(prefix), o["Size"]) for o in page if o["Key"] != prefix)
    elif is_local(fs):
        yield from sorted(_files_in(folder))
    else:
        entries = retried(lambda: fs.ls(folder, detail=True))
        yield from sorted((e["name"].rsplit("/", 1)[-1], int(e["size"] or 0)) for e in entries if e["type"] == "file")


def _files_in(folder: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # the temporary name of a put that ended just now
                if entry.is_file():
                    yield entry.name, entry.stat().st_size


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """`folder` locked against others who do the same; the kernel unlocks it for those who die."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: str, data: bytes) -> Iterator[str]:
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
