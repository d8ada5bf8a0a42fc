"""Polygons to masks, as pycocotools has it: `pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, h, w))`.

Its rule: corners are rounded to fifths of a pixel, and edges to the points of that finer grid, one for each step along
their longer axis. Where an edge goes from fifth 2 to fifth 3 of a column, through its middle, the column changes sides,
from the first pixel on whose middle is not above the edge.
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.masks.columns import WANTED_SIZE, as_numpy, can_be_sizes, mask_column, numbers_of
from raymask.masks.compiling import compiled
from raymask.masks.pairs import merge_toggles
from raymask.masks.runs import append_runs, toggle, with_room
from raymask.masks.types import RowError

FIFTHS = 5
MAX_COORDINATE = 1e6  # so that all of this fits, and no polygon takes for ever

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def from_polygons(polygons: pa.Array, heights: pa.Array, widths: pa.Array) -> pa.Array:
    (height, has_height), (width, has_width) = (numbers_of(n, pa.int32()) for n in (heights, widths))
    present = ~as_numpy(polygons.is_null()) & has_height & has_width
    height, width = (np.where(present, side, 0).astype(np.int64) for side in (height, width))
    bad = np.flatnonzero(present & ~can_be_sizes(height, width))
    if len(bad):
        raise RowError(int(bad[0]), f"a mask of size {[int(height[bad[0]]), int(width[bad[0]])]}; wanted {WANTED_SIZE}")
    rows = polygons.cast(pa.large_list(pa.large_list(pa.float64())))
    rings = rows.values
    coordinates = np.array(as_numpy(rings.values.fill_null(np.nan)))
    text, bounds, bad_row = _rasterise_all(np.array(rows.offsets), np.array(rings.offsets), coordinates, height, width)
    if bad_row >= 0:
        shown = str(polygons[bad_row].as_py())[:60]
        wanted = f"polygons, lists x, y, x, y, ... of at least three points, no further out than {MAX_COORDINATE:g}"
        raise RowError(bad_row, f"{shown}; wanted {wanted}")
    return mask_column(height, width, text, bounds)


# Compiled from here on.


@compiled
def _rasterise_all(
    rows: Ints, rings: Ints, coordinates: Floats, heights: Ints, widths: Ints
) -> tuple[NDArray[np.uint8], Ints, int]:
    """The text of all masks; where in it each begins; the first row without polygons or with a bad one, or -1."""
    count = len(heights)
    text, length = np.empty(4096, np.uint8), 0
    bounds = np.zeros(count + 1, np.int64)
    for row in range(count):
        if heights[row] > 0:
            if rows[row] == rows[row + 1]:
                return text, bounds, row
            toggles = np.empty(0, np.int64)
            for ring in range(rows[row], rows[row + 1]):
                polygon = coordinates[rings[ring] : rings[ring + 1]]
                if not _is_polygon(polygon):
                    return text, bounds, row
                added = _rasterise(polygon, heights[row], widths[row])
                merged = np.empty(len(toggles) + len(added), np.int64)
                used = merge_toggles(toggles, len(toggles), added, len(added), 1, merged)
                toggles = merged[:used]
            text, length, _ = append_runs(text, length, toggles, heights[row] * widths[row])
        bounds[row + 1] = length
    return text[:length], bounds, -1


@compiled
def _is_polygon(coordinates: Floats) -> bool:
    for coordinate in coordinates:
        if not abs(coordinate) <= MAX_COORDINATE:  # NaN
            return False
    return len(coordinates) >= 6 and len(coordinates) % 2 == 0


@compiled
def _rasterise(polygon: Floats, height: int, width: int) -> Ints:
    """The toggles of one polygon."""
    points = len(polygon) // 2
    crossings, used = np.empty(64, np.int64), 0
    for i in range(points):
        j = i + 1 if i + 1 < points else 0
        x, y = _fifth(polygon[2 * i]), _fifth(polygon[2 * i + 1])
        to_x, to_y = _fifth(polygon[2 * j]), _fifth(polygon[2 * j + 1])
        across, down = abs(to_x - x), abs(to_y - y)
        if across == 0:
            continue
        # Always along the longer axis, as roundings would differ on the way back.
        if (across >= down and x > to_x) or (across < down and y > to_y):
            x, y, to_x, to_y = to_x, to_y, x, y
        first, last = max((min(x, to_x) + 2) // FIFTHS, 0), min((max(x, to_x) + 2) // FIFTHS, width)
        crossings = with_room(crossings, used + max(last - first, 0))
        for column in range(first, last):
            middle = FIFTHS * column + 2
            if across >= down:
                slope = (to_y - y) / across
                at = min(int(y + slope * (middle - x) + 0.5), int(y + slope * (middle + 1 - x) + 0.5))
            else:
                at = y + _steps_before(x, (to_x - x) / down, middle)
            crossings[used] = column * height + _first_pixel(at, height)
            used += 1
    crossings = crossings[:used]
    crossings.sort()
    kept = 0
    for i in range(used):
        kept = toggle(crossings, kept, crossings[i])
    return crossings[:kept]


@compiled
def _fifth(coordinate: float) -> int:
    return int(FIFTHS * coordinate + 0.5)


@compiled
def _steps_before(x: int, slope: float, middle: int) -> int:
    """The steps along a steep edge after which it takes the step between fifths `middle` and `middle` + 1."""
    # Rounding has put the first guess off by a step at most; a falling edge is a rising one seen from behind.
    steps = int((middle + 0.5 - x) / slope)
    rises = slope > 0
    while (int(x + slope * steps + 0.5) > middle) == rises:
        steps -= 1
    while (int(x + slope * (steps + 1) + 0.5) > middle) != rises:
        steps += 1
    return steps


@compiled
def _first_pixel(fifth: int, height: int) -> int:
    """The first pixel of a column whose middle is not above a point between two fifths; `height` if there is none."""
    return int(np.ceil(min(max((fifth + 0.5) / FIFTHS - 0.5, 0.0), np.float64(height))))
