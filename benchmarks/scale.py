"""What a run costs as it grows: tiny images and a model that costs nothing, ten times as many from row to row.

    python benchmarks/scale.py [--images 10000,100000,1000000] [--keys 1000000]

Every run is a process of its own: listing, segmenting, publishing, its memory; then the same output again, finished or
with a part of its journal gone, as after a kill. At last a bucket is listed over S3's protocol. Two cores take an hour.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

matplotlib.use("svg")
from matplotlib import pyplot as plt
from measure import RESULTS, print_table, save
from pipeline import run
from workload import DATA

HERE = Path(__file__).parent
FOLDER_FILES = 1000
LISTER = """
import sys, json, time
from raymask.config import SegmentConfig
from raymask.listing import add_listing
from raymask.progress import Silent
start = time.perf_counter()
rows = add_listing(SegmentConfig(source=sys.argv[1], out=sys.argv[2]), Silent()).rows
print(json.dumps({"images": rows, "seconds_within": time.perf_counter() - start}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="10000,100000,1000000", metavar="N,...", help="images of the runs")
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys of the bucket that is listed")
    args = parser.parse_args()
    counts = [int(text) for text in args.images.split(",")]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            out = Path(folder) / f"out-{count}"
            images = tiny_images(count)
            for case, kept in {"new": 0.0, "99.9 % done": 0.999, "finished": 1.0}.items():
                if case == "99.9 % done":
                    undo(out, kept)
                results.append(segment(images, out, case))
            if count < max(counts):
                for case, kept in {"50 % done": 0.5, "listed, 0 % done": 0.0}.items():
                    undo(out, kept)
                    results.append(segment(images, out, case))
            shutil.rmtree(out)
        results.append(list_bucket(args.keys, Path(folder) / "listed"))
        results.append(list_table(args.keys, Path(folder)))
    show(results)
    save("scale", results)
    draw([row for row in results if row["case"] == "new"])


def tiny_images(count: int) -> Path:
    """A folder of folders of PNG pictures of 16 x 16; those of a folder are one file by many names."""
    folder = DATA / f"tiny_{count}"
    if (folder / "complete").exists():
        return folder
    for first in range(0, count, FOLDER_FILES):
        inner = folder / f"{first // FOLDER_FILES:06d}"
        inner.mkdir(parents=True, exist_ok=True)
        picture = inner / f"{first:09d}.png"
        PIL.Image.new("RGB", (16, 16), (first // 4096 % 256, first // 16 % 256, 99)).save(picture)
        for number in range(first + 1, min(first + FOLDER_FILES, count)):
            (inner / f"{number:09d}.png").hardlink_to(picture)
    (folder / "complete").touch()
    return folder


def segment(images: Path, out: Path, case: str) -> dict[str, Any]:
    found = run([sys.executable, str(HERE / "null_model.py"), str(images), str(out)])
    print(f"{images.name}, {case}: {found['seconds']:.1f} s", flush=True)
    return {"case": case, **found}


def undo(out: Path, kept: float) -> None:
    """Leave what a run leaves that was killed when that share of its images was done."""
    for table in ("images", "instances", "raymask.json"):
        path = out / table
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    parts = sorted((out / "_raymask" / "parts").rglob("*.parquet"))
    gone = len(parts) if kept == 0 else max(1, round(len(parts) * (1 - kept)))
    for part in random.Random(0).sample(parts, gone):
        part.unlink()


def list_bucket(keys: int, out: Path) -> dict[str, Any]:
    """The listing of a bucket, written as a manifest."""
    port = 18_000 + os.getpid() % 1000
    server = subprocess.Popen([sys.executable, str(HERE / "listing_server.py"), str(keys), str(port)])
    url = f"http://127.0.0.1:{port}"
    keep = dict(os.environ)
    try:
        wait_for(url)
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any")
        found = run([sys.executable, "-c", LISTER, "s3://bucket/photos", str(out)])
    finally:
        os.environ.clear()
        os.environ.update(keep)
        server.terminate()
        server.wait()
    return {"case": "a bucket listed", **found}


def list_table(keys: int, folder: Path) -> dict[str, Any]:
    """The same objects, named by a table, as an inventory of the bucket has them."""
    table = folder / "inventory.parquet"
    uris = [f"s3://bucket/photos/{number // 1000:06d}/{number:09d}.jpg" for number in range(keys)]
    pq.write_table(pa.table({"uri": uris, "size": pa.repeat(150_000, keys)}), table)
    found = run([sys.executable, "-c", LISTER, str(table), str(folder / "of-table")])
    return {"case": "a table of URLs listed", **found}


def wait_for(url: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"no answer from {url}")


def show(results: list[dict[str, Any]]) -> None:
    lines = []
    for row in results:
        steps = row.get("steps_s", {})
        before = row["seconds"] - steps.get("process", 0.0) - steps.get("publish", 0.0)
        cells = [f"{before:.1f} s", *(f"{steps[s]:.1f} s" if s in steps else "" for s in ("process", "publish"))]
        per_image = f"{1e6 * steps['process'] / row['images']:.0f} us" if row["case"] == "new" else ""
        memory = [f"{row[key]:,.0f} MB" for key in ("driver_mb", "worker_mb")]
        lines.append([f"{row['images']:,}", row["case"], f"{row['seconds']:.1f} s", *cells, per_image, *memory])
    print_table(
        ["images", "", "whole", "start, listing", "segment", "publish", "an image", "driver", "largest worker"], lines
    )


def draw(runs: list[dict[str, Any]]) -> None:
    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "raymask"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
    images = [row["images"] for row in runs]
    for key, name in {"driver_mb": "driver", "worker_mb": "largest worker"}.items():
        left.plot(images, [row[key] for row in runs], marker="o", label=name)
    left.set_ylabel("memory, MB")
    left.legend(frameon=False)
    right.plot(images, [1e6 * row["steps_s"]["process"] / row["images"] for row in runs], marker="o", color="#2563eb")
    right.set_ylabel("segmenting, us an image")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("images")
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "scale.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
