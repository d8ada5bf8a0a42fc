"""How long a run will take and what it will cost, from a sample of its source that goes through the same pipeline.

The time of a run is that of starting and ending, of listing, and of its images one after the other. A sample says the
last as what a call of a model worker takes for an image, waiting for it included: so much at once go on as there are
calls. Publishing grows too slowly with the images to be told from a sample (0.1 ms an image on two cores, less than
decoding takes by far), so it is counted as it was for the sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from raymask.cluster import ray_session
from raymask.config import SegmentConfig, Workload
from raymask.errors import ConfigError
from raymask.forecast.config import PlanConfig
from raymask.forecast.sample import Sample
from raymask.journal import Manifest, NewRows, journal_folder
from raymask.journal.manifest import SeenIds
from raymask.listing import Found
from raymask.meter import Meter
from raymask.pipeline import process, run_of
from raymask.pools import Pool, plan_pool
from raymask.progress import Reporter, Silent, new_run_id
from raymask.protocol import Work
from raymask.publishing import publish
from raymask.reading import floor_power_of_two, share_of
from raymask.sources import advice, open_source
from raymask.stages import READING, WORKER, Times, bottleneck
from raymask.storage import join, resolve
from raymask.timing import Taken

if TYPE_CHECKING:
    from raymask.model import Model

WAVES = 4  # parts of the sample for each call that workers handle at once: the last of them end at different times
SURE = 2.0  # standard errors on each side of an estimate: 19 of 20 lie within


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    source: what was listed; sampled, sampled_failed: images measured; images_per_s: of `measured_machines`, and low and
    high of it; seconds: of the run on `machines`, low and high of it. cost: in the currency of the price, None without.
    """

    source: Found
    model: str
    sampled: int
    sampled_failed: int
    measured_machines: int
    images_per_s: float
    images_per_s_range: tuple[float, float]
    machines: int
    seconds: float
    seconds_range: tuple[float, float]
    price_per_hour: float | None
    times: Times

    @property
    def cost(self) -> float | None:
        return self._cost(self.seconds)

    @property
    def cost_range(self) -> tuple[float, float] | None:
        low, high = (self._cost(seconds) for seconds in self.seconds_range)
        return None if low is None or high is None else (low, high)

    def _cost(self, seconds: float) -> float | None:
        return None if self.price_per_hour is None else self.price_per_hour * self.machines * seconds / 3600

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("source", "times")}
        found = dataclasses.asdict(self.source)
        words = bottleneck(self.times).text
        return {**plain, "source": found, "cost": self.cost, "cost_range": self.cost_range, "bottleneck": words}


class _Calls(Meter):
    """A meter that keeps apart what each call of a model worker took: images, failed ones, seconds with waiting."""

    def __init__(self) -> None:
        super().__init__(new_run_id())
        self.calls: list[tuple[int, int, float]] = []

    def committed(self, images: int, failed: int, timings: Iterable[str]) -> None:
        timings = list(timings)
        super().committed(images, failed, timings)
        for call in map(Taken.parse, timings):
            if call.role == "model":
                self.calls.append((images, failed, sum(call.seconds.values()) + call.amounts.get("wait_s", 0.0)))


