"""What `tests/chaos.py` plants in drivers and Ray's workers: points to be killed at, and a model that costs nothing.

`install` puts both in place. A point is armed by a file of its name in the folder CHAOS_POINTS; the first process that
comes by renames it, so that its name says who is there, and waits to be killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from raymask.storage import Folder
from raymask.storage import folder as folder_module

WAIT_S = 5.0  # for the kill; who lives on was not meant, or is about to find that its node is gone

THINGS = {
    r"_raymask/lease\.json": "lease",
    r"_raymask/run\.json": "run",
    r"_raymask/manifest/.*\.parquet": "manifest rows",
    r"_raymask/manifest/.*\.json": "listing",
    r"_raymask/parts/.*": "part",
    r"_raymask/tables/images-.*": "images aside",
    r"_raymask/tables/instances-.*": "instances aside",
    r"images/part-.*": "images",
    r"instances/part-.*": "instances",
    r"raymask\.json": "index",
}
_PATTERNS = {re.compile(f".*/{pattern}"): thing for pattern, thing in THINGS.items()}

# A thing is written under a temporary name ("in"), which then becomes its own.
_OF_DRIVER = ("lease", "manifest rows", "listing", "run", "index")
_OF_WORKER = ("part", "images", "instances", "images aside", "instances aside")
_OF_COPYING = ("images copy", "instances copy")
DRIVER_POINTS = (
    *(f"{when} {thing}" for thing in _OF_DRIVER for when in ("before", "in", "after")),
    *("before segmenting", "before publishing", "before release of lease", "after release of lease"),
)
WORKER_POINTS = (
    *("reading", "predicting"),
    *(f"{when} {thing}" for thing in _OF_WORKER for when in ("before", "in", "after")),
    *(f"{when} {thing}" for thing in _OF_COPYING for when in ("before", "after")),
)


def main(arguments: Sequence[str]) -> int:
    """The `raymask` program with both in its processes; its exit code."""
    from raymask import cli

    config_class, segment = cli.COMMANDS["segment"]

    def with_points(config: Any) -> int:
        install()
        return segment(config)

    cli.COMMANDS["segment"] = config_class, with_points
    return cli.main(arguments)


def reach(point: str) -> None:
    """Wait here to be killed, if this point is armed."""
    folder = Path(os.environ["CHAOS_POINTS"])
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder / point, folder / f"{point}.{os.getpid()}")
        time.sleep(WAIT_S)


def thing_at(path: str) -> str:
    """What of an output lies there."""
    return next((thing for pattern, thing in _PATTERNS.items() if pattern.fullmatch(path)), "something else")


def install() -> None:
    model: Any = ModuleType("raymask.model")
    model.Model, model.Predictor, model.load_model = Model, Predictor, lambda *_source: Model()
    sys.modules["raymask.model"] = model

    from raymask import pipeline, reading, worker

    worker.Worker.predict = lambda self, images: self._predictor(images)  # type: ignore[method-assign]  # no torch
    _put_before(reading, "read_chunk", "reading")
    _put_before(pipeline, "process", "before segmenting")
    _put_before(pipeline, "publish", "before publishing")
    for verb in ("put", "create", "swap"):
        _put_around(verb, lambda verb, path: _written(verb, thing_at(path)))
    _put_around("delete", lambda verb, path: f"release of {thing_at(path)}")
    folder: Any = folder_module
    plain_temporary = folder.temporary_file

    @contextlib.contextmanager
    def temporary(path: str, data: bytes) -> Iterator[str]:
        with plain_temporary(path, data) as name:
            reach(f"in {thing_at(path)}")
            yield name

    folder.temporary_file = temporary


def _written(verb: str, thing: str) -> str:
    return f"{thing} copy" if verb == "put" and thing in ("images", "instances") else thing


def _put_before(module: Any, name: str, point: str) -> None:
    plain = getattr(module, name)

    def with_point(*arguments: Any, **options: Any) -> Any:
        reach(point)
        return plain(*arguments, **options)

    setattr(module, name, with_point)


def _put_around(verb: str, named: Callable[[str, str], str]) -> None:
    plain = getattr(Folder, verb)

    def with_points(self: Folder, name: str, *data: Any) -> Any:
        thing = named(verb, self.url_of(name))
        reach(f"before {thing}")
        answer = plain(self, name, *data)
        reach(f"after {thing}")
        return answer

    setattr(Folder, verb, with_points)


# ------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True)
class Thresholds:
    pass


@dataclass(frozen=True)
class Spec:
    architecture: str = "boxes"
    categories: tuple[Category, ...] = (Category(3, "cat"), Category(7, "dog"))
    thresholds: Thresholds = Thresholds()
    min_size: int = 0
    max_size: int = 0

    def with_options(self, **_options: Any) -> Spec:
        return self


@dataclass(frozen=True)
class Model:
    spec: Spec = Spec()
    sha256: str = "0" * 64


@dataclass(frozen=True)
class Masks:
    counts: list[str]
    areas: NDArray[np.int64]


@dataclass(frozen=True)
class Detections:
    size_hw: tuple[int, int]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: Masks


class Predictor:
    """Finds up to five boxes, each filled by its mask, where the pixels of an image say."""

    categories = Spec().categories

    def __init__(self, _model: Model, **_options: Any) -> None: ...

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        reach("predicting")
        return [detect(image) for image in images]


def detect(image: NDArray[np.uint8]) -> Detections:
    height, width = image.shape[:2]
    chance = np.random.default_rng(image.reshape(-1))
    count = int(chance.integers(0, 6))
    starts = chance.integers(0, (width // 2, height // 2), (count, 2))
    boxes = np.concatenate([starts, starts + chance.integers(1, (width // 2, height // 2), (count, 2))], axis=1)
    masks = np.zeros((height, width, count), np.uint8, order="F")
    for number, (x_min, y_min, x_max, y_max) in enumerate(boxes):
        masks[y_min:y_max, x_min:x_max, number] = 1
    return Detections(
        size_hw=(height, width),
        boxes_xyxy=boxes.astype(np.float32),
        labels=chance.integers(1, 3, count),
        scores=np.sort(chance.random(count).astype(np.float32))[::-1],
        masks=Masks(
            counts=[rle["counts"].decode() for rle in pycocotools.mask.encode(masks)],
            areas=masks.sum((0, 1), dtype=np.int64),
        ),
    )
