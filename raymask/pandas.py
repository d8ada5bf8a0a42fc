"""The functions on masks for pandas, as an accessor.

    import raymask.pandas

    instances = pandas.read_parquet("masks/instances")
    instances.masks.area()                             # of the column `mask`
    instances["mask"].masks.iou(instances["other"])    # of any column

There is a method for each of `raymask.masks.functions.FUNCTIONS`, named like it but without `mask_` in front. Its first
argument is the series, or the column `mask` of the frame; the others are series, arrays or single values. The result is
a series of Arrow's type, which knows nulls; `.struct.explode()` makes columns of a box or a point.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa

from raymask.masks.functions import METHODS, Function


@pd.api.extensions.register_series_accessor("masks")
@pd.api.extensions.register_dataframe_accessor("masks")
class MasksAccessor:
    """The functions on masks, of a series or of the column `mask` of a frame."""

    def __init__(self, data: Any) -> None:
        if isinstance(data, pd.DataFrame):
            if "mask" not in data:
                raise AttributeError("the frame has no column 'mask'; name the column: frame['name'].masks")
            data = data["mask"]
        self._series = data

    def __getattr__(self, name: str) -> Callable[..., pd.Series]:
        if name in METHODS:
            return partial(self._called, METHODS[name])
        raise AttributeError(f"no function on masks is called {name!r}; there are {', '.join(METHODS)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *METHODS]

    def _called(self, function: Function, *values: Any, **named: Any) -> pd.Series:
        result = function(pa.array(self._series, from_pandas=True), *values, **named)
        return pd.Series(pd.arrays.ArrowExtensionArray(result), index=self._series.index, name=function.name)
