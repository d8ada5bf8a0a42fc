"""What the driver of a run hears of its stages: added up for the table at the end, told to Ray's metrics, kept as a
timeline where one is wanted.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from raymask.metrics import Metrics
from raymask.stages import Room, Times
from raymask.storage import used_plainly, write_file
from raymask.timeline import Timeline
from raymask.timing import Span, Taken

GAUGES_EVERY_S = 2.0


class Meter:
    """The times of one run. timeline: takes what each process did when; None where nobody will look."""

    def __init__(self, run_id: str, timeline: Timeline | None = None) -> None:
        self._run_id = run_id
        self._timeline = timeline
        self._metrics: Metrics | None = None
        self._room = Room(cpus=1, gpus=0, calls=1, readers=1)
        self._pending = 0
        self._all, self._recent = _Sums(), _Sums()
        self._recent_since_s = 0.0
        self._first_call_s = self._first_read_s = float("inf")
        self._phases: list[Span] = []
        self._phase: tuple[str, float] | None = None

    def phase(self, name: str | None) -> None:
        """The driver comes to a phase of the run (see `stages.PHASES`), or with None to its end."""
        now_s = time.time()
        if self._phase is not None:
            before, since_s = self._phase
            self._phases.append(Span(before, since_s, now_s - since_s))
        self._phase = None if name is None else (name, now_s)

    def begins(self, pending: int, room: Room) -> None:
        """So many images are about to go through. Ray has to be connected."""
        self._room, self._pending = room, pending
        self._metrics = Metrics(self._run_id)
        self._metrics.set("raymask_pending_images", pending)
        self._recent_since_s = time.time()

    def committed(self, images: int, failed: int, timings: Iterable[str]) -> None:
        """A part is written. timings: JSON of `Taken`, of the call that wrote it and of the tasks that read for it."""
        taken = [Taken.parse(text) for text in timings]
        began_s = min((one.began_s for one in taken if one.role == "model"), default=time.time())
        self._first_call_s = min(self._first_call_s, began_s)
        self._first_read_s = min([self._first_read_s, *(one.began_s for one in taken if one.role == "read")])
        for sums in (self._all, self._recent):
            sums.add(images, began_s, taken)
        if self._timeline is not None:
            for one in taken:
                self._timeline.add(one)
        self._pending -= images
        if self._metrics is not None:
            self._tell(self._metrics, images, failed, taken)

    def _tell(self, metrics: Metrics, images: int, failed: int, taken: Iterable[Taken]) -> None:
        metrics.count("raymask_images", images - failed, status="ok")
        metrics.count("raymask_images", failed, status="failed")
        for one in taken:
            metrics.count("raymask_bytes", one.amounts.get("bytes", 0.0))
            for name, seconds in one.seconds.items():
                metrics.count("raymask_stage_seconds", seconds, stage=name)
        passed_s = time.time() - self._recent_since_s
        if passed_s < GAUGES_EVERY_S and self._pending:
            return
        recent = self._recent.amounts
        metrics.set("raymask_pending_images", self._pending)
        metrics.set("raymask_batch_images", recent["images"] / (recent["passes"] or recent["calls"]))
        # Once all is done nothing waits or is at work, and nobody would say so later.
        times, at_work = self._recent.times(self._room, {"segment": passed_s}), float(self._pending > 0)
        metrics.set("raymask_queue_images", at_work * recent["queued_image_s"] / passed_s)
        metrics.set("raymask_device_busy_ratio", at_work * times.device_share)
        self._recent, self._recent_since_s = _Sums(), time.time()

    def ends(self) -> Times:
        """The run is at its end, however it ended; where its time went."""
        self.phase(None)
        phases: defaultdict[str, float] = defaultdict(float)
        reading_s = 0.0
        for span in self._phases:
            workers_s = 0.0  # until the first worker was up
            if span.stage == "segment" and self._first_call_s < span.start_s + span.seconds:
                workers_s = max(0.0, self._first_call_s - span.start_s)
                reading_s = span.start_s + span.seconds - self._first_read_s
            phases["start"] += workers_s
            phases[span.stage] += span.seconds - workers_s
        return self._all.times(self._room, phases, reading_s)

    def timeline_json(self) -> bytes:
        """The file of `--profile`, of a meter with a timeline."""
        assert self._timeline is not None
        return self._timeline.to_json(self._run_id, self._phases)


@contextlib.contextmanager
def metered(run_id: str, profile: str | None) -> Iterator[Meter]:
    """A meter; with `profile` a timeline of what it hears is in that file at the end, however the run ends."""
    if profile is None:
        yield Meter(run_id)
        return
    with used_plainly(profile):
        write_file(profile, b'{"traceEvents": []}')  # where that cannot be, it is said before there is any work
    meter = Meter(run_id, Timeline())
    try:
        yield meter
    finally:
        meter.ends()
        with used_plainly(profile):
            write_file(profile, meter.timeline_json())


class _Sums:
    """Seconds by stage, and amounts by name, of whatever was added."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.amounts: defaultdict[str, float] = defaultdict(float)

    def add(self, images: int, began_s: float, taken: Iterable[Taken]) -> None:
        """What a call took that began at Unix time `began_s` and wrote `images`."""
        self.amounts["images"] += images
        self.amounts["calls"] += 1
        for one in taken:
            for name, seconds in one.seconds.items():
                self.seconds[name] += seconds
            for name, amount in one.amounts.items():
                self.amounts[name] += amount
            # By Little's law: how long images wait for a worker says how many do.
            waited_s = max(0.0, began_s - one.ended_s)
            self.amounts["queued_image_s"] += one.amounts.get("read", 0.0) * waited_s

    def times(self, room: Room, phases: Mapping[str, float], reading_s: float = 0.0) -> Times:
        return Times(
            room=room,
            phases=dict(phases),
            seconds=dict(self.seconds),
            reading_s=reading_s,
            wait_s=self.amounts["wait_s"],
            device_s=self.amounts["device_s"],
            requests=int(self.amounts["requests"]),
            request_s=self.amounts["request_s"],
            images=int(self.amounts["images"]),
            bytes=int(self.amounts["bytes"]),
        )
