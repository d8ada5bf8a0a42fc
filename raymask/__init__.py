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

    from raymask.cleanup import Stray
    from raymask.evaluation import Evaluation
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
    "evaluate",
    "open",
    "query",
    "segment",
    "status",
    "train",
]


def segment(source: str, *, out: str, **options: Any) -> Summary:
    """Segment the images of `source` into tables in `out`, or go on where an earlier run was cut off.

    options: the fields of `raymask.config.SegmentConfig`, the same as the flags of `raymask segment`.
    """
    from raymask.console import ConsoleReporter
    from raymask.pipeline import segment as run
    from raymask.progress import Silent

    config = SegmentConfig(source=source, out=out, **options)
    if config.quiet:
        return run(config, Silent())
    with ConsoleReporter() as report:
        return run(config, report)


def train(data: str, *, out: str, **options: Any) -> TrainSummary:
    """Train a model on the annotations in `data`; the result is the model folder `out`.

    options: the fields of `raymask.training.config.TrainConfig`, the same as the flags of `raymask train`.
    """
    from raymask.console import ConsoleReporter
    from raymask.progress import Silent
    from raymask.training.config import TrainConfig
    from raymask.training.trainer import train as run

    config = TrainConfig(data=data, out=out, **options)
    if config.quiet:
        return run(config, Silent())
    with ConsoleReporter() as report:
        return run(config, report)


def evaluate(out: str, annotations: str, *, max_detections: int = 100) -> Evaluation:
    """How good the masks of an output are, against a COCO annotation file: see `raymask.evaluation.Evaluation`."""
    from raymask.evaluation import evaluate_fully

    return evaluate_fully(EvaluateConfig(out=out, annotations=annotations, max_detections=max_detections))


def open(out: str) -> Masks:
    """The tables of an output as far as they are committed; OutputError if there is none."""
    from raymask.output import Masks

    return Masks(out)


def query(masks: str, sql: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> DuckDBPyRelation:
    """The answer to a statement over the tables of an output; the same as `open(masks).sql(sql, parameters)`."""
    return open(masks).sql(sql, parameters)


def status(out: str) -> Status:
    """How far an output is; OutputError if there is none."""
    from raymask.state import status as read

    return read(out)


def clean(out: str, *, dry_run: bool = False) -> list[Stray]:
    """Delete files of an output that nothing needs any more, and say which; with `dry_run` only say so."""
    from raymask.cleanup import clean as delete

    return delete(out, dry_run)


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from raymask.model import Predictor

        return Predictor
    raise AttributeError(f"module 'raymask' has no attribute {name!r}")
