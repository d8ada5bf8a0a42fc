"""Fixtures for tests that run the whole of raymask: small pictures, a small model, one Ray session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import PIL.Image
import pytest
import torch
from browser import chromium
from playwright.sync_api import Browser
from stores import Store, s3_store

from raymask.model import Category, Model, ModelSpec, Thresholds, build, save_model

if "PYTEST_XDIST_WORKER" in os.environ:  # of several processes that test at once each finds only its own Ray clusters
    os.environ["RAY_TMPDIR"] = f"/tmp/raymask-{os.environ['PYTEST_XDIST_WORKER']}"  # short, as names of sockets must be

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as where the tests run in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Time is measured in benchmarks/, not here, where the machine may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The folder of a shared data set; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"shared data set {name} is not there")
        return path

    return folder


@pytest.fixture(scope="session")
def small_model() -> Model:
    return make_small_model()


def make_small_model() -> Model:
    """A Mask R-CNN with random weights that finds five objects in any picture, in some 20 ms."""
    torch.manual_seed(7)
    spec = ModelSpec(
        architecture="maskrcnn_resnet10_fpn",
        categories=(Category(3, "cat"), Category(7, "dog")),
        min_size=64,
        max_size=128,
        thresholds=Thresholds(min_score=0.0, max_detections=5, proposals=50),
    )
    return Model.of(spec, build(spec).state_dict())


@pytest.fixture(scope="session")
def model_folder(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("model"))
    save_model(url, small_model.spec, small_model.weights)
    return url


def draw_picture(seed: int, height: int = 48, width: int = 64) -> PIL.Image.Image:
    """Smooth noise, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def draw_folder(folder: Path, count: int, broken: int = 0) -> Path:
    """`count` PNG pictures, named so that they sort by number, and `broken` files that are none, among them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_picture(number).save(folder / f"{number:04d}.png")
    for number in range(broken):
        (folder / f"{number:04d}-broken.png").write_bytes(b"no picture " + bytes([number]))
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray session for all tests that call raymask in this process."""
    import raymask.cluster

    with raymask.cluster.ray_session():
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    """An S3 store for all tests of a file."""
    with s3_store() as store:
        yield store


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for all tests of a file."""
    with chromium() as running:
        yield running
