"""What is exported: the images of an output in order, each with its chosen instances, a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymask.errors import ConfigError, OutputError
from raymask.interop.names import common_folder
from raymask.masks import mask_area
from raymask.masks.types import RowError
from raymask.output import Masks
from raymask.schema import footer_of
from raymask.storage import used_plainly

BATCH_ROWS = 8_192

Owner = tuple[str, int, int]  # uri, height and width that an instance claims for its image

# Columns of `images` that an import of COCO files brings, see `docs/formats.md`.
COCO_ID = pa.field("coco_image_id", pa.int64())
COCO_NAME = pa.field("coco_file_name", pa.string())
COCO_ANNOTATION = pa.struct([pa.field("id", pa.int64()), pa.field("area", pa.float64())])
COCO_ANNOTATIONS = pa.field("coco_annotations", pa.list_(COCO_ANNOTATION))
COCO_CROWD = pa.struct(
    [
        pa.field("id", pa.int64()),
        pa.field("category_id", pa.int32()),
        pa.field("area", pa.float64()),
        pa.field("bbox", pa.list_(pa.float64())),
        pa.field("counts", pa.string()),
    ]
)
COCO_CROWDS = pa.field("coco_crowds", pa.list_(COCO_CROWD))
COCO_FIELDS = [COCO_ID, COCO_NAME, COCO_ANNOTATIONS, COCO_CROWDS]


class Instance(NamedTuple):
    """One object. place: its number in the image; counts: its compressed RLE, well-formed."""

    place: int
    category_id: int
    category: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    area: int
    counts: str


@dataclass(frozen=True)
class Picture:
    """One image. number: its COCO id; name: below the folder that all images have in common.

    coco: what an import of a COCO file has kept of it, by the name of the column.
    """

    number: int
    uri: str
    name: str
    size_hw: tuple[int, int]
    instances: Sequence[Instance]
    coco: dict[str, Any]

    def rle(self, instance: Instance) -> dict[str, Any]:
        return {"size": list(self.size_hw), "counts": instance.counts}


@dataclass(frozen=True)
class Numbering:
    """folder: of all images; last_id: the largest COCO id, 0 where no image brings one; twice: an id of two images."""

    folder: str
    last_id: int
    twice: int | None


class Selection:
    """The images of an output that are ok, with the instances that an export takes.

    names: of the categories to take, all if there are none.
    """

    def __init__(self, out: str, min_score: float = 0.0, names: Sequence[str] = ()) -> None:
        self._masks = Masks(out)
        self.out = out
        self.images = self._masks.published.ok
        self.failed = self._masks.published.failed
        listed = footer_of(self._masks.instances.schema)["categories"]
        self.categories = [(int(c["id"]), str(c["name"])) for c in listed if not names or c["name"] in names]
        unknown = sorted(set(names) - {name for _, name in self.categories})
        if unknown:
            known = ", ".join(c["name"] for c in listed[:100])
            raise ConfigError(f"{out} has no category {unknown[0]!r}; it has {known}")
        self._ids = {id for id, _ in self.categories}
        self._min_score = np.float32(min_score)
        schema = self._masks.images.schema
        # A column that only has such a name is the user's own.
        self._coco = [f.name for f in COCO_FIELDS if f.name in schema.names and schema.field(f.name).type == f.type]

    @cached_property
    def numbering(self) -> Numbering:
        ends: list[str] = []
        found = [np.empty(0, np.int64)]
        for file in self._masks.published.files("images"):
            for batch in self._batches(file.path, ["uri", *(name for name in self._coco if name == COCO_ID.name)]):
                ends += pc.min_max(batch.column("uri")).as_py().values()
                ends = [min(ends), max(ends)]
                if COCO_ID.name in batch.schema.names:
                    found.append(batch.column(COCO_ID.name).drop_null().to_numpy())
        ids = np.sort(np.concatenate(found))
        twice = ids[:-1][np.diff(ids) == 0]
        last_id = max(int(ids[-1]), 0) if len(ids) else 0
        return Numbering(common_folder(*ends), last_id, int(twice[0]) if len(twice) else None)

    def check_ids(self) -> None:
        """ConfigError if two images have one COCO id."""
        if self.numbering.twice is not None:
            raise ConfigError(
                f"two images of {self.out} have the COCO id {self.numbering.twice}, as those of two COCO files may; "
                f"give each file an output of its own"
            )

    def pictures(self, with_instances: bool = True) -> Iterator[Picture]:
        """The images in the order of the table. OutputError where the tables contradict each other."""
        start = 0
        files = self._masks.published
        for images, instances in zip(files.files("images"), files.files("instances"), strict=True):
            found = self._instances(instances.path) if with_instances else None
            for rows in self._batches(images.path, ["uri", "status", "height", "width", "instance_count", *self._coco]):
                for row in rows.to_pylist():
                    start += 1
                    if row["status"] == "ok":
                        yield self._picture(row, start, found)

    def instance_batches(self) -> Iterator[pa.RecordBatch]:
        """The chosen rows of `instances`, all columns, masks checked."""
        for file in self._masks.published.files("instances"):
            for batch in self._batches(file.path, None):
                yield self._chosen(batch)

    def _picture(self, row: dict[str, Any], place: int, found: Iterator[tuple[Owner, Instance]] | None) -> Picture:
        uri, numbering = row["uri"], self.numbering
        number = row.get(COCO_ID.name)
        size_hw = (row["height"], row["width"])
        rows = list(islice(found, row["instance_count"])) if found else []
        if found and [owner for owner, _ in rows] != [(uri, *size_hw)] * row["instance_count"]:
            raise OutputError(f"the instances of {uri!r} in {self.out} are not those that its row in `images` promises")
        return Picture(
            number=numbering.last_id + place if number is None else number,
            uri=uri,
            name=uri.removeprefix(numbering.folder),
            size_hw=size_hw,
            instances=[instance for _, instance in rows if self._is_chosen(instance)],
            coco={name: row[name] for name in self._coco},
        )

    def _is_chosen(self, instance: Instance) -> bool:
        return instance.category_id in self._ids and bool(instance.score >= self._min_score)

    def _chosen(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        known = pc.is_in(batch.column("category_id"), value_set=pa.array(self._ids, pa.int32()))
        self._check(batch)
        return batch.filter(pc.and_(pc.greater_equal(batch.column("score"), pa.scalar(self._min_score)), known))

    def _instances(self, path: str) -> Iterator[tuple[Owner, Instance]]:
        for batch in self._batches(path, None):
            self._check(batch)
            mask = batch.column("mask")
            columns = {name: batch.column(name).to_pylist() for name in batch.schema.names if name != "mask"}
            boxes = zip(*(columns[edge] for edge in ("x_min", "y_min", "x_max", "y_max")), strict=True)
            fields = (columns["instance"], columns["category_id"], columns["category"], columns["score"], boxes)
            sizes, counts = (pc.struct_field(mask, name).to_pylist() for name in ("size", "counts"))
            for uri, size, *values in zip(columns["uri"], sizes, *fields, columns["area"], counts, strict=True):
                yield (uri, *size), Instance(*values)

    def _check(self, batch: pa.RecordBatch) -> None:
        """Whoever reads an export may crash on a mask that is none."""
        try:
            areas = mask_area(batch.column("mask"))
            if not areas.null_count:
                return
            row, problem = areas.is_null().index(True).as_py(), "it is null"
        except RowError as error:
            row, problem = error.row, error.problem
        place, uri = (batch.column(name)[row].as_py() for name in ("instance", "uri"))
        raise OutputError(f"the mask of instance {place} of {uri!r} in {self.out} is malformed: {problem}")

    def _batches(self, path: str, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        with used_plainly(self.out), self._masks.open_file(path) as file, pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(BATCH_ROWS, columns=columns)
