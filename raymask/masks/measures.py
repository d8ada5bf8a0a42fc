"""One number, or a few, for each mask of a column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.masks.columns import Masks, masks_of, refuse
from raymask.masks.compiling import compiled
from raymask.masks.runs import parse_toggles


def areas(column: pa.Array) -> pa.Array:
    masks = masks_of(column)
    found = np.zeros(len(column), np.int64)
    bad = _fill_areas(masks, found)
    if bad >= 0:
        refuse(masks, bad)
    return pa.array(found, mask=masks.heights == 0)


@compiled
def _fill_areas(masks: Masks, found: NDArray[np.int64]) -> int:
    toggles = np.empty(np.diff(masks.bounds).max() + 1, np.int64)
    for row in range(len(found)):
        height, width = masks.heights[row], masks.widths[row]
        if height == 0:
            continue
        used = parse_toggles(masks.text, masks.bounds[row], masks.bounds[row + 1], height * width, toggles)
        if used < 0:
            return row
        for i in range(0, used, 2):
            found[row] += toggles[i + 1] - toggles[i]
    return -1
