"""A published output read by programs that know nothing of raymask, and by `raymask.open`: always the same rows.

pandas, DuckDB, Polars and pyarrow find the files by glob. The truth they are compared with never was in Arrow.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from outputs import RUN, USER_FIELDS, Row, Truth, make_truth
from pycocotools import mask as coco

import raymask
from raymask.errors import OutputError
from raymask.published import INDEX_FILE, read_published
from raymask.schema import IMAGES, INSTANCES, footer_of, images_schema

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Ten images in three files, in a folder whose name takes some quoting."""
    return make_truth(str(tmp_path_factory.mktemp("a folder, ü") / "out"))


# ------------------------------------------------------------------------------------------------------------- readers


def with_pandas(truth: Truth, table: str) -> list[Row]:
    return list(pd.concat(map(pd.read_parquet, truth.files(table))).to_dict("records"))  # type: ignore[arg-type]


def with_pandas_by_folder(truth: Truth, table: str) -> list[Row]:
    return list(pd.read_parquet(f"{truth.out}/{table}").to_dict("records"))  # type: ignore[arg-type]


def with_duckdb(truth: Truth, table: str) -> list[Row]:
    with duckdb.connect() as db:
        found = db.sql(f"FROM '{truth.glob(table)}'")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def with_polars(truth: Truth, table: str) -> list[Row]:
    return pl.read_parquet(truth.glob(table)).to_dicts()


def with_pyarrow(truth: Truth, table: str) -> list[Row]:
    rows: list[Row] = pyarrow.dataset.dataset(truth.files(table)).to_table().to_pylist()
    return rows


def with_raymask(truth: Truth, table: str) -> list[Row]:
    masks = raymask.open(truth.out)
    rows: list[Row] = (masks.images if table == "images" else masks.instances).to_arrow().to_pylist()
    return rows


Reader = Callable[[Truth, str], list[Row]]
READERS: list[Reader] = [
    with_pandas,
    with_pandas_by_folder,
    with_duckdb,
    with_polars,
    with_pyarrow,
    with_raymask,
]


def plain(value: Any) -> Any:
    """Without what is pandas' own: NaN for null, arrays for lists."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize("table", ["images", "instances"])
@pytest.mark.parametrize("read", READERS)
def test_every_reader_sees_every_row_in_order(truth: Truth, read: Reader, table: str) -> None:
    assert [plain(row) for row in read(truth, table)] == truth.rows(table)


@pytest.mark.parametrize("read", READERS)
def test_pycocotools_takes_masks_as_they_are_read(truth: Truth, read: Reader) -> None:
    rows = read(truth, "instances")
    assert len(rows) == len(truth.masks) == 23
    for row in rows:
        mask = truth.masks[row["uri"], row["instance"]]
        np.testing.assert_array_equal(coco.decode(row["mask"]), mask)
        assert coco.area(row["mask"]) == row["area"]
    together = coco.decode([row["mask"] for row in rows if row["uri"] == rows[0]["uri"]])
    assert together.shape == (*truth.masks[rows[0]["uri"], 0].shape, 3)


@pytest.mark.parametrize(
    ("read", "size_type"),
    [(with_pandas, np.ndarray), (with_duckdb, list), (with_polars, list), (with_pyarrow, list)],
)
def test_what_a_mask_is_in_every_reader(truth: Truth, read: Reader, size_type: type) -> None:
    mask = read(truth, "instances")[0]["mask"]
    assert type(mask) is dict
    assert type(mask["size"]) is size_type
    assert type(mask["counts"]) is str


def sure_objects(truth: Truth) -> list[tuple[str, int, int]]:
    """Objects and their pixels by category, of those with a score above one half."""
    sure = [row for row in truth.instances if row["score"] > 0.5]
    counts = Counter(row["category"] for row in sure)
    pixels: Counter[str] = Counter()
    for row in sure:
        pixels[row["category"]] += row["area"]
    assert len(counts) == 3
    return sorted((category, counts[category], pixels[category]) for category in counts)


SURE_OBJECTS = "SELECT category, count(*), CAST(sum(area) AS BIGINT) FROM {} WHERE score > 0.5 GROUP BY 1 ORDER BY 1"


def test_every_engine_counts_the_same(truth: Truth) -> None:
    """Each in its own words."""
    want = sure_objects(truth)

    frame = pd.concat(map(pd.read_parquet, truth.files("instances")))
    by_category = frame[frame.score > 0.5].groupby("category").area.agg(["count", "sum"]).reset_index()
    assert list(by_category.itertuples(index=False, name=None)) == want

    with duckdb.connect() as db:
        assert db.sql(SURE_OBJECTS.format(f"'{truth.glob('instances')}'")).fetchall() == want
        db.execute(ddl("duckdb.sql", truth))
        assert db.sql(SURE_OBJECTS.format("instances")).fetchall() == want

    lazy = pl.scan_parquet(truth.glob("instances")).filter(pl.col("score") > 0.5)
    grouped = lazy.group_by("category").agg(pl.len(), pl.col("area").sum()).sort("category")
    assert grouped.collect().rows() == want

    dataset = pyarrow.dataset.dataset(truth.files("instances"))
    table = dataset.to_table(filter=pc.field("score") > 0.5)
    arrow = table.group_by("category").aggregate([("area", "count"), ("area", "sum")]).sort_by("category")
    assert [tuple(row.values()) for row in arrow.to_pylist()] == want

    assert raymask.open(truth.out).sql(SURE_OBJECTS.format("instances")).fetchall() == want


SPARK = """
import json, sys
from pyspark.sql import SparkSession

