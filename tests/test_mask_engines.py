"""The functions on masks in DuckDB, pandas, Polars and Spark: the same results as in Python, by the same names."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raymask.duckdb
import raymask.pandas
import raymask.polars
from raymask.masks import encode
from raymask.masks.functions import FUNCTIONS, METHODS, Function
from raymask.masks.types import BOX, MASK, POLYGONS
from raymask.schema import INSTANCES

ROWS = 5000  # more than DuckDB and Spark hand over at once
HEIGHT, WIDTH = 20, 30
# Which column of the table below is the argument of a kind; the second one of a kind is the next.
COLUMNS = {
    MASK: ["mask", "other"],
    BOX: ["box", "box2"],
    POLYGONS: ["polygons"],
    pa.float64(): ["x", "y"],
    pa.int32(): ["height", "width"],
}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Masks of 20 x 30 pixels, some of them missing, in the types in which raymask's tables have them."""
    rng = np.random.default_rng(0)
    few = [encode(rng.random((HEIGHT, WIDTH)) < chance) for chance in rng.random(50)]
    masks: list[Any] = [None if i % 7 == 0 else few[i % 50] for i in range(ROWS)]
    corners = rng.integers(0, 15, (2, ROWS, 2))
    sides = np.concatenate([corners, corners + rng.integers(1, 20, (2, ROWS, 2))], axis=2)
    kinds = pa.struct([INSTANCES.field(field.name) for field in BOX])
    boxes = [[dict(zip(BOX.names, box, strict=True)) for box in column] for column in sides.tolist()]
    polygons = [[[x, y, x + 9, y, x, y + 9.5]] for x, y in corners[0].tolist()]
    return pa.table(
        {
            "mask": pa.array(masks, INSTANCES.field("mask").type),
            "other": pa.array(masks[::-1], MASK),
            "box": pa.array(boxes[0], kinds),
            "box2": pa.array(boxes[1], kinds),
            "polygons": pa.array(polygons, POLYGONS),
            "x": rng.uniform(0, WIDTH, ROWS),
            "y": rng.uniform(0, HEIGHT, ROWS),
            "height": pa.array(rng.integers(1, 30, ROWS), pa.int32()),
            "width": pa.array(rng.integers(1, 30, ROWS), pa.int32()),
        }
    )


def columns_of(function: Function) -> list[str]:
    left = {kind: iter(names) for kind, names in COLUMNS.items()}
    return [next(left[kind]) for kind in function.arguments.values()]


def wanted(function: Function, table: pa.Table) -> list[Any]:
    found: list[Any] = function(*(table[name] for name in columns_of(function))).to_pylist()
    assert len({str(value) for value in found}) > 1
    return found


@pytest.fixture(scope="module")
def connection(table: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 2}) as connection:
        raymask.duckdb.register(connection)
        connection.register("instances", table)
        yield connection


@pytest.mark.parametrize("name", FUNCTIONS)
def test_duckdb(name: str, table: pa.Table, connection: duckdb.DuckDBPyConnection) -> None:
    call = f"{name}({', '.join(columns_of(FUNCTIONS[name]))})"
    assert [value for (value,) in connection.sql(f"SELECT {call} FROM instances").fetchall()] == wanted(
        FUNCTIONS[name], table
    )


def test_duckdb_takes_constants_filters_and_joins(table: pa.Table, connection: duckdb.DuckDBPyConnection) -> None:
    resized = "SELECT sum(mask_area(mask_resize(mask, 40, 60))) / sum(mask_area(mask)) FROM instances"
    assert connection.sql(resized).fetchall() == [(4,)]
    literal = "SELECT mask_area({'size': [3, 4], 'counts': '42102'}), mask_area(NULL), box_iou(NULL, NULL)"
    assert connection.sql(literal).fetchall() == [(4, None, None)]
    pairs = """
        WITH few AS (SELECT row_number() OVER () AS id, mask FROM instances LIMIT 60)
        SELECT count(*) FROM few a JOIN few b ON a.id < b.id AND mask_iou(a.mask, b.mask) > 0.4
    """
    masks = table["mask"].slice(0, 60).to_pylist()
    first, second = zip(*((a, b) for i, a in enumerate(masks) for b in masks[i + 1 :]), strict=True)
    want = sum(iou is not None and iou > 0.4 for iou in FUNCTIONS["mask_iou"](first, second).to_pylist())
    assert 0 < want < len(first)
    assert connection.sql(pairs).fetchall() == [(want,)]


