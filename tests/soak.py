"""A long run in small: a bucket on this machine, a share of all requests in trouble, and every process measured.

    python tests/soak.py --minutes 10

Exit code 1 if the memory of a process, or of all together, or the number of files that one has open still grows once
the run has warmed up, or if the run fails. Memory is a process's own share (PSS) without what it shares with others,
which is Ray's object store and one row of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from conftest import draw_picture, make_small_model
from stores import Store, Weather, s3_store

from raymask.model import save_model

IMAGES_PER_S = 80  # more than two cores do, so that the run does not end before its time
PICTURES = 200
STORE_BYTES = 100 * 1024**2  # of Ray: decoded images fill it while the run warms up, as they do any store in the end
WARM_UP = 0.3  # share of the time that is not judged
WINDOW = 0.25  # share of the rest that is looked at, at its beginning and at its end
FLAT_MB = 2.0  # what may come and go in a small process
FLAT_FILES = 2


@dataclass
class Series:
    """What one process had, a sample at a time: seconds, MB of its own, open files."""

    name: str
    at_s: list[float] = field(default_factory=list)
    own_mb: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """A number at the beginning and at the end of the time that counts."""

    name: str
    what: str
    before: float
    after: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        return self.after - self.before <= self.allowed

    def text(self) -> str:
        growth = self.after / self.before - 1 if self.before else 0.0
        verdict = "flat" if self.is_flat else "GROWS"
        return f"{self.name:44.44} {self.what:6} {self.before:9.1f} {self.after:9.1f} {growth:+7.1%}  {verdict}"


def judge(series: Sequence[Series], begin_s: float, end_s: float, tolerance: float) -> list[Judged]:
    """Memory and files of each process that was there all the time, from its medians at the beginning and the end."""
    length_s = (end_s - begin_s) * WINDOW
    judged = []
    for one in series:
        early = [n for n, s in enumerate(one.at_s) if begin_s <= s <= begin_s + length_s]
        late = [n for n, s in enumerate(one.at_s) if end_s - length_s <= s <= end_s]
        if not early or not late:
            continue
        for what, values, least in (("MB", one.own_mb, FLAT_MB), ("files", one.files, FLAT_FILES)):
            before, after = median(values[n] for n in early), median(values[n] for n in late)
            judged.append(Judged(one.name, what, before, after, max(least, tolerance * before)))
    return judged


# ---------------------------------------------------------------------------------------------------------- measuring


def family_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def memory_mb(pid: int) -> tuple[float, float]:
    """What a process has of its own, and its share of what is shared."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = Counter({line.split(":")[0]: int(line.split()[1]) for line in lines})
    return (kb["Pss"] - kb["Pss_Shmem"]) / 1e3, kb["Pss_Shmem"] / 1e3


def name_of(pid: int, driver: int) -> str:
    if pid == driver:
        return "driver"
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "-I" in words:
        return "decoder"
    # Ray's workers say in their title what they are at, others begin with a program, or Python's.
    return next((os.path.basename(w) for w in words if w and "python" not in os.path.basename(w) and w[0] != "-"), "?")


class Sampler:
    """Samples of all processes of a run."""

    def __init__(self, driver: int) -> None:
        self._driver = driver
        self._of: dict[int, Series] = {}
        self._all, self._shared = Series("all together"), Series("shared memory of all")

    @property
    def series(self) -> list[Series]:
        return [*self._of.values(), self._all, self._shared]

    def sample(self, at_s: float) -> None:
        total_mb, total_shared_mb, total_files = 0.0, 0.0, 0
        for pid in family_of(self._driver):
            with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
                own_mb, shared_mb = memory_mb(pid)
                files = len(os.listdir(f"/proc/{pid}/fd"))
                one = self._of.setdefault(pid, Series(""))
                one.name = f"{name_of(pid, self._driver)} {pid}"
                self._add(one, at_s, own_mb, files)
                total_mb, total_shared_mb, total_files = (
                    total_mb + own_mb,
                    total_shared_mb + shared_mb,
                    total_files + files,
                )
        self._add(self._all, at_s, total_mb, total_files)
        self._add(self._shared, at_s, total_shared_mb, 0)

    @staticmethod
    def _add(one: Series, at_s: float, own_mb: float, files: int) -> None:
        one.at_s.append(at_s)
        one.own_mb.append(own_mb)
        one.files.append(files)


# ------------------------------------------------------------------------------------------------------------ the run


@contextlib.contextmanager
def running(store: Store, folder: Path, seconds: float, log: io.FileIO) -> Iterator[subprocess.Popen[bytes]]:
    """`raymask segment` over a bucket of more images than it can do in that time."""
    pictures = []
    for number in range(PICTURES):
        sink = io.BytesIO()
        draw_picture(number, 120, 160).save(sink, "jpeg")
        pictures.append(sink.getvalue())
    for number in range(int(seconds * IMAGES_PER_S)):
        store.put(f"photos/{number:07d}.jpg", pictures[number % PICTURES])
    model = make_small_model()
    save_model(str(folder / "model"), model.spec, model.weights)
    options = ["--out", f"{store.url}/out", "--weights", str(folder / "model"), "--images-per-part", "8"]
    command = [sys.executable, "-m", "raymask.cli", "segment", f"{store.url}/photos", *options]
    environment = {**os.environ, "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(STORE_BYTES)}
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def soak(seconds: float, faults: float, tolerance: float, every_s: float, seed: int = 1) -> bool:
    """Run for so long; prints a table, and says whether all went well."""
    with tempfile.TemporaryDirectory() as name, s3_store() as store, open(f"{name}/log", "w+b", buffering=0) as log:
        with running(store, Path(name), seconds, log) as process:
            while process.poll() is None and not store.count("PUT", "/parts/"):
                time.sleep(0.2)
            store.trouble = weather = Weather(faults, seed, slow_s=1)
            sampler, started_s = Sampler(process.pid), time.monotonic()
            while process.poll() is None and time.monotonic() - started_s < seconds:
                sampler.sample(time.monotonic() - started_s)
                time.sleep(every_s)
            took_s = time.monotonic() - started_s
            store.trouble = lambda request: None
            process.send_signal(signal.SIGINT)
            ended = process.wait(60)
        log.seek(0)
        said = log.read().decode()
        parts = store.count("PUT", "/parts/")
    judged = judge(sampler.series, took_s * WARM_UP, took_s, tolerance)
    print(f"{'':44} {'':6} {'before':>9} {'after':>9}")
    for one in judged:
        print(one.text())
    troubles = ", ".join(
        f"{count:,} {trouble.name.lower()}" for trouble, count in sorted(weather.counts.items(), key=str)
    )
    print(f"{took_s:.0f} s, some {8 * parts:,} images, requests in trouble: {troubles}")
    is_well = ended in (0, 130) and took_s > 0.8 * seconds
    if not is_well:
        print(f"exit code {ended} after {took_s:.0f} s\n{said}")
    return is_well and bool(judged) and all(one.is_flat for one in judged)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--faults", type=float, default=0.05, help="share of requests in trouble")
    parser.add_argument("--tolerance", type=float, default=0.05, help="growth that counts as flat")
    given = parser.parse_args()
    return 0 if soak(given.minutes * 60, given.faults, given.tolerance, every_s=2.0) else 1


if __name__ == "__main__":
    sys.exit(main())
