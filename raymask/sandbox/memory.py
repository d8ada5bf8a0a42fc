"""The memory that parent and child share: what is to be decoded, what became of it, and the pixels.

    order, done, files' places, answers | files, one behind the other | pixels, one image behind the other

Whoever holds an end may be given anything by the other: the parent checks what it reads, and reads each thing once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from raymask.decode import Image
from raymask.errors import ErrorKind, Failure

GROUP = 32  # files that are decoded at one request, at the most: a request takes 70 us, a small photo 1,200
GROUP_BYTES = 16 * 1024 * 1024  # and how much of them, and a file more

_ORDER = struct.Struct("<qq")  # number of files, and bytes of pixels from earlier ones that stay
_DONE = struct.Struct("<q")  # how many of the files are, in their order
_FILE = struct.Struct("<qq")  # where it begins, and its bytes
_ANSWER = struct.Struct("<32s200s32sqq")  # kind of failure, its detail; or format, height, width. Text is ASCII

_DONE_AT = _ORDER.size
_FILES_AT = _DONE_AT + _DONE.size
_ANSWERS_AT = _FILES_AT + GROUP * _FILE.size
_TABLE_BYTES = _ANSWERS_AT + GROUP * _ANSWER.size


@dataclass(frozen=True)
class Sizes:
    """max_bytes, max_pixels: the largest file and image; room_bytes: pixels that it takes to fill the memory."""

    max_bytes: int
    max_pixels: int
    room_bytes: int

    @property
    def files_at(self) -> int:
        return _whole_pages(_TABLE_BYTES)

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
            self._memory[start : start + len(data)] = data
            _FILE.pack_into(self._memory, _FILES_AT + number * _FILE.size, start, len(data))
            start += len(data)
        self._memory[_ANSWERS_AT:_TABLE_BYTES] = bytes(_TABLE_BYTES - _ANSWERS_AT)  # which are no answers
        _ORDER.pack_into(self._memory, 0, len(files), self._used)
        _DONE.pack_into(self._memory, _DONE_AT, 0)
        self._ordered = len(files)

    @property
    def done(self) -> int:
        """How many of the files are done, by the child's word; at the most as many as were ordered."""
        done: int = _DONE.unpack_from(self._memory, _DONE_AT)[0]
        return min(max(done, 0), self._ordered)

    def outcome(self, number: int) -> Image | Failure:
        """What became of a file that is done, each asked for once and in order; ValueError if that cannot be."""
        place = _ANSWERS_AT + number * _ANSWER.size
        kind, detail, image_format, height, width = _ANSWER.unpack_from(self._memory, place)
        if kind[0]:
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
        self._memory = memoryview(mmap.mmap(file, 0))
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._used = self._done = 0

    def files(self) -> Iterator[tuple[memoryview, NDArray[np.uint8]]]:
        """The files to decode, each with the place for its pixels, as long as there is room; `answer` each in turn."""
        ordered, self._used = _ORDER.unpack_from(self._memory, 0)
        self._done = 0
        while self._done < ordered and not self._sizes.is_full(self._used):
            start, size = _FILE.unpack_from(self._memory, _FILES_AT + self._done * _FILE.size)
            place = self._sizes.pixels_at + self._used
            yield self._memory[start : start + size], self._bytes[place : place + 3 * self._sizes.max_pixels]

    def answer(self, outcome: Image | Failure) -> None:
        """Note what became of the file, whose pixels are in their place."""
        if isinstance(outcome, Failure):
            answer = _ascii(outcome.kind.value), _ascii(outcome.detail), b"", 0, 0
        else:
            height, width, _ = outcome.pixels.shape
            answer = b"", b"", _ascii(outcome.format), height, width
            self._used += outcome.pixels.nbytes
        _ANSWER.pack_into(self._memory, _ANSWERS_AT + self._done * _ANSWER.size, *answer)
        self._done += 1
        _DONE.pack_into(self._memory, _DONE_AT, self._done)


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace")


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode("ascii", "backslashreplace")  # whatever it is, every table takes it
