"""`raymask report` of a large output: 1,000,000 images with 10,000,000 instances, made once by `generated.py`.

    python benchmarks/report.py

The whole command, with its time and the most memory that its process held. The images are not there, so the page has no
pictures of them: fifteen pictures cost a second or two, however large the output is. The files are in the page cache.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated import write_output
from measure import print_table, save, spread
from workload import DATA

from raymask.published import read_published

IMAGES, INSTANCES = 1_000_000, 10_000_000
REPEATS = 3


def main() -> None:
    out = str(DATA / "million-gone")
    if read_published(out) is None:
        write_output(out, IMAGES, INSTANCES, prefix="/nowhere")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "raymask.cli", "report", out, "--out", str(page), "--quiet"]
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run(command, check=True)
            seconds.append(time.perf_counter() - start)
        page_bytes = page.stat().st_size
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    row = {"command": "raymask report", **spread(seconds), "peak_bytes": peak_bytes, "page_bytes": page_bytes}
    save("report", [row], images=IMAGES, instances=INSTANCES)
    shown = [f"{row['median_s']:.1f} s", f"{peak_bytes / 1e6:,.0f} MB", f"{page_bytes / 1e3:,.0f} kB"]
    print_table(["", "time", "memory", "page"], [["raymask report", *shown]])


if __name__ == "__main__":
    main()
