"""Times add up, and the words for them follow, without Ray."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator

import numpy as np
import pytest

from raymask.errors import ConfigError, OutputError
from raymask.forecast.config import PlanConfig
from raymask.forecast.sample import MAX_STRETCHES, STRETCH, Sample
from raymask.journal import NewRows
from raymask.journal.manifest import SeenIds
from raymask.logs import LogReporter
from raymask.sources.stream import batched
from raymask.stages import Room, Times, bottleneck, stage_table
from raymask.timeline import Timeline
from raymask.timing import Idleness, Span, Taken, count, each, stage, stopwatch

CPUS = Room(cpus=2, gpus=0, calls=2, readers=2)
CORES = Room(cpus=16, gpus=0, calls=1, readers=8, threads=4)
GPUS = Room(cpus=16, gpus=2, calls=4, readers=56)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which goes on only where a test says so."""
    now = [1000.0]
    monkeypatch.setattr("raymask.timing.time.perf_counter", lambda: now[0])
    return now


def test_a_stage_within_a_stage_is_taken_off_the_outer_one(clock: list[float]) -> None:
    def files() -> list[int]:
        clock[0] += 1
        return [1, 2]

    def blocks() -> Iterator[str]:
        clock[0] += 0.5
        for _ in each("fetch", iter(files())):
            clock[0] += 2
        yield "block"

    with stopwatch("read") as watch:
        clock[0] += 100  # at no stage
        for _ in each("decode", blocks()):
            clock[0] += 50
            with stage("pack"):
                clock[0] += 3
            count("images", 2)
        taken = watch.take()
    assert taken.seconds == pytest.approx({"decode": 1 + 0.5 + 4, "fetch": 0, "pack": 3})
    assert taken.amounts == {"images": 2}
    assert Taken.parse(taken.to_json()) == taken
    assert watch.take().seconds == {}


def test_without_a_stopwatch_nothing_is_counted() -> None:
    with stage("fetch"):
        count("images")
    assert list(each("decode", "ab")) == ["a", "b"]
    with stopwatch("read") as outer:
        with stopwatch("model") as inner:
            count("images")
        count("files", 3)
    count("files")
    assert (outer.take().amounts, inner.take().amounts) == ({"files": 3}, {"images": 1})


def test_a_stage_that_raises_is_at_its_end(clock: list[float]) -> None:
    with stopwatch("read") as watch:
        with contextlib.suppress(OSError), stage("fetch"):
            clock[0] += 1
            raise OSError("gone")
        with stage("decode"):
            clock[0] += 2
    assert watch.take().seconds == pytest.approx({"fetch": 1, "decode": 2})


def test_many_short_stretches_become_one_span(clock: list[float]) -> None:
    with stopwatch("read") as watch:
        for _ in range(1000):
            with stage("fetch"):
                clock[0] += 1e-4
            with stage("decode"):
                clock[0] += 1e-6
        with stage("decode"):
            clock[0] += 1
    spans = watch.take().spans
    assert [span.stage for span in spans] == ["fetch", "decode"]
    assert [span.seconds for span in spans] == pytest.approx([0.101, 1], abs=1e-3)


def test_calls_wait_after_their_first(clock: list[float]) -> None:
    idleness = Idleness(2)
    waits = []
    for passed_s in (5, 1, 7):
        clock[0] += passed_s
        with stopwatch("model") as watch, idleness.interrupted():
            clock[0] += 1
        waits.append(watch.take().amounts)
    # The second is the other call's first, and the third of that which has waited longest.
    assert waits == [{"fill_s": 5}, {"fill_s": 7}, {"wait_s": 9}]


def times(room: Room, segment_s: float, wait_s: float = 0.0, start_s: float = 1.0, **seconds: float) -> Times:
    phases = {"start": start_s, "list": 1.0, "segment": segment_s, "publish": 1.0, "end": 0.0}
    return Times(
        room=room, phases=phases, seconds=seconds, wait_s=wait_s, images=1000, device_s=seconds.get("compute", 0)
    )


