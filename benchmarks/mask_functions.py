"""The functions on columns of masks over 1,000,000 of them, beside pycocotools called mask by mask or pair by pair.

    python benchmarks/mask_functions.py

The masks are 100,000 blobs in images of 480 x 640, ten times over; pairs are of blobs in nearby places. pycocotools has
its masks ready as the dicts that it takes, and is timed over 2,000 of them: it goes mask by mask, so a million takes
500 times as long. Its results for these have to be equal. For what it has no function the way is through the pixels,
with `decode` and NumPy; outlines and perimeters have none.

Two are also timed on one core, and in DuckDB's SQL over the same table. The first call in a process compiles the
function where no cache has it; that of two is timed both ways, without imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from masks import objects
from measure import print_table, save, spread, timed
from pycocotools import mask as coco

import raymask.duckdb
from raymask.masks import encode, encode_soft_masks
from raymask.masks.functions import FUNCTIONS
from raymask.masks.types import MASK, SIDES

SIZE_HW = (480, 640)
DISTINCT, TIMES, SAMPLE = 100_000, 10, 2_000
CORNERS = 20  # of a polygon
WINDOW = {"x_min": 100, "y_min": 50, "x_max": 400, "y_max": 300}
CLOSELY = ("mask_area", "mask_iou")  # also on one core and in DuckDB
FIRST_CALLS = ("mask_area", "mask_polygon")

# Columns of the table below, or values.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "mask_contains": ("mask", "x", "y"),
    "mask_iou": ("mask", "other"),
    "mask_intersection": ("mask", "other"),
    "mask_union": ("mask", "other"),
    "mask_crop": ("mask", WINDOW),
    "mask_resize": ("mask", 240, 320),
    "mask_from_polygon": ("polygons", *SIZE_HW),
    "box_iou": ("box", "other_box"),
}

# By pycocotools, for one row; the result as it is compared, see `comparable`.
THEIRS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "mask_area": lambda row: coco.area(row["mask"]),
    "mask_bbox": lambda row: coco.toBbox(row["mask"]),
    "mask_centroid": lambda row: [n.mean() + 0.5 for n in np.nonzero(coco.decode(row["mask"]))[::-1]],
    "mask_contains": lambda row: coco.decode(row["mask"])[int(row["y"]), int(row["x"])],
    "mask_iou": lambda row: coco.iou([row["mask"]], [row["other"]], [0])[0, 0],
    "mask_intersection": lambda row: coco.merge([row["mask"], row["other"]], intersect=True)["counts"],
    "mask_union": lambda row: coco.merge([row["mask"], row["other"]])["counts"],
    "mask_from_polygon": lambda row: coco.merge(coco.frPyObjects(row["polygons"], *SIZE_HW))["counts"],
    "mask_crop": lambda row: coco.encode(np.asfortranarray(coco.decode(row["mask"])[50:300, 100:400]))["counts"],
    "mask_resize": lambda row: coco.encode(np.asfortranarray(coco.decode(row["mask"])[1::2, 1::2]))["counts"],
    "box_iou": lambda row: coco.iou(row["box"], row["other_box"], [0])[0, 0],
}


def made_up() -> pa.Table:
    """Blobs, each beside another one, points in their boxes, and polygons with corners on two ellipses in the box."""
    counts: list[str] = []
    found = []
    for seed in range(DISTINCT // 100):
        soft_masks, boxes_xyxy = objects(SIZE_HW, seed)
        counts += encode_soft_masks(soft_masks, boxes_xyxy, SIZE_HW).counts
        found.append(boxes_xyxy)
    corners = np.concatenate(found).astype(np.float64)
    chance = np.random.default_rng(0)
    turns = np.sort(chance.uniform(0, 2 * np.pi, (DISTINCT, CORNERS)), axis=1)
    middles, extents = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    radii = chance.choice([0.3, 0.5], (DISTINCT, CORNERS, 1)) * extents[:, None]
    points = middles[:, None] + radii * np.stack([np.cos(turns), np.sin(turns)], axis=2)
    x, y = chance.uniform(corners[:, :2], corners[:, 2:]).clip(0, [639, 479]).T
    masks = pa.array([{"size": SIZE_HW, "counts": text} for text in counts], MASK)
    boxes = pa.StructArray.from_arrays([pa.array(side) for side in corners.T], SIDES)
    nearby = np.lexsort((middles[:, 0], middles[:, 1] // 20))
    other = np.empty(DISTINCT, np.int64)
    other[nearby] = np.roll(nearby, 1)
    columns = {
        "mask": masks,
        "other": masks.take(pa.array(other)),
        "box": boxes,
        "other_box": boxes.take(pa.array(other)),
    }
    polygons = [[polygon] for polygon in points.reshape(DISTINCT, -1).tolist()]
    table = pa.table({**columns, "x": x, "y": y, "polygons": pa.array(polygons)})
    return pa.concat_tables([table] * TIMES)


def ours(name: str, table: pa.Table) -> Any:
    arguments = ARGUMENTS.get(name, ("mask",))
    return FUNCTIONS[name](*(table[a] if isinstance(a, str) else a for a in arguments))


def on_one_core(name: str, table: pa.Table) -> float:
    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    start = time.perf_counter()
    ours(name, table)
    seconds = time.perf_counter() - start
    pa.set_cpu_count(threads)
    return seconds


def in_duckdb(name: str, connection: duckdb.DuckDBPyConnection) -> float:
    start = time.perf_counter()
    connection.execute(f"SELECT count({name}({', '.join(map(str, ARGUMENTS.get(name, ('mask',))))})) FROM masks")
    connection.fetchall()
    return time.perf_counter() - start


def as_pycocotools_takes_it(row: dict[str, Any]) -> dict[str, Any]:
    masks = {name: {**row[name], "counts": row[name]["counts"].encode()} for name in ("mask", "other")}
    boxes = {name: np.array([_xywh(row[name])]) for name in ("box", "other_box")}
    return {**row, **masks, **boxes}


def _xywh(box: dict[str, float]) -> list[float]:
    x_min, y_min, x_max, y_max = (box[side] for side in SIDES)
    return [x_min, y_min, x_max - x_min, y_max - y_min]


def comparable(name: str, value: Any) -> Any:
    if name == "mask_bbox":
        return _xywh(value)
    if name == "mask_centroid":
        return [np.nan, np.nan] if value is None else list(value.values())
    return value["counts"].encode() if isinstance(value, dict) else value


def by_pycocotools(name: str, table: pa.Table) -> float:
    """Seconds for as many masks, by a sample. Raises SystemExit if a result differs from ours."""
    sample = table.slice(0, SAMPLE)
    rows, call = [as_pycocotools_takes_it(row) for row in sample.to_pylist()], THEIRS[name]
    start = time.perf_counter()
    theirs = [call(row) for row in rows]
    seconds = time.perf_counter() - start
    for row, (want, value) in enumerate(zip(theirs, ours(name, sample).to_pylist(), strict=True)):
        got = comparable(name, value)
        if not (got == want if isinstance(got, bytes) else np.allclose(got, want, rtol=1e-12, atol=0, equal_nan=True)):
            raise SystemExit(f"{name} of row {row} is {got}, by pycocotools {want}")
    return seconds / SAMPLE * len(table)


def first_calls(name: str) -> tuple[float, float]:
    """Seconds of a first call with nothing in the cache, and of one with all of it there."""
    mask = {"size": [4, 4], "counts": encode(np.eye(4, dtype=np.bool_))["counts"]}
    call = f"FUNCTIONS[{name!r}]({', '.join([str([mask])] * len(ARGUMENTS.get(name, ('mask',))))})"
    code = f"import time; from raymask.masks.functions import FUNCTIONS; s = time.perf_counter(); {call}"
    command = [sys.executable, "-c", f"{code}; print(time.perf_counter() - s)"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        run = partial(subprocess.run, command, capture_output=True, text=True, check=True, env=environment)
        return float(run().stdout), float(run().stdout)


def main() -> None:
    table = made_up()
    connection = duckdb.connect()
    raymask.duckdb.register(connection)
    connection.register("arrow", table)
    connection.execute("CREATE TABLE masks AS SELECT * FROM arrow")
    characters = sum(len(mask["counts"]) for mask in table["mask"].slice(0, SAMPLE).to_pylist()) / SAMPLE
    rows: list[dict[str, Any]] = []
    for name in FUNCTIONS:
        row: dict[str, Any] = {"function": name}
        if name in FIRST_CALLS:
            row["compiled_s"], row["cached_s"] = first_calls(name)
        seconds = timed({name: partial(ours, name, table)}, 1)[name]
        if seconds[0] < 1:
            seconds += timed({name: partial(ours, name, table)}, 2)[name]
        row["all_cores"] = spread(seconds)
        if name in THEIRS:
            row["pycocotools_s"] = by_pycocotools(name, table)
        if name in CLOSELY:
            row["one_core_s"], row["duckdb_s"] = on_one_core(name, table), in_duckdb(name, connection)
        rows.append(row)
    save("mask_functions", rows, masks=len(table), size_hw=SIZE_HW, characters=characters, pycocotools_masks=SAMPLE)
    header = ["", "all cores", "pycocotools", "", "one core", "DuckDB", "first call", "cached"]
    print_table(header, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> list[str]:
    ours_s, theirs_s = row["all_cores"]["median_s"], row.get("pycocotools_s")
    beside = [f"{theirs_s:.1f} s", f"{theirs_s / ours_s:.0f} x"] if theirs_s else ["", ""]
    keys = ("one_core_s", "duckdb_s", "compiled_s", "cached_s")
    return [row["function"], f"{ours_s:.2f} s", *beside, *(f"{row[key]:.2f} s" if key in row else "" for key in keys)]


if __name__ == "__main__":
    main()
