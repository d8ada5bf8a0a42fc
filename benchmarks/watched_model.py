"""A model that finds nothing, takes its time over it, and notes where and when: for runs on several nodes.

    python benchmarks/watched_model.py NOTES SECONDS raymask segment IMAGES --out OUT ...

An image takes SECONDS of a core. NOTES is a folder with a file for each process, a note a line in JSON: `at` (seconds
since 1970), `node`, `what` ("worker" for one that begins, "decode", "predict") and for the last `images`. While there
is a file `hold` in it no image is done, while there is `hold-last` none of a single pixel. Prints how many bytes each
node has spilled from its object store.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import null_model
import numpy as np
from numpy.typing import NDArray


class Predictor(null_model.Predictor):
    def __init__(self, model: null_model.Model, **options: Any) -> None:
        super().__init__(model, **options)
        note("worker")

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[null_model.NoDetections]:
        note("predict", images=len(images))
        for image in images:
            held = Path(os.environ["WATCHED_NOTES"]) / ("hold-last" if image.size == 3 else "hold")
            while held.exists():
                time.sleep(0.05)
            work(float(os.environ["WATCHED_SECONDS"]))
        return super().__call__(images)


def work(seconds: float) -> None:
    """Keep this thread's core busy for so long, other threads and processes on it not counted."""
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


def note(what: str, **more: Any) -> None:
    import ray

    here = ray.get_runtime_context().get_node_id()
    with (Path(os.environ["WATCHED_NOTES"]) / str(os.getpid())).open("a") as file:
        file.write(json.dumps({"at": time.time(), "node": here, "what": what, **more}) + "\n")


def notes(folder: Path) -> list[dict[str, Any]]:
    """All notes so far, by time; `process` is whose it is."""
    found = [
        {**json.loads(line), "process": int(file.name)}
        for file in folder.glob("[0-9]*")
        for line in file.read_text().splitlines()
    ]
    return sorted(found, key=lambda one: float(one["at"]))


def install() -> None:
    """Put it in place, in this process and, as the hook that begins them, in Ray's workers."""
    null_model.install()
    sys.modules["raymask.model"].Predictor = Predictor  # type: ignore[attr-defined]
    from raymask import sandbox

    plain = sandbox.borrowed_sandbox

    @contextlib.contextmanager
    def noted(**options: Any) -> Iterator[Any]:
        note("decode")
        with plain(**options) as borrowed:
            yield borrowed

    sandbox.borrowed_sandbox = noted


def spilled() -> dict[str, int]:
    """Bytes that each node has written from its object store to its disk: node id -> bytes."""
    import ray
    from ray._private.internal_api import node_stats

    found = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            address = node["NodeManagerAddress"], node["NodeManagerPort"]
            stats: Any = node_stats(*address, include_memory_info=False)  # type: ignore[no-untyped-call]
            found[node["NodeID"]] = int(stats.store_stats.spilled_bytes_total)
    return found


def main() -> int:
    folder, seconds, _, *arguments = sys.argv[1:]
    # Ray's workers import this module by its name, as this program's folder lets it.
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    of_workers = {"PYTHONPATH": path, "WATCHED_NOTES": folder, "WATCHED_SECONDS": seconds}
    hook = {"env_vars": of_workers, "worker_process_setup_hook": "watched_model.install"}
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": hook})
    install()
    from raymask import cli
    from raymask.cluster import ray_session

    with ray_session():
        code = cli.main(arguments)
        print(json.dumps(spilled()))
    return code


if __name__ == "__main__":
    sys.exit(main())
