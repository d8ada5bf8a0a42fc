"""A number or a few of each mask: its area, box, centroid and perimeter, and whether it contains a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.masks.columns import Masks, masks_of, numbers_of, refuse, room_for, struct_column, toggles_of
from raymask.masks.compiling import compiled
from raymask.masks.types import PIXEL_BOX, POINT


def areas(masks: pa.Array) -> pa.Array:
    read = masks_of(masks)
    found = np.zeros(len(masks), np.int64)
    _check(read, _fill_areas(read, found))
    return pa.array(found, mask=read.heights == 0)


def boxes(masks: pa.Array) -> pa.Array:
    read = masks_of(masks)
    found = np.zeros((4, len(masks)), np.int64)
    _check(read, _fill_boxes(read, found))
    return struct_column(PIXEL_BOX, list(found), read.heights == 0)


def centroids(masks: pa.Array) -> pa.Array:
    read = masks_of(masks)
    found = np.full((2, len(masks)), np.nan)
    _check(read, _fill_centroids(read, found))
    return struct_column(POINT, list(found), np.isnan(found[0]))


def perimeters(masks: pa.Array) -> pa.Array:
    read = masks_of(masks)
    found = np.zeros(len(masks), np.int64)
    _check(read, _fill_perimeters(read, found))
    return pa.array(found, mask=read.heights == 0)


def contain(masks: pa.Array, xs: pa.Array, ys: pa.Array) -> pa.Array:
    read = masks_of(masks)
    (x, has_x), (y, has_y) = (numbers_of(column, pa.float64()) for column in (xs, ys))
    found = np.zeros(len(masks), np.bool_)
    _check(read, _fill_contained(read, x, y, found))
    return pa.array(found, mask=(read.heights == 0) | ~has_x | ~has_y)


def _check(masks: Masks, bad: int) -> None:
    if bad >= 0:
        refuse(masks, bad)


# Compiled from here on. What fills a result returns the first malformed mask, or -1.


@compiled
def _fill_areas(masks: Masks, found: NDArray[np.int64]) -> int:
    toggles = room_for(masks)
    for row in range(len(found)):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return row
        found[row] = area_of(toggles, used)
    return -1


@compiled
def area_of(toggles: NDArray[np.int64], used: int) -> Any:
    """The number of pixels between toggles."""
    area = np.int64(0)
    for i in range(0, used, 2):
        area += toggles[i + 1] - toggles[i]
    return area


@compiled
def _fill_boxes(masks: Masks, found: NDArray[np.int64]) -> int:
    toggles = room_for(masks)
    for row in range(found.shape[1]):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return row
        if used == 0:
            continue
        height = masks.heights[row]
        y_min, y_max = height, np.int64(0)
        for i in range(0, used, 2):
            x, last_x = toggles[i] // height, (toggles[i + 1] - 1) // height
            if x == last_x:
                y_min = min(y_min, toggles[i] - x * height)
                y_max = max(y_max, toggles[i + 1] - x * height)
            else:  # it goes on from the bottom of one column to the top of the next
                y_min, y_max = np.int64(0), height
        found[0, row], found[2, row] = toggles[0] // height, (toggles[used - 1] - 1) // height + 1
        found[1, row], found[3, row] = y_min, y_max
    return -1


@compiled
def _fill_centroids(masks: Masks, found: NDArray[np.float64]) -> int:
    toggles = room_for(masks)
    for row in range(found.shape[1]):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return row
        if used == 0:
            continue
        height, sum_x, sum_y = masks.heights[row], np.int64(0), np.int64(0)
        for i in range(0, used, 2):
            start, stop = toggles[i], toggles[i + 1]
            # Pixels before one are whole columns and a part of one, so those of a run are a difference of two sums.
            sum_x += _sum_x(stop, height) - _sum_x(start, height)
            sum_y += _sum_y(stop, height) - _sum_y(start, height)
        area = area_of(toggles, used)
        found[0, row], found[1, row] = sum_x / area + 0.5, sum_y / area + 0.5
    return -1


@compiled
def _sum_x(stop: int, height: int) -> int:
    """The sum of the columns of all pixels before `stop`."""
    x = stop // height
    return height * (x * (x - 1) // 2) + x * (stop - x * height)


@compiled
def _sum_y(stop: int, height: int) -> int:
    """The sum of the rows of all pixels before `stop`."""
    x = stop // height
    y = stop - x * height
    return x * (height * (height - 1) // 2) + y * (y - 1) // 2


@compiled
def _fill_perimeters(masks: Masks, found: NDArray[np.int64]) -> int:
    toggles = room_for(masks)
    for row in range(len(found)):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return row
        height = masks.heights[row]
        # In each column a run has a top and a bottom; what is left or right of its pixels is `height` pixels away.
        ends = np.int64(0)
        for i in range(0, used, 2):
            ends += 2 * ((toggles[i + 1] - 1) // height - toggles[i] // height + 1)
        beside = overlap(toggles, used, toggles, used, height)
        found[row] = ends + 2 * (area_of(toggles, used) - beside)
    return -1


@compiled
def overlap(a: NDArray[np.int64], used_a: int, b: NDArray[np.int64], used_b: int, shift: int) -> Any:
    """The number of pixels that are in one mask and, `shift` pixels later, in the other."""
    pixels, i, j = np.int64(0), 0, 0
    while i < used_a and j < used_b:
        start, stop = max(a[i] + shift, b[j]), min(a[i + 1] + shift, b[j + 1])
        if start < stop:
            pixels += stop - start
        if a[i + 1] + shift < b[j + 1]:
            i += 2
        else:
            j += 2
    return pixels


@compiled
def _fill_contained(masks: Masks, xs: NDArray[np.float64], ys: NDArray[np.float64], found: NDArray[np.bool_]) -> int:
    toggles = room_for(masks)
    for row in range(len(found)):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return row
        if not (0 <= xs[row] < masks.widths[row] and 0 <= ys[row] < masks.heights[row]):
            continue
        pixel = int(xs[row]) * masks.heights[row] + int(ys[row])
        passed = np.searchsorted(toggles[:used], pixel, side="right")
        found[row] = passed % 2 == 1
    return -1
