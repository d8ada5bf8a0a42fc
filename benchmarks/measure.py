"""What every benchmark shares: timing, a description of the machine, a table for people and JSON for the record."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "numpy", "numba", "pycocotools", "pyarrow", "duckdb", "ray")


def timed(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times, the calls in turn so that a slow moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "n": len(seconds)}


def machine() -> dict[str, Any]:
    """Processor, cores and versions, for the reader of a result."""
    import torch

    cpu = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    installed = {name: _version(name) for name in PACKAGES}
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "python": platform.python_version(), **installed}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def save(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", *sys.argv])
    record = {"benchmark": name, "command": command, "machine": machine(), **facts, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))
