"""Options of every command: one frozen class each, the single source of CLI flags, job files and Python keywords.

A field's help text, unit and placeholder stand in its metadata, so that no second list has to be kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from raymask.errors import ConfigError
from raymask.urls import has_credentials, is_web, without_credentials

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "tif", "tiff", "bmp", "gif")

Precision = Literal["auto", "fp32", "bf16"]


OPEN_CLUSTER = "work on a Ray cluster that other machines can reach and that asks for no token"


def option(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    metavar: str | None = None,
    positional: bool = False,
    short: str | None = None,
    repeated: bool = False,
    group: str = "options",
) -> Any:
    """A config field with the text that `--help`, the job file and the reference show for it.

    repeated: a tuple of which each flag gives one member, where others take all in one, comma-separated.
    short: a second flag, such as `-o`, beside the one that follows from the field's name.
    """
    metadata = {
        **{"help": help, "metavar": metavar, "positional": positional, "group": group},
        **{"short": short, "repeated": repeated},
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class FromSource:
    """Where the images are."""

    source: str = option("images to segment: folder, glob, URL, manifest, COCO JSON, Parquet, tar", positional=True)


@dataclass(frozen=True, kw_only=True)
class ToOutput(FromSource):
    """Where the tables go; a class of its own, so that the two stand side by side in help and job files."""

    out: str = option("output folder or URL", metavar="URL", group="what")


@dataclass(frozen=True, kw_only=True)
class Workload(FromSource):
    """Which images go through which model, and how."""

    weights: str | None = option(
        "model folder, weights file (.pth, .safetensors) or torchvision weights name; default: torchvision's COCO "
        "weights of --model",
        default=None,
        metavar="URL",
        group="what",
    )
    model: str | None = option(
        "architecture, for weights that do not say it; default: maskrcnn_resnet50_fpn", default=None, group="what"
    )

    images: str | None = option(
        "folder of the images that a COCO file or a manifest names relatively; default: that file's own folder",
        default=None,
        metavar="URL",
        group="source",
    )
    image_column: str | None = option(
        "column with the encoded images in a Parquet source; default: the only one that can be",
        default=None,
        metavar="NAME",
        group="source",
    )
    extensions: tuple[str, ...] = option(
        "file name endings to take from folders and tar shards, comma-separated; 'all' takes every file",
        default=IMAGE_EXTENSIONS,
        metavar="LIST",
        group="source",
    )
    allow_http: bool = option(
        "read http:// and https:// too, from public addresses; what is fetched follows whoever wrote the list",
        default=False,
        group="source",
    )
    max_pixels: int = option(
        "an image of more pixels fails as too_many_pixels", default=100_000_000, metavar="N", group="source"
    )
    max_bytes: int = option(
        "a file of more bytes fails as too_many_bytes", default=256 * 1024 * 1024, metavar="N", group="source"
    )

    min_score: float | None = option(
        "drop detections that score less; default: the model's, mostly 0.05", default=None, group="model"
    )
    max_detections: int | None = option(
        "keep at most this many a picture, best first; default: the model's, mostly 100",
        default=None,
        metavar="N",
        group="model",
    )
    nms: float | None = option(
        "box IoU above which the weaker detection of a category is dropped; default: the model's, mostly 0.5",
        default=None,
        metavar="IOU",
        group="model",
    )
    mask_threshold: float | None = option(
        "probability above which a pixel belongs to the mask; default: the model's, mostly 0.5",
        default=None,
        metavar="P",
        group="model",
    )
    proposals: int | None = option(
        "region proposals a picture; default: the model's, mostly 1000", default=None, metavar="N", group="model"
    )
    min_size: int | None = option(
        "resize the shorter side to this many pixels; default: the model's, mostly 800",
        default=None,
        metavar="PX",
        group="model",
    )
    max_size: int | None = option(
        "but the longer side to no more than this; default: the model's, mostly 1333",
        default=None,
        metavar="PX",
        group="model",
    )
    precision: Precision = option(  # noqa: RUF009 - ruff does not see that this makes a field
        "arithmetic of the network; auto takes bf16 where the device has instructions for it",
        default="auto",
        group="speed",
    )
    batch_size: int | None = option(
        "images a forward pass; default: 1 on a CPU, 8 on a GPU", default=None, metavar="N", group="speed"
    )
    workers: str | None = option(
        "model workers: N, or MIN:MAX to begin with MIN and grow with the work; default: as many as there is room for, "
        "one a GPU, or one for up to four CPU cores where the cluster has no GPU",
        default=None,
        metavar="N[:MAX]",
        group="speed",
    )
    gpus_per_worker: float | None = option(
        "part of a GPU that a model worker takes, 0.5 for two on each, 0 for none; default: 1 where the cluster has "
        "GPUs by then, so give it where they join only later",
        default=None,
        metavar="SHARE",
        group="speed",
    )
    decode_on: str | None = option(
        "fetch and decode only on machines with this label of Ray's, such as raymask=decode; default: on all",
        default=None,
        metavar="KEY=VALUE",
        group="speed",
    )

    def __post_init__(self) -> None:
        require(bool(self.source), "SOURCE is empty; name a folder, a URL or a manifest")
        check_urls(self)
        for name in ("min_score", "nms", "mask_threshold"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{flag(name)} is {value}; it lies between 0 and 1")
        check_positive(self, "max_pixels", "max_bytes", "max_detections", "proposals", "min_size", "max_size")
        check_positive(self, "batch_size")
        if self.min_size is not None and self.max_size is not None:
            require(self.min_size <= self.max_size, f"--min-size {self.min_size} is above --max-size {self.max_size}")
        require(
            self.precision in ("auto", "fp32", "bf16"),
            f"--precision is {self.precision!r}; auto, fp32 or bf16 is meant",
        )
        require(bool(self.extensions), "--extensions is empty; name endings, or 'all'")
        require(
            self.gpus_per_worker is None or 0 <= self.gpus_per_worker <= 1,
            f"--gpus-per-worker is {self.gpus_per_worker}; it lies between 0 and 1",
        )
        self.worker_range()
        self.decode_labels()

    def worker_range(self) -> tuple[int, int] | None:
        """`--workers` as (min, max); None when it is left to the cluster."""
        return worker_bounds(self.workers)

    def decode_labels(self) -> dict[str, str]:
        """`--decode-on` as a label selector of Ray's; {} for any machine."""
        if self.decode_on is None:
            return {}
        key, _, value = self.decode_on.partition("=")
        require(bool(key and value), f"--decode-on is {self.decode_on!r}; KEY=VALUE is meant, such as raymask=decode")
        return {key: value}

    def model_options(self) -> dict[str, Any]:
        """What takes the place of the model's own thresholds and sizes, by the names it has there; None: nothing."""
        names = ("min_score", "nms", "max_detections", "proposals", "mask_threshold", "min_size", "max_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(Workload, ToOutput):
    """Segment images into tables of masks.

    SOURCE is a folder, a file or a glob (local or any fsspec URL such as s3://), a manifest with a `uri` column
    (Parquet, CSV, JSON Lines), a COCO annotation file, a Parquet table with encoded images in a column, or
    WebDataset tar shards. Run the same command again to resume, or to add images that are new in the source.
    """

    images_per_part: int | None = option(
        "images a worker is handed at once and writes as one part of the journal; default: 32 on a CPU, 64 on a GPU",
        default=None,
        metavar="N",
        group="output",
    )
    images_per_file: int = option(
        "images a published Parquet file; fixed when the output is made", default=20_000, metavar="N", group="output"
    )
    retry_failed: bool = option("process again the images that failed", default=False, group="output")
    max_failed: int | None = option(
        "exit with code 2 if more images than this have failed; default: no limit",
        default=None,
        metavar="N",
        group="output",
    )
    report: bool = option("write a page about the output at the end, report.html in it", default=False, group="output")
    dry_run: bool = option("say what would be done, and do nothing", default=False, group="output")
    quiet: bool = option("print nothing but errors", default=False, group="output")
    log_json: bool = option(
        "say how the run goes as JSON lines on standard error, each with the run's id", default=False, group="output"
    )
    profile: str | None = option(
        "write what every process did when to this file, for https://ui.perfetto.dev",
        default=None,
        metavar="FILE",
        group="output",
    )
    allow_open_cluster: bool = option(OPEN_CLUSTER, default=False, group="output")

    def __post_init__(self) -> None:
        require(bool(self.out), "--out is empty; name a folder or a URL for the tables")
        super().__post_init__()
        check_positive(self, "images_per_part", "images_per_file")
        require(self.max_failed is None or self.max_failed >= 0, "--max-failed cannot be negative")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure an output against COCO annotations: average precision and recall, and where it goes wrong."""

    out: str = option("output folder or URL", positional=True)
    annotations: str = option("COCO annotation file of the same images", metavar="URL")
    max_detections: int = option(
        "detections that count, of a category in an image, the best first", default=100, metavar="N"
    )
    json: str | None = option("write all numbers to this file", default=None, metavar="FILE")
    html: str | None = option("write a page with precision-recall curves to this file", default=None, metavar="FILE")
    quiet: bool = option("print nothing but errors", default=False)

    def __post_init__(self) -> None:
        check_urls(self)
        require(self.max_detections >= 1, f"--max-detections is {self.max_detections}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Say how far an output is: images listed, done, failed, published, and who writes it now."""

    out: str = option("output folder or URL", positional=True)
    json: bool = option("print JSON", default=False)

    def __post_init__(self) -> None:
        check_urls(self)


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Delete files in an output that no table and no resume needs: left by killed runs or overtaken by retries."""

    out: str = option("output folder or URL", positional=True)
    dry_run: bool = option("list the files, and delete nothing", default=False)

    def __post_init__(self) -> None:
        check_urls(self)


def flag(name: str) -> str:
    """The CLI flag of a config field: `min_score` -> `--min-score`."""
    return "--" + name.replace("_", "-")


def worker_bounds(workers: str | None) -> tuple[int, int] | None:
    """The option `--workers`, N or MIN:MAX, as (min, max); None where it is not given."""
    if workers is None:
        return None
    low, colon, high = str(workers).partition(":")
    try:
        bounds = int(low), int(high if colon else low)
    except ValueError:
        raise ConfigError(f"--workers is {workers!r}; a number or MIN:MAX is meant, such as 4 or 2:8") from None
    require(1 <= bounds[0] <= bounds[1], f"--workers is {workers!r}; 1 <= MIN <= MAX is meant")
    return bounds


def check_urls(config: Any) -> None:
    """ConfigError if an option has credentials in it, or names a web server where that was not asked for."""
    for about in dataclasses.fields(config):
        value = getattr(config, about.name)
        if not isinstance(value, str):
            continue
        name = about.name.upper() if about.metadata["positional"] else flag(about.name)
        require(
            not has_credentials(value),
            f"{name} has credentials in it: {without_credentials(value)}; take them out, and give them by the "
            f"environment (AWS_ACCESS_KEY_ID and the like)",
        )
        require(
            not is_web(value) or getattr(config, "allow_http", False),
            f"{name} is on a web server: {value}; download it, or use `raymask segment --allow-http` where images are "
            f"segmented",
        )


def check_positive(config: Any, *names: str) -> None:
    """ConfigError if one of these options is given and below 1."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 1, f"{flag(name)} is {value}; it must be at least 1")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
