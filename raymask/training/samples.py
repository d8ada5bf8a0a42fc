"""From rows to batches: an endless stream of images, shuffled anew each epoch, fetched, decoded and augmented.

The stream is a function of the seed alone: sample number i is row `order(epoch)[i % rows]` of epoch `i // rows`, with
the chances of number i. So a run that goes on from sample i, with any number of workers, sees what the undisturbed one
would have seen. Rows are shuffled, never pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import Datasource, ReadTask
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from torch import Tensor

from raymask.cluster import TASK_CPUS
from raymask.decode import Image
from raymask.errors import ConfigError, Failure
from raymask.fetch import Fetched, Place, fetch, fetch_one
from raymask.masks import decode as decode_mask
from raymask.sandbox import DECODER, Sandbox, borrowed_sandbox
from raymask.training.augment import Augmentation, Target

MIN_TASK_SAMPLES = 8  # that one fetch-decode-augment task makes at the least
MAX_TASKS = 50_000  # and how many such tasks one stream is cut into at the most
CHECK_ROWS = 32
PAUSE_S = 0.02
MAX_REPLACEMENTS = 16

# A sample on its way to a training worker. pixels: 3 x height x width uint8; masks: objects x height x width bits.
SAMPLES = pa.schema(
    [
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("pixels", pa.large_binary(), nullable=False),
        pa.field("boxes_xyxy", pa.list_(pa.float32()), nullable=False),
        pa.field("labels", pa.list_(pa.int64()), nullable=False),
        pa.field("masks", pa.large_binary(), nullable=False),
        pa.field("replaced", pa.string()),  # uri of the image that could not be read, in whose place this one is
    ]
)


@dataclass(frozen=True)
class Reading:
    """How samples are made of rows.

    rows: reference to a table in `raymask.training.dataset.ROWS`; decoder: see `Sandbox`.
    """

    rows: ray.ObjectRef[pa.Table]
    row_count: int
    seed: int
    augmentation: Augmentation | None
    max_pixels: int
    max_bytes: int
    decoder: str = DECODER

    def sandbox(self) -> AbstractContextManager[Sandbox]:
        return borrowed_sandbox(max_bytes=self.max_bytes, max_pixels=self.max_pixels, decoder=self.decoder)


def stream_samples(reading: Reading, first: int, stop: int) -> ray.data.Dataset:
    """Samples first .. stop - 1, in their order, one a block, so that any number of workers takes turns by sample."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Unhurried]
    with ray.data.DataContext.current(context):
        source = SampleSource(reading, first, stop)
        samples: ray.data.Dataset = ray.data.read_datasource(
            source, num_cpus=TASK_CPUS, override_num_blocks=len(source.starts)
        )
    return samples


class Unhurried(ExecutionCallback):
    """A pause between the steps of Ray Data, which takes a whole core to look after samples that wait to be read."""

    def on_execution_step(self, executor: object) -> None:
        time.sleep(PAUSE_S)


class SampleSource(Datasource):
    """Samples first .. stop - 1 as a Ray Data source."""

    def __init__(self, reading: Reading, first: int, stop: int) -> None:
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
                partial(make_samples, self.reading, start, min(start + self.task_samples, self.stop)),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
            for start in self.starts
        ]


def make_samples(reading: Reading, first: int, stop: int) -> Iterator[pa.Table]:
    """Samples first .. stop - 1, one a table in `SAMPLES`.

    An image that cannot be read (all could, when they were checked) gives its place to the one that follows it.
    """
    numbers = range(first, stop)
    rows = ray.get(reading.rows).take(pa.array([row_of(reading, n) for n in numbers])).to_pylist()
    files = fetch([Place(row["uri"]) for row in rows], max_bytes=reading.max_bytes)
    with reading.sandbox() as sandbox:
        for number, row, fetched in zip(numbers, rows, files, strict=True):
            read, pixels, replaced = _readable(reading, sandbox, number, row, fetched)
            image, target = torch.from_numpy(pixels).permute(2, 0, 1), target_of(read)
            if reading.augmentation is not None:
                image, target = reading.augmentation(image, target, seed_of(reading.seed, number))
            yield sample_table(number, image, target, replaced)


def _readable(
    reading: Reading, sandbox: Sandbox, number: int, row: dict[str, Any], fetched: Fetched | Failure
) -> tuple[dict[str, Any], NDArray[np.uint8], str | None]:
    """The row of a sample or the next that can be read, its pixels, and whose place it has, if another's."""
    wanted = row["uri"]
    for ahead in range(1, MAX_REPLACEMENTS + 2):
        image = fetched if isinstance(fetched, Failure) else sandbox.decode(fetched.data)
        pixels = _pixels(row, image)
        if not isinstance(pixels, str):
            return row, pixels, None if ahead == 1 else wanted
        last = row["uri"]
        row = ray.get(reading.rows).slice(row_of(reading, number + ahead), 1).to_pylist()[0]
        fetched = fetch_one(Place(row["uri"]), max_bytes=reading.max_bytes)
    raise ConfigError(
        f"{MAX_REPLACEMENTS + 1} images in a row cannot be read any more, the last is {last!r} "
        f"({pixels}); see to the store, then run the same command again"
    )