def test_duckdb_says_what_is_wrong_with_a_mask(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(
        duckdb.Error, match="counts of a 3 x 4 mask: fewer pixels than the mask after 1 of 1 characters"
    ):
        connection.sql("SELECT mask_polygon({'size': [3, 4], 'counts': '3'})").fetchall()
    assert connection.sql("SELECT 1").fetchall() == [(1,)]


def test_registering_in_duckdb_twice_is_once(connection: duckdb.DuckDBPyConnection) -> None:
    cursor = connection.cursor()
    for same in (connection, cursor):
        raymask.duckdb.register(same)
    assert cursor.sql("SELECT mask_centroid({'size': [3, 4], 'counts': '42102'}).x").fetchall() == [(2.0,)]


def test_pandas(table: pa.Table) -> None:
    frame = table.slice(0, 500).to_pandas()  # masks as dicts, as read_parquet gives them
    frame.index = frame.index + 7
    for name, function in METHODS.items():
        first, *others = columns_of(function)
        series = getattr(frame[first].masks, name)(*(frame[column] for column in others))
        assert series.index.equals(frame.index)
        assert series.name == function.name
        assert pa.array(series).to_pylist() == wanted(function, table.slice(0, 500))
    assert frame.masks.area().equals(frame["mask"].masks.area())
    assert frame.masks.resize(40, width=60).masks.area().sum() == 4 * frame.masks.area().sum()
    arrow = table.to_pandas(types_mapper=pd.ArrowDtype)
    assert arrow.masks.iou(arrow["other"]).sum() == pytest.approx(sum(filter(None, wanted(METHODS["iou"], table))))
    assert arrow.masks.bbox().struct.explode()["x_max"].max() == WIDTH
    with pytest.raises(AttributeError, match="there are area, bbox"):
        frame.masks.volume()
    with pytest.raises(AttributeError, match="no column 'mask'"):
        frame.drop(columns="mask").masks.area()


def test_polars(table: pa.Table) -> None:
    table = table.slice(0, 1500)
    frame = pl.DataFrame(table)
    for name, function in METHODS.items():
        first, *others = columns_of(function)
        call = getattr(pl.col(first).masks, name)(*map(pl.col, others))  # type: ignore[attr-defined]  # a namespace
        lazy = frame.lazy().select(call.alias("found"))
        found = lazy.collect()["found"]
        assert found.to_list() == wanted(function, table)
        assert lazy.collect_schema()["found"] == found.dtype
    resized = pl.col("mask").masks.resize(40, width=pl.lit(60)).masks.area().sum()  # type: ignore[attr-defined]
    areas = pl.col("mask").masks.area().sum()  # type: ignore[attr-defined]
    assert frame.select((resized / areas).alias("ratio"))["ratio"].to_list() == [4]
    assert frame.clear().select(resized.alias("sum"))["sum"].to_list() == [0]
    assert frame.slice(1, 1).select((resized / areas).alias("ratio"))["ratio"].to_list() == [4]
    with pytest.raises(AttributeError, match="there are area, bbox"):
        pl.col("mask").masks.volume()  # type: ignore[attr-defined]


@pytest.mark.skipif(not (shutil.which("java") or os.environ.get("CI")), reason="Spark needs Java")
def test_spark(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)  # whose packages its workers need
    import pyspark.sql

    import raymask.spark

    table = table.slice(0, 1000)
    pq.write_table(table, tmp_path / "instances.parquet")
    settings: dict[str, bool | float | int | str | None] = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
    }
    spark = pyspark.sql.SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    try:
        raymask.spark.register(spark)
        spark.read.parquet(str(tmp_path / "instances.parquet")).createOrReplaceTempView("instances")
        calls = [f"{name}({', '.join(columns_of(function))}) AS {name}" for name, function in FUNCTIONS.items()]
        rows = spark.sql(f"SELECT {', '.join(calls)} FROM instances").toArrow().to_pydict()
        for name, function in FUNCTIONS.items():
            assert rows[name] == wanted(function, table), name
        resized = "SELECT sum(mask_area(mask_resize(mask, 40, 60))) / sum(mask_area(mask)) AS ratio FROM instances"
        assert spark.sql(resized).collect() == [(4,)]
    finally:
        spark.stop()
