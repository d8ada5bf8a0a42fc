"""Folders of whole objects, on this machine or in a store, by the same verbs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from raymask.faults import is_unknown_request
from raymask.storage.local import WholeFile, locked, temporary_file
from raymask.storage.objects import objects_in, stat
from raymask.storage.resolving import absolute, is_local, is_s3, join, resolve
from raymask.storage.retries import retried


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
            with temporary_file(path, data) as temporary:
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
            with temporary_file(path, data) as temporary, contextlib.suppress(FileExistsError):
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
            with locked(os.path.dirname(path)):
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
            for found in objects_in(*resolve(self.url_of(prefix))):
                yield (f"{prefix}/{found.name}" if prefix else found.name), found.size

    def times(self, prefix: str) -> Iterator[tuple[str, float]]:
        """(name, Unix time in s at which it was put) of the objects in `prefix`, of those whose store says the time."""
        with contextlib.suppress(FileNotFoundError):
            for found in objects_in(*resolve(self.url_of(prefix))):
                if found.put_s is not None:
                    yield f"{prefix}/{found.name}", found.put_s

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
