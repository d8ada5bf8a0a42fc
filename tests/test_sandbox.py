"""Decoders that crash, hang, grow or lie cost their own image and nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import draw_folder, draw_picture

import raymask
from raymask import pipeline, sandbox
from raymask.decode import Image, decode
from raymask.errors import ErrorKind, Failure
from raymask.sandbox import Limits, Sandbox, borrowed_sandbox

MAX_BYTES, MAX_PIXELS = 2**20, 10_000
POISON = "poison_decoder:decode"


def a_sandbox(**options: Any) -> Sandbox:
    limits = Limits(cpu_s=2, wall_s=30.0, bytes_per_pixel=1, spare_bytes=256 * 2**20)
    settings = {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS, "room_bytes": 3 * MAX_PIXELS, "limits": limits}
    return Sandbox(**{**settings, **options})


@pytest.fixture(scope="module")
def poisoned() -> Iterator[Sandbox]:
    with a_sandbox(decoder=POISON) as box:
        yield box


def picture(seed: int, **size: int) -> bytes:
    file = io.BytesIO()
    draw_picture(seed, **size).save(file, "PNG")
    return file.getvalue()


def child_of(box: Sandbox) -> int:
    result = box.decode(b"PROCESS")
    assert isinstance(result, Failure)
    return int(result.detail)


def assert_works(box: Sandbox) -> None:
    box.clear()
    result = box.decode(picture(1))
    assert isinstance(result, Image)
    np.testing.assert_array_equal(result.pixels, np.array(draw_picture(1)))


def test_pixels_and_failures_are_those_of_decode() -> None:
    files = [picture(n, height=10 + n, width=30) for n in range(5)]
    files += [b"", b"no picture", files[0][:100], picture(9, height=101, width=100)]
    with a_sandbox() as box:
        found = [box.decode(data) for data in files]
        for data, result in zip(files, found, strict=True):
            expected = decode(data, max_pixels=MAX_PIXELS)
            if isinstance(expected, Failure):
                assert result == expected
                continue
            assert isinstance(result, Image)
            assert result.format == expected.format
            np.testing.assert_array_equal(result.pixels, expected.pixels)


def test_images_stay_until_they_are_cleared() -> None:
    with a_sandbox(room_bytes=3 * 64 * 48 * 2) as box:
        first, second = box.decode(picture(1)), box.decode(picture(2))
        assert isinstance(first, Image) and isinstance(second, Image)
        assert box.is_full
        np.testing.assert_array_equal(first.pixels, np.array(draw_picture(1)))
        np.testing.assert_array_equal(second.pixels, np.array(draw_picture(2)))
        box.clear()
        assert not box.is_full
        assert_works(box)


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (b"ABORT!!", "SIGABRT, SIGABRT"),
        (b"SEGV!!!", "SIGSEGV, SIGSEGV"),
        (b"EXIT!!!", "exit code 3, exit code 3"),
        (b"NO-JSON", "an answer that cannot be, an answer that cannot be"),
        (b"LIES!!!", "an answer that cannot be, an answer that cannot be"),
        (b"NO-KIND", "an answer that cannot be, an answer that cannot be"),
        (b"SPIN!!!", "it took more than 2 s of CPU time"),
    ],
)
def test_a_decoder_that_dies_costs_its_image(poisoned: Sandbox, marker: bytes, said: str) -> None:
    result = poisoned.decode(marker)
    assert result == Failure(ErrorKind.CRASHED_WORKER, f"decoding it ended its process: {said}")
    assert_works(poisoned)


@pytest.mark.parametrize("alarm", [True, False])
def test_a_decoder_that_sleeps_is_ended(alarm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own alarm, or should that fail, by its parent."""
    monkeypatch.setattr(sandbox, "GRACE_S", 5.0 if alarm else -0.5)
    with a_sandbox(decoder=POISON, limits=Limits(wall_s=1.0)) as box:
        assert_works(box)
        result = box.decode(b"SLEEP!!")
        assert result == Failure(
            ErrorKind.CRASHED_WORKER, "decoding it ended its process: it took more than 1 s of time"
        )


