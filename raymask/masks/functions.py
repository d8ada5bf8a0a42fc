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
from itertools import pairwise
from typing import Any

import pyarrow as pa

from raymask.masks import measures
from raymask.masks.columns import MASK, BadMaskError

ROWS_A_PIECE = 8192  # a few milliseconds of work for a thread


@dataclass(frozen=True)
class Function:
    """A function on columns.

    name: in every engine. arguments: their names and Arrow types; others of the same meaning are taken too.
    result: Arrow type. call: takes an Arrow array for each argument, all of one length, and returns one of that length.
    doc: what it does, its first line in short.
    """

    name: str
    arguments: Mapping[str, pa.DataType]
    result: pa.DataType
    call: Callable[..., pa.Array]
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

        Raises BadMaskError (a ValueError) for a mask that is none, TypeError or ValueError for other values that are
        not what they should be, or columns of unequal length.
        """
        bound = self.__signature__.bind(*values, **named).arguments
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

    def _in_threads(self, pieces: list[list[Any]], starts: list[int]) -> list[pa.Array]:
        if len(pieces) < 2:
            return [self._call(piece, start) for piece, start in zip(pieces, starts, strict=False)]
        with ThreadPoolExecutor(min(len(pieces), pa.cpu_count())) as pool:
            return list(pool.map(self._call, pieces, starts))

    def _call(self, piece: list[Any], start: int) -> pa.Array:
        rows = next(len(c) for c in piece if isinstance(c, pa.ChunkedArray))
        try:
            return self.call(*(c.chunk(0) if isinstance(c, pa.ChunkedArray) else pa.repeat(c, rows) for c in piece))
        except BadMaskError as error:
            raise BadMaskError(start + error.row, error.problem) from None


def _column_or_scalar(value: Any, wanted: pa.DataType) -> pa.ChunkedArray | pa.Scalar:
    if isinstance(value, pa.ChunkedArray | pa.Scalar):
        return value
    if isinstance(value, pa.Array):
        return pa.chunked_array([value])
    if isinstance(value, int | float | dict | None):
        return pa.scalar(value, wanted)
    return pa.chunked_array([pa.array(value)])


def _starts(columns: list[pa.ChunkedArray]) -> list[int]:
    """Where pieces begin, and the last ends, so that each lies in one chunk of every column."""
    ends = {0}
    for column in columns:
        end = 0
        for chunk in column.chunks:
            ends |= {*range(end, end + len(chunk), ROWS_A_PIECE), end + len(chunk)}
            end += len(chunk)
    return sorted(ends)


FUNCTIONS = {
    function.name: function
    for function in [
        Function("mask_area", {"mask": MASK}, pa.int64(), measures.areas, "The number of pixels of a mask."),
    ]
}
