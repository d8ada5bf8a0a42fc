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
from raymask import pipeline
from raymask.decode import Image, decode
from raymask.errors import ErrorKind, Failure
from raymask.sandbox import Limits, Sandbox, borrowed_sandbox, process, sandbox

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


def outcomes(box: Sandbox, files: list[bytes]) -> list[Image | Failure]:
    """Of all files, given at once; pixels are copied, so that they stay."""
    found: list[tuple[int, Image | Failure]] = []
    for block in box.blocks(enumerate(files), len(files)):
        found += [(n, r if isinstance(r, Failure) else Image(r.pixels.copy(), r.format)) for n, r in block]
    assert [number for number, _ in found] == list(range(len(files)))
    return [result for _, result in found]


def assert_works(box: Sandbox) -> None:
    result = box.decode(picture(1))
    assert isinstance(result, Image)
    np.testing.assert_array_equal(result.pixels, np.array(draw_picture(1)))


def assert_as_decoded_alone(data: bytes, result: Image | Failure) -> None:
    expected = decode(data, max_pixels=MAX_PIXELS)
    if isinstance(expected, Failure):
        assert result == expected
        return
    assert isinstance(result, Image)
    assert result.format == expected.format
    np.testing.assert_array_equal(result.pixels, expected.pixels)


def test_pixels_and_failures_are_those_of_decode() -> None:
    files = [picture(n, height=10 + n, width=30) for n in range(40)]
    files += [b"", b"no picture", files[0][:100], picture(9, height=101, width=100), picture(8)]
    with a_sandbox() as box:
        for data, result in zip(files, outcomes(box, files), strict=True):
            assert_as_decoded_alone(data, result)
        assert_as_decoded_alone(files[5], box.decode(files[5]))


@pytest.mark.parametrize(("rows", "sizes"), [(100, [3, 2, 3]), (2, [2] * 4), (3, [3, 2, 3]), (1, [1] * 8)])
def test_a_block_ends_where_it_has_its_rows_or_its_pixels(rows: int, sizes: list[int]) -> None:
    """All of its pixels are good until the next one is asked for; what could not be fetched passes through."""
    missing = Failure(ErrorKind.NOT_FOUND, "no such object")
    files = [missing if n in (2, 7) else picture(n) for n in range(8)]
    found: list[int] = []
    with a_sandbox(room_bytes=3 * 64 * 48 * 2 - 1) as box:
        for block in box.blocks(enumerate(files), rows):
            for number, result in block:
                data = files[number]
                if isinstance(data, Failure):
                    assert result is data
                else:
                    assert_as_decoded_alone(data, result)
            found.append(len(block))
    assert found == sizes


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


def test_of_many_files_only_those_fail_that_kill_a_child(poisoned: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind them are no worse off, and no child is begun for nothing."""
    begun = []

    def begin(*arguments: Any) -> process.Child:
        begun.append(process.Child(*arguments))
        return begun[-1]

    lies = "an answer that cannot be, an answer that cannot be"
    said = {b"ABORT!!": "SIGABRT, SIGABRT", b"EXIT!!!": "exit code 3, exit code 3", b"LIES!!!": lies, b"NO-JSON": lies}
    files = [picture(n) for n in range(10)]
    for place, marker in zip((0, 3, 4, 9, 14), (*said, b"GROW!!!"), strict=True):
        files.insert(place, marker)
    assert_works(poisoned)
    monkeypatch.setattr(sandbox, "Child", begin)
    for data, result in zip(files, outcomes(poisoned, files), strict=True):
        if data in said:
            assert result == Failure(ErrorKind.CRASHED_WORKER, f"decoding it ended its process: {said[data]}")
        elif data == b"GROW!!!":
            assert isinstance(result, Failure) and result.kind is ErrorKind.OUT_OF_MEMORY
        else:
            assert_as_decoded_alone(data, result)
    assert len(begun) == 2 * len(said)


def test_a_child_that_says_it_is_done_too_early_is_found_out(poisoned: Sandbox) -> None:
    early, fine = outcomes(poisoned, [b"EARLY!!", picture(1)])
    assert early == Failure(
        ErrorKind.CRASHED_WORKER,
        "decoding it ended its process: an answer that cannot be, an answer that cannot be",
    )
    assert isinstance(fine, Image)


@pytest.mark.parametrize("alarm", [True, False])
def test_a_decoder_that_sleeps_is_ended(alarm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own alarm, or should that fail, by its parent."""
    monkeypatch.setattr(process, "GRACE_S", 5.0 if alarm else -0.5)
    with a_sandbox(decoder=POISON, limits=Limits(wall_s=1.0)) as box:
        assert_works(box)
        slept, behind = outcomes(box, [b"SLEEP!!", picture(2)])
    assert slept == Failure(ErrorKind.CRASHED_WORKER, "decoding it ended its process: it took more than 1 s of time")
    assert isinstance(behind, Image)


def test_the_limits_are_those_of_one_image() -> None:
    """Many that take long together are no fault of any."""
    with a_sandbox(decoder=POISON, limits=Limits(wall_s=1.0)) as box:
        assert_works(box)
        results = outcomes(box, [b"PAUSE!!"] * 3 + [picture(1)])
    assert [isinstance(r, Image) for r in results] == [False] * 3 + [True]
    assert {r.kind for r in results if isinstance(r, Failure)} == {ErrorKind.NOT_AN_IMAGE}


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
    def interrupted(self: Any, done: Any) -> None:
        raise KeyboardInterrupt

    before = child_of(poisoned)
    with monkeypatch.context() as patch:
        patch.setattr(process.Child, "_said", interrupted)
        with pytest.raises(KeyboardInterrupt):
            poisoned.decode(b"PAUSE!!")
    assert child_of(poisoned) != before


def test_sandboxes_are_borrowed_one_at_a_time() -> None:
    settings = {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS, "decoder": POISON}
    with borrowed_sandbox(**settings) as one, borrowed_sandbox(**settings) as other:  # type: ignore[arg-type]
        assert one is not other
        assert_works(one)
    with borrowed_sandbox(**settings) as again:  # type: ignore[arg-type]
        assert again in (one, other)
        assert_works(again)
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
