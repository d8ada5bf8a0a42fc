"""Lake tables against the published ones: the same rows, once each, whoever was killed, repeated or faster."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake.exceptions import TableNotFoundError
from lake_kills import PRELOADED, publish_until_killed
from lake_outputs import add_images, in_this_process, publish_output, segment
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NoSuchTableError
from stores import Request, Store, Trouble

import raymask
import raymask.lakes
from raymask import cluster
from raymask.cli import main
from raymask.errors import ConfigError, OutputError
from raymask.lakes import rows
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
        """How often the rows of a table have changed; 0 where there is no table."""
        try:
            if self.format == "delta":
                return deltalake.DeltaTable(self.folder / table).version()  # version 0 makes it
            # A commit that deletes and appends puts two snapshots into the metadata, and replaces them once.
            return len(self.iceberg(table).metadata.metadata_log)
        except (TableNotFoundError, NoSuchTableError):
            return 0


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
    """Outputs of the same images differ in how many objects they found."""
    return sorted(rows, key=lambda row: (row["uri"], row.get("instance"), row.get("instance_count")))


def published_rows(out: str, table: str) -> Rows:
    masks = raymask.open(out)
    return ordered((masks.images if table == "images" else masks.instances).to_arrow().to_pylist())


def together(lacking: dict[str, list[str]]) -> Rows:
    """The images of these outputs in one table, by the columns that each lacks."""
    rows = [row | dict.fromkeys(columns) for out, columns in lacking.items() for row in published_rows(out, "images")]
    return ordered(rows)


def holds(lake: Lake, *outs: str) -> bool:
    """Whether both tables hold just the rows of these outputs, read by polars."""
    return all(lake.rows(t) == ordered([row for out in outs for row in published_rows(out, t)]) for t in TABLES)


# ------------------------------------------------------------------------------------------------------------- rows


def test_rows_come_through_in_one_commit_a_table(lake: Lake, out: str) -> None:
    changes = {change.table: change for change in lake.publish(out)}
    assert (changes["images"].added, changes["instances"].added) == (8, 33)
    assert holds(lake, out)
    assert [lake.commits(t) for t in TABLES] == [1, 1]
    query = "SELECT category, count(*), sum(area)::INT, max(mask.size[2]) FROM instances GROUP BY 1 ORDER BY 1"
    answers = []
    for tables in ({t: lake.arrow(t) for t in TABLES}, {t: getattr(raymask.open(out), t).to_arrow() for t in TABLES}):
        with duckdb.connect() as db:
            for name, table in tables.items():
                db.register(name, table)
            counts = db.sql("SELECT count(*), count(camera), sum(instance_count)::INT FROM images").fetchall()
            answers.append((counts, db.sql(query).fetchall()))
    assert answers[0] == answers[1]
    assert answers[0][0] == [(8, 4, 33)] and len(answers[0][1]) == 2
    assert lake.arrow("instances").schema.field("mask").type.field("size").type.value_type == pa.int32()


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
    if lake.format == "iceberg":
        operations = [snapshot.summary.operation.value for snapshot in lake.iceberg("images").snapshots()]
        assert operations == ["append", "delete", "append"], "files are dropped whole, none is rewritten"


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
        lake.iceberg("images").delete(f"{KEY} = '{key}'")
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
    assert lake.rows("images") == together({out: [], other: ["camera"]})
    assert lake.rows("instances") == ordered(published_rows(out, "instances") + published_rows(other, "instances"))
    Path(other).rename(moved)
    assert [c.added for c in lake.publish(moved)] == [0, 0]


# ----------------------------------------------------------------------------------------------------- killed, at once


def forked(lake: Lake, *publishers: tuple[str, int]) -> list[int]:
    """Publish each output in a process of its own, all at once, each killed at its point; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [
        context.Process(target=publish_until_killed, args=({"out": out, **lake.options}, point))
        for out, point in publishers
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode if process.exitcode is not None else 1 for process in processes]


