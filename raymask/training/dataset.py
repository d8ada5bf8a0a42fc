"""Annotations, checked, as one Arrow table with a row for every image: what training shuffles and reads.

What cannot be trained on is left out and counted. The masks stay compressed RLE until a data worker needs them, so
that a million objects are a few hundred megabytes of Arrow, not of Python objects.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from raymask.errors import ConfigError, OutputError
from raymask.masks import checked_size, validate_rle
from raymask.model import Category
from raymask.output import Masks
from raymask.published import INDEX_FILE
from raymask.schema import footer_of
from raymask.segmentations import to_rle
from raymask.sources.json_entries import json_entries
from raymask.sources.stream import anchor, said_plainly
from raymask.storage import Folder, join, resolve

# label: 1 .. number of categories. Boxes in pixels of the image, inside it. counts: RLE of the image's size.
OBJECT = pa.struct(
    [
        pa.field("label", pa.int32(), nullable=False),
        pa.field("box_xyxy", pa.list_(pa.float32(), 4), nullable=False),
        pa.field("counts", pa.string(), nullable=False),
    ]
)
ROWS = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("objects", pa.list_(OBJECT), nullable=False),
    ]
)

MIN_BOX_SIDE = 1e-3  # pixels; the logarithm of a box's width is what the network learns
BATCH_ROWS = 10_000


@dataclass
class AnnotatedRows:
    """Images with their objects, in `ROWS`; an image without objects is a row too.

    problems: what was left out or mended, in words, and how often.
    """

    table: pa.Table
    categories: tuple[Category, ...]
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def objects(self) -> int:
        return int(pc.sum(pc.list_value_length(self.table.column("objects"))).as_py() or 0)

    def without(self, failed: Mapping[str, str]) -> AnnotatedRows:
        """The rows without some images; failed: uri -> why, in words."""
        kept = pc.invert(pc.is_in(self.table.column("uri"), value_set=pa.array(list(failed), pa.string())))
        return AnnotatedRows(self.table.filter(kept), self.categories, self.problems + Counter(failed.values()))

    def to_parquet(self) -> bytes:
        about = {"categories": [vars(c) for c in self.categories], "problems": dict(self.problems)}
        sink = io.BytesIO()
        table = self.table.replace_schema_metadata({b"raymask": json.dumps(about).encode()})
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()

    @staticmethod
    def from_parquet(data: bytes) -> AnnotatedRows:
        table = pq.read_table(io.BytesIO(data))
        about = footer_of(table.schema)
        categories = tuple(Category(**c) for c in about["categories"])
        return AnnotatedRows(table.cast(ROWS), categories, Counter(about["problems"]))


def read_rows(data: str, images: str | None) -> AnnotatedRows:
    """The images and objects of a COCO file, an output of raymask or Parquet tables of its columns.

    images: folder of the images that a COCO file names relatively; None for the file's own. ConfigError if there is
    nothing to train on.
    """
    rows = _read_coco(data, images) if data.lower().endswith(".json") else _read_tables(data)
    if not rows.objects:
        found = ", ".join(f"{count:,} {what}" for what, count in rows.problems.most_common(3))
        raise ConfigError(f"{data} has no object to train on ({rows.table.num_rows:,} images; {found or 'no others'})")
    return rows


# --------------------------------------------------------------------------------------------------------------- COCO


def _read_coco(url: str, images: str | None) -> AnnotatedRows:
    problems: Counter[str] = Counter()
    anchored = anchor(images or url.rpartition("/")[0] or ".")
    categories = _coco_categories(url, problems)
    label_of: dict[Any, int] = {category.id: label for label, category in enumerate(categories, 1)}
    uris: list[str] = []
    sizes_hw: list[tuple[int, int]] = []
    row_of: dict[Any, int] = {}
    for image in json_entries(url, "images"):
        size_hw = _size_hw(image)
        if not isinstance(image.get("id"), int) or not isinstance(image.get("file_name"), str):
            problems["images without id or file_name, left out"] += 1
        elif size_hw is None:
            problems["images without height and width, left out"] += 1
        elif image["id"] in row_of:
            problems["images with an id used before, left out"] += 1
        else:
            row_of[image["id"]] = len(uris)
            uris.append(anchored(image["file_name"]))
            sizes_hw.append(size_hw)
    if not uris:
        raise ConfigError(f"{url} has no list 'images' with images in it; a COCO annotation file is meant")
    objects = _Objects(problems)
    seen: set[Any] = set()
    for entry in json_entries(url, "annotations"):
        number = _number(entry, "id")
        if number is None:
            problems["annotations without id, kept"] += 1
        elif number in seen:
            problems["annotations with an id used before, left out"] += 1
            continue
        seen.add(number)
        row, label = row_of.get(_number(entry, "image_id")), label_of.get(_number(entry, "category_id"))
        if row is None:
            problems["annotations of images that are not listed, left out"] += 1
        elif label is None:
            problems["annotations of categories that are not listed, left out"] += 1
        elif entry.get("iscrowd"):
            problems["crowd regions, which are not trained on"] += 1
        else:
            _add_coco(objects, row, label, entry, sizes_hw[row])
    return AnnotatedRows(_table(uris, np.array(sizes_hw), objects, problems), categories, problems)


def _coco_categories(url: str, problems: Counter[str]) -> tuple[Category, ...]:
    names: dict[int, str] = {}
    for entry in json_entries(url, "categories"):
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("name"), str):
            problems["categories without id or name, left out"] += 1
        elif names.setdefault(entry["id"], entry["name"]) != entry["name"]:
            problems["categories with an id used before, left out"] += 1
    if not names:
        raise ConfigError(f"{url} has no list 'categories' with categories in it; a COCO annotation file is meant")
    return tuple(Category(id, names[id]) for id in sorted(names))


def _add_coco(objects: _Objects, row: int, label: int, entry: Mapping[str, Any], size_hw: tuple[int, int]) -> None:
    segmentation = entry.get("segmentation")
    try:
        rle = to_rle(segmentation, size_hw)
        bbox = [float(value) for value in entry.get("bbox") or coco_mask.toBbox(rle)]
    except (ValueError, TypeError, KeyError, OverflowError):
        objects.problems["malformed segmentations or boxes, left out"] += 1
        return
    if isinstance(segmentation, list) and any(_reaches_out(polygon, size_hw) for polygon in segmentation):
        objects.problems["polygons that reach out of their image, clipped"] += 1
    if len(bbox) != 4:
        objects.problems["malformed segmentations or boxes, left out"] += 1
        return
    x, y, width, height = bbox
    counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
    objects.add(row, label, (x, y, x + width, y + height), counts, size_hw)


def _number(entry: Mapping[str, Any], key: str) -> Any:
    """A value that can be looked up; None where there is none, or a list or an object instead."""
    value = entry.get(key)
    return None if isinstance(value, list | dict) else value


def _reaches_out(polygon: list[float], size_hw: tuple[int, int]) -> bool:
    """By more than the pixel that rounding may make."""
    xy = np.asarray(polygon, np.float64).reshape(-1, 2)
    return bool((xy < -1).any() or (xy > np.array(size_hw[::-1]) + 1).any())


def _size_hw(image: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        return checked_size((image.get("height"), image.get("width")))
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------------------------- tables


def _read_tables(url: str) -> AnnotatedRows:
    problems: Counter[str] = Counter()
    images, instances = _open_tables(url)
    listed = images.to_table(columns=["uri", "status", "height", "width"])
    ok = listed.filter(pc.equal(listed.column("status"), "ok"))
    problems["images that failed when they were segmented, left out"] += listed.num_rows - ok.num_rows
    found = instances.to_table(columns=["uri", "category_id", "category", "x_min", "y_min", "x_max", "y_max", "mask"])
    categories = _table_categories(instances.schema, found)
    uris = ok.column("uri").to_pylist()
    sizes_hw = np.stack([ok.column("height").to_numpy(), ok.column("width").to_numpy()], axis=1)
    rows = pc.index_in(found.column("uri"), value_set=ok.column("uri").combine_chunks())
    ids = pa.array([c.id for c in categories], pa.int32())
    labels = pc.index_in(found.column("category_id"), value_set=ids)
    objects = _Objects(problems)
    start = 0
    for batch in found.to_batches(BATCH_ROWS):
        for number, entry in enumerate(batch.to_pylist(), start):
            row, label = rows[number].as_py(), labels[number].as_py()
            if row is None:
                problems["instances of images that are not listed, left out"] += 1
            elif label is None:
                problems["annotations of categories that are not listed, left out"] += 1
            else:
                _add_instance(objects, row, label + 1, entry, (int(sizes_hw[row, 0]), int(sizes_hw[row, 1])))
        start += batch.num_rows
    return AnnotatedRows(_table(uris, sizes_hw, objects, problems), categories, +problems)


def _open_tables(url: str) -> tuple[pyarrow.dataset.Dataset, pyarrow.dataset.Dataset]:
    """The tables `images` and `instances` of an output of raymask, or of a folder that has them as Parquet files."""
    with said_plainly(url):
        published = Folder(url).read_or_none(INDEX_FILE) is not None
    if published:
        masks = Masks(url)
        return masks.images.dataset, masks.instances.dataset
    fs, root = resolve(url)
    with said_plainly(url, "tables images/*.parquet and instances/*.parquet (or as a COCO file, which ends in .json)"):
        images, instances = (
            pyarrow.dataset.dataset(join(root, name), format="parquet", filesystem=fs)
            for name in ("images", "instances")
        )
    return images, instances


def _table_categories(schema: pa.Schema, found: pa.Table) -> tuple[Category, ...]:
    """Those that the footer lists; of a table without one, those that occur."""
    listed = footer_of(schema).get("categories")
    if listed is None:
        pairs = found.group_by(["category_id", "category"]).aggregate([])
        listed = [{"id": row["category_id"], "name": row["category"]} for row in pairs.to_pylist()]
    categories = sorted((Category(int(c["id"]), str(c["name"])) for c in listed), key=lambda c: c.id)
    if len({c.id for c in categories}) < len(categories):
        raise OutputError("the table has a category id with two names; give every category one id and one name")
    return tuple(categories)


def _add_instance(objects: _Objects, row: int, label: int, entry: Mapping[str, Any], size_hw: tuple[int, int]) -> None:
    mask = entry["mask"]
    try:
        if tuple(mask["size"]) != size_hw:
            raise ValueError(f"size {mask['size']}")
        validate_rle(mask["size"], mask["counts"])
    except (ValueError, TypeError):
        objects.problems["malformed segmentations or boxes, left out"] += 1
        return
    box_xyxy = (entry["x_min"], entry["y_min"], entry["x_max"], entry["y_max"])
    objects.add(row, label, box_xyxy, mask["counts"], size_hw)


# --------------------------------------------------------------------------------------------------------------- rows


class _Objects:
    """Objects as they come, in Arrow but for the last few thousand."""

    def __init__(self, problems: Counter[str]) -> None:
        self.problems = problems
        self._rows: list[int] = []
        self._objects: list[dict[str, Any]] = []
        self._chunks: list[tuple[NDArray[np.int64], pa.Array]] = []

    def add(self, row: int, label: int, box_xyxy: Iterable[float], counts: str, size_hw: tuple[int, int]) -> None:
        """One object; counts: well-formed RLE of `size_hw`. Left out and counted if nothing can be learnt from it."""
        limits = np.array([*size_hw[::-1], *size_hw[::-1]], np.float32)
        box = np.asarray(list(box_xyxy), np.float32).clip(0, limits)
        if not np.isfinite(box).all() or (box[2:] - box[:2] < MIN_BOX_SIDE).any():
            self.problems["boxes without an area, left out"] += 1
        elif not coco_mask.area({"size": list(size_hw), "counts": counts}):
            self.problems["masks without a pixel, left out"] += 1
        else:
            self._rows.append(row)
            self._objects.append({"label": label, "box_xyxy": box.tolist(), "counts": counts})
            if len(self._rows) >= BATCH_ROWS:
                self._flush()

    def by_row(self, rows: int) -> pa.ListArray:
        """The objects of each row, in the order they came."""
        self._flush()
        row = np.concatenate([r for r, _ in self._chunks] or [np.empty(0, np.int64)])
        objects = pa.chunked_array([o for _, o in self._chunks], OBJECT)
        starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
        ordered = objects.take(pa.array(np.argsort(row, kind="stable"))).combine_chunks()
        flat = pa.concat_arrays(ordered.chunks) if isinstance(ordered, pa.ChunkedArray) else ordered
        return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), flat, type=ROWS.field("objects").type)

    def _flush(self) -> None:
        if self._rows:
            self._chunks.append((np.array(self._rows), pa.array(self._objects, OBJECT)))
            self._rows, self._objects = [], []


def _table(uris: list[str], sizes_hw: NDArray[Any], objects: _Objects, problems: Counter[str]) -> pa.Table:
    lists = objects.by_row(len(uris))
    empty = int(pc.sum(pc.equal(pc.list_value_length(lists), 0)).as_py() or 0)
    if empty:
        problems["images without objects, kept"] += empty
    columns = [pa.array(uris, pa.string()), *(pa.array(side, pa.int32()) for side in sizes_hw.T), lists]
    return pa.table(columns, schema=ROWS)


def problem_lines(problems: Mapping[str, int]) -> list[str]:
    """One line a problem, the most frequent first."""
    return [f"  {count:>9,} {what}" for what, count in sorted(problems.items(), key=lambda item: -item[1])]
