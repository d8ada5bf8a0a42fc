"""What a run spent its time on, by stage, and in words which stage holds it up.

Stages of tasks that read: fetch, decode, pack (pixels into Arrow tables). Of model workers: predict (what is neither of
the next two), copy (pixels to the device, resized), compute, encode (masks to RLE), write (the journal). Seconds are of
the clock on the wall, of all processes together; those of a worker that died are lost with its images, which are done
again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

READING = ("fetch", "decode", "pack")
MODEL = ("predict", "copy", "compute")
WORKER = (*MODEL, "encode", "write")
STAGES = (*READING, *WORKER)
PHASES = ("start", "list", "segment", "publish", "end")

# Workers that have something to do for so much of their time hold up the others, and from half of it on where readers
# have less to do than they; otherwise they are held up.
BUSY = 0.75
# Where readers are at work for less of their time, and workers wait as well, neither is what takes the time.
IDLE = 0.4


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a run has. cpus: of the cluster; gpus: that it uses; calls: of model workers, readers: tasks, at once.

    threads: of the CPU, that the model uses in a call.
    """

    cpus: float
    gpus: int
    calls: int
    readers: float
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Times:
    """Where the time of a run went.

    phases: seconds of the run by `PHASES`, the start of model workers in "start". seconds: by `STAGES`, of all
    processes. reading_s: from the first task that read on, which begins before the first worker is up. wait_s: that
    model workers had nothing to do, after their first images. device_s: that GPUs were at work. requests, request_s: to
    a store, and the seconds until each was answered. images, bytes: that went through.
    """

    room: Room
    phases: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)
    reading_s: float = 0.0
    wait_s: float = 0.0
    device_s: float = 0.0
    requests: int = 0
    request_s: float = 0.0
    images: int = 0
    bytes: int = 0

    def of(self, *stages: str) -> float:
        """Seconds of these stages together."""
        return sum(self.seconds.get(name, 0.0) for name in stages)

    @property
    def total_s(self) -> float:
        return sum(self.phases.values())

    @property
    def segment_s(self) -> float:
        """Seconds in which images went through workers; never 0."""
        return max(self.phases.get("segment", 0.0), 1e-9)

    def at_once(self, *stages: str) -> float:
        """How many processes or threads were at these stages at a time, on average."""
        reading_s = max(self.reading_s, self.segment_s)
        return sum(self.of(name) / (reading_s if name in READING else self.segment_s) for name in stages)

    @property
    def worker_share(self) -> float:
        """Share of their time in which model workers had images; 1 where there were none to wait for."""
        busy_s = self.of(*WORKER)
        return busy_s / (busy_s + self.wait_s) if busy_s + self.wait_s > 0 else 1.0

    @property
    def device_share(self) -> float:
        """Share of the time in which devices were at work: of GPUs by their own clocks, otherwise the model's share."""
        if self.room.gpus:
            return min(1.0, self.device_s / (self.room.gpus * self.segment_s))
        busy_s = self.of(*WORKER) + self.wait_s
        return self.of(*MODEL) / busy_s if busy_s else 0.0

    def cores(self, *stages: str) -> float:
        """Cores that these stages took. Where more threads were at work than there are cores, these were shared."""
        computing = self._threads("decode", "pack", "encode", *(() if self.room.gpus else MODEL))
        return self._threads(*stages) * min(1.0, self.room.cpus / computing if computing else 1.0)

    def _threads(self, *stages: str) -> float:
        return sum(self.at_once(name) * (self.room.threads if name in MODEL else 1) for name in stages)


@dataclass(frozen=True)
class Bottleneck:
    """stage: one of `STAGES`, `PHASES`, or "hand-over", between processes. text: it in words, and what to do."""

    stage: str
    text: str


def bottleneck(times: Times) -> Bottleneck:
    """What a run was held up by. Stages are told apart by who waited for whom, not by who took most seconds."""
    phase = max(PHASES, key=lambda name: times.phases.get(name, 0.0))
    share = times.phases.get(phase, 0.0) / (times.total_s or 1.0)
    if not times.images:
        return Bottleneck(phase, f"nothing was segmented; {phase} took {share:.0%} of the time")
    found = _bottleneck_of_stages(times)
    if phase == "segment" or share < 0.5:
        return found
    text = {
        "end": f"short run: {share:.0%} of the time was ending it; more images at once",
        "start": f"short run: {share:.0%} of the time was start-up; more images at once, or a cluster that stays up",
        "list": f"list-bound: {share:.0%} of the time was listing; a manifest (Parquet with a column uri) lists faster",
        "publish": f"publish-bound: {share:.0%} of the time was publishing; add cores",
    }[phase]
    return Bottleneck(phase, f"{text}. Beside that it was {found.text}")


