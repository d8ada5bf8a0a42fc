"""The exceptions raymask raises, and the closed list of reasons for which an image can fail.

A bad image is data: it becomes a row whose `error` is one of `ErrorKind`. A broken program, a wrong option or an
unusable output raises one of the exceptions below.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RaymaskError(Exception):
    """Base of what raymask raises on purpose; the message says what, got, wanted and the next step."""


class ConfigError(RaymaskError):
    """The command cannot work as asked: a wrong option, a source or weights that cannot be had."""


class OutputError(RaymaskError):
    """The output folder cannot be used: made with another model, held by another run, or not an output at all."""


def known_cause(error: BaseException | None) -> RaymaskError | None:
    """The first error of raymask's own among an exception and those behind it; None if raymask does not know it."""
    while error is not None and not isinstance(error, RaymaskError):
        error = error.__cause__ or error.__context__
    return error


class ErrorKind(StrEnum):
    """Why an image failed. The list is closed: readers of the tables may rely on it."""

    NOT_FOUND = "not_found"  # no such object
    FORBIDDEN = "forbidden"  # the store does not give this object to these credentials
    FETCH_FAILED = "fetch_failed"  # the store kept failing after all retries
    CHANGED = "changed"  # the object is not the one that was listed (size or ETag differs)
    TOO_MANY_BYTES = "too_many_bytes"  # larger than --max-bytes
    EMPTY = "empty"  # no bytes at all
    NOT_AN_IMAGE = "not_an_image"  # no known image format
    TOO_MANY_PIXELS = "too_many_pixels"  # the header promises more than --max-pixels
    TRUNCATED = "truncated"  # the data end before the image does
    CORRUPT = "corrupt"  # the data contradict themselves
    OUT_OF_MEMORY = "out_of_memory"  # does not fit the device or the decoder's limit, even alone
    CRASHED_WORKER = "crashed_worker"  # whoever works on it crashes or never ends


@dataclass(frozen=True)
class Failure:
    """One image that could not be read: the row it becomes says `kind` in `error`, `detail` in `error_detail`."""

    kind: ErrorKind
    detail: str
