"""The functions on masks in Spark's SQL.

    raymask.spark.register(spark)
    spark.sql("SELECT category, avg(mask_area(mask)) FROM parquet.`masks/instances` GROUP BY 1")

raymask has to be installed where the executors run. Needs the extra `spark`: pip install 'raymask[spark]'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

try:
    from pyspark.sql.functions import arrow_udf  # type: ignore[attr-defined]  # pyspark's stubs lack it
    from pyspark.sql.pandas.types import from_arrow_type
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'raymask[spark]'") from error

from raymask.masks.functions import FUNCTIONS, Function

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def register(spark: SparkSession) -> None:
    """Add every function of `raymask.masks.functions.FUNCTIONS` to a session."""
    for function in FUNCTIONS.values():
        spark.udf.register(function.name, arrow_udf(_on_arrays(function), from_arrow_type(function.result)))


def _on_arrays(function: Function) -> Callable[..., pa.Array]:
    """The same with the annotations that Spark goes by."""

    def call(*columns: pa.Array) -> pa.Array:
        return function(*columns)

    return call
