"""Arrow columns as the arrays that compiled functions read, and their results as Arrow columns."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymask.masks.compiling import compiled
from raymask.masks.rle import MAX_PIXELS, validate_rle
from raymask.masks.runs import parse_toggles
from raymask.masks.types import MASK, RowError


class Masks(NamedTuple):
    """N masks. text: uint8, all of their counts; those of mask i stand from bounds[i] up to bounds[i + 1].

    heights, widths: N int64, of at least 1 and no more than 2**32 - 1 pixels in all; both 0 where there is no mask.
    Whether the text is well-formed is not known yet.
    """

    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    text: NDArray[np.uint8]
    bounds: NDArray[np.int64]


def masks_of(column: pa.Array) -> Masks:
    """A column of masks, of any Arrow types that hold such values; no mask where it, its size or its counts are null.

    Raises TypeError if they are not masks by their type, RowError if a size is none.
    """
    kind = column.type
    if not pa.types.is_struct(kind) or kind.get_field_index("size") < 0 or kind.get_field_index("counts") < 0:
        raise TypeError(f"masks are of type {kind}; wanted {MASK}")
    size, counts = column.field("size"), column.field("counts").cast(pa.large_binary())
    present = ~as_numpy(pc.or_(column.is_null(), pc.or_(size.is_null(), counts.is_null())))
    two = as_numpy(pc.list_value_length(size).fill_null(0)) == 2
    pairs = pc.if_else(pa.array(two & present), size, pa.scalar([0, 0], size.type))
    heights, widths = (_int64(pc.list_element(pairs, i).fill_null(0)) for i in (0, 1))
    bad = np.flatnonzero(present & ~can_be_sizes(heights, widths))
    if len(bad):
        raise RowError(int(bad[0]), f"a mask of size {size[int(bad[0])].as_py()}; wanted {WANTED_SIZE}")
    _, offsets, data = counts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[counts.offset : counts.offset + len(counts) + 1]
    text = np.frombuffer(b"" if data is None else data, np.uint8)
    for array in (bounds, text):  # one kind of array, or the same code would be compiled for another one
        array.flags.writeable = False
    return Masks(heights, widths, text, bounds)


MAX_SIDE = 2**31 - 1  # MASK has sizes as int32
WANTED_SIZE = f"[height, width], each from 1 to {MAX_SIDE}, and at most {MAX_PIXELS} pixels"


def can_be_sizes(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these can be the size of a mask."""
    shortest, longest = np.minimum(heights, widths), np.maximum(heights, widths)
    fits: NDArray[np.bool_] = (shortest >= 1) & (longest <= np.minimum(MAX_SIDE, MAX_PIXELS // np.maximum(shortest, 1)))
    return fits


def numbers_of(column: pa.Array, kind: pa.DataType) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A column of numbers as `kind`, 0 where it is null, and where it is not. Raises ValueError if they do not fit."""
    return np.array(as_numpy(column.cast(kind).fill_null(0))), ~as_numpy(column.is_null())


def as_numpy(column: pa.Array) -> NDArray[Any]:
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return array


def refuse(masks: Masks, row: int) -> NoReturn:
    """Raise RowError for a mask whose text cannot be read."""
    text = masks.text[masks.bounds[row] : masks.bounds[row + 1]].tobytes()
    try:
        validate_rle([int(masks.heights[row]), int(masks.widths[row])], text)
    except ValueError as error:
        raise RowError(row, f"{error}: {text[:40].decode('ascii', 'backslashreplace')!r}") from None
    raise AssertionError(f"{text!r} is well-formed")


def mask_column(
    heights: NDArray[np.int64], widths: NDArray[np.int64], text: NDArray[np.uint8], bounds: NDArray[np.int64]
) -> pa.Array:
    """N masks, null where the height is 0; the counts of mask i are the text from bounds[i] up to bounds[i + 1]."""
    sides = pa.array(np.column_stack([heights, widths]).astype(np.int32).ravel())
    sizes = pa.ListArray.from_arrays(pa.array(np.arange(0, len(sides) + 1, 2, dtype=np.int32)), sides)
    arrays = [sizes.cast(MASK.field("size").type), text_column(text, bounds)]
    return pa.StructArray.from_arrays(arrays, fields=list(MASK), mask=pa.array(heights == 0))


def text_column(text: NDArray[np.uint8], bounds: NDArray[np.int64]) -> pa.Array:
    """N strings of ASCII; string i is the text from bounds[i] up to bounds[i + 1]."""
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_string(), len(bounds) - 1, buffers).cast(pa.string())


def struct_column(kind: pa.StructType, columns: list[NDArray[Any]], absent: NDArray[np.bool_]) -> pa.Array:
    """A struct of the columns' numbers, null where it is absent."""
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, kind, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=pa.array(absent))


def _int64(column: pa.Array) -> NDArray[np.int64]:
    return as_numpy(column.cast(pa.int64())).astype(np.int64)


@compiled
def toggles_of(masks: Masks, row: int, toggles: NDArray[np.int64]) -> int:
    """Write the toggles of a mask to `toggles`; how many they are, 0 if there is no mask, -1 if it is malformed."""
    pixels = masks.heights[row] * masks.widths[row]
    return parse_toggles(masks.text, masks.bounds[row], masks.bounds[row + 1], pixels, toggles) if pixels > 0 else 0


@compiled
def room_for(masks: Masks) -> NDArray[np.int64]:
    """Room for the toggles of any of these masks."""
    longest = 0
    for row in range(len(masks.heights)):
        longest = max(longest, masks.bounds[row + 1] - masks.bounds[row])
    return np.empty(longest + 1, np.int64)