@pytest.mark.parametrize(
    ("of", "stage", "text"),
    [
        # Four calls, of which each has work for a quarter of 100 s; 6 cores decode where 4 times as many would do.
        (
            times(GPUS, 100, wait_s=300, compute=100, decode=2500, fetch=10),
            "decode",
            "decode-bound: 16.0 of 16 cores decode, model workers wait 75% of their time; add 24 CPU cores a GPU",
        ),
        (times(GPUS, 100, wait_s=300, compute=100, decode=600, fetch=3000), "fetch", "fetch-bound: model workers wait"),
        (times(GPUS, 100, wait_s=20, compute=380), "predict", "the GPUs are at work 100% of the time; add GPUs"),
        (times(GPUS, 100, wait_s=20, predict=280, compute=80), "predict", "40% of the time; raise --batch-size"),
        (times(GPUS, 100, wait_s=10, compute=100, encode=290), "encode", "masks to RLE take 74% of the workers' time"),
        (times(GPUS, 100, wait_s=10, compute=100, write=290), "write", "writing the journal takes 74%"),
        (times(GPUS, 100, wait_s=300, compute=10, decode=100), "hand-over", "hand-over-bound: model workers wait 97%"),
        (times(CPUS, 100, wait_s=60, compute=1, write=139, decode=20), "write", "writing the journal takes 99%"),
        (times(CPUS, 100, compute=199, decode=20), "predict", "1.8 of 2 cores predict; add cores, machines or a GPU"),
        (times(CORES, 100, compute=99), "predict", "4.0 of 16 cores predict; add workers (--workers)"),
        (times(CPUS, 100, wait_s=150, compute=50, decode=150), "decode", "1.5 of 2 cores decode"),
        (times(CPUS, 100, wait_s=10, compute=90, decode=190), "decode", "1.4 of 2 cores decode, more than predict"),
        (times(CPUS, 20, start_s=80, compute=39), "start", "short run: 78% of the time was start-up"),
        (times(CPUS, 20, start_s=80, compute=39), "start", "Beside that it was predict-bound"),
    ],
)
def test_the_bottleneck_is_said_in_words(of: Times, stage: str, text: str) -> None:
    found = bottleneck(of)
    assert (found.stage, text in found.text) == (stage, True), found.text
    assert "compute" in stage_table(of)


def test_nothing_segmented_has_no_stages() -> None:
    nothing = Times(room=CPUS, phases={"start": 3.0, "list": 1.0})
    assert bottleneck(nothing).text == "nothing was segmented; start took 75% of the time"
    assert stage_table(nothing) == ""


def test_a_timeline_has_a_bound_and_shows_all_of_the_run() -> None:
    timeline = Timeline(max_spans=100)
    for number in range(5000):
        spans = [Span("decode", 1000.0 + number, 0.5), Span("pack", 1000.5 + number, 0.1)]
        timeline.add(Taken("read", "host:1", 7, 0.0, 0.0, {}, {}, spans))
    trace = json.loads(timeline.to_json("run", [Span("segment", 1000.0, 5000.0)]))
    shown = [event["ts"] / 1e6 for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] != 1]
    assert 50 <= len(shown) <= 100
    assert np.histogram(shown, 5, (0, 5000))[0].min() >= len(shown) // 5 - 2
    assert trace["otherData"]["shown"] == "1 of 128 tasks and calls"


def test_logs_hold_no_credentials_and_say_errors() -> None:
    stream = io.StringIO()
    with contextlib.suppress(RuntimeError), LogReporter(stream) as report:
        report.say("listing https://user:secret@host/a\n\x1b[2J")
        try:
            raise OutputError("cannot read s3://key:secret@bucket")
        except OutputError as error:
            raise RuntimeError("of Ray's") from error
    assert "secret" not in stream.getvalue()
    said, failed = map(json.loads, stream.getvalue().splitlines())
    assert (said["level"], said["message"]) == ("info", "listing https://***@host/a\n\x1b[2J")
    assert (failed["level"], failed["error"]) == ("error", "OutputError")
    assert failed["message"] == "cannot read s3://***@bucket"
    assert said["run_id"] == failed["run_id"] == report.run_id


def test_a_sample_is_from_all_over_a_source() -> None:
    total = 50_000
    rows = NewRows(0, SeenIds())
    listed = batched((f"/{n:06d}.jpg", 1, None, None, None, None) for n in range(total))
    sample = Sample()
    assert sum(batch.num_rows for batch in sample.watch(rows.of(listed))) == total
    assert len(sample) == MAX_STRETCHES * STRETCH
    few = sample.rows(1000)
    assert few.column("ordinal").to_pylist() == list(range(1000))
    numbers = np.array([int(uri[1:7]) for uri in few.column("uri").to_pylist()]).reshape(-1, STRETCH)
    assert (np.diff(numbers, axis=1) == 1).all()
    assert np.histogram(numbers[:, 0], 5, (0, total))[0].min() >= 10
    assert sample.rows(10**6).num_rows == len(sample)


def test_wrong_options_of_a_plan_are_refused() -> None:
    for options, message in (
        ({"seconds": 0.0}, "--seconds is 0"),
        ({"machines": 0}, "--machines is 0; it must be at least 1"),
        ({"price_per_hour": -1.0}, "--price-per-hour is -1"),
        ({"source": ""}, "SOURCE is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            PlanConfig(**{"source": "a", **options})  # type: ignore[arg-type]


class Mark:
    """An event of CUDA's, at a time of the device's."""

    def __init__(self, at_ms: float) -> None:
        self.at_ms = at_ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Mark) -> float:
        return later.at_ms - self.at_ms


def test_what_a_device_does_for_two_threads_counts_once() -> None:
    import torch

    from raymask.model.device_time import DeviceTime

    device_time = DeviceTime(torch.device("cpu"))
    assert device_time.between(device_time.mark(), device_time.mark()) == 0
    stretches = [(0, 100), (50, 150), (60, 140), (200, 300), (250, 260)]
    found_s = [device_time.between(Mark(start), Mark(end)) for start, end in stretches]
    assert found_s == pytest.approx([0.1, 0.05, 0, 0.1, 0])
