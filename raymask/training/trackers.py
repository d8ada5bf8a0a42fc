"""MLflow and Weights & Biases, through their own clients: where `--track` sends what is logged.

Servers, projects and keys come from the clients' own environment variables (MLFLOW_TRACKING_URI, WANDB_PROJECT, ...).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from raymask.errors import ConfigError
from raymask.storage import Folder
from raymask.training.history import Record, Tracker, scalars


@contextlib.contextmanager
def open_trackers(names: Sequence[str], out: str, kept: Folder, options: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """The trackers by name, for one run that goes on whenever this output does. options: shown with the run.

    ConfigError for an unknown one, or one that is not installed.
    """
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise ConfigError(f"--track {unknown[0]} is not known; known are: {', '.join(TRACKERS)}")
    with contextlib.ExitStack() as stack:
        try:
            trackers = [stack.enter_context(TRACKERS[name](out, kept, options)) for name in names]
        except ImportError as error:
            raise ConfigError(f"--track needs a package: {error}; pip install 'raymask[{','.join(names)}]'") from error
        yield trackers


@contextlib.contextmanager
def _mlflow(out: str, kept: Folder, options: Mapping[str, Any]) -> Iterator[Tracker]:
    import mlflow

    there = kept.read_or_none("mlflow.txt")
    with mlflow.start_run(run_id=there.decode() if there else None, run_name=None if there else out) as run:
        if there is None:
            kept.put("mlflow.txt", run.info.run_id.encode())
            mlflow.log_params({name: value for name, value in options.items() if value is not None})
        yield lambda record: mlflow.log_metrics(scalars(record), step=record["images"])


@contextlib.contextmanager
def _wandb(out: str, kept: Folder, options: Mapping[str, Any]) -> Iterator[Tracker]:
    import wandb

    id = kept.put_if_absent("wandb.txt", uuid.uuid4().hex[:16].encode()).decode()
    run = wandb.init(id=id, name=out, config=dict(options), resume="allow")

    def track(record: Record) -> None:
        # Steps must not fall there, but a validation speaks of a checkpoint that lies behind.
        run.log({**scalars(record), "images": record["images"]})

    run.define_metric("*", step_metric="images")
    try:
        yield track
    finally:
        run.finish()


TRACKERS: dict[str, Callable[[str, Folder, Mapping[str, Any]], contextlib.AbstractContextManager[Tracker]]] = {
    "mlflow": _mlflow,
    "wandb": _wandb,
}
