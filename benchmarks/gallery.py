"""The gallery over a large output: how long its first page and its filters take, and what the server holds.

    python benchmarks/gallery.py [--out DIR] [--images 1000000] [--instances 10000000] [--repeats 3]

A server of its own for each repeat, so that nothing is kept from the one before; files are in the page cache. A page is
there once its images are known; then come the masks of the first twelve images, which a window shows, and then those of
all sixty. There are no photos behind the generated tables, so that decoding is no part of this.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generated import write_output
from measure import print_table, save
from playwright.sync_api import expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
QUERIES: dict[str, dict[str, str]] = {
    "no filter": {},
    "a page in the middle": {"page": "8000"},
    "a category": {"category": "10"},
    "a rare category, by highest score": {"category": "20", "sort": "best"},
    "score from 0.9": {"min_score": "0.9"},
    "area up to 1,000 pixels": {"max_area": "1000"},
    "failed": {"status": "failed"},
    "one kind of failure": {"error": "truncated"},
    "a part of the name": {"name": "00012345"},
    "SQL over images": {"where": "height > 1000 AND instance_count > 15"},
    "SQL over objects": {"where": "category = 'dog' AND score > 0.9 AND x_max - x_min > 300"},
    "SQL over both": {"where": "category = 'cat' AND height > 1000"},
    "everything, by name": {"sort": "name"},
    "everything, by highest score": {"sort": "best"},
    "everything, by smallest mask": {"sort": "smallest"},
    "category, score, area and SQL": {
        **{"category": "1,2", "min_score": "0.5", "min_area": "500", "where": "y_max < 400", "sort": "largest"},
    },
}
IMAGES_AT_ONCE = 12  # as the page asks for their masks
PARTS = ("page", "first_masks", "complete")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="a generated output that is there already")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--instances", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.out is not None:
        measure(given.out, given.repeats)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_output(folder, given.images, given.instances)
        measure(folder, given.repeats)


def measure(out: str, repeats: int) -> None:
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in QUERIES}
    starts, browsers, memory_mb, counts = [], [], [], {}
    for _ in range(repeats):
        begun = time.perf_counter()
        with server(out) as (link, process):
            starts.append(time.perf_counter() - begun)
            browsers.append(first_page_in_browser(link))
            for name, query in QUERIES.items():
                seconds[name].append(page_s(link, query))
            about = get(f"{link}api/about")
            counts = {"images": about["images"], "instances": about["instances"]}
            memory_mb.append(peak_mb(process.pid))
    rows = [
        {"query": name, **{f"{part}_s": statistics.median(t[part] for t in times) for part in PARTS}}
        for name, times in seconds.items()
    ]
    cells = [[row["query"], *(f"{row[f'{part}_s']:.2f} s" for part in PARTS)] for row in rows]
    print_table(["query", "images", "first 12 with masks", "all with masks"], cells)
    shown = {part: statistics.median(b[part] for b in browsers) for part in browsers[0]}
    print(f"{counts['images']:,} images, {counts['instances']:,} instances; medians of {repeats}")
    print(f"from the command to the link {statistics.median(starts):.2f} s")
    print(f"in Chromium, from the link to the images {shown['page']:.2f} s, to all masks {shown['complete']:.2f} s")
    print(f"the server's memory at its peak {max(memory_mb):,.0f} MB")
    save(
        "gallery", rows, **counts, start_s=statistics.median(starts), browser_s=shown, peak_mb=max(memory_mb), n=repeats
    )


@contextmanager
def server(out: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "raymask.cli", "view", out, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], process
        finally:
            process.terminate()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read())


def page_s(link: str, query: dict[str, str]) -> dict[str, float]:
    """Seconds until the images of a page are known, until the first have their masks, and until all have."""
    begun = time.perf_counter()
    page = get(f"{link}api/images?{urllib.parse.urlencode(query)}")
    seconds = {"page": time.perf_counter() - begun}
    ids = [row["id"] for row in page["rows"] if row["status"] == "ok"]
    chosen = {name: value for name, value in query.items() if name not in ("sort", "page")}
    for start in range(0, len(ids), IMAGES_AT_ONCE):
        some = {**chosen, "ids": ",".join(ids[start : start + IMAGES_AT_ONCE])}
        get(f"{link}api/objects?{urllib.parse.urlencode(some)}")
        seconds.setdefault("first_masks", time.perf_counter() - begun)
    done = time.perf_counter() - begun
    return {"first_masks": done, **seconds, "complete": done}


def first_page_in_browser(link: str) -> dict[str, float]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto("about:blank")
        begun = time.perf_counter()
        page.goto(link, wait_until="commit")
        page.locator(".card").first.wait_for()
        shown = time.perf_counter() - begun
        expect(page.locator(".note:empty")).to_have_count(0, timeout=60_000)
        complete = time.perf_counter() - begun
        browser.close()
    return {"page": shown, "complete": complete}


def peak_mb(process: int) -> float:
    """The most memory that a process has held, of its own and shared."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