def row_of(reading: Reading, number: int) -> int:
    epoch, place = divmod(number, reading.row_count)
    return int(order(reading.seed, epoch, reading.row_count)[place])


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """The rows of an epoch in the order they are seen."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def seed_of(*numbers: int) -> int:
    """One seed of several numbers, well mixed: 0 .. 2**63 - 1."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def target_of(row: dict[str, Any]) -> Target:
    """The objects of a row as torchvision's detectors take them; see `raymask.training.augment`."""
    objects, size = row["objects"], [row["height"], row["width"]]
    masks = [decode_mask({"size": size, "counts": o["counts"]}) for o in objects]
    return {
        "boxes": torch.tensor([o["box_xyxy"] for o in objects], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([o["label"] for o in objects], dtype=torch.int64),
        "masks": torch.from_numpy(np.stack(masks).astype(np.uint8))
        if masks
        else torch.zeros((0, *size), dtype=torch.uint8),
    }


def _pixels(row: dict[str, Any], image: Image | Failure) -> NDArray[np.uint8] | str:
    """H x W x 3 uint8 of the size that was annotated, or in words why not."""
    if isinstance(image, Failure):
        return str(image.kind)
    same = image.pixels.shape[:2] == (row["height"], row["width"])
    return image.pixels if same else "size is not the annotated one"


def sample_table(number: int, image: Tensor, target: Target, replaced: str | None) -> pa.Table:
    """One sample as a table of one row."""
    values = {
        "sample": number,
        "height": image.shape[1],
        "width": image.shape[2],
        "pixels": image.numpy().tobytes(),
        "boxes_xyxy": target["boxes"].reshape(-1).numpy(),
        "labels": target["labels"].numpy(),
        "masks": np.packbits(target["masks"].numpy()).tobytes(),
        "replaced": replaced,
    }
    return pa.table([pa.array([values[f.name]], f.type) for f in SAMPLES], schema=SAMPLES)


def batch_of(samples: pa.Table) -> tuple[list[Tensor], list[Target]]:
    """Images, 3 x H x W float32 in [0, 1], and targets, of samples in `SAMPLES`."""
    images: list[Tensor] = []
    targets: list[Target] = []
    for row in samples.select([f.name for f in SAMPLES if f.name not in ("pixels", "masks")]).to_pylist():
        number = len(images)
        height, width, count = row["height"], row["width"], len(row["labels"])
        pixels = np.frombuffer(samples.column("pixels")[number].as_buffer(), np.uint8).reshape(3, height, width)
        bits = np.frombuffer(samples.column("masks")[number].as_buffer(), np.uint8)
        masks = np.unpackbits(bits, count=count * height * width).reshape(count, height, width)
        images.append(torch.from_numpy(pixels.astype(np.float32)).div_(255))
        targets.append(
            {
                "boxes": torch.tensor(row["boxes_xyxy"], dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor(row["labels"], dtype=torch.int64),
                "masks": torch.from_numpy(masks),
            }
        )
    return images, targets


def find_unreadable(rows: pa.Table, max_pixels: int, max_bytes: int, decoder: str) -> dict[str, str]:
    """The images that cannot be read or have another size than annotated: uri -> why, in words."""
    chunks = [
        rows.select(["uri", "height", "width"]).slice(start, CHECK_ROWS)
        for start in range(0, rows.num_rows, CHECK_ROWS)
    ]
    checked = ray.data.from_arrow(chunks).map_batches(
        partial(_check, max_pixels=max_pixels, max_bytes=max_bytes, decoder=decoder),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=TASK_CPUS,
    )
    failed: dict[str, str] = {}
    batch: Any
    for batch in checked.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        failed |= dict(zip(batch.column("uri").to_pylist(), batch.column("why").to_pylist(), strict=True))
    return failed


def _check(rows: pa.Table, *, max_pixels: int, max_bytes: int, decoder: str) -> pa.Table:
    listed = rows.to_pylist()
    files = fetch([Place(row["uri"]) for row in listed], max_bytes=max_bytes)
    pairs = ((row, f if isinstance(f, Failure) else f.data) for row, f in zip(listed, files, strict=True))
    failed = {}
    with borrowed_sandbox(max_bytes=max_bytes, max_pixels=max_pixels, decoder=decoder) as sandbox:
        for row, image in chain.from_iterable(sandbox.blocks(pairs, CHECK_ROWS)):
            pixels = _pixels(row, image)
            if isinstance(pixels, str):
                failed[row["uri"]] = f"images that cannot be read ({pixels}), left out"
    return pa.table({"uri": pa.array(failed.keys(), pa.string()), "why": pa.array(failed.values(), pa.string())})