def forecast(config: PlanConfig, report: Reporter | None = None) -> Forecast:
    """List the source, segment a sample of it, and say what the whole would take. ConfigError if it has no images."""
    report = report or Silent()
    began_s = time.monotonic()
    with ThreadPoolExecutor(1) as beside, contextlib.ExitStack() as stack:
        loading = beside.submit(_load_model, config)
        stack.enter_context(ray_session(config.allow_open_cluster))
        model = loading.result()
        out = stack.enter_context(_scratch(config.scratch))
        start_s = time.monotonic() - began_s
        found, sample = _take_sample(config)
        list_s = time.monotonic() - began_s - start_s
        report.say(found.text(config.source))
        pool = plan_pool(config.worker_range(), config.gpus_per_worker)
        calls, times = _measure(config, model, pool, out, sample, pool.calls, images_per_part=1)
        measured = 0
        # Few images say too little, since the first are the slowest: again, if there was time for twice as many.
        while 2 * measured < (wanted := _images_in(config.seconds, times, sample, pool)):
            # As large as in the run, where the time allows it: a part has its own costs.
            images_per_part = min(share_of(found.new, pool), floor_power_of_two(wanted // (WAVES * pool.calls)))
            measured = max(wanted, WAVES * pool.calls * images_per_part)
            report.say(f"measuring some {min(measured, len(sample)):,} images, {config.seconds:g} s or more")
            calls, times = _measure(config, model, pool, out, sample, measured, images_per_part)
        machines = len([node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")])  # type: ignore[no-untyped-call]
        ending_s = time.monotonic()
    ending_s = time.monotonic() - ending_s
    call_s, error_s = _call_s(calls)
    fixed_s = start_s + list_s + times.phases["start"] + times.phases["publish"] + ending_s
    wanted_machines = config.machines or machines
    rates = [pool.calls / s for s in (call_s, call_s + SURE * error_s, max(call_s - SURE * error_s, call_s / 10))]
    seconds = [fixed_s + found.new / rate * machines / wanted_machines for rate in rates]
    return Forecast(
        source=found,
        model=model.spec.architecture,
        sampled=sum(images for images, _, _ in calls),
        sampled_failed=sum(failed for _, failed, _ in calls),
        measured_machines=machines,
        images_per_s=rates[0],
        images_per_s_range=(rates[1], rates[2]),
        machines=wanted_machines,
        seconds=seconds[0],
        seconds_range=(seconds[2], seconds[1]),
        price_per_hour=config.price_per_hour,
        times=times,
    )


def _load_model(config: PlanConfig) -> Model:
    from raymask.model import load_model

    return load_model(config.weights, config.model)


@contextlib.contextmanager
def _scratch(url: str | None) -> Iterator[str]:
    """A folder that is removed in the end. ConfigError if it is on this machine, and the cluster on several."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    if url is None and sum(node["Alive"] for node in nodes) > 1:
        raise ConfigError("the cluster has several machines; name a folder that they all reach by --scratch URL")
    if url is None:
        with tempfile.TemporaryDirectory(prefix="raymask-plan-") as folder:
            yield folder
        return
    out = join(url, f"raymask-plan-{new_run_id()}")
    try:
        yield out
    finally:
        fs, path = resolve(out)
        if fs.exists(path):
            fs.rm(path, recursive=True)


def _take_sample(config: PlanConfig) -> tuple[Found, Sample]:
    source = open_source(_segment_config(config, out="unused"))
    rows, sample = NewRows(0, SeenIds()), Sample()
    for _ in sample.watch(rows.of(source.batches)):
        pass
    found = Found(source.kind, rows.new, 0, rows.duplicates, rows.bytes, source.skipped)
    if not rows.new:
        what_to_do = advice(config.source, source.skipped)
        raise ConfigError(f"no images in {config.source!r}{found.skipped_text()}; {what_to_do}")
    return found, sample


def _measure(
    config: PlanConfig, model: Model, pool: Pool, out: str, sample: Sample, count: int, images_per_part: int
) -> tuple[list[tuple[int, int, float]], Times]:
    """Segment so many images of the sample into an output of its own."""
    out = join(out, f"{count}-{images_per_part}")
    options = _segment_config(config, out=out, images_per_part=images_per_part)
    manifest = Manifest(journal_folder(out), ()).append({}, sample.rows(count).to_batches())
    meter = _Calls()
    meter.phase("segment")
    process(options, model, manifest, Work(np.ones(manifest.rows, bool), 0), Silent(), pool, meter)
    meter.phase("publish")
    publish(out, run_of(options, model), manifest)
    return meter.calls, meter.ends()


def _images_in(seconds: float, times: Times, sample: Sample, pool: Pool) -> int:
    """How many images of the sample take so long, and at least so many that every call of a worker has a few."""
    return max(min(int(seconds / _image_s(times)), len(sample)), WAVES * pool.calls)


def _image_s(times: Times) -> float:
    """About how long one image keeps the others waiting: where it is read, or at the workers, whichever is slower.

    Waiting is left out: of few images most of it is until the first have been read.
    """
    room = times.room
    return max(times.of(*READING) / room.readers, times.of(*WORKER) / room.calls) / times.images


def _call_s(calls: list[tuple[int, int, float]]) -> tuple[float, float]:
    """Seconds that a call takes for an image, and the standard error of that (a ratio estimate, calls as clusters)."""
    images, seconds = np.array([c[0] for c in calls], float), np.array([c[2] for c in calls])
    ratio = float(seconds.sum() / images.sum())
    if len(calls) < 2:
        return ratio, ratio
    residuals = seconds - ratio * images
    return ratio, sqrt(len(calls) / (len(calls) - 1) * float((residuals**2).sum())) / float(images.sum())


def _segment_config(config: PlanConfig, **options: Any) -> SegmentConfig:
    """The options of `raymask segment` with which the same images go through the same model."""
    return SegmentConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Workload)}, **options)
