"""Images that kill whoever works on them are found, and nothing else is lost with them."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
import torch
from conftest import draw_folder, draw_picture
from hypothesis import given
from hypothesis import strategies as st

import raymask
from raymask import pipeline
from raymask.errors import ErrorKind, Failure
from raymask.model import Detections, Predictor
from raymask.witness import MAX_DEATHS, Watched, Witness
from raymask.worker import DEVICE_FAULT, Worker


class DeathError(BaseException):
    """The end of a process, as far as the witness sees it: what was begun is not ended."""


def doubled(inputs: list[int]) -> list[int]:
    return [2 * x for x in inputs]


def until_done(groups: list[list[int]], poison: set[int], witness: Witness, chance: random.Random) -> tuple[Any, int]:
    """All groups, in any order, each taken up by another process when one dies; (results, deaths)."""

    def work(inputs: list[int]) -> list[int]:
        if poison & set(inputs):
            raise DeathError
        return doubled(inputs)

    results: dict[int, Any] = {}
    deaths, waiting = 0, list(groups)
    while waiting:
        group = waiting.pop(chance.randrange(len(waiting)))
        try:
            results |= Watched(work, witness)({n: n for n in group})
        except DeathError:
            deaths += 1
            waiting.append(group)
    return results, deaths


@given(st.sets(st.integers(0, 39)), st.randoms(), st.integers(1, 16))
def test_only_the_poison_fails_and_costs_three_deaths(poison: set[int], chance: random.Random, size: int) -> None:
    groups = [list(range(first, min(first + size, 40))) for first in range(0, 40, size)]
    results, deaths = until_done(groups, poison, Witness(), chance)
    assert results.keys() == set(range(40))
    for number, result in results.items():
        if number in poison:
            assert isinstance(result, Failure)
            assert result.kind is ErrorKind.CRASHED_WORKER
        else:
            assert result == 2 * number
    assert deaths <= MAX_DEATHS * len(poison)


def test_a_death_that_is_not_repeated_costs_nothing() -> None:
    """As when a machine is lost."""
    witness = Witness()
    witness.begin([1, 2, 3])
    witness.begin_alone(2)
    assert Watched(doubled, witness)({1: 1, 2: 2, 3: 3}) == {1: 2, 2: 4, 3: 6}
    assert witness.begin([1, 2, 3]) == {}


def test_a_suspect_is_alone() -> None:
    """Nothing else runs in its process meanwhile, so that nothing else can be what kills it."""
    witness, running, most = Witness(), [0], {True: 0, False: 0}
    witness.begin([0])
    lock = threading.Lock()

    def work(inputs: list[int]) -> list[int]:
        with lock:
            running[0] += 1
        time.sleep(0.002)
        with lock:
            most[0 in inputs] = max(most[0 in inputs], running[0])
            running[0] -= 1
        return doubled(inputs)

    watched = Watched(work, witness)
    groups = [{n: n for n in range(first, first + 5)} for first in range(0, 100, 5)]
    threads = [threading.Thread(target=watched, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[True] == 1
    assert most[False] > 1


RED, GREEN = (255, 0, 0), (0, 255, 0)


def has(images: list[Any], colour: tuple[int, int, int]) -> bool:
    return any((image == colour).all() for image in images)


class MortalWorker(Worker):
    """Dies at red pictures, and has no memory for green ones nor for more than two at once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        forward = self._predictor._forward

        def scarce(images: list[Any]) -> list[Any]:
            if len(images) > 2 or has(images, GREEN):
                raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")
            return forward(images)

        self._predictor._forward = scarce  # type: ignore[method-assign]

    def predict(self, images: list[Any]) -> list[Any]:
        if has(images, RED):
            signal.raise_signal(signal.SIGSEGV)  # in this thread, which must not go on
        return super().predict(images)


@pytest.mark.usefixtures("ray_session")
def test_a_run_in_which_images_kill_model_workers_or_do_not_fit_them(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "Worker", MortalWorker)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # workers do not find it
    source = draw_folder(tmp_path / "in", 12)
    for name, colour in (("0003-red", RED), ("0008-green", GREEN)):
        PIL.Image.fromarray(np.full((48, 64, 3), colour, np.uint8)).save(source / f"{name}.png")
    out = tmp_path / "out"
    options: Any = {"weights": model_folder, "quiet": True, "images_per_part": 7, "batch_size": 5, "precision": "fp32"}
    summary = raymask.segment(str(source), out=str(out), **options)
    expected = {"crashed_worker": 1, "out_of_memory": 1}
    assert (summary.images, summary.ok, summary.errors) == (14, 12, expected)
    rows = pq.read_table(out / "images").to_pylist()
    failed = {Path(row["uri"]).stem: (row["error"], row["error_detail"]) for row in rows if row["error"]}
    assert failed["0003-red"] == ("crashed_worker", f"{MAX_DEATHS} model workers have died at it")
    assert failed["0008-green"][0] == "out_of_memory"
    assert failed["0008-green"][1].startswith("48 x 64 does not fit cpu: ")
    predictor, found = (
        Predictor(model_folder, device="cpu", precision="fp32"),
        pq.read_table(out / "instances").to_pandas(),
    )
    for number in range(12):
        [alone] = predictor([np.array(draw_picture(number))])
        assert isinstance(alone, Detections)
        rows_of_it = found[found.uri.str.endswith(f"/{number:04d}.png")]
        np.testing.assert_allclose(rows_of_it.score, alone.scores, atol=1e-4)
        np.testing.assert_allclose(rows_of_it[["x_min", "y_min", "x_max", "y_max"]], alone.boxes_xyxy, atol=1e-2)


def test_a_fault_of_the_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For nothing works on the device any more in this one; memory that does not suffice is another matter."""
    ended: list[int] = []

    class Failing(Predictor):
        def __init__(self) -> None: ...
        def __call__(self, images: Any) -> Any:
            raise error

    monkeypatch.setattr(os, "_exit", ended.append)
    worker = object.__new__(Worker)
    worker._predictor = Failing()
    error: Exception = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    worker.predict([])
    assert ended == [DEVICE_FAULT]
    error = RuntimeError("anything else")
    with pytest.raises(RuntimeError, match="anything else"):
        worker.predict([])
    assert len(ended) == 1
