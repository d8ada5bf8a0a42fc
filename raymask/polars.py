"""The functions on masks for Polars, as a namespace of expressions, eager and lazy.

    import raymask.polars

    instances = polars.scan_parquet("masks/instances/*.parquet")
    instances.select(polars.col("mask").masks.area()).collect()
    pairs.filter(polars.col("mask").masks.iou(polars.col("mask_right")) > 0.5)

There is a method for each of `raymask.masks.functions.FUNCTIONS`, named like it but without `mask_` in front. The
expression is its first argument; the others are expressions or single values.

Needs Polars: pip install 'raymask[polars]'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

try:
    import polars as pl
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'raymask[polars]'") from error

from raymask.masks.functions import METHODS, Function


@pl.api.register_expr_namespace("masks")
class MasksNamespace:
    """The functions on masks, of an expression."""

    def __init__(self, expression: pl.Expr) -> None:
        self._expression = expression

    def __getattr__(self, name: str) -> Callable[..., pl.Expr]:
        if name in METHODS:
            return partial(self._called, METHODS[name])
        raise AttributeError(f"no function on masks is called {name!r}; there are {', '.join(METHODS)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *METHODS]

    def _called(self, function: Function, *values: Any, **named: Any) -> pl.Expr:
        given = function.bind(self._expression, *values, **named)
        columns = {name: value for name, value in given.items() if isinstance(value, pl.Expr)}
        run = partial(_run, function, given, list(columns))
        return pl.map_batches(list(columns.values()), run, _dtype(function.result), is_elementwise=True)


def _run(function: Function, given: dict[str, Any], names: list[str], series: Sequence[pl.Series]) -> pl.Series:
    columns = {name: column.to_arrow() for name, column in zip(names, series, strict=True)}
    # What Polars has one of beside columns, such as a literal, counts for every row.
    are_single = {len(column) for column in series} == {1}
    spread = {name: column if len(column) != 1 or are_single else column[0] for name, column in columns.items()}
    return pl.Series(function.name, function(**{**given, **spread}), _dtype(function.result))


def _dtype(kind: pa.DataType) -> pl.DataType:
    return pl.Series(pa.array([], kind)).dtype
