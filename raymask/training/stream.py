"""The stream of samples as Ray Data runs it; without torch, which half a dozen of Ray's processes would import for it.

Reading -> SampleSource -> tasks that each make a few samples -> one sample a block, in their order
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata

from raymask.training.storage import Storage

MIN_TASK_SAMPLES = 8  # that one fetch-decode-augment task makes at the least
MAX_TASKS = 10_000  # of one stream; Ray Data puts each into its store before the first begins
# Making samples is work for a core, unlike reading alone; each such process takes seconds to import torch, too.
SAMPLE_CPUS = 0.5
PAUSE_S = 0.02


@dataclass(frozen=True)
class Stream:
    """Samples to train on, from where the training is up to `stop`.

    reading: reference to a `raymask.training.samples.Reading`.
    """

    reading: ray.ObjectRef[Any]
    storage: Storage
    stop: int

    def remaining(self) -> ray.data.Dataset:
        """The samples from the last checkpoint on: Ray Train asks each time that it starts workers."""
        return stream_samples(self.reading, self.storage.images_seen(), self.stop)


def stream_samples(reading: ray.ObjectRef[Any], first: int, stop: int) -> ray.data.Dataset:
    """Samples first .. stop - 1, in their order, one a block, so that any number of workers takes turns by sample."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Unhurried]
    with ray.data.DataContext.current(context):
        source = SampleSource(reading, first, stop)
        samples: ray.data.Dataset = ray.data.read_datasource(
            source, num_cpus=SAMPLE_CPUS, override_num_blocks=len(source.starts)
        )
    return samples


class Unhurried(ExecutionCallback):
    """A pause between the steps of Ray Data, which takes a whole core to look after samples that wait to be read."""

    def on_execution_step(self, executor: object) -> None:
        time.sleep(PAUSE_S)


class SampleSource(Datasource):
    """Samples first .. stop - 1 as a Ray Data source."""

    def __init__(self, reading: ray.ObjectRef[Any], first: int, stop: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reading = reading
        self.stop = stop
        self.task_samples = max(MIN_TASK_SAMPLES, -(-(stop - first) // MAX_TASKS))
        self.starts = range(first, stop, self.task_samples)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task for each start, whatever parallelism Ray proposes."""
        return [
            ReadTask(
                partial(_read, self.reading, start, min(start + self.task_samples, self.stop)),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
            for start in self.starts
        ]


def _read(reading: ray.ObjectRef[Any], first: int, stop: int) -> Iterator[pa.Table]:
    # In a thread: Ray ends tasks by interrupting the main one, and a process with half of torch in it fails for ever.
    with ThreadPoolExecutor(1) as beside:
        samples = beside.submit(importlib.import_module, "raymask.training.samples").result()
    yield from samples.make_samples(ray.get(reading), first, stop)
