"""Whole runs of `raymask segment` beside what a user would write instead, and what a run costs beside its model.

    python benchmarks/pipeline.py [--photos 200] [--slow-photos 60] [--null-photos 20000]

Every run is a process of its own, timed from its start to its end: imports, Ray, weights, reading, predicting, writing.
The same JPEG files, the same weights, in turn; all write boxes, labels, scores and COCO RLE to Parquet. raymask runs
first and last, to show whether the machine was the same throughout. `peers.py` has the others' code.

Those that take seconds for an image run over fewer photos, since their start hardly weighs beside that. Two cores take
half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from measure import print_table, save
from null_model import Model, Predictor
from workload import model_folder, photo_folder

from raymask.decode import decode
from raymask.fetch import Fetched, Place, fetch
from raymask.journal import write_part
from raymask.reading import decoded_row
from raymask.storage import Folder
from raymask.tables import decoded_table, part_table, pixels_of

HERE = Path(__file__).parent
PEERS = ("torchvision_tuned", "torchvision_first", "ray_data", "daft")
SLOW_PEERS = frozenset({"torchvision_first", "ray_data", "daft"})
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
MAX_BYTES, MAX_PIXELS = 2**30, 2**28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200, help="of 480 x 640; three tenths as many of 1080 x 1920")
    parser.add_argument("--slow-photos", type=int, default=60, help="for those that take seconds an image")
    parser.add_argument("--null-photos", type=int, default=20_000, help="for runs whose model costs nothing")
    args = parser.parse_args()
    if args.photos:
        results = compare((480, 640), args.photos, min(args.slow_photos, args.photos), 20, PEERS)
        results += compare((1080, 1920), args.photos * 3 // 10, 0, 100, PEERS[:1])
        save("pipeline", results)
    if args.null_photos:
        counts = args.null_photos // 4, args.null_photos
        save("null", [row for count in counts for row in without_model(photo_folder(count, (480, 640)))])


def compare(
    size_hw: tuple[int, int], photos: int, slow_photos: int, detections: int, peers: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Runs of raymask and the peers, with the same number of detections an image: a result each, by median."""
    weights = str(model_folder())
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in ("raymask", *peers, "raymask"):
        count = slow_photos if name in SLOW_PEERS else photos
        images = str(photo_folder(count, size_hw))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            common = ["--weights", weights, "--out", str(out)]
            if name == "raymask":
                found = run([str(Path(sys.executable).parent / "raymask"), "segment", images, *common, "--quiet",
                             "--max-detections", str(detections)])  # fmt: skip
                written = out / "instances"
            else:
                found = run([sys.executable, str(HERE / "peers.py"), name, "--images", images, *common,
                             "--detections", str(detections)])  # fmt: skip
                written = out
            rows = ds.dataset(written).count_rows()
        if rows != count * detections:
            raise SystemExit(f"{name} wrote {rows} detections of {count} images, {detections} each are meant")
        print(f"{name}: {found['seconds']:.1f} s", flush=True)
        runs.setdefault(name, []).append({**found, "images": count})
    facts = {"size": "{1} x {0}".format(*size_hw), "detections": detections}
    results, lines = [], []
    for name, of_name in runs.items():
        count, seconds = of_name[0]["images"], statistics.median(found["seconds"] for found in of_name)
        results.append({"run": name, **facts, "images": count, "images_per_s": count / seconds, "runs": of_name})
        ratio = results[0]["images_per_s"] / results[-1]["images_per_s"]
        lines.append([name, str(count), f"{seconds:.1f} s", f"{count / seconds:.2f}", f"{ratio:.1f}"])
    print(f"\nPhotos of {facts['size']}, {detections} detections each, whole runs")
    print_table(["", "photos", "time", "images/s", "raymask is faster by"], lines)
    return results


