"""raymask: tables of masks from buckets of images.

    import raymask

    raymask.segment("photos/", out="masks/", weights="model/")
    masks = raymask.open("masks/")
    masks.instances.to_pandas()

Every command of the `raymask` program is a function here with the same options. Importing this module loads neither
Ray nor torch; what needs them loads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raymask.config import EvaluateConfig, SegmentConfig
from raymask.errors import ConfigError, ErrorKind, Failure, OutputError, RaymaskError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation
    from PIL.Image import Image

    from raymask.cleanup import Stray
    from raymask.evaluation import Evaluation
    from raymask.forecast.forecast import Forecast
    from raymask.interop.config import ExportFormat, ImportFormat
    from raymask.interop.exporting import ExportSummary
    from raymask.interop.importing import ImportSummary
    from raymask.lakes.publisher import TableChange
    from raymask.model import Predictor
    from raymask.output import Masks
    from raymask.pipeline import Summary
    from raymask.state import Status
    from raymask.training.trainer import TrainSummary

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "ErrorKind",
    "Failure",
    "OutputError",
    "Predictor",
    "RaymaskError",
    "clean",
    "draw",
    "evaluate",
    "export",
    "import_",
    "open",
    "plan",
    "publish",
    "query",
    "report",
    "segment",
    "status",
    "train",
    "view",
]


def segment(source: str, *, out: str, **options: Any) -> Summary:
    """Segment the images of `source` into tables in `out`, or go on where an earlier run was cut off.

    options: the fields of `raymask.config.SegmentConfig`, the same as the flags of `raymask segment`.
    """
    from raymask.logs import reporter_of
    from raymask.pipeline import segment as run

    config = SegmentConfig(source=source, out=out, **options)
    with reporter_of(config) as report:
        return run(config, report)


def plan(source: str, **options: Any) -> Forecast:
    """How long a run over `source` would take and what it would cost, from a sample of it that is segmented now.

    options: the fields of `raymask.forecast.config.PlanConfig`, the same as the flags of `raymask plan`.
    """
    from raymask.forecast.config import PlanConfig
    from raymask.forecast.forecast import forecast

    return forecast(PlanConfig(source=source, **options))


def train(data: str, *, out: str, **options: Any) -> TrainSummary:
    """Train a model on the annotations in `data`; the result is the model folder `out`.

    options: the fields of `raymask.training.config.TrainConfig`, the same as the flags of `raymask train`.
    """
    from raymask.console import reporter
    from raymask.training.config import TrainConfig
    from raymask.training.trainer import train as run

    config = TrainConfig(data=data, out=out, **options)
    with reporter(config.quiet) as report:
        return run(config, report)


def evaluate(out: str, annotations: str, *, max_detections: int = 100) -> Evaluation:
    """How good the masks of an output are, against a COCO annotation file: see `raymask.evaluation.Evaluation`."""
    from raymask.evaluation import evaluate_fully

    return evaluate_fully(EvaluateConfig(out=out, annotations=annotations, max_detections=max_detections))


def publish(out: str, **options: Any) -> list[TableChange]:
    """Finish the tables of an output, or bring their rows into Delta or Iceberg tables, exactly once.

    options: the fields of `raymask.lakes.config.PublishConfig`, the same as the flags of `raymask publish`.
    """
    from raymask.console import reporter
    from raymask.lakes.config import PublishConfig
    from raymask.lakes.publisher import publish as run

    config = PublishConfig(out=out, **options)
    with reporter(config.quiet) as report:
        return run(config, report)


def open(out: str) -> Masks:
    """The tables of an output as far as they are committed; OutputError if there is none."""
    from raymask.output import Masks

    return Masks(out)


def query(masks: str, sql: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> DuckDBPyRelation:
    """The answer to a statement over the tables of an output; the same as `open(masks).sql(sql, parameters)`."""
    return open(masks).sql(sql, parameters)


def report(masks: str, *, out: str = "report.html", allow_http: bool = False) -> None:
    """Write one page about an output: counts, failures, distributions, pace and sample pictures."""
    from raymask.reporting.config import ReportConfig
    from raymask.reporting.document import write_report

    write_report(ReportConfig(masks=masks, out=out, allow_http=allow_http))


def draw(masks: str, uri: str, **options: Any) -> Image:
    """The picture of one image with what was found in it; options: those of `raymask.output.Masks.draw`."""
    return open(masks).draw(uri, **options)


def view(out: str, **options: Any) -> None:
    """Serve a gallery of an output on this machine, and print its link, until it is stopped (Ctrl-C).

    options: the fields of `raymask.gallery.config.ViewConfig`, the same as the flags of `raymask view`.
    """
    from raymask.gallery.config import ViewConfig
    from raymask.gallery.serving import view as serve

    serve(ViewConfig(out=out, **options), print)


def status(out: str) -> Status:
    """How far an output is; OutputError if there is none."""
    from raymask.state import status as read

    return read(out)


def clean(out: str, *, dry_run: bool = False) -> list[Stray]:
    """Delete files of an output that nothing needs any more, and say which; with `dry_run` only say so."""
    from raymask.cleanup import clean as delete

    return delete(out, dry_run)


def export(masks: str, *, format: ExportFormat, out: str, **options: Any) -> ExportSummary:
    """Write the masks of an output as COCO, LabelMe, YOLO, GeoJSON, PNG or CSV.

    options: the fields of `raymask.interop.config.ExportConfig`, the same as the flags of `raymask export`.
    """
    from raymask.console import reporter
    from raymask.interop.config import ExportConfig
    from raymask.interop.exporting import export as run

    config = ExportConfig(masks=masks, format=format, out=out, **options)
    with reporter(config.quiet) as report:
        return run(config, report)


def import_(file: str, *, format: ImportFormat, out: str, **options: Any) -> ImportSummary:
    """Make an output of annotations or results in a format of other programs. `import` alone is Python's own word.

    options: the fields of `raymask.interop.config.ImportConfig`, the same as the flags of `raymask import`.
    """
    from raymask.console import reporter
    from raymask.interop.config import ImportConfig
    from raymask.interop.importing import import_masks

    config = ImportConfig(file=file, format=format, out=out, **options)
    with reporter(config.quiet) as report:
        return import_masks(config, report)


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from raymask.model import Predictor

        return Predictor
    raise AttributeError(f"module 'raymask' has no attribute {name!r}")
