"""Masks cut to a box, and stretched to another size."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.masks.boxes import boxes_of
from raymask.masks.columns import (
    WANTED_SIZE,
    Masks,
    can_be_sizes,
    mask_column,
    masks_of,
    numbers_of,
    refuse,
    room_for,
    toggles_of,
)
from raymask.masks.compiling import compiled
from raymask.masks.runs import append_runs, toggle, with_room
from raymask.masks.types import RowError

MAX_COORDINATE = 2.0**31  # as far as a mask may reach


def cropped(masks: pa.Array, boxes: pa.Array) -> pa.Array:
    read, (corners, has_box) = masks_of(masks), boxes_of(boxes)
    read = _only(read, has_box)
    fine = (np.abs(corners) <= MAX_COORDINATE).all(axis=0)  # not so for NaN
    windows = np.where(fine, np.vstack([np.floor(corners[:2]), np.ceil(corners[2:])]), 0).astype(np.int64)
    widths, heights = windows[2] - windows[0], windows[3] - windows[1]
    some = (heights > 0) & (widths > 0)
    _require(fine & (can_be_sizes(heights, widths) | ~some), read, "a box", corners.T)
    read = _only(read, some)
    text, bounds, bad = _crop(read, windows)
    if bad >= 0:
        refuse(read, bad)
    present = read.heights > 0
    return mask_column(np.where(present, heights, 0), np.where(present, widths, 0), text, bounds)


def resized(masks: pa.Array, heights: pa.Array, widths: pa.Array) -> pa.Array:
    read = masks_of(masks)
    (height, has_height), (width, has_width) = (numbers_of(n, pa.int32()) for n in (heights, widths))
    read = _only(read, has_height & has_width)
    sizes = np.column_stack([height, width]).astype(np.int64)
    _require(can_be_sizes(sizes[:, 0], sizes[:, 1]), read, "a new size", sizes)
    text, bounds, bad = _resize(read, sizes)
    if bad >= 0:
        refuse(read, bad)
    present = read.heights > 0
    return mask_column(np.where(present, sizes[:, 0], 0), np.where(present, sizes[:, 1], 0), text, bounds)


def _only(masks: Masks, present: NDArray[np.bool_]) -> Masks:
    return masks._replace(heights=np.where(present, masks.heights, 0), widths=np.where(present, masks.widths, 0))


def _require(fine: NDArray[np.bool_], masks: Masks, what: str, values: NDArray[np.generic]) -> None:
    bad = np.flatnonzero(~fine & (masks.heights > 0))
    if len(bad):
        row = int(bad[0])
        raise RowError(row, f"{what} {values[row].tolist()}; wanted {WANTED_SIZE}")


# Compiled from here on.


@compiled
def _crop(masks: Masks, windows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """The text of each mask's pixels in its window (x_min, y_min, x_max, y_max); where each begins; a malformed one."""
    toggles, cut = room_for(masks), np.empty(4096, np.int64)
    rows = len(masks.heights)
    text, length = np.empty(4096, np.uint8), 0
    bounds = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return text, bounds, row
        height = masks.heights[row]
        if height > 0:
            x_min, y_min, x_max, y_max = windows[0, row], windows[1, row], windows[2, row], windows[3, row]
            kept = 0
            for i in range(0, used, 2):
                first, last = toggles[i] // height, (toggles[i + 1] - 1) // height
                for x in range(max(first, x_min), min(last + 1, x_max)):
                    top = max(toggles[i] - x * height, 0, y_min)
                    bottom = min(toggles[i + 1] - x * height, height, y_max)
                    if top < bottom:
                        cut = with_room(cut, kept + 2)
                        start = (x - x_min) * (y_max - y_min) - y_min
                        kept = toggle(cut, kept, start + top)
                        kept = toggle(cut, kept, start + bottom)
            text, length, _ = append_runs(text, length, cut[:kept], (x_max - x_min) * (y_max - y_min))
        bounds[row + 1] = length
    return text[:length], bounds, -1


@compiled
def _resize(masks: Masks, sizes: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """The text of each mask in its new size [height, width]; where each begins; a malformed one."""
    toggles, stretched = room_for(masks), np.empty(4096, np.int64)
    rows = len(masks.heights)
    text, length = np.empty(4096, np.uint8), 0
    bounds = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return text, bounds, row
        old_height, old_width = masks.heights[row], masks.widths[row]
        if old_height > 0:
            height, width = sizes[row, 0], sizes[row, 1]
            kept, i = 0, 0
            for x in range(width):
                top = (2 * x + 1) * old_width // (2 * width) * old_height  # of the column with this one's centre
                while i < used and toggles[i + 1] <= top:
                    i += 2
                j = i
                while j < used and toggles[j] < top + old_height:
                    start = _first_centre(max(toggles[j] - top, 0), old_height, height)
                    stop = _first_centre(min(toggles[j + 1] - top, old_height), old_height, height)
                    if start < stop:
                        stretched = with_room(stretched, kept + 2)
                        kept = toggle(stretched, kept, x * height + start)
                        kept = toggle(stretched, kept, x * height + stop)
                    j += 2
            text, length, _ = append_runs(text, length, stretched[:kept], height * width)
        bounds[row + 1] = length
    return text[:length], bounds, -1


@compiled
def _first_centre(y: int, old_height: int, height: int) -> int:
    """The first row of the new mask whose centre lies in row y of the old one, or behind it."""
    return -((old_height - 2 * height * y) // (2 * old_height))