def without_model(photos: Path) -> list[dict[str, Any]]:
    """Runs with a model that costs nothing, beside Ray Data as documented and decoding alone: a result each, by median.

    Two turns, the second in reverse order, since a run takes over memory that the one before it has given back to the
    system, which is faster than memory that nobody had for a while. The files are in the page cache for all.
    """
    names = ("raymask", "ray_data_null", "pillow_only")
    paths = list(photos.glob("*.jpg"))
    for path in paths:
        path.read_bytes()
    count = len(paths)
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in (*names, *reversed(names)):
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "out")
            script = ["null_model.py", str(photos), out] if name == "raymask" else [
                "peers.py", name, "--images", str(photos), "--out", out]  # fmt: skip
            runs.setdefault(name, []).append(run([sys.executable, str(HERE / script[0]), *script[1:]]))
            print(f"{name}: {runs[name][-1]['seconds']:.1f} s", flush=True)
    results: list[dict[str, Any]] = []
    lines = []
    for name, of_name in runs.items():
        measured = [key for key in ("seconds", "segment_s", "cpu_s", "driver_mb", "worker_mb") if key in of_name[0]]
        middle = {key: float(statistics.median([found[key] for found in of_name])) for key in measured}
        rate = count / middle["seconds"]
        facts = {"run": f"{name} without a model", "images": count, "images_per_s": rate}
        results.append(facts | middle | {"runs": of_name})
        steady = f"{count / middle['segment_s']:,.0f}" if "segment_s" in middle else ""
        memory = [f"{middle[key]:,.0f} MB" for key in ("driver_mb", "worker_mb")]
        cpu = f"{1000 * middle['cpu_s'] / count:.2f} s"
        lines.append([name, f"{middle['seconds']:.1f} s", f"{rate:,.0f}", steady, cpu, *memory])
    print(f"\n{count:,} photos of 640 x 480, a model that costs nothing")
    header = ["", "time", "images/s", "without start and end", "CPU for 1,000", "driver", "largest worker"]
    print_table(header, lines)
    stages = stages_of(photos)
    total = 1000 * results[0]["cpu_s"] / count
    stages["Ray, start and end: the rest"] = total - sum(stages.values())
    print_table(["CPU seconds for 1,000 images", ""], [[name, f"{s:.2f}"] for name, s in stages.items()])
    results[0]["cpu_s_per_1000_by_stage"] = stages
    return results


def run(command: list[str]) -> dict[str, Any]:
    """Run a program: its seconds, what it printed last in JSON, and what `watch` saw of its processes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen: dict[str, Any] = {"cpu_s_by_process": {}, "driver_mb": 0.0, "worker_mb": 0.0}
    watcher = threading.Thread(target=watch, args=(process, seen))
    watcher.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-2000:]}")
    said = json.loads(output.splitlines()[-1]) if output.strip() else {}
    return {**said, "seconds": seconds, "cpu_s": sum(seen["cpu_s_by_process"].values()), **seen}


def watch(process: subprocess.Popen[str], seen: dict[str, Any]) -> None:
    """Until the process ends: CPU seconds of it and its descendants by what they call themselves just then, and the
    largest anonymous memory of it and of any other. Ray's workers are named after the task that they are at.
    """
    spent: dict[int, int] = {}
    while process.poll() is None:
        tree = {process.pid}
        for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda f: int(f.name)):
            try:
                name, _, fields = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                parent, ticks = int(fields.split()[1]), sum(map(int, fields.split()[11:13]))
                if (pid := int(folder.name)) not in tree and parent not in tree:
                    continue
                tree.add(pid)
                memory = [line for line in (folder / "status").read_text().splitlines() if line.startswith("RssAnon")]
            except OSError:  # it ended meanwhile
                continue
            by_process = seen["cpu_s_by_process"]
            by_process[name] = by_process.get(name, 0.0) + (ticks - spent.get(pid, 0)) / TICKS_A_SECOND
            spent[pid] = ticks
            key = "driver_mb" if pid == process.pid else "worker_mb"
            seen[key] = max([seen[key], *(int(line.split()[1]) / 1024 for line in memory)])
        time.sleep(0.5)  # seldom enough to take nothing from what is watched


def stages_of(photos: Path, count: int = 1000) -> dict[str, float]:
    """CPU seconds for 1,000 images of each step of a worker, called here one after the other."""
    places = [Place(str(path)) for path in sorted(photos.glob("*.jpg"))[:count]]
    spent: dict[str, float] = {}

    def cpu(step: str, call: Any) -> Any:
        start = time.process_time()
        result = call()
        spent[step] = spent.get(step, 0.0) + (time.process_time() - start) * 1000 / len(places)
        return result

    fetched: list[Fetched] = cpu("fetch", lambda: list(fetch(places, max_bytes=MAX_BYTES)))
    model = Predictor(Model())
    with tempfile.TemporaryDirectory() as folder:
        journal = Folder(folder)
        for start in range(0, len(places), 32):
            batch = list(enumerate(fetched[start : start + 32], start))
            decode = partial(decode_all, batch, places)
            decoded = cpu("decode", decode)
            table: pa.Table = cpu("pixels into Arrow", partial(decoded_table, decoded))
            images = cpu("pixels out of Arrow", partial(pixels_of, table))
            found = dict(zip(images, model(list(images.values())), strict=True))
            part = cpu("journal rows", partial(part_table, table, found, ()))
            cpu("journal parts written", partial(write_part, journal, part, 0))
    return spent


def decode_all(batch: list[tuple[int, Fetched]], places: list[Place]) -> list[Any]:
    return [
        decoded_row(
            ordinal,
            places[ordinal].uri,
            decode(fetched.data, max_pixels=MAX_PIXELS),
            len(fetched.data),
            fetched.etag,
        )
        for ordinal, fetched in batch
    ]


if __name__ == "__main__":
    main()
