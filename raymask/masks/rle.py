"""One RLE at a time, in Python: to pixels and back, its area, and whether it is one at all."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymask.masks.runs import FINE, PROBLEMS, append_runs, parse_runs

MAX_PIXELS = 2**32 - 1  # pycocotools counts pixels in 32 bits


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The RLE of a mask, as `pycocotools.mask.encode` gives it but with `counts` as str.

    mask: H x W bool. Raises ValueError if it has another shape or dtype, or no pixels.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask has shape {mask.shape} and dtype {mask.dtype}; wanted H x W bool")
    height, width = checked_size(mask.shape)
    pixels = mask.ravel(order="F")
    toggles = np.flatnonzero(np.diff(pixels, prepend=False))
    text, length, _ = append_runs(np.empty(0, np.uint8), 0, toggles, height * width)
    return {"size": [height, width], "counts": text[:length].tobytes().decode("ascii")}


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The pixels of a mask: H x W bool, column-major in memory.

    rle: `size` as a list, tuple or array [height, width], `counts` as str or bytes.
    Raises ValueError as `validate_rle` does.
    """
    height, width, runs = _parsed(rle.get("size"), rle.get("counts"))
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def area(rle: Mapping[str, Any]) -> int:
    """The number of pixels inside a mask. Takes and raises what `decode` does."""
    _, _, runs = _parsed(rle.get("size"), rle.get("counts"))
    return int(runs[1::2].sum())


def validate_rle(size: Any, counts: Any) -> None:
    """Raise ValueError, saying why, unless this is a well-formed compressed RLE.

    size: [height, width], two integers above 0 whose product is at most 2**32 - 1.
    counts: str or bytes as described at the head of this package. Its runs are 0 or more and add up to height x width;
    no number is cut short, and none is longer than need be.
    pycocotools checks none of this and may take the process down: call this first for any RLE from elsewhere.
    """
    _parsed(size, counts)


def checked_size(size: Any) -> tuple[int, int]:
    """[height, width] as two integers; ValueError unless a mask can have that size, see `validate_rle`."""
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise ValueError(f"size is {size!r}; wanted two integers, [height, width]") from None
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"size is {height} x {width}; wanted sides of at least 1 and at most {MAX_PIXELS} pixels")
    return height, width


def _parsed(size: Any, counts: Any) -> tuple[int, int, NDArray[np.int64]]:
    height, width = checked_size(size)
    if not isinstance(counts, str | bytes):
        raise ValueError(f"counts is of type {type(counts).__name__}; wanted the str or bytes of a compressed RLE")
    # As UTF-8 all that is not ASCII is bytes of 128 and above, which are illegal like any other.
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    ends = np.empty(len(text), np.int64)
    used, problem, read = parse_runs(np.frombuffer(text, np.uint8), 0, len(text), height * width, ends)
    if problem != FINE:
        where = f"after {read} of {len(text)} characters"
        raise ValueError(f"counts of a {height} x {width} mask: {PROBLEMS[problem]} {where}")
    return height, width, np.diff(ends[:used], prepend=0)
