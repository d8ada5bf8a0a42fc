"""Real kills: `raymask segment` on a Ray cluster of three nodes on this machine, none of whose processes is safe.

    python tests/chaos.py --runs 20 --seed 0

In a run one command makes an output, adds images to it and tries its failed images again. Meanwhile SIGKILL ends
workers, raylets and with them their nodes, drivers, and the cluster with its head: at named points of the protocol, see
`chaos_points`, and at random moments. A driver that was killed is started again by the same command; one that was not
has to come to its end without an error and without a pause. After that the tables, as sets of rows, are those of an
undisturbed run.

Of a seed follow points, victims and moments. What the processes do in between is their own affair.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from chaos_nodes import Nodes, orphans, parent, prepare_environment
from chaos_points import DRIVER_POINTS, WORKER_POINTS
from conftest import draw_folder, draw_picture

import raymask

LEAST_KILLS = 10
LEAST_MOMENTS = 3  # of these kills at random moments
SLICES = 5  # so many seeds in a row go through all points
STALLED_S = 60.0  # the longest that one driver may take, whatever is killed around it
ORPHANS_S = 10.0  # in which a decoder finds out that its worker is no more
DRIVER = "import sys, chaos_points; sys.exit(chaos_points.main(sys.argv[1:]))"


class BrokenPromiseError(AssertionError):
    """Something promised did not hold."""


# ------------------------------------------------------------------------------------------------------------ source


class Source:
    """Pictures, some of them broken, of which half are healed later, and a list of the first of all of them."""

    def __init__(self, place: Path) -> None:
        self._files = sorted(draw_folder(place / "pictures", 54, broken=6).iterdir())
        self._changing = [file for file in self._files if "broken" in file.name][::2]
        self.path = place / "list.csv"

    def show(self, count: int | None) -> None:
        """Only so many of them; all for None."""
        rows = [f"{file},{number}\n" for number, file in enumerate(self._files[:count])]
        self.path.write_text("uri,number\n" + "".join(rows))

    def break_(self) -> None:
        for file in self._changing:
            file.write_bytes(b"no picture")

    def heal(self) -> None:
        for number, file in enumerate(self._changing):
            draw_picture(1000 + number).save(file)
            os.utime(file, (0, 0))  # of which its etag is made, a column of the tables


Rows = frozenset[str]


def rows_of(table: pa.Table) -> Rows:
    """The rows as a set; BrokenPromiseError if one is there twice."""
    texts = [json.dumps(row, sort_keys=True) for row in table.to_pylist()]
    if len(set(texts)) < len(texts):
        raise BrokenPromiseError(f"{len(texts) - len(set(texts))} rows are there twice")
    return frozenset(texts)


def check_rows(name: str, expected: Rows, table: pa.Table) -> None:
    """BrokenPromiseError unless these are the rows of the table."""
    found = rows_of(table)
    if found != expected:
        missing, more = expected - found, found - expected
        example = min(missing or more)
        raise BrokenPromiseError(f"{name}: {len(missing)} rows missing, {len(more)} too many, such as {example}")


def check_tables(out: Path, expected: dict[str, Rows]) -> None:
    """BrokenPromiseError unless readers of the index and readers that go by names find just these rows."""
    opened = raymask.open(str(out))
    for name, rows in expected.items():
        check_rows(f"{name} by the index", rows, getattr(opened, name).to_arrow())
        check_rows(f"{name} by names", rows, pq.read_table(out / name))


def check_index(out: Path) -> None:
    """BrokenPromiseError unless every file that the index names is there to the byte; nothing where there is none."""
    with contextlib.suppress(FileNotFoundError):
        index = json.loads((out / "raymask.json").read_text())
        for file in (f for table in index["tables"].values() for f in table["files"]):
            try:
                data = (out / file["path"]).read_bytes()
            except FileNotFoundError:
                raise BrokenPromiseError(f"raymask.json names {file['path']}, which is not there") from None
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise BrokenPromiseError(f"{file['path']} is not what raymask.json says")


# -------------------------------------------------------------------------------------------------------------- plan


@dataclass
class Plan:
    """points: whom to kill when a process comes by; moments: whom so many seconds later, from a driver's start on.

    chance: for what depends on what there is to kill.
    """

    points: dict[str, str]
    moments: Iterator[tuple[float, str]]
    chance: random.Random

    @staticmethod
    def of(seed: int) -> Plan:
        order = [*DRIVER_POINTS, *WORKER_POINTS]
        random.Random(seed // SLICES).shuffle(order)
        chance = random.Random(seed)

        def moments() -> Iterator[tuple[float, str]]:
            while True:
                yield chance.uniform(1.0, 8.0), victim()

        def victim() -> str:
            return chance.choices(("worker", "raylet", "driver"), (6, 2, 2))[0]

        points = {p: "driver" if p in DRIVER_POINTS else victim() for p in order[seed % SLICES :: SLICES]}
        if seed % SLICES == 0:
            points[chance.choice(list(points))] = "cluster"
        return Plan(points, moments(), random.Random(f"{seed} chances"))


# --------------------------------------------------------------------------------------------------------------- run


@dataclass
class Record:
    """What happened in a run. points: those at which somebody was killed; armed: how many were meant."""

    seed: int
    armed: int
    kills: Counter[str] = field(default_factory=Counter)
    points: list[str] = field(default_factory=list)
    commands: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    events: list[str] = field(default_factory=list)
    violation: str = ""


class Run:
    """One output, made while its makers are killed. points: the folder in which points are armed."""

    def __init__(self, seed: int, out: Path, points: Path, source: Source, nodes: Nodes) -> None:
        self._out = out
        self._points = points
        self._source = source
        self._nodes = nodes
        self._plan = Plan.of(seed)
        self._moments = 0
        self._moment_at, self._moment_of = 0.0, ""
        self._refill_at = 0.0
        self._driver_killed = False
        self._started = time.monotonic()
        self.record = Record(seed, len(self._plan.points))

    def to_end(self, expected: dict[str, Rows]) -> None:
        """All stages and checks; BrokenPromiseError if something is not as promised."""
        self._started = time.monotonic()
        for point in self._plan.points:
            (self._points / point).touch()
        try:
            self._source.break_()
            self._source.show(40)
            self._until_done()
            self._source.show(None)
            if self.record.seed % 2:
                self._until_done()
            self._source.heal()
            self._until_done("--retry-failed")
            while self.record.kills.total() < LEAST_KILLS:
                self._until_done("--retry-failed")
            self._check_end(expected)
        finally:
            for left in self._points.iterdir():
                left.unlink()
            self.record.seconds = time.monotonic() - self._started

    def _until_done(self, *options: str) -> None:
        """The command again and again until nobody kills its driver."""
        while not self._command(*options):
            check_index(self._out)
        check_index(self._out)

    def _command(self, *options: str) -> bool:
        """One driver, from its start to its end or death; whether it came to its end."""
        self._nodes.fill_up()
        self.record.commands += 1
        self._driver_killed = False
        self._next_moment()
        for file in self._points.glob("*.[0-9]*"):  # reached too late for the driver before
            file.rename(file.with_name(file.name.rpartition(".")[0]))
        started = time.monotonic()
        with tempfile.TemporaryFile() as said:
            driver = start_driver(self._source.path, self._out, self._nodes.address, *options, said=said)
            self._note(f"driver {driver.pid} started {' '.join(options)}".rstrip())
            try:
                while driver.poll() is None:
                    if time.monotonic() - started > STALLED_S:
                        raise BrokenPromiseError(f"a driver that was not killed did not end in {STALLED_S:.0f} s")
                    self._kill_at_points(driver)
                    self._kill_at_moment(driver)
                    if self._refill_at and time.monotonic() > self._refill_at:
                        self._refill_at = 0.0
                        self._nodes.fill_up()
                    time.sleep(0.02)
            finally:
                driver.kill()
                driver.wait(timeout=30)
            if self._driver_killed:
                return False
            said.seek(0)
            text = said.read().decode(errors="replace")
        if driver.returncode or text:
            raise BrokenPromiseError(f"a driver that was not killed ended with {driver.returncode} and said {text!r}")
        self.record.slowest_s = max(self.record.slowest_s, time.monotonic() - started)
        self._note(f"driver {driver.pid} done")
        return True

    def _kill_at_points(self, driver: subprocess.Popen[bytes]) -> None:
        for file in self._points.glob("*.[0-9]*"):
            if driver.poll() is not None:
                return
            file.unlink()
            point, _, pid = file.name.rpartition(".")
            if self._kill(self._plan.points[point], driver, int(pid), point):
                self.record.points.append(point)

    def _kill_at_moment(self, driver: subprocess.Popen[bytes]) -> None:
        wanted = self._moments < LEAST_MOMENTS or self.record.kills.total() < LEAST_KILLS
        workers = self._nodes.workers() if wanted and time.monotonic() > self._moment_at else []
        if workers and self._kill(self._moment_of, driver, self._plan.chance.choice(workers), "a random moment"):
            self._moments += 1
            self._next_moment()

    def _next_moment(self) -> None:
        delay_s, self._moment_of = next(self._plan.moments)
        self._moment_at = time.monotonic() + delay_s

    def _kill(self, victim: str, driver: subprocess.Popen[bytes], pid: int, when: str) -> bool:
        """Kill the process, or the raylet above it, or the driver, or all; whether there was anything to kill.

        The head stays: where its raylet is meant, the process alone is killed.
        """
        if victim == "raylet" and parent(pid) not in self._nodes.raylets():
            victim = "worker"
        if victim in ("driver", "cluster"):
            driver.kill()
            driver.wait(timeout=30)
            self._driver_killed = True
        if victim == "cluster":
            self._nodes.kill_all()
            self._nodes.start()
        elif victim == "raylet":
            if self._nodes.has_witness(parent(pid)):
                raise BrokenPromiseError("the witness of the deaths of workers lives among them")
            self._nodes.kill(parent(pid))
            self._refill_at = time.monotonic() + self._plan.chance.uniform(0.0, 10.0)
        elif victim == "worker":
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        self.record.kills[victim] += 1
        self._note(f"{victim} killed at {when}, where process {pid} was")
        return True

    def _note(self, text: str) -> None:
        self.record.events.append(f"{time.monotonic() - self._started:6.1f} s {text}")

    def _check_end(self, expected: dict[str, Rows]) -> None:
        check_tables(self._out, expected)
        status = raymask.status(str(self._out))
        if not status.published or status.writer:
            raise BrokenPromiseError(f"the end is not the end: {status}")
        deadline = time.monotonic() + ORPHANS_S
        while left := orphans():
            if time.monotonic() > deadline:
                raise BrokenPromiseError(f"decoders {left} go on without their workers")
            time.sleep(0.1)
        raymask.clean(str(self._out))
        if cut_off := [*self._out.rglob(".tmp-*")]:
            raise BrokenPromiseError(f"{cut_off} are there after `raymask clean`")
        check_index(self._out)
        check_tables(self._out, expected)


def start_driver(source: Path, out: Path, address: str, *options: str, said: Any) -> subprocess.Popen[bytes]:
    """The command, with what `chaos_points` plants in it and in its workers."""
    hook = {"runtime_env": {"worker_process_setup_hook": "chaos_points.install"}}
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(hook)}
    command = [sys.executable, "-c", DRIVER, "segment", str(source), "--out", str(out), "--quiet", "--debug"]
    sizes = ["--images-per-part", "2", "--images-per-file", "16"]
    return subprocess.Popen([*command, *sizes, *options], env=environment, stdout=said, stderr=said)


def undisturbed(source: Source, out: Path, nodes: Nodes) -> dict[str, Rows]:
    """The tables of a run in which nobody is killed."""
    source.heal()
    source.show(None)
    with tempfile.TemporaryFile() as said:
        driver = start_driver(source.path, out, nodes.address, said=said)
        if driver.wait(timeout=STALLED_S):
            said.seek(0)
            raise BrokenPromiseError(f"the undisturbed run failed: {said.read().decode(errors='replace')}")
    opened = raymask.open(str(out))
    return {name: rows_of(getattr(opened, name).to_arrow()) for name in ("images", "instances")}


# -------------------------------------------------------------------------------------------------------------- main


HEADER = "seed  kills  worker raylet driver cluster  at points  commands  slowest  seconds  tables"


def line_of(record: Record) -> str:
    kills = record.kills
    return (
        f"{record.seed:4d} {kills.total():6d} {kills['worker']:7d} {kills['raylet']:6d} {kills['driver']:6d} "
        f"{kills['cluster']:7d} {len(record.points):4d} of {record.armed} {record.commands:9d} "
        f"{record.slowest_s:7.1f}s {record.seconds:7.1f}s  {'DIFFERENT' if record.violation else 'equal'}"
    )


def points_text(records: Sequence[Record]) -> str:
    """How often each point was the place of a kill, and which never were."""
    counts = Counter(point for record in records for point in record.points)
    never = [point for point in (*DRIVER_POINTS, *WORKER_POINTS) if not counts[point]]
    return "\n".join(
        [
            "kills at points: " + ", ".join(f"{count} x {point}" for point, count in sorted(counts.items())),
            "never at: " + (", ".join(never) or "none"),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill what runs `raymask segment`, and compare the tables.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others count up from it")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # short, as names of sockets must be
    (place / "points").mkdir()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of the end of the cluster
    started = time.monotonic()
    records = []
    prepare_environment(place)
    logging.getLogger("ray").setLevel(logging.ERROR)  # it says where a cluster is, which is nobody else's concern
    nodes = Nodes()
    try:
        nodes.start()
        source = Source(place)
        expected = undisturbed(source, place / "undisturbed", nodes)
        print(
            f"undisturbed: {len(expected['images'])} images, {len(expected['instances'])} instances\n{HEADER}",
            flush=True,
        )
        for seed in range(options.seed, options.seed + options.runs):
            run = Run(seed, place / f"out-{seed}", place / "points", source, nodes)
            try:
                run.to_end(expected)
            except BrokenPromiseError as broken:
                run.record.violation = str(broken)
            records.append(run.record)
            print(line_of(run.record), flush=True)
    finally:
        nodes.kill_all()
    violations = [record for record in records if record.violation]
    print(points_text(records))
    print(f"{sum(r.kills.total() for r in records)} kills in {time.monotonic() - started:.0f} s")
    print(f"violations: {len(violations)}")
    for record in violations:
        print(f"  --seed {record.seed} --runs 1: {record.violation}", *record.events, sep="\n    ")
    if violations:
        print(f"outputs and Ray's logs are in {place}")
        return 1
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
