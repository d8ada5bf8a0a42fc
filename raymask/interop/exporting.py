"""From an output of raymask to files of other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from raymask.errors import ConfigError
from raymask.fetch import ahead
from raymask.interop.coco_writer import write_annotations, write_results
from raymask.interop.config import ExportConfig
from raymask.interop.csv_writer import write_csv
from raymask.interop.geojson_writer import geojson_file
from raymask.interop.label_maps import draw_maps, values_of
from raymask.interop.labelme_writer import labelme_file
from raymask.interop.names import FileNames
from raymask.interop.selection import Picture, Selection
from raymask.interop.yolo_writer import data_file, label_file
from raymask.progress import Reporter, Silent
from raymask.storage import Folder, used_plainly, whole_file

PUTS_AT_ONCE = 16
MAPS_AT_ONCE = 4  # of several bytes a pixel while they are drawn
REPORT_EVERY = 1_000

FILE_FORMATS = frozenset({"coco", "coco-results", "csv"})

Files = dict[str, bytes]  # what an image becomes: names below the folder of the export -> bytes


@dataclass(frozen=True)
class ExportSummary:
    """What was exported. failed: images of the output that have no masks because they could not be read.

    folder: the folder below which the images lie, and from which the files in a folder are named. renamed: files that
    are not called like their image, since two images differ by their endings alone, or not by case.
    """

    out: str
    images: int
    instances: int
    failed: int
    folder: str
    renamed: int


def export(config: ExportConfig, report: Reporter | None = None) -> ExportSummary:
    """Write the masks of an output as `config.format`.

    A file comes under its name once it is whole. In a folder every file is whole, and `categories.json` or `data.yaml`
    is written last; the same export again writes the same names. OutputError if the output cannot be read.
    """
    selection = Selection(config.masks, config.min_score, config.categories)
    seen = _Seen(selection, report or Silent())
    with used_plainly(config.out):
        if config.format in FILE_FORMATS:
            renamed = 0
            _write_one(config, selection, seen)
        else:
            renamed = _write_many(config, selection, seen)
    return ExportSummary(config.out, seen.images, seen.instances, selection.failed, selection.numbering.folder, renamed)


class _Seen:
    """Counts what goes by."""

    def __init__(self, selection: Selection, report: Reporter) -> None:
        self._total, self._report = selection.images, report
        self.images = self.instances = 0

    def pictures(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        for picture in pictures:
            yield picture
            self.images += 1
            self.instances += len(picture.instances)
            if self.images % REPORT_EVERY == 0 or self.images == self._total:
                text = f"{self.images:,} of {self._total:,} images, {self.instances:,} instances"
                self._report.live(text, self.images, self._total)

    def batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        self.images = self._total
        for batch in batches:
            yield batch
            self.instances += batch.num_rows
            self._report.live(f"{self.instances:,} instances", 0, self._total)


def _write_one(config: ExportConfig, selection: Selection, seen: _Seen) -> None:
    if config.out.endswith("/"):
        raise ConfigError(f"--format {config.format} makes one file, and --out {config.out} is a folder; name a file")
    if config.format != "csv":
        selection.check_ids()
    with whole_file(config.out) as file:
        if config.format == "csv":
            write_csv(seen.batches(selection.instance_batches()), file)
        elif config.format == "coco-results":
            write_results(selection, file, seen.pictures(selection.pictures()))
        else:
            write_annotations(selection, file, seen.pictures(selection.pictures()), config.polygons)


def _write_many(config: ExportConfig, selection: Selection, seen: _Seen) -> int:
    """Write a file an image, then the one that says what the categories are; returns how many were renamed."""
    folder = Folder(config.out)
    ending, make, last = _files_of(config, selection, folder)
    names = FileNames(ending, last)
    named = ((picture, names.name_of(picture.name)) for picture in seen.pictures(selection.pictures()))

    def put(item: tuple[Picture, str]) -> None:
        for name, data in make(*item).items():
            folder.put(name, data)

    at_once = MAPS_AT_ONCE if config.format == "masks" else PUTS_AT_ONCE
    with ThreadPoolExecutor(at_once) as pool:
        for _ in ahead(pool, put, named, 2 * at_once):
            pass
    for name, data in last.items():
        folder.put(name, data)
    return names.renamed


def _files_of(
    config: ExportConfig, selection: Selection, folder: Folder
) -> tuple[str, Callable[[Picture, str], Files], Files]:
    """The ending of the files, what makes them of an image and its name, and the files that come last."""
    categories = selection.categories
    match config.format:
        case "labelme":
            return ".json", lambda p, name: {name: labelme_file(p, folder.url_of(name))}, _list_of(categories)
        case "yolo-seg":
            classes = {id: number for number, (id, _) in enumerate(categories)}
            last = {"data.yaml": data_file(categories)}
            return ".txt", lambda p, name: {f"labels/{name}": label_file(p, classes)}, last
        case "geojson":
            return ".geojson", lambda p, name: {name: geojson_file(p)}, {}
        case _:
            values = values_of(categories)

            def maps(picture: Picture, name: str) -> Files:
                return {f"{map}/{name}": data for map, data in draw_maps(picture, values).items()}

            return ".png", maps, _list_of(categories, values)


def _list_of(categories: list[tuple[int, str]], values: dict[int, int] | None = None) -> Files:
    """`categories.json`, as an import takes it. values: pixel of each category in label maps."""
    entries = [{"id": id, "name": name, **({"value": values[id]} if values else {})} for id, name in categories]
    return {"categories.json": (json.dumps(entries, indent=1) + "\n").encode()}
