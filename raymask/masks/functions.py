"""The functions on columns of masks, in one table: every engine registers them from here.

    from raymask.masks import mask_area
    mask_area(table["mask"])

Arguments are columns of equal length, Arrow's or anything that `pyarrow.array` takes, or single values, which count for
every row; at least one is a column. What is given as `pyarrow.ChunkedArray` comes back as one. Null in, null out.
Work is done by as many threads as Arrow has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from numbers import Real
from typing import Any

import pyarrow as pa

from raymask.masks.types import BOX, MASK, PIXEL_BOX, POINT, POLYGONS, RowError

ROWS_A_PIECE = 8192  # a few milliseconds of work for a thread


@dataclass(frozen=True)
class Function:
    """A function on columns.

    name: in every engine. arguments: their names and Arrow types; others of the same meaning are taken too.
    result: Arrow type. home: where in this package it is written. doc: what it does, its first line in short.
    """

    name: str
    arguments: Mapping[str, pa.DataType]
    result: pa.DataType
    home: str
    doc: str

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # help() shows that of the function
        return self.doc

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter(name, kind) for name in self.arguments])

    def __call__(self, *values: Any, **named: Any) -> Any:
        """The result for each row, `pyarrow.Array` or `ChunkedArray`.

        Raises RowError (a ValueError) for a mask that is none, TypeError or ValueError for other values that are
        not what they should be, or columns of unequal length.
        """
        bound = self.bind(*values, **named)
        given = [_column_or_scalar(value, self.arguments[name]) for name, value in bound.items()]
        columns = [c for c in given if isinstance(c, pa.ChunkedArray)]
        if not columns:
            raise TypeError(f"{self.name} got single values only; wanted a column among them")
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"{self.name} got columns of {[len(c) for c in columns]} rows; wanted one length")
        starts = _starts(columns)
        pieces = [
            [c.slice(start, stop - start) if isinstance(c, pa.ChunkedArray) else c for c in given]
            for start, stop in pairwise(starts)
        ]
        found = self._in_threads(pieces, starts)
        if any(isinstance(value, pa.ChunkedArray) for value in bound.values()):
            return pa.chunked_array(found, self.result)
        return found[0] if len(found) == 1 else pa.concat_arrays(found or [pa.array([], self.result)])

    @cached_property
    def call(self) -> Callable[..., pa.Array]:
        """Takes an Arrow array for each argument, all of one length, and returns one of that length.

        Imported when it is first called: Numba takes longer to import than most statements to run.
        """
        module, _, name = self.home.partition(".")
        function: Callable[..., pa.Array] = getattr(import_module(f"raymask.masks.{module}"), name)
        return function

    def bind(self, *values: Any, **named: Any) -> dict[str, Any]:
        """The values by the names of the arguments; TypeError if they are too many or too few."""
        return self.__signature__.bind(*values, **named).arguments

    def _in_threads(self, pieces: list[list[Any]], starts: list[int]) -> list[pa.Array]:
        if len(pieces) < 2:
            return [self._call(piece, start) for piece, start in zip(pieces, starts, strict=False)]
        with ThreadPoolExecutor(min(len(pieces), pa.cpu_count())) as pool:
            return list(pool.map(self._call, pieces, starts))

    def _call(self, piece: list[Any], start: int) -> pa.Array:
        rows = next(len(c) for c in piece if isinstance(c, pa.ChunkedArray))
        try:
            return self.call(*(c.chunk(0) if isinstance(c, pa.ChunkedArray) else pa.repeat(c, rows) for c in piece))
        except RowError as error:
            raise RowError(start + error.row, error.problem) from None


def _column_or_scalar(value: Any, wanted: pa.DataType) -> pa.ChunkedArray | pa.Scalar:
    if isinstance(value, Real | dict | None):
        return pa.scalar(value, wanted)
    if not isinstance(value, pa.ChunkedArray | pa.Array | pa.Scalar):
        value = pa.array(value, wanted)
    if pa.types.is_null(value.type):
        value = value.cast(wanted)
    return pa.chunked_array([value]) if isinstance(value, pa.Array) else value


def _starts(columns: list[pa.ChunkedArray]) -> list[int]:
    """Where pieces begin, and the last ends, so that each lies in one chunk of every column."""
    ends = {0}
    for column in columns:
        end = 0
        for chunk in column.chunks:
            ends |= {*range(end, end + len(chunk), ROWS_A_PIECE), end + len(chunk)}
            end += len(chunk)
    return sorted(ends)


_PAIR = {"a": MASK, "b": MASK}
_SIZE = {"height": pa.int32(), "width": pa.int32()}

FUNCTIONS = {
    function.name: function
    for function in [
        Function("mask_area", {"mask": MASK}, pa.int64(), "measures.areas", "The number of pixels of a mask."),
        Function(
            "mask_bbox",
            {"mask": MASK},
            PIXEL_BOX,
            "measures.boxes",
            """The smallest box around a mask, as the tables have boxes: x_max is right of its last column.

            All four are 0 for a mask without pixels, as in pycocotools.
            """,
        ),
        Function(
            "mask_centroid",
            {"mask": MASK},
            POINT,
            "measures.centroids",
            """The mean of the middles of a mask's pixels, x and y; null for a mask without pixels.

            The middle of the first pixel is (0.5, 0.5).
            """,
        ),
        Function(
            "mask_perimeter",
            {"mask": MASK},
            pa.int64(),
            "measures.perimeters",
            """The length of a mask's outlines in sides of pixels, those of holes and along the image's border included.

            This is the length of `mask_polygon`. Steps count whole, so that of a disc is 4 times its diameter.
            """,
        ),
        Function(
            "mask_contains",
            {"mask": MASK, "x": pa.float64(), "y": pa.float64()},
            pa.bool_(),
            "measures.contain",
            """Whether the pixel at a point belongs to a mask; false outside of the image.

            Pixel (row, column) is at column <= x < column + 1, row <= y < row + 1.
            """,
        ),
        Function(
            "mask_iou",
            _PAIR,
            pa.float64(),
            "pairs.ious",
            """What two masks share over what they have together, 0 to 1; 0 for two masks without pixels.

            Masks of unequal sizes are an error: they are not of one image, and a null would go unseen in a mean.
            """,
        ),
        Function(
            "mask_intersection",
            _PAIR,
            MASK,
            "pairs.intersections",
            "The pixels that are in both masks. Masks of unequal sizes are an error.",
        ),
        Function(
            "mask_union",
            _PAIR,
            MASK,
            "pairs.unions",
            "The pixels that are in one mask or in both. Masks of unequal sizes are an error.",
        ),
        Function(
            "mask_polygon",
            {"mask": MASK},
            pa.string(),
            "polygons.wkt",
            """The exact outlines of a mask as WKT, always a MULTIPOLYGON, in pixels from the top left corner.

            Pixels that touch by a side are in one polygon. Rings run along the sides of pixels; what is inside of them
            by the even-odd rule is the mask again. Polygons are valid and wind as in GeoJSON: counter-clockwise where y
            points up, so clockwise on a picture, and holes the other way round.
            """,
        ),
        Function(
            "mask_geojson",
            {"mask": MASK},
            pa.string(),
            "polygons.geojson",
            "The same as `mask_polygon`, as the geometry of GeoJSON (RFC 7946), always a MultiPolygon.",
        ),
        Function(
            "mask_from_polygon",
            {"polygons": POLYGONS, **_SIZE},
            MASK,
            "rasterising.from_polygons",
            """The mask of polygons as COCO's annotations have them: [[x, y, x, y, ...], ...], in one or more parts.

            Equal to `pycocotools.mask.merge(frPyObjects(polygons, height, width))` to the pixel.
            """,
        ),
        Function(
            "mask_crop",
            {"mask": MASK, "box": BOX},
            MASK,
            "windows.cropped",
            """The part of a mask in a box: every pixel that the box reaches into. Its size is that of the box.

            Outside of the image there are no pixels of the mask. Null for a box without pixels.
            """,
        ),
        Function(
            "mask_resize",
            {"mask": MASK, **_SIZE},
            MASK,
            "windows.resized",
            """A mask stretched to another size: each pixel is as the one in which its middle falls.

            Middles on the border of two take the later one.
            """,
        ),
        Function(
            "box_iou",
            {"a": BOX, "b": BOX},
            pa.float64(),
            "boxes.ious",
            "What two boxes share over what they have together, 0 to 1; 0 where they share nothing.",
        ),
    ]
}

# As methods of a column, where `mask_` goes without saying.
METHODS = {name.removeprefix("mask_"): function for name, function in FUNCTIONS.items()}
