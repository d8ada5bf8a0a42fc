"""Options of `raymask export` and `raymask import`."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from raymask.config import check_urls, option, require
from raymask.storage import absolute, join

ExportFormat = Literal["coco", "coco-results", "labelme", "yolo-seg", "geojson", "masks", "csv"]
ImportFormat = Literal["coco", "coco-results", "labelme", "masks"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the masks of an output in a format of other programs.

    coco (annotations), coco-results and csv make one file; labelme, yolo-seg, geojson and masks (PNG label maps) a
    folder with a file an image. The images themselves stay where they are.
    """

    masks: str = option("output folder or URL", positional=True)
    format: ExportFormat = option("what to write")  # noqa: RUF009 - ruff does not see that this makes a field
    out: str = option("file or folder to write, or its URL", metavar="URL")
    min_score: float = option("leave out instances that score less", default=0.0)
    categories: tuple[str, ...] = option(
        "names of the categories to export, comma-separated; default: all", default=(), metavar="LIST"
    )
    polygons: bool = option("coco: write polygons instead of RLE, for programs that read nothing else", default=False)
    quiet: bool = option("print nothing but errors", default=False)

    def __post_init__(self) -> None:
        check_urls(self)
        check_format(self.format, ExportFormat)
        require(bool(self.out), "--out is empty; name a file or a folder")
        require(0 <= self.min_score <= 1, f"--min-score is {self.min_score}; it lies between 0 and 1")
        require(not self.polygons or self.format == "coco", f"--polygons is for --format coco, not {self.format}")
        is_inside = join(absolute(self.out), "").startswith(join(absolute(self.masks), ""))
        require(not is_inside, f"--out {self.out} lies in the output, whose files it could replace; write elsewhere")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Make an output of raymask from masks that another program, or a person, has made.

    FILE is a COCO annotation file, COCO results, a LabelMe file or a folder of them, or a folder of PNG label maps.
    What is wrong in it is left out, counted and said. The images are not read.
    """

    file: str = option("what to import: file, folder or URL", positional=True)
    format: ImportFormat = option("what it is")  # noqa: RUF009 - as above
    out: str = option("output folder or URL", metavar="URL")
    images: str | None = option(
        "folder of the images that FILE names relatively, or of those that label maps belong to; default: FILE's own",
        default=None,
        metavar="URL",
    )
    annotations: str | None = option(
        "coco-results: the COCO file with their images and categories", default=None, metavar="URL"
    )
    categories: str | None = option(
        "labelme, masks: JSON list of categories with id and name, or a text file with a name a line, the first with "
        "id 1; default: categories.json in FILE, else all names or numbers that occur",
        default=None,
        metavar="URL",
    )
    category: str | None = option(
        "masks: the values of a map tell objects apart, and all are of this category", default=None, metavar="NAME"
    )
    quiet: bool = option("print nothing but errors", default=False)

    def __post_init__(self) -> None:
        check_urls(self)
        check_format(self.format, ImportFormat)
        require(bool(self.file), "FILE is empty; name a file or a folder")
        require(bool(self.out), "--out is empty; name a folder or a URL for the tables")
        by_file = self.format in ("labelme", "masks")
        require(self.categories is None or by_file, f"--categories is for labelme and masks, not {self.format}")
        require(self.category is None or self.format == "masks", f"--category is for masks, not {self.format}")
        require(
            self.category is None or self.categories is None, "--category and --categories exclude each other; give one"
        )
        require(
            self.format != "masks" or self.images is not None,
            "label maps do not say which images they belong to; name the folder of those with --images",
        )
        if self.format == "coco-results":
            require(self.annotations is not None, "COCO results name no images; give the COCO file with --annotations")
        else:
            require(self.annotations is None, f"--annotations is for coco-results, not {self.format}")


def check_format(given: str, formats: object) -> None:
    known = typing.get_args(formats)
    require(given in known, f"--format is {given!r}; one of {', '.join(known)} is meant")
