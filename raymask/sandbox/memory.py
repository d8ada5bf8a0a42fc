"""The memory that parent and child share: what is to be decoded, what became of it, and the pixels.

    orders and answers (`_TABLE`) | files, one behind the other | pixels, one image behind the other

Whoever holds an end may be given anything by the other: the parent checks what it reads, and reads each thing once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from raymask.decode import Image
from raymask.errors import ErrorKind, Failure

GROUP = 32  # files that are decoded at one request, at the most: each request costs a fiftieth of a small photo
GROUP_BYTES = 16 * 1024 * 1024  # and how much of them, and a file more

_FILE = np.dtype([("start", np.int64), ("bytes", np.int64)])
# Text is ASCII. kind: of a failure, b"" for an image.
_ANSWER = np.dtype([("kind", "S32"), ("detail", "S200"), ("format", "S32"), ("height", np.int64), ("width", np.int64)])
_TABLE = np.dtype(
    [
        ("files", np.int64),
        ("used", np.int64),  # bytes of pixels that stay, from when these files were laid out
        ("done", np.int64),  # how many are, in their order
        ("file", _FILE, GROUP),
        ("answer", _ANSWER, GROUP),
    ]
)


@dataclass(frozen=True)
class Sizes:
    """max_bytes, max_pixels: the largest file and image; room_bytes: pixels that it takes to fill the memory."""

    max_bytes: int
    max_pixels: int
    room_bytes: int

    @property
    def files_at(self) -> int:
        return _whole_pages(_TABLE.itemsize)

    @property
    def pixels_at(self) -> int:
        return self.files_at + _whole_pages(GROUP_BYTES + self.max_bytes)

    @property
    def total(self) -> int:
        return self.pixels_at + self.room_bytes + 3 * self.max_pixels

    def is_full(self, used: int) -> bool:
        """Whether there may be no room for another image behind `used` bytes of pixels."""
        return used >= self.room_bytes


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def shared_file(size: int) -> BinaryIO:
    """A file without a name, which takes memory only where it is written to."""
    if hasattr(os, "memfd_create"):
        file: BinaryIO = os.fdopen(os.memfd_create("raymask-pixels"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  closed with the sandbox
    file.truncate(size)
    return file


class ParentMemory:
    """The memory as the parent sees it."""

    def __init__(self, file: int, sizes: Sizes) -> None:
        self._sizes = sizes
        self._memory = mmap.mmap(file, 0)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._table = np.frombuffer(self._memory, _TABLE, 1)[0]
        self._used = 0
        self._ordered = 0

    @property
    def is_full(self) -> bool:
        return self._sizes.is_full(self._used)

    def clear(self) -> None:
        """The pixels of all images so far may be overwritten from here on."""
        if self._used > self._sizes.room_bytes:  # by a large image, whose memory the next ones do not need
            start = _whole_pages(self._sizes.pixels_at + self._sizes.room_bytes)
            with contextlib.suppress(AttributeError, OSError):  # systems that cannot give it back so
                self._memory.madvise(mmap.MADV_REMOVE, start)
        self._used = 0

    def order(self, files: Sequence[bytes]) -> None:
        """Lay out files to decode: at most `GROUP`, all but the last together less than `GROUP_BYTES`."""
        start = self._sizes.files_at
        for number, data in enumerate(files):
            assert len(data) <= self._sizes.max_bytes
            self._bytes[start : start + len(data)] = np.frombuffer(data, np.uint8)
            self._table["file"][number] = start, len(data)
            start += len(data)
        self._table["answer"]["kind"], self._table["answer"]["height"] = b"", 0  # which is no answer
        self._table["files"], self._table["used"], self._table["done"] = len(files), self._used, 0
        self._ordered = len(files)

    @property
    def done(self) -> int:
        """How many of the files are done, by the child's word; at the most as many as were ordered."""
        return min(max(int(self._table["done"]), 0), self._ordered)

    def outcome(self, number: int) -> Image | Failure:
        """What became of a file that is done, each asked for once and in order; ValueError if that cannot be."""
        kind, detail, image_format, height, width = self._table["answer"][number].item()
        if kind:
            return Failure(ErrorKind(_text(kind)), _text(detail))
        if height < 1 or width < 1 or height * width > self._sizes.max_pixels:
            raise ValueError(f"{height} x {width} pixels")
        start = self._sizes.pixels_at + self._used
        pixels = self._bytes[start : start + 3 * height * width].reshape(height, width, 3)
        self._used += pixels.nbytes
        return Image(pixels, _text(image_format))


class ChildMemory:
    """The memory as the child sees it."""

    def __init__(self, file: int, sizes: Sizes) -> None:
        self._sizes = sizes
        self._bytes = np.frombuffer(mmap.mmap(file, 0), np.uint8)
        self._table = np.frombuffer(self._bytes, _TABLE, 1)[0]

    def files(self) -> Iterator[tuple[memoryview, NDArray[np.uint8]]]:
        """The files to decode, each with the place for its pixels; as long as there is room and memory for them."""
        for number in range(self._table["files"]):
            used = int(self._table["used"])
            if self._sizes.is_full(used):
                break
            start, size = self._table["file"][number].item()
            place = self._sizes.pixels_at + used
            yield self._bytes[start : start + size].data, self._bytes[place : place + 3 * self._sizes.max_pixels]

    def answer(self, outcome: Image | Failure) -> None:
        """Note what became of the next file, whose pixels are in their place."""
        number = int(self._table["done"])
        if isinstance(outcome, Failure):
            self._table["answer"][number] = _ascii(outcome.kind.value), _ascii(outcome.detail), b"", 0, 0
        else:
            height, width, _ = outcome.pixels.shape
            self._table["answer"][number] = b"", b"", _ascii(outcome.format), height, width
            self._table["used"] += outcome.pixels.nbytes
        self._table["done"] = number + 1


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace")


def _text(ascii_text: bytes) -> str:
    return ascii_text.decode("ascii", "backslashreplace")  # whatever it is, every table takes it
