"""The journal by itself: names of parts, listings, resume, who writes, and what counts when parts overlap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymask.errors import ErrorKind, OutputError
from raymask.journal import (
    Lease,
    Manifest,
    NewRows,
    Run,
    create_run,
    read_chunk,
    read_outcomes,
    read_run,
    scan_parts,
    write_part,
)
from raymask.journal import lease as leases
from raymask.journal.manifest import CHUNK_ROWS, SeenIds
from raymask.protocol import PartName
from raymask.schema import PART, image_id
from raymask.sources.stream import LISTED
from raymask.storage import Folder

Ordinals = st.lists(st.integers(0, 10**9), min_size=1, max_size=50, unique=True).map(sorted)


def part_rows(ordinals: list[int], error: str | None = None) -> pa.Table:
    count = len(ordinals)
    values = {
        "ordinal": ordinals,
        "uri": [f"u{o}" for o in ordinals],
        "status": ["ok" if error is None else "failed"] * count,
        "error": [error] * count,
        "instances": [[]] * count,
    }
    return pa.table([pa.array(values.get(f.name, [None] * count), f.type) for f in PART], schema=PART)


def listed(uris: list[str]) -> pa.RecordBatch:
    columns = [pa.array(uris if f.name == "uri" else [None] * len(uris), f.type) for f in LISTED]
    return pa.record_batch(columns, schema=LISTED)


# ------------------------------------------------------------------------------------------------------------- parts


@given(Ordinals)
def test_a_part_name_reads_back(ordinals: list[int]) -> None:
    name = PartName.of(np.array(ordinals), 3)
    assert PartName.parse(str(name)) == name
    assert name.is_contiguous == (ordinals == list(range(ordinals[0], ordinals[0] + len(ordinals))))


@given(Ordinals, Ordinals)
def test_part_names_differ_where_ordinals_do(one: list[int], other: list[int]) -> None:
    names = [str(PartName.of(np.array(o), 0)) for o in (one, other)]
    assert (names[0] == names[1]) == (one == other)


@pytest.mark.parametrize(
    "name", ["", "0000-1.parquet", ".tmp-x", "0000-000000000000-0000001-zz.parquet", "part.parquet"]
)
def test_other_files_are_no_parts(name: str) -> None:
    assert PartName.parse(name) is None


def test_a_part_written_again_stays_as_it_is(tmp_path: Path) -> None:
    """Also where a worker that was thought dead comes by later, and found its images gone."""
    folder = Folder(str(tmp_path))
    one = write_part(folder, part_rows([5, 3, 4]), 0)
    before = folder.read(f"parts/{one}")
    again = write_part(folder, part_rows([3, 4, 5], "not_found"), 0)
    assert one == again
    assert [n for n, _ in folder.list("parts")] == [f"parts/{one}"]
    assert folder.read(f"parts/{one}") == before
    assert scan_parts(folder, 7).done.tolist() == [False, False, False, True, True, True, False]


def test_scan_reads_only_parts_with_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raymask.journal import parts

    folder = Folder(str(tmp_path))
    write_part(folder, part_rows([0, 1, 2]), 0)
    gaps = write_part(folder, part_rows([4, 6]), 0)
    opened = []
    original = parts._read

    def read_and_note(folder: Folder, name: PartName, columns: list[str] | None) -> Any:
        opened.append(name)
        return original(folder, name, columns)

    monkeypatch.setattr(parts, "_read", read_and_note)
    index = scan_parts(folder, 8)
    assert np.flatnonzero(index.done).tolist() == [0, 1, 2, 4, 6]
    assert opened == [gaps]
    assert [name for name, last in index.parts if last == 6] == [gaps]


def test_parts_of_images_listed_later_are_passed_over(tmp_path: Path) -> None:
    """By whoever has read the manifest before another run added to it."""
    folder = Folder(str(tmp_path))
    write_part(folder, part_rows([1, 2, 3, 4]), 0)
    write_part(folder, part_rows([4, 6], "corrupt"), 0)
    index = scan_parts(folder, 3)
    assert index.done.tolist() == [False, True, True]
    outcomes = read_outcomes(folder, index)
    assert (outcomes.ok, outcomes.errors) == (2, {})


def test_an_empty_journal(tmp_path: Path) -> None:
    index = scan_parts(Folder(str(tmp_path)), 3)
    assert (index.parts, index.attempt, index.done.tolist()) == ((), 0, [False] * 3)
    assert read_outcomes(Folder(str(tmp_path)), index).errors == {}


Kinds = st.sampled_from([None, *(kind.value for kind in ErrorKind)])
Writes = st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, unique=True), Kinds, st.integers(0, 2)), max_size=8)


@settings(max_examples=40)
@given(Writes, st.randoms())
def test_what_counts_does_not_depend_on_the_order_of_arrival(
    writes: list[tuple[list[int], str | None, int]], chance: Random
) -> None:
    """ok before failed, then the latest attempt, then the smallest name: by a plain model of the rule."""
    shuffled = list(writes)
    chance.shuffle(shuffled)
    with TemporaryDirectory() as place:
        check_what_counts(Folder(place), shuffled)


def check_what_counts(folder: Folder, writes: list[tuple[list[int], str | None, int]]) -> None:
    there: dict[PartName, str | None] = {}
    for ordinals, kind, attempt in writes:
        # Two parts of one name are one object: the first one stays.
        there.setdefault(write_part(folder, part_rows(sorted(ordinals), kind), attempt), kind)
    index = scan_parts(folder, 10)
    outcomes = read_outcomes(folder, index)
    for ordinal in range(10):
        holders = [
            (kind is not None, -name.attempt, name, kind)
            for name, kind in there.items()
            if ordinal in (scan_parts_of(folder, name))
        ]
        if not holders:
            assert outcomes.part[ordinal] == -1
            continue
        failed, _, name, _ = min(holders)
        assert outcomes.names[outcomes.part[ordinal]] == name
        assert bool(outcomes.failed[ordinal]) == failed
    assert sum(outcomes.errors.values()) == int(outcomes.failed.sum())


def scan_parts_of(folder: Folder, name: PartName) -> set[int]:
    import io

    import pyarrow.parquet as pq

    return set(pq.read_table(io.BytesIO(folder.read(f"parts/{name}"))).column("ordinal").to_pylist())


# ---------------------------------------------------------------------------------------------------------- manifest


def test_listings_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    manifest = Manifest.read(folder)
    assert (manifest.rows, manifest.files) == (0, [])
    rows = NewRows(0, SeenIds())
    manifest = manifest.append({"source": "a"}, rows.of([listed(["x", "y", "x"]), listed(["z", "y"])]))
    assert (rows.listed, rows.new, rows.known, rows.duplicates) == (5, 3, 0, 2)
    rows = NewRows(manifest.rows, manifest.seen_ids())
    manifest = manifest.append({"source": "b"}, rows.of([listed(["y", "w", "w"])]))
    assert (rows.listed, rows.new, rows.known, rows.duplicates) == (3, 1, 1, 1)
    assert Manifest.read(folder) == manifest
    table = manifest.read_rows(0, 4, ["ordinal", "uri", "image_id"])
    assert table.column("ordinal").to_pylist() == [0, 1, 2, 3]
    assert table.column("uri").to_pylist() == ["x", "y", "z", "w"]
    assert table.column("image_id").to_pylist() == [image_id(u) for u in "xyzw"]
    assert manifest.read_rows(2, 4, ["uri"]).column("uri").to_pylist() == ["z", "w"]
    assert manifest.has({"source": "b"})
    assert not manifest.has({"source": "c"})


def test_a_listing_without_new_images_is_not_written(tmp_path: Path) -> None:
    manifest = Manifest.read(Folder(str(tmp_path)))
    assert manifest.append({}, []) is manifest
    assert list(tmp_path.iterdir()) == []


def test_files_without_their_commit_are_not_there(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    Manifest.read(folder).append({"source": "a"}, NewRows(0, SeenIds()).of([listed(["x"])]))
    folder.delete("manifest/0000.json")
    assert Manifest.read(folder).rows == 0


def test_chunks_are_read_across_files_and_row_groups(tmp_path: Path) -> None:
    folder, count = Folder(str(tmp_path)), 131_072 + 3000
    batches = [listed([f"u{i}" for i in range(start, min(start + 10_000, count))]) for start in range(0, count, 10_000)]
    manifest = Manifest.read(folder).append({}, NewRows(0, SeenIds()).of(batches))
    assert [f.rows for f in manifest.files] == [131_072, 3000]
    chunk = read_chunk(folder, manifest.files[1].name, CHUNK_ROWS, 10)
    assert chunk.column("uri").to_pylist() == [f"u{131_072 + CHUNK_ROWS + i}" for i in range(10)]
    for first, stop in [(131_070, 131_074), (CHUNK_ROWS - 1, 2 * CHUNK_ROWS + 1), (CHUNK_ROWS, CHUNK_ROWS + 1)]:
        rows = manifest.read_rows(first, stop, ["uri"])
        assert rows.column("uri").to_pylist() == [f"u{i}" for i in range(first, stop)]


@given(st.lists(st.lists(st.integers(0, 60), max_size=20), max_size=12))
def test_seen_ids_are_a_set(batches: list[list[int]]) -> None:
    seen, model = SeenIds(), set[int]()
    for batch in batches:
        expected = []
        for number in batch:
            expected.append(number not in model)
            model.add(number)
        assert seen.add(np.array(batch, np.int64)).tolist() == expected
        assert seen.contains(np.arange(61)).tolist() == [n in model for n in range(61)]


def test_a_damaged_listing_is_an_error(tmp_path: Path) -> None:
    Folder(str(tmp_path)).put("manifest/0000.json", b"{")
    with pytest.raises(OutputError, match="damaged"):
        Manifest.read(Folder(str(tmp_path)))


# --------------------------------------------------------------------------------------------------------------- run


def run(**changes: object) -> Run:
    fields: dict[str, object] = {
        "model": "m",
        "model_sha256": "a" * 64,
        "categories": ((1, "cat"),),
        "thresholds": {"nms": 0.5},
        "images_per_file": 10,
        "raymask_version": "0",
    }
    return Run(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_first_run_makes_the_output_and_equal_ones_take_it_up(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert read_run(out) is None
    assert create_run(out, run()) == run()
    # How files are cut is the first run's say.
    assert create_run(out, run(images_per_file=99, raymask_version="1")) == run()
    with pytest.raises(OutputError, match=r"made with nms 0\.5, this run has nms 0\.6"):
        create_run(out, run(thresholds={"nms": 0.6}))
    with pytest.raises(OutputError, match=r"model m aaaaaaaa…, this run uses m bbbbbbbb…"):
        create_run(out, run(model_sha256="b" * 64))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format_version": 1}', b"\xff"])
def test_a_damaged_run_is_an_error(content: bytes, tmp_path: Path) -> None:
    Folder(str(tmp_path)).put("_raymask/run.json", content)
    with pytest.raises(OutputError, match="damaged"):
        read_run(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------- lease


def test_a_lease_is_held_and_given_back(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with Lease(folder):
        holder = leases.read_holder(folder)
        assert holder is not None
        assert holder.pid == os.getpid()
        with pytest.raises(OutputError, match="is writing to"), Lease(folder):
            pass
    assert leases.read_holder(folder) is None


def test_the_lease_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal; from raymask.journal import Lease; from raymask.storage import Folder;"
        f"Lease(Folder({str(tmp_path)!r})).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert leases.read_holder(Folder(str(tmp_path))) is not None
    start = time.monotonic()
    with Lease(Folder(str(tmp_path))):
        assert time.monotonic() - start < 5


def test_a_process_that_has_ended_but_is_not_waited_for_holds_no_lease(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        record = {"owner": "x", "host": leases._host(), "pid": process.pid, "expires_at": time.time() + 60}
        folder.put("lease.json", json.dumps(record).encode())
        holder = leases.read_holder(folder)
        assert holder is not None
        assert not holder.is_dead
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its end has come, and it stays
        with Lease(folder):
            pass


@pytest.mark.parametrize("renewed", [True, False])
def test_a_lease_of_another_host_is_waited_for_until_it_ends_or_is_renewed(
    renewed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sleep = Folder(str(tmp_path)), time.sleep
    record = {"owner": "x", "host": "elsewhere/1", "pid": 1, "expires_at": time.time() + 0.5}
    folder.put("lease.json", json.dumps(record).encode())

    def tick(seconds: float) -> None:
        sleep(0.6)
        if renewed:
            folder.put("lease.json", json.dumps({**record, "expires_at": time.time() + 60}).encode())

    monkeypatch.setattr(time, "sleep", tick)
    if renewed:
        with pytest.raises(OutputError, match="process 1 on elsewhere is writing"), Lease(folder):
            pass
    else:
        with Lease(folder):
            pass


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    folder = Folder(str(tmp_path))
    with Lease(folder):
        first = leases.read_holder(folder)
        deadline = time.monotonic() + 5
        while (now := leases.read_holder(folder)) == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert first is not None
        assert now is not None
        assert now.expires_at > first.expires_at
    assert threading.active_count() < 50


def test_half_a_lease_is_no_lease(tmp_path: Path) -> None:
    Folder(str(tmp_path)).put("lease.json", b'{"owner": "x"')
    assert leases.read_holder(Folder(str(tmp_path))) is None
