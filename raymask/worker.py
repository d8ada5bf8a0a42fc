"""Model workers: decoded images in, their rows in the journal."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymask.config import SegmentConfig
from raymask.errors import Failure, RaymaskError
from raymask.journal import write_part
from raymask.pools import Pool
from raymask.storage import Folder, used_plainly
from raymask.tables import part_table, pixels_of
from raymask.timing import Idleness, stage, stopwatch
from raymask.witness import Watched, Witness

if TYPE_CHECKING:
    from raymask.model import Detections

DEVICE_FAULT = 70  # exit code of a worker whose device has failed

COUNTS = pa.schema(
    [
        ("images", pa.int64()),
        ("failed", pa.int64()),
        ("error", pa.string()),
        ("trace", pa.string()),
        ("timings", pa.list_(pa.string())),  # JSON of `Taken`, of this call and of the tasks that read for it
    ]
)


class Worker:
    """A model worker: decoded images in, their rows written as one part of the journal. Ray keeps one a GPU or core."""

    def __init__(
        self, model: Any, config: SegmentConfig, pool: Pool, folder: Folder, attempt: int, witness: Any
    ) -> None:
        from raymask.model import Predictor

        self._predictor = Predictor(
            ray.get(model),
            device=pool.device,
            precision=config.precision,
            batch_size=config.batch_size,
            threads=pool.worker_threads,
            **config.model_options(),
        )
        self._categories = [(c.id, c.name) for c in self._predictor.categories]
        self._out = config.out
        self._folder = folder
        self._attempt = attempt
        self._predict = Watched(self.predict, _RemoteWitness(witness))
        self._idleness = Idleness(pool.concurrent_calls)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """One row of `COUNTS`, which is all that goes back to the driver; what is raised goes that way too.

        Where an exception left a worker of several threads, the run was seen to stand still.
        """
        images = failed = 0
        error: str | None = None
        trace: str | None = None
        with stopwatch("model") as watch, self._idleness.interrupted():
            try:
                images, failed = self.commit(decoded)
            except RaymaskError as raised:
                error = str(raised)
            except Exception as raised:  # a fault of the program's
                error, trace = repr(raised), traceback.format_exc()
        timings = [*decoded.column("timing").drop_null().to_pylist(), watch.take().to_json()]
        return pa.table([[images], [failed], [error], [trace], [timings]], schema=COUNTS)

    def commit(self, decoded: pa.Table) -> tuple[int, int]:
        """Write the part of these images; returns how many there are and how many of them failed."""
        images = pixels_of(decoded)
        ordinals = decoded.column("ordinal").to_pylist()
        with stage("predict"):
            found = self._predict({ordinals[row]: pixels for row, pixels in images.items()})
        with stage("encode"):
            rows = part_table(decoded, {row: found[ordinals[row]] for row in images}, self._categories)
        if rows.num_rows:
            with used_plainly(self._out), stage("write"):
                write_part(self._folder, rows, self._attempt)
        return rows.num_rows, rows.num_rows - rows.column("error").null_count

    def predict(self, images: list[NDArray[np.uint8]]) -> list[Detections | Failure]:
        """What the model finds in each. An error that the device does not recover from ends this process."""
        try:
            return self._predictor(images)
        except self._predictor.device_faults:
            # The next process is told at what it happened.
            os._exit(DEVICE_FAULT)


def begin_witness() -> Any:
    """The witness as an actor on the driver's machine: what it knows is lost only where the run ends as well."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Witness).options(**options).remote()


class _RemoteWitness:
    """The witness, which is an actor of Ray's."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, numbers: Sequence[int]) -> dict[int, int]:
        deaths: dict[int, int] = ray.get(self._actor.begin.remote(list(numbers)))
        return deaths

    def begin_alone(self, number: int) -> None:
        ray.get(self._actor.begin_alone.remote(number))

    def end(self, numbers: Sequence[int]) -> None:
        self._actor.end.remote(list(numbers))  # nobody has to wait for that