statements, queries = json.load(sys.stdin)
settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.sql.warehouse.dir": sys.argv[1]}
settings["spark.sql.codegen.wholeStage"] = "false"  # takes longer to compile than the few rows take
builder = SparkSession.builder.master("local[1]").config("spark.sql.shuffle.partitions", "1")
for name, value in settings.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
for statement in statements:
    spark.sql(statement)
print(json.dumps([[list(row) for row in spark.sql(query).collect()] for query in queries]))
spark.stop()
"""


def test_spark_counts_the_same(truth: Truth, tmp_path: Path) -> None:
    """By the tables of `schemas/spark.sql`, over the files where they are."""
    if shutil.which("java") is None and os.environ.get("CI") != "true":
        pytest.skip("Spark needs a JVM, and there is no java")
    statements = [text for text in ddl("spark.sql", truth).split(";") if text.strip()]
    queries = [SURE_OBJECTS.format("instances"), "SELECT status, count(*) FROM images GROUP BY 1 ORDER BY 1"]
    done = subprocess.run(
        [sys.executable, "-c", SPARK, str(tmp_path / "warehouse")],
        input=json.dumps([statements, queries]),
        cwd=tmp_path,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    objects, images = json.loads(done.stdout)
    assert [tuple(row) for row in objects] == sure_objects(truth)
    assert images == [["failed", 3], ["ok", 7]]


def ddl(name: str, truth: Truth) -> str:
    """The statements of a file in `schemas/`, for an output."""
    text = (SCHEMAS / name).read_text("utf-8").replace("@OUT@", truth.out)
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


@pytest.mark.parametrize(
    "broken",
    [
        "SELECT image_id FROM images GROUP BY 1 HAVING count(*) > 1",
        "SELECT uri FROM images GROUP BY 1 HAVING count(*) > 1",
        "FROM instances ANTI JOIN images USING (image_id, uri)",
        "FROM instances JOIN images USING (image_id) WHERE status <> 'ok'",
        "FROM images WHERE (status = 'ok') <> (error IS NULL) OR (error IS NULL) <> (error_detail IS NULL)",
        "FROM images WHERE (height IS NULL) <> (width IS NULL) OR (height IS NULL) <> (format IS NULL)",
        "FROM images WHERE status = 'ok' AND (height IS NULL OR bytes IS NULL)",
        "FROM images LEFT JOIN (SELECT image_id, count(*) AS n, max(instance) AS last FROM instances GROUP BY 1) "
        "USING (image_id) WHERE instance_count <> coalesce(n, 0) OR last <> n - 1",
        "FROM (SELECT score > lag(score) OVER (PARTITION BY image_id ORDER BY instance) AS rises FROM instances) "
        "WHERE rises",
        "FROM instances JOIN images USING (image_id) WHERE mask.size <> [height, width]",
        "FROM instances JOIN images USING (image_id) "
        "WHERE NOT (0 <= x_min AND x_min <= x_max AND x_max <= width AND 0 <= y_min AND y_min <= y_max "
        "AND y_max <= height)",
        "FROM instances WHERE NOT (score BETWEEN 0.05 AND 1)",
    ],
)
def test_tables_keep_what_the_specification_promises(truth: Truth, broken: str) -> None:
    """Each query looks for rows that break a rule of `schemas/spec.md`."""
    with duckdb.connect() as db:
        for table in ("images", "instances"):
            db.execute(f"CREATE VIEW {table} AS FROM '{truth.glob(table)}'")
        assert db.sql(broken).fetchall() == []


def test_pandas_and_pycocotools_do_without_raymask(truth: Truth, tmp_path: Path) -> None:
    program = """
import glob, sys
import pandas as pd
from pycocotools import mask

