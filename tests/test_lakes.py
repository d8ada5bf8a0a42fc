"""Lake tables against the published ones: the same rows, once each, whoever was killed, repeated or faster."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import polars as pl
import pyarrow as pa
import pytest
from lake_outputs import add_images, in_this_process, publish_output, publish_until_killed, segment
from pyiceberg.catalog import load_catalog
from pyiceberg.expressions import EqualTo
from stores import Request, Store, Trouble

import raymask
from raymask import publishing
from raymask.cli import main
from raymask.errors import ConfigError, OutputError
from raymask.lakes import publisher
from raymask.lakes.config import PublishConfig
from raymask.lakes.publisher import TableChange
from raymask.lakes.rows import KEY, TABLES
from raymask.published import read_published

Rows = list[dict[str, Any]]

COUNTS: list[int | None] = [2, None, 0, 30, 1, None, 0, 0]  # objects in each image; three a file


@dataclass(frozen=True)
class Lake:
    """A lake of one format in a folder, with the options that publish to it, and readers that know nothing of it."""

    format: str
    folder: Path

    @property
    def options(self) -> dict[str, Any]:
        if self.format == "delta":
            return {"format": "delta", "to": str(self.folder), "quiet": True}
        sql = {"catalog": f"sqlite:///{self.folder}/catalog.db", "warehouse": str(self.folder)}
        return {"format": "iceberg", "to": "lab.photos", "quiet": True, **sql}

    def publish(self, out: str) -> list[TableChange]:
        return raymask.publish(out, **self.options)

    def iceberg(self, table: str) -> Any:
        catalog = load_catalog("default", uri=self.options["catalog"], warehouse=f"file://{self.folder}")
        return catalog.load_table(f"lab.photos.{table}")

    def exists(self, table: str) -> bool:
        with contextlib.suppress(Exception):
            return self.commits(table) >= 0
        return False

    def rows(self, table: str) -> Rows:
        """As polars reads them, in order of image and object."""
        if self.format == "delta":
            frame = pl.scan_delta(str(self.folder / table)).collect()
        else:
            frame = pl.scan_iceberg(self.iceberg(table)).collect()
        return ordered(frame.drop(KEY).to_dicts())

    def arrow(self, table: str) -> pa.Table:
        """As the format's own library reads them, which any engine over Arrow then can."""
        if self.format == "delta":
            return deltalake.DeltaTable(self.folder / table).to_pyarrow_table()
        return self.iceberg(table).scan().to_arrow()

    def commits(self, table: str) -> int:
        """How often the rows of a table have changed."""
        if self.format == "delta":
            return deltalake.DeltaTable(self.folder / table).version()  # version 0 makes it
        # A commit that deletes and appends puts two snapshots into the metadata, and replaces them once.
        return len(self.iceberg(table).metadata.metadata_log)


