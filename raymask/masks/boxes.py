"""Boxes beside each other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.masks.columns import as_numpy
from raymask.masks.types import BOX, SIDES


def boxes_of(column: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """4 x N float64, the sides in the order of SIDES, and where there is a box, and no side of it is null.

    Raises TypeError if they are not boxes by their type.
    """
    kind = column.type
    if not pa.types.is_struct(kind) or any(kind.get_field_index(side) < 0 for side in SIDES):
        raise TypeError(f"boxes are of type {kind}; wanted {BOX}")
    present = ~as_numpy(column.is_null())
    sides = np.zeros((4, len(column)))
    for number, name in enumerate(SIDES):
        side = column.field(name).cast(pa.float64())
        present &= ~as_numpy(side.is_null())
        sides[number] = as_numpy(side.fill_null(0))
    return sides, present


def ious(a: pa.Array, b: pa.Array) -> pa.Array:
    (first, has_first), (second, has_second) = boxes_of(a), boxes_of(b)
    with np.errstate(invalid="ignore", over="ignore"):  # of boxes without end there is no IoU: NaN
        return pa.array(_ious(first, second), mask=~(has_first & has_second), from_pandas=False)


def _ious(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    together = _areas(first) + _areas(second) - shared
    ious: NDArray[np.float64] = np.divide(shared, together, out=np.zeros(len(shared)), where=shared != 0)
    return ious


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
    return areas
