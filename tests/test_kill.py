"""A driver that is killed outright loses nothing: the same command, run again, ends with the same tables."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import draw_folder

import raymask

KILLS = 5
IMAGES = 300


def command(source: Path, out: Path, model: str) -> list[str]:
    options = ["--weights", model, "--precision", "fp32", "--images-per-part", "8", "--images-per-file", "100"]
    return [sys.executable, "-m", "raymask.cli", "segment", str(source), "--out", str(out), *options]


def rows_of(out: Path, table: str) -> set[str]:
    rows: list[dict[str, Any]] = pq.read_table(out / table).to_pylist()
    texts = {str(sorted(row.items())) for row in rows}
    assert len(texts) == len(rows)
    return texts


def run_to_end(arguments: list[str]) -> str:
    outcome = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the driver; the processes of Ray find out for themselves."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@pytest.mark.timeout(600)
def test_kill_9_at_random_moments(model_folder: str, tmp_path: Path) -> None:
    source = draw_folder(tmp_path / "in", IMAGES - 6, broken=6)
    calm = tmp_path / "calm"
    started = time.monotonic()
    run_to_end(command(source, calm, model_folder))
    whole_run_s = time.monotonic() - started

    out, chance = tmp_path / "killed", random.Random(5)
    progress = [0]
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(source, out, model_folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Anywhere from the start of the program to its last moments, were it to run alone.
        time.sleep(whole_run_s * chance.uniform(0.2, 1.0))
        kill(process)
        parts = out / "_raymask" / "parts"
        progress.append(len(list(parts.glob("0*.parquet"))) if parts.exists() else 0)
    assert progress == sorted(progress), "a part that was there is gone"
    assert f"{IMAGES} images: {IMAGES - 6} ok" in run_to_end(command(source, out, model_folder))

    assert len(rows_of(calm, "images")) == IMAGES
    for table in ("images", "instances"):
        assert rows_of(out, table) == rows_of(calm, table)
    assert raymask.status(str(out)).published
