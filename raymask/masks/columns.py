"""Arrow columns as the arrays that compiled functions read, and text as Arrow columns."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymask.masks.rle import MAX_PIXELS, validate_rle

MASK = pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])
"""A mask as pycocotools has it: its size is [height, width]."""

BOX = pa.struct([pa.field(side, pa.float64()) for side in ("x_min", "y_min", "x_max", "y_max")])
"""A box in pixels, origin at the top left corner of the image."""


class Masks(NamedTuple):
    """N masks. text: uint8, all of their counts; those of mask i stand from bounds[i] up to bounds[i + 1].

    heights, widths: N int64, at least 1 and with no more than 2**32 - 1 pixels; both 0 where there is no mask.
    Whether the text is well-formed is not known yet.
    """

    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    text: NDArray[np.uint8]
    bounds: NDArray[np.int64]


class BadMaskError(ValueError):
    """A mask that is none. row: its number in the column; problem: what is wrong with it."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"mask in row {row} is malformed: {problem}")
        self.row, self.problem = row, problem


def masks_of(column: pa.Array) -> Masks:
    """A column of masks, of any Arrow types that hold such values; null where size, counts or both are.

    Raises TypeError if they are not masks by their type, BadMaskError if a size is none.
    """
    kind = column.type
    if not pa.types.is_struct(kind) or kind.get_field_index("size") < 0 or kind.get_field_index("counts") < 0:
        raise TypeError(f"masks are of type {kind}; wanted {MASK}")
    size, counts = column.field("size"), column.field("counts").cast(pa.large_binary())
    absent = pc.or_(column.is_null(), pc.or_(size.is_null(), counts.is_null()))
    present = ~_numpy(absent)
    two = _numpy(pc.list_value_length(size).fill_null(0)) == 2
    _require(two, present, size)
    sides = [_side(size, i, two) for i in (0, 1)]
    heights, widths = (np.where(present, side, 0) for side in sides)
    fits = (heights >= 1) & (widths >= 1) & (widths <= MAX_PIXELS // np.maximum(heights, 1))
    _require(fits, present, size)
    _, offsets, data = counts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[counts.offset : counts.offset + len(counts) + 1]
    text = np.frombuffer(data if data is not None else b"", np.uint8)
    return Masks(heights, widths, text, bounds)


def numbers_of(column: pa.Array, dtype: type) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A column of numbers, 0 where it is null; where it is not."""
    return _numpy(column.fill_null(0)).astype(dtype, copy=False), ~_numpy(column.is_null())


def refuse(masks: Masks, row: int) -> NoReturn:
    """Raise BadMaskError for a mask whose text cannot be read."""
    text = masks.text[masks.bounds[row] : masks.bounds[row + 1]].tobytes()
    try:
        validate_rle([int(masks.heights[row]), int(masks.widths[row])], text)
    except ValueError as error:
        raise BadMaskError(row, f"{error}: {text[:40].decode('ascii', 'backslashreplace')!r}") from None
    raise AssertionError(f"{text!r} is well-formed")


def _side(size: pa.Array, number: int, two: NDArray[np.bool_]) -> NDArray[np.int64]:
    """One of the two numbers of each size, 0 where there are not two or it is null."""
    pairs = pc.if_else(pa.array(two), size, pa.scalar([0, 0], size.type))
    return _numpy(pc.list_element(pairs, number).cast(pa.int64()).fill_null(0))


def _require(fine: NDArray[np.bool_], present: NDArray[np.bool_], size: pa.Array) -> None:
    bad = np.flatnonzero(present & ~fine)
    if len(bad):
        row = int(bad[0])
        wanted = f"[height, width], at least 1 and with at most {MAX_PIXELS} pixels"
        raise BadMaskError(row, f"its size is {size[row].as_py()}; wanted {wanted}")


def _numpy(column: pa.Array) -> NDArray[Any]:
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return array