files = sorted(glob.glob(sys.argv[1] + "/instances/part-*.parquet"))
rows = pd.concat(map(pd.read_parquet, files))
assert [mask.decode(m).sum() for m in rows["mask"]] == list(rows["area"])
assert not [name for name in sys.modules if name.partition(".")[0] in ("raymask", "ray", "torch")]
print(len(rows), rows["area"].sum())
"""
    command = [sys.executable, "-c", program, truth.out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(truth.instances)), str(sum(row["area"] for row in truth.instances))]


# ------------------------------------------------------------------------------------------------------- raymask's own


def test_open_gives_both_tables(truth: Truth) -> None:
    masks = raymask.open(truth.out)
    assert (len(masks.images), len(masks.instances)) == (10, 23)
    assert masks.images.schema.remove_metadata() == images_schema(USER_FIELDS)
    assert masks.instances.schema.remove_metadata() == INSTANCES
    assert footer_of(masks.images.schema) == RUN.footer("images")
    frame = masks.instances.to_pandas(["uri", "score"], where=pc.field("score") > 0.5)
    assert list(frame.columns) == ["uri", "score"]
    assert len(frame) == sum(row["score"] > 0.5 for row in truth.instances)
    assert repr(masks) == f"Masks({truth.out!r}: 10 images, 3 of them failed, 23 instances)"


def test_open_gives_the_pixels_of_every_mask(truth: Truth) -> None:
    masks = raymask.open(truth.out)
    for (uri, instance), mask in truth.masks.items():
        found = masks.mask(uri, instance)
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, mask)
    for uri, instance in [(truth.images[0]["uri"], 3), (truth.images[1]["uri"], 0), ("s3://bucket/other.jpg", 0)]:
        with pytest.raises(KeyError, match="no instance"):
            masks.mask(uri, instance)


def test_open_reads_the_files_of_the_index_alone(truth: Truth) -> None:
    stray = Path(truth.out, "images", "part-00099.parquet")
    stray.write_bytes(Path(truth.files("images")[0]).read_bytes())
    try:
        assert len(raymask.open(truth.out).images) == 10
    finally:
        stray.unlink()


def test_open_wants_an_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no output of raymask"):
        raymask.open(str(tmp_path))


def test_damaged_index_says_so(truth: Truth, tmp_path: Path) -> None:
    record = json.loads(Path(truth.out, INDEX_FILE).read_bytes())
    for damaged in ("{", "[]", json.dumps({**record, "shards": record["shards"][:1]}), json.dumps({"tables": {}})):
        Path(tmp_path, INDEX_FILE).write_text(damaged)
        with pytest.raises(OutputError, match="damaged"):
            raymask.open(str(tmp_path))


# --------------------------------------------------------------------------------------------------- the files by bytes


def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / name).read_text("utf-8")))


def test_index_names_the_files_that_are_there(truth: Truth) -> None:
    record = json.loads(Path(truth.out, INDEX_FILE).read_bytes())
    validator("raymask.schema.json").validate(record)
    for table in ("images", "instances"):
        files = record["tables"][table]["files"]
        assert [f"{truth.out}/{file['path']}" for file in files] == truth.files(table)
        assert record["tables"][table]["rows"] == sum(file["rows"] for file in files) == len(truth.rows(table))
        for file in files:
            data = Path(truth.out, file["path"]).read_bytes()
            assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
            assert file["rows"] == pq.read_metadata(f"{truth.out}/{file['path']}").num_rows
    assert record["counts"] == {"images": 10, "ok": 7, "failed": 3, "instances": 23}
    assert record["errors"] == {"truncated": 1, "out_of_memory": 1, "not_found": 1}
    published = read_published(truth.out)
    assert published
    assert published.to_json(RUN) == Path(truth.out, INDEX_FILE).read_bytes()


def test_files_with_the_same_number_belong_together(truth: Truth) -> None:
    sizes = []
    for images, instances in zip(truth.files("images"), truth.files("instances"), strict=True):
        ids = pq.read_table(images, columns=["image_id", "instance_count"])
        want = np.repeat(ids.column("image_id").to_numpy(), ids.column("instance_count").to_numpy())
        assert pq.read_table(instances, columns=["image_id"]).column(0).to_pylist() == want.tolist()
        sizes.append((len(ids), len(want)))
    assert sizes == [(4, 15), (4, 8), (2, 0)]


@pytest.mark.parametrize("table", ["images", "instances"])
def test_every_file_has_the_footer_and_the_schema(truth: Truth, table: str) -> None:
    for path in truth.files(table):
        schema = pq.read_schema(path)
        assert schema.remove_metadata() == (images_schema(USER_FIELDS) if table == "images" else INSTANCES)
        footer = json.loads(pq.read_metadata(path).metadata[b"raymask"])
        validator("footer.schema.json").validate(footer)
        assert footer == RUN.footer(table) == footer_of(schema)


@pytest.mark.parametrize("table", ["images", "instances"])
def test_statistics_are_there_and_right_but_for_masks(truth: Truth, table: str) -> None:
    for path in truth.files(table):
        parquet = pq.ParquetFile(path)
        rows = parquet.read()
        if not len(rows):
            continue
        group = parquet.metadata.row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        assert {name.split(".")[0] for name in columns} == set(rows.schema.names)
        for name, column in columns.items():
            if name.startswith("mask."):
                assert not column.is_stats_set
                continue
            bounds = pc.min_max(rows.column(name)).as_py()
            assert column.statistics.null_count == rows.column(name).null_count
            assert column.statistics.has_min_max == (bounds["min"] is not None)
            if column.statistics.has_min_max:
                assert {"min": column.statistics.min, "max": column.statistics.max} == bounds
            assert column.has_column_index
            assert column.has_offset_index
        required = {f.name for f in (IMAGES if table == "images" else INSTANCES) if not f.nullable}
        leaves = [parquet.schema.column(i) for i in range(len(parquet.schema))]
        assert {c.name for c in leaves if c.max_definition_level == 0} == required - {"mask"}