def _bottleneck_of_stages(times: Times) -> Bottleneck:
    reader_share = times.at_once(*READING) / times.room.readers
    if times.worker_share >= BUSY or times.worker_share >= max(0.5, reader_share):
        # Without a GPU decoding takes its cores from the model, so that workers are busy, but slow.
        rivals = () if times.room.gpus else ("decode",)
        stage = max(("predict", "encode", "write", *rivals), key=lambda name: times.of(*_GROUPS[name]))
        return Bottleneck(stage, f"{stage}-bound: {_of_worker(stage, times)}")
    waits = f"model workers wait {1 - times.worker_share:.0%} of their time"
    if reader_share < IDLE:
        return Bottleneck(
            "hand-over",
            f"hand-over-bound: {waits}, readers are at work {reader_share:.0%} of theirs; what is left is Ray moving "
            f"images between processes: raise --images-per-part, or add cores",
        )
    if times.of("fetch") > times.of("decode", "pack"):
        return Bottleneck(
            "fetch",
            f"fetch-bound: {waits}, and fetching is {times.of('fetch') / times.of(*READING):.0%} of what they wait "
            f"for; {_answer(times)}: a nearer store, or more cores, each with more requests on their way",
        )
    cores = times.cores("decode", "pack")
    return Bottleneck(
        "decode", f"decode-bound: {cores:.1f} of {times.room.cpus:g} cores decode, {waits}; {_cores_to_add(times)}"
    )


_GROUPS = {"predict": MODEL, "encode": ("encode",), "write": ("write",), "decode": ("decode", "pack")}


def _of_worker(stage: str, times: Times) -> str:
    share = times.of(*_GROUPS[stage]) / times.of(*WORKER)
    if stage == "decode":
        cores = times.cores(*_GROUPS[stage])
        return f"{cores:.1f} of {times.room.cpus:g} cores decode, more than predict; add cores"
    if stage == "encode":
        return f"masks to RLE take {share:.0%} of the workers' time; add cores, or lower --max-detections"
    if stage == "write":
        return f"writing the journal takes {share:.0%} of the workers' time; raise --images-per-part, or a nearer --out"
    if times.room.gpus:
        what_to_do = "raise --batch-size" if times.device_share < BUSY else "add GPUs"
        return f"the GPUs are at work {times.device_share:.0%} of the time; {what_to_do}"
    cores = times.cores(*MODEL)
    are_idle = times.cores("decode", "pack", "encode", *MODEL) < BUSY * times.room.cpus
    what_to_do = "add workers (--workers)" if are_idle else "add cores, machines or a GPU"
    return f"{cores:.1f} of {times.room.cpus:g} cores predict; {what_to_do}"


def _cores_to_add(times: Times) -> str:
    """So many that the model workers would have images all the time."""
    missing = times.cores("decode", "pack") * (1 / max(times.worker_share, 0.01) - 1)
    if not times.room.gpus:
        return "add cores"
    each = math.ceil(missing / times.room.gpus)
    return f"add {each} CPU core{'s' if each > 1 else ''} a GPU"


def _answer(times: Times) -> str:
    if times.requests:
        return f"the store answers in {1000 * times.request_s / times.requests:,.0f} ms"
    return f"an image takes {1000 * times.of('fetch') / times.images:,.0f} ms to read"


def stage_table(times: Times) -> str:
    """Seconds of the run by phase, and of each stage; empty where nothing went through."""
    if not times.images:
        return ""
    phases = ", ".join(f"{name} {times.phases.get(name, 0.0):,.1f} s" for name in PHASES)
    rows = [(name, times.of(name), times.at_once(name)) for name in STAGES if times.of(name)]
    rows.append(("wait", times.wait_s, times.wait_s / times.segment_s))
    lines = [f"time     {phases}", "stage        seconds   ms an image   at once"]
    for name, seconds, at_once in rows:
        lines.append(f"  {name:<10} {seconds:>7,.1f}   {1000 * seconds / times.images:>11,.2f}   {at_once:>7,.2f}")
    return "\n".join(lines)
