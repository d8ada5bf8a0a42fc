"""From the command to the first image predicted: what takes how long.

    python benchmarks/startup.py

`raymask segment` on two photos with `maskrcnn_resnet50_fpn`, as a process of its own, with a clock beside each step.
What a model worker does between its start and its first result is measured again in this process, since it happens in
another one there.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Nothing is imported here that the processes which are timed would otherwise import themselves.

REPEATS = 3


def main() -> None:
    from measure import print_table, save
    from workload import model_folder, photo_folder

    weights, photos = model_folder(), photo_folder(2, (480, 640))
    runs = [timeline(photos, weights) for _ in range(REPEATS)]
    steps = {name: [run[name] for run in runs] for name in runs[0]}
    save("startup", [{"step": name, "median_s": statistics.median(s), "runs_s": s} for name, s in steps.items()])
    print_table(["step", "seconds"], [[name, f"{statistics.median(s):.1f}"] for name, s in steps.items()])


def timeline(photos: Path, weights: Path) -> dict[str, float]:
    """Seconds of each step of one run, in order; those that begin with two spaces are part of the one before."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, __file__, "run", str(photos), str(weights), str(out)]
        started = time.time()
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ended = time.time()
        marks: dict[str, float] = json.loads(printed.splitlines()[-1])
        first_part = min(part.stat().st_mtime for part in (out / "_raymask/parts").iterdir())
    worker = json.loads(subprocess.run([sys.executable, __file__, "worker", str(photos), str(weights)],
                                       capture_output=True, text=True, check=True).stdout.splitlines()[-1])  # fmt: skip
    return {
        "Python, raymask and Ray imported": marks["imported"] - started,
        "Ray started; meanwhile torch imported, model read and checked": marks["listing begun"] - marks["imported"],
        "input listed": marks["listed"] - marks["listing begun"],
        "workers started, first images predicted": first_part - marks["listed"],
        **{f"  {name}": seconds for name, seconds in worker.items()},
        "the rest of the images": max(0.0, marks["processed"] - first_part),
        "tables published": marks["published"] - marks["processed"],
        "Ray stopped, process ended": ended - marks["published"],
    }


def run(photos: str, weights: str, out: str) -> None:
    """The command, with marks."""
    import raymask
    from raymask import pipeline

    marks = {"imported": time.time()}

    def marked(function: Any, before: str | None, after: str) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if before:
                marks[before] = time.time()
            result = function(*args, **kwargs)
            marks[after] = time.time()
            return result

        return call

    patched: Any = pipeline
    patched.add_listing = marked(patched.add_listing, "listing begun", "listed")
    patched.process = marked(patched.process, None, "processed")
    patched.publish = marked(patched.publish, None, "published")
    raymask.segment(photos, out=out, weights=weights, quiet=True)
    print(json.dumps(marks))


def worker(photos: str, weights: str) -> None:
    """What a model worker does from its start to its first result."""
    start = time.perf_counter()
    import numpy as np
    from PIL import Image

    from raymask.model import Predictor, load_model

    imported = time.perf_counter()
    model = load_model(weights)  # workers get it from the driver
    loaded = time.perf_counter()
    predictor = Predictor(model, threads=1)
    made = time.perf_counter()
    photo = np.array(Image.open(next(Path(photos).glob("*.jpg"))))
    predictor([photo])
    first = time.perf_counter()
    predictor([photo])
    second = time.perf_counter()
    steps = {
        "imports in a worker": imported - start,
        "network built and prepared": made - loaded,
        "first image": first - made,
        "second image, to compare": second - first,
    }
    print(json.dumps(steps))


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(*sys.argv[2:])
    elif sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main()