def test_killed_anywhere_and_repeated(lake: Lake, out: str) -> None:
    """Killed at every second point of a first publish, and at the others of one that replaces rows."""
    empty: Rows = []
    before = dict.fromkeys(TABLES, empty)
    for first_point in (1, 2):
        after = {table: published_rows(out, table) for table in TABLES}
        done_before = commits = [lake.commits(table) for table in TABLES]
        point, code = first_point, -signal.SIGKILL
        while code == -signal.SIGKILL:
            [code] = forked(lake, (out, point))
            point += 2
            if commits != (commits := [lake.commits(table) for table in TABLES]):
                seen = {table: lake.rows(table) for table in TABLES if lake.commits(table)}
                assert seen.get("instances") == after["instances"], "instances come first"
                assert seen.get("images", empty) in (before["images"], after["images"])
                point = first_point  # of what is left to do
        assert code == 0
        assert seen == after
        assert [n - m for n, m in zip(commits, done_before, strict=True)] == [1, 1]
        before = after
        add_images(out, [4, 1, 1], {"camera": pa.array(["d"] * 3)})
        segment(out, {1: 5}, attempt=1)
        publish_output(out)


def test_many_at_once(lake: Lake, out: str) -> None:
    """Processes that publish the same output at the same time, one of them killed in the middle."""
    codes = forked(lake, (out, 0), (out, 0), (out, 0), (out, 3))
    assert codes[:3] == [0, 0, 0]
    assert holds(lake, out)
    assert [lake.commits(t) for t in TABLES] == [1, 1]


def test_outputs_with_columns_of_their_own_at_once(lake: Lake, out: str, tmp_path: Path) -> None:
    """None of them loses a column to one that makes the tables, or adds its own, at the same time."""
    other = str(tmp_path / "other")
    add_images(other, [1, 2], {"site": pa.array(["x", "y"])})
    publish_output(other)
    assert forked(lake, (out, 0), (other, 0)) == [0, 0]
    assert lake.rows("images") == together({out: ["site"], other: ["camera"]})