@pytest.fixture(params=["delta", "iceberg"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # a plugin that polars would like better is not needed
    folder = tmp_path / "lake"
    folder.mkdir()
    return Lake(request.param, folder)


@pytest.fixture
def out(tmp_path: Path) -> str:
    out = str(tmp_path / "an output, ü")
    add_images(out, COUNTS, {"camera": pa.array(["c", None] * 4)})
    publish_output(out)
    return out


def ordered(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: (row["uri"], row.get("instance")))


def published_rows(out: str, table: str) -> Rows:
    masks = raymask.open(out)
    return ordered((masks.images if table == "images" else masks.instances).to_arrow().to_pylist())


def holds(lake: Lake, *outs: str) -> bool:
    """Whether both tables hold just the rows of these outputs, read by polars."""
    return all(lake.rows(t) == ordered([row for out in outs for row in published_rows(out, t)]) for t in TABLES)


# ------------------------------------------------------------------------------------------------------------- rows


def test_rows_come_through_in_one_commit_a_table(lake: Lake, out: str) -> None:
    changes = {change.table: change for change in lake.publish(out)}
    assert (changes["images"].added, changes["instances"].added) == (8, 33)
    assert holds(lake, out)
    assert [lake.commits(t) for t in TABLES] == [1, 1]
    images, instances = lake.arrow("images"), lake.arrow("instances")
    with duckdb.connect() as db:
        query = "SELECT category, count(*), sum(area)::INT, max(mask.size[2]) FROM instances GROUP BY 1 ORDER BY 1"
        in_lake = db.sql(query).fetchall()
        instances = raymask.open(out).instances.to_arrow()
        assert db.sql(query).fetchall() == in_lake and len(in_lake) == 2
        assert db.sql("SELECT count(*), count(camera), sum(instance_count) FROM images").fetchall() == [(8, 4, 33)]
    assert instances.schema.field("mask").type.field("size").type.value_type == pa.int32()


def test_types_that_lakes_lack_keep_their_values(lake: Lake, tmp_path: Path) -> None:
    out = str(tmp_path / "typed")
    noon = datetime.datetime(2026, 11, 21, 12, 0, 0, 5)
    user = {
        "small": pa.array([255], pa.uint8()),
        "wide": pa.array([2**32 - 1], pa.uint32()),
        "huge": pa.array([2**64 - 1], pa.uint64()),
        "at": pa.array([noon], pa.timestamp("ns")),
        "paris": pa.array([noon], pa.timestamp("ms", "Europe/Paris")),
        "boxes": pa.array([[{"x": 65535}]], pa.list_(pa.struct([("x", pa.uint16())]))),
    }
    add_images(out, [1], user)
    publish_output(out)
    lake.publish(out)
    [row] = lake.arrow("images").to_pylist()
    [want] = published_rows(out, "images")
    assert {name: row[name] for name in user} == {name: want[name] for name in user}


def test_what_no_lake_can_hold_is_said(lake: Lake, tmp_path: Path) -> None:
    for name, value in {"took": pa.array([1], pa.duration("s")), "at": pa.array([1], pa.timestamp("ns"))}.items():
        out = str(tmp_path / name)
        add_images(out, [1], {name: value})
        publish_output(out)
        with pytest.raises(OutputError, match=r"cannot publish .*(uration|lose data)"):
            lake.publish(out)


# ---------------------------------------------------------------------------------------------------------- repeated


def test_repeated_nothing_is_done(lake: Lake, out: str) -> None:
    lake.publish(out)
    assert [(c.rows, c.added, c.replaced) for c in lake.publish(out)] == [(33, 0, 0), (8, 0, 0)]
    assert [lake.commits(t) for t in TABLES] == [1, 1]


def test_what_is_new_is_appended_and_what_has_changed_replaced(lake: Lake, out: str) -> None:
    """The third file grows and a fourth comes; an image of the first that had failed is now ok."""
    lake.publish(out)
    add_images(out, [4, 1, 1], {"camera": pa.array(["d"] * 3)})
    segment(out, {1: 5}, attempt=1)
    publish_output(out)
    changes = [(c.table, c.rows, c.added, c.replaced) for c in lake.publish(out)]
    assert changes == [("instances", 44, 2 + 5 + 4 + 1 + 1, 1), ("images", 11, 3 + 3 + 2, 2)]
    assert holds(lake, out)
    assert [lake.commits(t) for t in TABLES] == [2, 2]
    assert [c.added for c in lake.publish(out)] == [0, 0]


def test_compacted_tables_are_understood(lake: Lake, out: str) -> None:
    """Somebody has rewritten all rows into one file: which are there is still known, and replacing them works."""
    lake.publish(out)
    if lake.format == "delta":
        deltalake.DeltaTable(lake.folder / "images").optimize.compact()
    else:
        lake.iceberg("images").overwrite(lake.arrow("images"))
    assert [c.added for c in lake.publish(out)] == [0, 0]
    segment(out, {1: 5}, attempt=1)
    publish_output(out)
    assert [c.added for c in lake.publish(out)] == [7, 3]
    assert holds(lake, out)


def test_rows_that_somebody_deleted_come_back_file_by_file(lake: Lake, out: str) -> None:
    """What is there is read from the rows, so an older version of a table that was restored is brought up to date."""
    lake.publish(out)
    key = sorted(lake.arrow("images").column(KEY).to_pylist())[0]
    if lake.format == "delta":
        deltalake.DeltaTable(lake.folder / "images").delete(f"{KEY} = '{key}'")
    else:
        lake.iceberg("images").delete(EqualTo(KEY, key))
    assert len(lake.rows("images")) == 5
    assert [c.added for c in lake.publish(out)] == [0, 3]
    assert holds(lake, out)


def test_outputs_share_tables(lake: Lake, out: str, tmp_path: Path) -> None:
    """Of the same images, too; a column that only one has is null for the other. A copy is the same output."""
    other, moved = str(tmp_path / "other"), str(tmp_path / "moved")
    add_images(other, [1, 1])
    publish_output(other)
    lake.publish(other)
    lake.publish(out)
    lacking = ordered([{**row, "camera": None} for row in published_rows(other, "images")])
    assert lake.rows("images") == ordered(published_rows(out, "images") + lacking)
    assert lake.rows("instances") == ordered(published_rows(out, "instances") + published_rows(other, "instances"))
    Path(other).rename(moved)
    assert [c.added for c in lake.publish(moved)] == [0, 0]


# ----------------------------------------------------------------------------------------------------- killed, at once


def forked(options: dict[str, Any], points: list[int]) -> list[int | None]:
    """Publish in as many processes at once, each killed at its point; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lake_outputs", "deltalake", "pyiceberg.catalog.sql", "raymask.lakes.publisher"])
    processes = [context.Process(target=publish_until_killed, args=(options, point)) for point in points]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_killed_anywhere_and_repeated(lake: Lake, out: str, tmp_path: Path) -> None:
    """Killed at each point in turn, of a first publish and of one that replaces; then done again, whole."""
    options = {"out": out, **lake.options}
    kills = 0
    for stage in range(2):
        before = {t: published_rows(out, t) if stage else [] for t in TABLES}
        if stage:
            add_images(out, [4, 1, 1], {"camera": pa.array(["d"] * 3)})
            segment(out, {1: 5}, attempt=1)
            publish_output(out)
        after = {t: published_rows(out, t) for t in TABLES}
        commits = {t: lake.commits(t) if stage else 0 for t in TABLES}
        for point in range(1, 100):
            [code] = forked(options, [point])
            seen = {t: lake.rows(t) if lake.exists(t) else [] for t in TABLES}
            assert all(seen[t] in (before[t], after[t]) for t in TABLES), point
            assert seen["images"] != after["images"] or seen["instances"] == after["instances"], point
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert seen == after
        assert [lake.commits(t) - commits[t] for t in TABLES] == [1, 1]
    assert kills >= 12
