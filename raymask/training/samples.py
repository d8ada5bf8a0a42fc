"""From rows to batches: an endless stream of images, shuffled anew each epoch, fetched, decoded and augmented.

The stream is a function of the seed alone: sample number i is row `order(epoch)[i % rows]` of epoch `i // rows`, with
the chances of number i. So a run that goes on from sample i, with any number of workers, sees what the undisturbed one
would have seen. Rows are shuffled, never pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

import raymask.model.light_torchvision  # noqa: F401  # before what imports torchvision
from raymask.errors import ConfigError, Failure
from raymask.fetch import Fetched, Place, fetch, fetch_one
from raymask.masks import decode as decode_mask
from raymask.sandbox import DECODER, Sandbox, borrowed_sandbox
from raymask.training.augment import Augmentation, Target
from raymask.training.photos import pixels_of

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
        pixels = pixels_of(row, image)
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
