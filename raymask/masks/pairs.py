"""Two masks of one image: how far they agree, what they share, what they have together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.masks.columns import Masks, mask_column, masks_of, refuse, room_for, toggles_of
from raymask.masks.compiling import compiled
from raymask.masks.measures import area_of, overlap
from raymask.masks.runs import append_runs
from raymask.masks.types import RowError


def ious(a: pa.Array, b: pa.Array) -> pa.Array:
    pairs, found = _pairs(a, b), np.zeros(len(a))
    _check(*pairs, _fill_ious(*pairs, found))
    return pa.array(found, mask=pairs[0].heights == 0)


def intersections(a: pa.Array, b: pa.Array) -> pa.Array:
    return _merged(a, b, 2)


def unions(a: pa.Array, b: pa.Array) -> pa.Array:
    return _merged(a, b, 1)


def _merged(a: pa.Array, b: pa.Array, least: int) -> pa.Array:
    pairs = _pairs(a, b)
    text, bounds, bad = _merge(*pairs, least)
    _check(*pairs, bad)
    return mask_column(pairs[0].heights, pairs[0].widths, text, bounds)


def _pairs(a: pa.Array, b: pa.Array) -> tuple[Masks, Masks]:
    """Both masks of each row, or none where one is missing. RowError if they differ in size."""
    first, second = masks_of(a), masks_of(b)
    both = (first.heights > 0) & (second.heights > 0)
    differ = both & ((first.heights != second.heights) | (first.widths != second.widths))
    if differ.any():
        row = int(differ.argmax())
        sizes = " and ".join(f"{m.heights[row]} x {m.widths[row]}" for m in (first, second))
        raise RowError(row, f"masks of {sizes} pixels; wanted one size (mask_resize and mask_crop give others)")
    heights, widths = np.where(both, first.heights, 0), np.where(both, first.widths, 0)
    return first._replace(heights=heights, widths=widths), second._replace(heights=heights, widths=widths)


def _check(a: Masks, b: Masks, bad: int) -> None:
    """Rows of malformed masks are counted through both columns."""
    if bad >= 0:
        refuse(a if bad < len(a.heights) else b, bad % len(a.heights))


# Compiled from here on.


@compiled
def _fill_ious(a: Masks, b: Masks, found: NDArray[np.float64]) -> int:
    toggles_a, toggles_b = room_for(a), room_for(b)
    for row in range(len(found)):
        used_a, used_b = toggles_of(a, row, toggles_a), toggles_of(b, row, toggles_b)
        if used_a < 0 or used_b < 0:
            return row if used_a < 0 else len(found) + row
        shared = overlap(toggles_a, used_a, toggles_b, used_b, 0)
        together = area_of(toggles_a, used_a) + area_of(toggles_b, used_b) - shared
        if together > 0:
            found[row] = shared / together
    return -1


@compiled
def _merge(a: Masks, b: Masks, least: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """The text of the pixels that are in at least so many of both masks, and where in it each row begins."""
    toggles_a, toggles_b = room_for(a), room_for(b)
    merged = np.empty(len(toggles_a) + len(toggles_b), np.int64)
    rows = len(a.heights)
    text, length = np.empty(4096, np.uint8), 0
    bounds = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        used_a, used_b = toggles_of(a, row, toggles_a), toggles_of(b, row, toggles_b)
        if used_a < 0 or used_b < 0:
            return text, bounds, row if used_a < 0 else rows + row
        if a.heights[row] > 0:
            used = merge_toggles(toggles_a, used_a, toggles_b, used_b, least, merged)
            text, length, _ = append_runs(text, length, merged[:used], a.heights[row] * a.widths[row])
        bounds[row + 1] = length
    return text[:length], bounds, -1


@compiled
def merge_toggles(
    a: NDArray[np.int64], used_a: int, b: NDArray[np.int64], used_b: int, least: int, merged: NDArray[np.int64]
) -> int:
    """Toggles of the pixels that are in at least so many of two masks, into `merged`; how many they are."""
    used, i, j, inside = 0, 0, 0, False
    while i < used_a or j < used_b:
        if j == used_b or (i < used_a and a[i] < b[j]):
            pixel, i = a[i], i + 1
        elif i == used_a or b[j] < a[i]:
            pixel, j = b[j], j + 1
        else:
            pixel, i, j = a[i], i + 1, j + 1
        if (i % 2 + j % 2 >= least) != inside:
            merged[used] = pixel
            used += 1
            inside = not inside
    return used
