"""The functions on masks in Spark's SQL.

    raymask.spark.register(spark)
    spark.sql("SELECT category, avg(mask_area(mask)) FROM parquet.`masks/instances` GROUP BY 1")

raymask has to be installed where the executors run. Needs the extra `spark`: pip install 'raymask[spark]'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql.functions import ArrowUDFType, arrow_udf  # type: ignore[attr-defined]  # its stubs lack them
from pyspark.sql.pandas.types import from_arrow_type

from raymask.masks.functions import FUNCTIONS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def register(spark: SparkSession) -> None:
    """Add every function of `raymask.masks.functions.FUNCTIONS` to a session."""
    for function in FUNCTIONS.values():
        result = from_arrow_type(function.result)
        spark.udf.register(function.name, arrow_udf(function.__call__, result, ArrowUDFType.SCALAR))