def test_overtaken_by_the_same_output(lake: Lake, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another has appended the same rows after this one had looked, and before it commits."""
    first = overtaken(lake, out, monkeypatch, lambda: lake.publish(out))
    assert [c.added for c in first] == [0, 0]
    assert holds(lake, out)
    assert [lake.commits(t) for t in TABLES] == [1, 1]
    files = [f for f in lake.folder.rglob("*.parquet") if "checkpoint" not in f.name]
    assert lake.format == "delta" or len(files) == 3 + 2, "what was written in vain is left"


def test_overtaken_by_another_output(lake: Lake, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = str(tmp_path / "other")
    add_images(other, [1, 1], {"camera": pa.array(["e", "e"])})
    publish_output(other)
    lake.publish(other)
    segment(other, {0: 1}, attempt=1)
    add_images(other, [7], {"camera": pa.array(["e"])})
    publish_output(other)
    assert [c.added for c in overtaken(lake, out, monkeypatch, lambda: lake.publish(other))] == [33, 8]
    assert holds(lake, out, other)


def test_overtaken_by_a_newer_state(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another has tried an image of the same file again, and published that; the older state must not come on top."""
    out = str(tmp_path / "out")
    add_images(out, [None, None, 2])
    publish_output(out)
    segment(out, {0: 3}, attempt=1)
    publish_output(out)

    def newer() -> None:
        segment(out, {1: 4}, attempt=2)
        publish_output(out)
        lake.publish(out)

    with pytest.raises(OutputError, match="was published anew meanwhile; run the same command again"):
        overtaken(lake, out, monkeypatch, newer)
    assert holds(lake, out)
    assert [c.added for c in lake.publish(out)] == [0, 0]


def overtaken(lake: Lake, out: str, monkeypatch: pytest.MonkeyPatch, rival: Callable[[], object]) -> list[TableChange]:
    """Publish `out`, with all that `rival` does just before the first row is handed over."""
    plain = rows.read_rows
    rivals = [rival]

    def read_rows(*arguments: Any) -> Iterator[pa.RecordBatch]:
        while rivals:  # in a thread of its own, since deltalake is in the middle of a call in this one
            with ThreadPoolExecutor(1) as pool:
                pool.submit(rivals.pop()).result()
        yield from plain(*arguments)

    monkeypatch.setattr("raymask.lakes.publisher.read_rows", read_rows)
    return lake.publish(out)


def test_published_anew_while_it_is_read(lake: Lake, out: str) -> None:
    [first, *_] = read_published(out).files("instances")  # type: ignore[union-attr]
    file = Path(out, first.path)
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(OutputError, match=r"part-00000.parquet is not what raymask.json says"):
        lake.publish(out)


# -------------------------------------------------------------------------------------------------------------- stores


@pytest.mark.parametrize("format", ["delta", "iceberg"])
def test_on_a_store_that_loses_answers(format: str, server: Store, out: str, tmp_path: Path) -> None:
    """Tables on S3. Each put of a commit of Delta or of Iceberg's metadata is done, and answered with an error."""
    lost: set[Request] = set()

    def trouble(request: Request) -> Trouble | None:
        is_commit = request.method == "PUT" and ("_delta_log/" in request.path or ".metadata.json" in request.path)
        if not is_commit or request in lost:
            return None
        lost.add(request)
        return Trouble.LOST

    options: dict[str, Any] = {"format": "delta", "to": f"{server.url}/lake"}
    if format == "iceberg":
        sql = {"catalog": f"sqlite:///{tmp_path}/c.db", "warehouse": f"{server.url}/lake"}
        options = {"format": "iceberg", "to": "photos", **sql}
    server.trouble = trouble
    try:
        raymask.publish(out, quiet=True, **options)
    finally:
        server.trouble = lambda request: None
    assert len(lost) >= 4
    for table in TABLES:
        if format == "delta":
            allow = {"allow_http": "true"}
            found = deltalake.DeltaTable(f"{server.url}/lake/{table}", storage_options=allow).to_pyarrow_table()
        else:
            catalog = load_catalog(
                "default", uri=options["catalog"], **{"s3.endpoint": server.endpoint, "s3.region": "us-east-1"}
            )
            found = catalog.load_table(f"photos.{table}").scan().to_arrow()
        assert ordered(found.drop_columns([KEY]).to_pylist()) == published_rows(out, table)


def test_two_outputs_make_a_table_at_the_same_time(server: Store, out: str, tmp_path: Path) -> None:
    """Another with other columns makes and fills the table after this one found none, and before it has made it."""
    other = str(tmp_path / "other")
    add_images(other, [1, 2], {"site": pa.array(["x", "y"])})
    publish_output(other)
    options = {"format": "delta", "to": f"{server.url}/shared lake", "quiet": True}
    rivals = [other]

    def trouble(request: Request) -> Trouble | None:
        if request.method == "PUT" and request.path.endswith("images/_delta_log/00000000000000000000.json") and rivals:
            raymask.publish(rivals.pop(), **options)
        return None

    server.trouble = trouble
    try:
        raymask.publish(out, **options)
    finally:
        server.trouble = lambda request: None
    assert not rivals
    table = deltalake.DeltaTable(f"{server.url}/shared lake/images", storage_options={"allow_http": "true"})
    found = table.to_pyarrow_table().drop_columns([KEY])
    assert ordered(found.to_pylist()) == together({out: ["site"], other: ["camera"]})
    assert table.version() == 2, "made once, and written twice"


# ------------------------------------------------------------------------------------------------------------- parquet


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Tasks of a cluster in this process; how often one was wanted, and whether open ones are allowed."""
    wanted: list[bool] = []

    @contextlib.contextmanager
    def session(allow_open: bool) -> Iterator[None]:
        wanted.append(allow_open)
        yield

    monkeypatch.setattr(cluster, "ray_session", session)
    with in_this_process():
        yield wanted


def test_a_run_that_was_cut_off_before_its_tables_is_finished(
    tmp_path: Path, without_ray: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    add_images(out, COUNTS)
    assert main(["publish", out]) == 0
    assert f"images     {out}/images/*.parquet: 8 rows, 8 of them new\n" in capsys.readouterr().out
    assert (len(published_rows(out, "images")), len(published_rows(out, "instances"))) == (8, 33)
    segment(out, {1: 5}, attempt=1)
    assert main(["publish", out]) == 0
    assert "instances/*.parquet: 38 rows, 7 of them new, in place of those of 1 file\n" in capsys.readouterr().out
    assert without_ray == [False, False]
    assert main(["publish", out]) == 0
    assert capsys.readouterr().out.count("all there before") == 2
    assert without_ray == [False, False], "Ray was started for nothing"


def test_tables_want_every_image(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    add_images(out, COUNTS)
    [part] = Path(out, "_raymask", "parts").iterdir()
    part.unlink()
    with pytest.raises(OutputError, match=r"8 of 8 images of .* are not done; run the segment command again"):
        raymask.publish(out, quiet=True)
    with pytest.raises(OutputError, match="has no published tables; `raymask publish"):
        raymask.publish(out, format="delta", to=str(tmp_path / "lake"), quiet=True)


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "hudi"}, "parquet, delta or iceberg is meant"),
        ({"format": "delta"}, "--format delta needs --to"),
        ({"to": "lake"}, "--to needs --format"),
        ({"format": "delta", "to": "lake", "catalog": "c"}, "need --format iceberg"),
        ({"format": "delta", "to": "s3://key:secret@bucket/lake"}, "has credentials in it"),
        ({"format": "iceberg", "to": "s3://bucket/lake"}, "an Iceberg namespace is meant"),
        ({"format": "iceberg", "to": "a", "catalog": "sqlite:///c.db"}, "need each other"),
        ({"format": "iceberg", "to": "a", "warehouse": "lake"}, "need each other"),
        ({"format": "iceberg", "to": "a", "catalog": "https://host"}, "PYICEBERG_CATALOG__NAME__URI"),
        ({"format": "iceberg", "to": "a", "catalog": "postgresql://u:p@h/d", "warehouse": "w"}, "credentials"),
    ],
)
def test_wrong_options_are_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PublishConfig(out="out", **options)


def test_catalogs_come_from_pyiceberg_s_configuration(out: str, tmp_path: Path) -> None:
    settings = {"URI": f"sqlite:///{tmp_path}/lab.db", "WAREHOUSE": f"file://{tmp_path}/lab"}
    environment = os.environ | {f"PYICEBERG_CATALOG__LAB__{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "raymask.cli", "publish", out, "--format", "iceberg", "--to", "photos"]
    done = subprocess.run([*command, "--catalog", "lab"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "images     photos.images: 8 rows, 8 of them new"
    assert load_catalog("lab", uri=settings["URI"]).load_table("photos.images").scan().count() == 8
    with pytest.raises(OutputError, match=r"cannot publish .* to photos .*URI missing"):
        raymask.publish(out, format="iceberg", to="photos", catalog="nobody", quiet=True)


def test_tables_of_others_are_left_alone(lake: Lake, out: str) -> None:
    theirs = pa.table({"uri": ["a"]})
    if lake.format == "delta":
        deltalake.write_deltalake(lake.folder / "instances", theirs)
    else:
        lake.publish(out)
        catalog = load_catalog("default", uri=lake.options["catalog"], warehouse=lake.options["warehouse"])
        catalog.drop_table("lab.photos.instances")
        catalog.create_table("lab.photos.instances", theirs.schema)
    with pytest.raises(ConfigError, match=f"without a column {KEY}; choose another --to"):
        lake.publish(out)


@pytest.mark.parametrize(("format", "package"), [("delta", "deltalake"), ("iceberg", "pyiceberg.catalog")])
def test_an_absent_package_is_said(
    format: str, package: str, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, f"raymask.lakes.{format}", raising=False)
    monkeypatch.delattr(raymask.lakes, format, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["publish", out, "--format", format, "--to", "lake"]) == 1
    assert f"python -m pip install 'raymask[{format}]'" in capsys.readouterr().err
