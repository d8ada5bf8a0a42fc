"""A model that costs nothing and finds nothing, in place of `raymask.model`: what is left of a run is everything else.

    python benchmarks/null_model.py IMAGES OUT

`install` puts it in place in this process, `without_model/` on the PYTHONPATH in all that begin.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class NoMasks:
    counts: tuple[str, ...] = ()
    areas: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class NoDetections:
    size_hw: tuple[int, int]
    boxes_xyxy: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    masks: NoMasks = field(default_factory=NoMasks)


@dataclass(frozen=True)
class Thresholds:
    pass


@dataclass(frozen=True)
class Spec:
    architecture: str = "null"
    categories: tuple[Any, ...] = ()
    thresholds: Thresholds = Thresholds()
    min_size: int = 0
    max_size: int = 0

    def with_options(self, **_options: Any) -> Spec:
        return self


@dataclass(frozen=True)
class Model:
    spec: Spec = Spec()
    sha256: str = "0" * 64


class Predictor:
    categories = ()

    def __init__(self, _model: Model, **_options: Any) -> None: ...

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[NoDetections]:
        return [NoDetections((image.shape[0], image.shape[1])) for image in images]


def load_model(*_source: Any) -> Model:
    return Model()


def install() -> None:
    module: Any = ModuleType("raymask.model")
    module.Model, module.Predictor, module.load_model = Model, Predictor, load_model
    sys.modules["raymask.model"] = module


STEPS = ("add_listing", "scan_parts", "process", "publish")


def time_steps() -> dict[str, float]:
    """Seconds of the steps of `raymask.pipeline.segment` that the driver of a run will have spent."""
    from raymask import pipeline

    spent: dict[str, float] = {}

    def timed(name: str, step: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        result = step(*args)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
        return result

    for name in STEPS:
        setattr(pipeline, name, partial(timed, name, getattr(pipeline, name)))
    return spent


def main() -> None:
    """`raymask segment IMAGES --out OUT` with this model; prints what it took in JSON."""
    start = time.perf_counter()
    images, out = sys.argv[1:]
    install()
    of_workers = str(Path(__file__).parent / "without_model")
    os.environ["PYTHONPATH"] = os.pathsep.join([of_workers, os.environ.get("PYTHONPATH", "")])
    import raymask

    steps_s = time_steps()
    summary = raymask.segment(images, out=out, quiet=True)
    seconds = time.perf_counter() - start
    said = {"images": summary.images, "seconds": seconds, "segment_s": summary.segment_s, "steps_s": steps_s}
    said["driver_cpu_s"] = time.process_time()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
