"""Whatever is killed, the same command ends with the same tables: one run of `make chaos`, and that it would tell."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import chaos
import pyarrow as pa
import pytest
from chaos_points import DRIVER_POINTS, WORKER_POINTS


@pytest.mark.timeout(300)
def test_workers_machines_drivers_and_the_whole_cluster_killed() -> None:
    process = subprocess.Popen(
        [sys.executable, chaos.__file__, "--runs", "1", "--seed", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert process.returncode == 0, said
    kills = re.search(r"^(\d+) kills", said, re.MULTILINE)
    assert kills is not None
    assert int(kills[1]) >= chaos.LEAST_KILLS


def test_a_seed_says_whom_to_kill_and_when_and_a_few_in_a_row_are_at_all_points() -> None:
    for seed in range(0, 20, chaos.SLICES):
        plans = [chaos.Plan.of(s) for s in range(seed, seed + chaos.SLICES)]
        again = [chaos.Plan.of(s) for s in range(seed, seed + chaos.SLICES)]
        for plan, same in zip(plans, again, strict=True):
            assert plan.points == same.points
            assert [*itertools.islice(plan.moments, 5)] == [*itertools.islice(same.moments, 5)]
        assert {p for plan in plans for p in plan.points} == {*DRIVER_POINTS, *WORKER_POINTS}
        assert "cluster" in plans[0].points.values()


def test_tables_that_differ_are_told_apart() -> None:
    rows = [{"uri": "a", "mask": {"counts": "x"}}, {"uri": "b", "mask": {"counts": "y"}}]
    expected = chaos.rows_of(pa.Table.from_pylist(rows))
    chaos.check_rows("images", expected, pa.Table.from_pylist(rows[::-1]))
    for wrong, what in (
        (rows[:1], "1 rows missing, 0 too many"),
        ([*rows, {"uri": "c", "mask": {"counts": "x"}}], "0 rows missing, 1 too many"),
        ([rows[0], {"uri": "b", "mask": {"counts": "z"}}], "1 rows missing, 1 too many"),
        ([*rows, rows[0]], "1 rows are there twice"),
    ):
        with pytest.raises(chaos.BrokenPromiseError, match=what):
            chaos.check_rows("images", expected, pa.Table.from_pylist(wrong))


def test_an_index_that_names_what_is_not_there_is_seen(tmp_path: Path) -> None:
    chaos.check_index(tmp_path)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of b"abc", by FIPS 180-4
    index = {"tables": {"images": {"files": [{"path": "part", "sha256": sha256}]}}}
    (tmp_path / "raymask.json").write_text(json.dumps(index))
    with pytest.raises(chaos.BrokenPromiseError, match="part, which is not there"):
        chaos.check_index(tmp_path)
    (tmp_path / "part").write_bytes(b"abc")
    chaos.check_index(tmp_path)
    (tmp_path / "part").write_bytes(b"abd")
    with pytest.raises(chaos.BrokenPromiseError, match="part is not what"):
        chaos.check_index(tmp_path)
