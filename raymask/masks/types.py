"""The Arrow types of masks, boxes and what else the functions on columns take and return, and the error of a row."""

from __future__ import annotations

import pyarrow as pa

# As pycocotools has a mask: its size is [height, width].
MASK = pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])
SIDES = ("x_min", "y_min", "x_max", "y_max")
BOX = pa.struct([pa.field(side, pa.float64()) for side in SIDES])
PIXEL_BOX = pa.struct([pa.field(side, pa.int32()) for side in SIDES])
POINT = pa.struct([pa.field("x", pa.float64()), pa.field("y", pa.float64())])
POLYGONS = pa.list_(pa.list_(pa.float64()))


class RowError(ValueError):
    """A value that is not what it should be. row: its number in the column; problem: what is wrong with it."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row}: {problem}")
        self.row, self.problem = row, problem