def test_a_decoder_that_grows_is_stopped(poisoned: Sandbox) -> None:
    result = poisoned.decode(b"GROW!!!")
    assert isinstance(result, Failure)
    assert result.kind is ErrorKind.OUT_OF_MEMORY
    assert_works(poisoned)


def test_one_child_serves_many_images(poisoned: Sandbox) -> None:
    before = child_of(poisoned)
    for _ in range(3):
        assert_works(poisoned)
    assert child_of(poisoned) == before
    poisoned.decode(b"ABORT!!")
    assert child_of(poisoned) != before


def test_a_child_killed_from_outside_is_no_fault_of_the_image(poisoned: Sandbox) -> None:
    """As by a kernel that is short of memory, while it waits or while it works."""
    os.kill(child_of(poisoned), 9)
    assert_works(poisoned)
    victim = child_of(poisoned)
    timer = threading.Timer(0.3, os.kill, (victim, 9))
    timer.start()
    assert_works(poisoned)
    timer.join()
    assert_works(poisoned)


def test_no_environment_reaches_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("PYTHONSTARTUP", "canary")
    with a_sandbox(decoder=POISON) as box:
        result = box.decode(b"ENVIRON")
    assert isinstance(result, Failure)
    assert "PATH" not in result.detail.replace("LD_LIBRARY_PATH", "")
    assert "canary" not in result.detail


def test_the_child_ends_with_its_parent() -> None:
    code = (
        "import os, signal; from raymask.sandbox import Sandbox;"
        "box = Sandbox(max_bytes=100, max_pixels=100, room_bytes=100, decoder='poison_decoder:decode');"
        "print(box.decode(b'PROCESS').detail, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_a_child_that_does_not_start_is_an_error_of_the_program() -> None:
    with a_sandbox(decoder="no_such_module:decode") as box, pytest.raises(RuntimeError, match="does not start"):
        box.decode(b"x")


def test_an_interrupted_request_is_not_answered_later(poisoned: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    assert_works(poisoned)
    with monkeypatch.context() as patch:
        patch.setattr(sandbox._Child, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            poisoned.decode(b"PROCESS")
    assert_works(poisoned)


def test_sandboxes_are_borrowed_one_at_a_time() -> None:
    settings = {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS, "room_bytes": 1, "decoder": POISON}
    with borrowed_sandbox(**settings) as one, borrowed_sandbox(**settings) as other:  # type: ignore[arg-type]
        assert one is not other
        one.decode(picture(1))
        assert one.is_full
    with borrowed_sandbox(**settings) as again:  # type: ignore[arg-type]
        assert again in (one, other)
        assert not again.is_full
    sandbox._idle.clear()


@pytest.mark.usefixtures("ray_session")
def test_a_run_with_poison_in_it(model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray's workers find modules from the folder that the tests are run in.
    monkeypatch.setattr(pipeline, "DECODER", f"{Path(__file__).parent.name}.{POISON}")
    source = draw_folder(tmp_path / "in", 12)
    (source / "0003-abort.png").write_bytes(b"ABORT!!")
    (source / "0007-segv.png").write_bytes(b"SEGV!!!")
    summary = raymask.segment(str(source), out=str(tmp_path / "out"), weights=model_folder, quiet=True)
    assert (summary.images, summary.ok, summary.errors) == (14, 12, {"crashed_worker": 2})
    rows = pq.read_table(tmp_path / "out" / "images").to_pylist()
    failed = {Path(row["uri"]).name: row["error_detail"] for row in rows if row["status"] == "failed"}
    assert failed.keys() == {"0003-abort.png", "0007-segv.png"}
    assert "SIGABRT" in failed["0003-abort.png"]
