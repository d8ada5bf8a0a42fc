"""Questions in SQL: what rows an output shows while it is written, what statements may do, how answers are written."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outputs import PLAN, Content, Row, Truth, list_images, make_content, make_truth, publish_all
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from stores import Store

import raymask
from raymask.asking.answers import table_text
from raymask.asking.config import ShellConfig
from raymask.asking.prompt import Words, statements
from raymask.asking.shell import Shell, is_complete
from raymask.cli import main
from raymask.errors import OutputError
from raymask.files import Files
from raymask.journal import write_part
from raymask.storage import Folder

CONTENT = make_content(PLAN)
BROKEN = make_content(["fetch_failed"] * len(PLAN), seed=8)  # the same images by a run that could not read them


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return make_truth(str(tmp_path_factory.mktemp("it's [an] out*put?") / "ü"))


def rows_of(answer: duckdb.DuckDBPyRelation | None) -> list[Row]:
    assert answer is not None
    rows: list[Row] = answer.to_arrow_table().to_pylist()
    return rows


def check_shows(out: str, ordinals: list[int], listed: int, content: Content = CONTENT) -> None:
    """The output has exactly the rows of these images, in SQL and as Arrow tables, and says how far it is."""
    masks = raymask.open(out)
    images = [content.images[n] for n in ordinals]
    uris = {row["uri"] for row in images}
    instances = [row for row in content.instances if row["uri"] in uris]
    assert rows_of(masks.sql("FROM images")) == masks.images.to_arrow().to_pylist() == images
    assert rows_of(masks.sql("FROM instances")) == masks.instances.to_arrow().to_pylist() == instances
    failed = sum(row["status"] == "failed" for row in images)
    counted = f"{len(images)} of {listed} images so far" if len(images) < listed else f"{listed} images"
    assert repr(masks) == f"Masks({out!r}: {counted}, {failed} of them failed, {len(instances)} instances)"


# ------------------------------------------------------------------------------------------------- what is committed


def test_nothing_done_yet_are_tables_without_rows(tmp_path: Path) -> None:
    out = str(tmp_path)
    list_images(out, CONTENT.listed)
    check_shows(out, [], 10)
    assert "camera" in raymask.open(out).images.schema.names


def test_an_output_in_writing_shows_what_is_committed(tmp_path: Path) -> None:
    out = str(tmp_path)
    journal = list_images(out, CONTENT.listed).folder
    write_part(journal, CONTENT.part.take([5, 8]), attempt=0)
    check_shows(out, [5, 8], 10)
    write_part(journal, CONTENT.part.slice(0, 4), attempt=0)
    check_shows(out, [0, 1, 2, 3, 5, 8], 10)
    (tmp_path / "_raymask" / "parts" / ".tmp-half").write_bytes(b"PAR1")
    check_shows(out, [0, 1, 2, 3, 5, 8], 10)


def test_of_several_rows_of_an_image_the_one_that_counts_is_shown(tmp_path: Path) -> None:
    out = str(tmp_path)
    journal = list_images(out, CONTENT.listed).folder
    write_part(journal, BROKEN.part.slice(2, 5), attempt=0)  # of a dead run, in other groups
    write_part(journal, CONTENT.part.slice(0, 4), attempt=0)
    write_part(journal, CONTENT.part.take([4, 5, 6]), attempt=1)  # tried again; image 4 fails again, otherwise
    check_shows(out, [0, 1, 2, 3, 4, 5, 6], 10)


def test_published_images_stay_while_others_are_added(tmp_path: Path) -> None:
    out = str(tmp_path)
    manifest = list_images(out, CONTENT.listed[:6])
    write_part(manifest.folder, CONTENT.part.slice(0, 6), attempt=0)
    publish_all(out, manifest)
    check_shows(out, [0, 1, 2, 3, 4, 5], 6)
    list_images(out, CONTENT.listed[6:])
    check_shows(out, [0, 1, 2, 3, 4, 5], 10)
    write_part(manifest.folder, CONTENT.part.take([7, 9]), attempt=0)
    masks = raymask.open(out)
    paths = [file.path for file in masks.published.files("images")]
    assert paths == ["images/part-00000.parquet", *(f"unpublished/images-0000{n}.parquet" for n in (1, 2))]
    check_shows(out, [0, 1, 2, 3, 4, 5, 7, 9], 10)


def test_failed_images_that_are_tried_again_show_their_new_rows(tmp_path: Path) -> None:
    out = str(tmp_path)
    manifest = list_images(out, CONTENT.listed)
    broken = pa.concat_tables([CONTENT.part.slice(0, 5), BROKEN.part.slice(5, 2), CONTENT.part.slice(7)])
    write_part(manifest.folder, broken, attempt=0)
    publish_all(out, manifest)
    assert len(raymask.open(out).images.to_pandas(where=pa.compute.field("error") == "fetch_failed")) == 2
    write_part(manifest.folder, CONTENT.part.take([5, 6]), attempt=1)
    check_shows(out, list(range(10)), 10)


def test_tables_without_a_journal_are_an_output(truth: Truth, tmp_path: Path) -> None:
    whole, bare = str(tmp_path / "whole"), str(tmp_path / "bare")
    shutil.copytree(truth.out, whole)
    shutil.rmtree(Path(whole, "_raymask", "parts"))
    check_shows(whole, list(range(10)), 10)
    shutil.copytree(truth.out, bare)
    shutil.rmtree(Path(bare, "_raymask"))
    check_shows(bare, list(range(10)), 10)


def test_a_folder_with_nothing_in_it_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no output of raymask"):
        raymask.open(str(tmp_path))


def test_an_unfinished_output_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = list_images(str(tmp_path), CONTENT.listed).folder
    write_part(journal, CONTENT.part.slice(0, 4), attempt=0)
    assert main(["evaluate", str(tmp_path), "--annotations", "none.json"]) == 1
    assert "is not done: 4 of 10 images so far" in capsys.readouterr().err


def test_an_answer_outlives_what_it_was_asked_of(tmp_path: Path) -> None:
    journal = list_images(str(tmp_path), CONTENT.listed).folder
    write_part(journal, CONTENT.part.slice(0, 4), attempt=0)
    assert rows_of(raymask.query(str(tmp_path), "SELECT count(*) AS n FROM instances")) == [{"n": 15}]


def test_in_a_bucket(server: Store) -> None:
    out = f"{server.url}/masks"
    truth = make_truth(out)
    check_shows(out, list(range(10)), 10)
    list_images(out, [{**row, "uri": f"{row['uri']}.new"} for row in CONTENT.listed])
    masks = raymask.open(out)
    assert repr(masks).startswith(f"Masks({out!r}: 10 of 20 images so far")
    [found] = rows_of(masks.sql("SELECT uri FROM images WHERE image_id = $id", {"id": truth.images[3]["image_id"]}))
    assert found["uri"] == truth.images[3]["uri"]
    with pytest.raises(KeyError):
        masks.mask("s3://bucket/other.jpg", 0)


def test_a_file_that_is_replaced_while_it_is_open_is_no_mixture(tmp_path: Path) -> None:
    truth = make_truth(str(tmp_path))
    masks = raymask.open(truth.out)
    assert masks.sql("SELECT count(*) FROM images") is not None
    for file in tmp_path.glob("instances/*.parquet"):
        Folder(truth.out).put(f"instances/{file.name}", file.read_bytes())
    with pytest.raises(duckdb.Error, match="has been replaced since it was opened"):
        rows_of(masks.sql("SELECT sum(length(mask.counts)) FROM instances"))


def test_threads_that_share_an_open_file_read_their_own_places() -> None:
    class Numbers:
        size = 4000

        def read(self, start: int, stop: int) -> bytes:
            time.sleep(0.001)
            return np.arange(start // 4, stop // 4, dtype="<i4").tobytes()

    file = Files({"numbers": Numbers()}).open("raymask://numbers")
    wrong = []

    def look(first: int) -> None:
        for place in range(first, 4000, 80):
            file.seek(place)
            time.sleep(0)
            if file.read(4) != np.int32(place // 4).tobytes():
                wrong.append(place)

    threads = [threading.Thread(target=look, args=(4 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -------------------------------------------------------------------------------------------- what a statement may do


@pytest.mark.parametrize(
    "statement",
    [
        "FROM read_text('{secret}')",
        "FROM read_csv('{secret}')",
        "FROM '{secret}'",
        "FROM glob('{folder}/*')",
        "FROM read_parquet('{folder}/masks/images/*.parquet')",
        "ATTACH '{folder}/other.db'",
        "COPY (SELECT 1) TO '{folder}/copy.csv'",
        "COPY (SELECT 1) TO 'raymask://images/part-00000.parquet'",
        "EXPORT DATABASE '{folder}/dump'",
        "INSTALL httpfs",
        "LOAD '{folder}/evil.duckdb_extension'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET lock_configuration = false",
        "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'k', SECRET 's')",
        "FROM 'https://example.com/x.csv'",
        "FROM rows_of",
    ],
)
def test_a_statement_reaches_nothing_but_the_output(truth: Truth, tmp_path: Path, statement: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    shutil.copytree(truth.out, tmp_path / "masks")
    before = sorted((f, f.stat().st_mtime_ns) for f in tmp_path.rglob("*"))
    text = statement.format(secret=tmp_path / "secret.csv", folder=tmp_path)
    with pytest.raises(duckdb.Error):
        rows_of(raymask.open(truth.out).sql(text))
    assert sorted((f, f.stat().st_mtime_ns) for f in tmp_path.rglob("*")) == before


def test_external_access_is_there_for_those_who_ask(truth: Truth, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("category,name\ndog,Hund\nperson,Mensch\n")
    with raymask.open(truth.out).connect(allow_external=True) as connection:
        found = connection.sql(f"SELECT DISTINCT name FROM instances JOIN '{tmp_path}/names.csv' USING (category)")
        assert sorted(found.fetchall()) == [("Hund",), ("Mensch",)]


def test_parameters_are_values_whatever_they_look_like(truth: Truth) -> None:
    masks = raymask.open(truth.out)
    uri = truth.images[0]["uri"]
    assert rows_of(masks.sql("SELECT count(*) AS n FROM images WHERE uri = $uri", {"uri": uri})) == [{"n": 1}]
    for hostile in ("' OR 1 = 1 --", "'; DROP VIEW images; --", '"'):
        assert rows_of(masks.sql("SELECT count(*) AS n FROM images WHERE uri = ?", [hostile])) == [{"n": 0}]
    want = sum(row["score"] > 0.5 for row in truth.instances)
    # As text, which is what the command has: as a number where it is compared with one.
    assert rows_of(masks.sql("SELECT count(*) AS n FROM instances WHERE score > $s", {"s": "0.5"})) == [{"n": want}]


def test_functions_on_masks_are_there(truth: Truth) -> None:
    found = rows_of(raymask.open(truth.out).sql("SELECT bool_and(mask_area(mask) = area) AS same FROM instances"))
    assert found == [{"same": True}]


# ------------------------------------------------------------------------------------------------------- the command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(truth: Truth, capsys: pytest.CaptureFixture[str]) -> Run:
    """`raymask query` with the output of `truth`: its exit code, and what it printed."""

    def query(*arguments: str, masks: str = truth.out) -> tuple[int, str, str]:
        code = main(["query", masks, *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return query


ODD = '''SELECT 'a,b"c' AS t, '' AS e, NULL::INT AS n, 0.5::FLOAT AS f, 'nan'::DOUBLE AS x, [1, 2] AS l, mask AS m,
    'two' || chr(10) || 'lines' AS "a ""name""" FROM instances LIMIT 1'''


def test_answers_in_every_format_say_the_same(run: Run, truth: Truth, tmp_path: Path) -> None:
    mask = truth.instances[0]["mask"]
    want = {"t": 'a,b"c', "e": "", "n": None, "f": 0.5, "x": None, "l": [1, 2], "m": mask, 'a "name"': "two\nlines"}
    assert json.loads(run(ODD, "--format", "json")[1]) == [want]
    assert [json.loads(line) for line in run(ODD, "--format", "jsonl")[1].splitlines()] == [want]
    text = run(ODD, "--format", "csv")[1]
    [row] = csv.DictReader(io.StringIO(text, newline=""))
    plain = {name: row[name] for name in ("t", "e", "n", "f", "x", 'a "name"')}
    assert plain == {"t": 'a,b"c', "e": "", "n": "", "f": "0.5", "x": "nan", 'a "name"': "two\nlines"}
    assert (json.loads(row["l"]), json.loads(row["m"])) == ([1, 2], mask)
    assert ',"",,0.5,' in text  # an empty text and null are two things
    for name in ("answer.csv", "answer.json", "answer.jsonl", "answer.parquet"):
        assert run(ODD, "--out", str(tmp_path / name)) == (0, "", "")
    assert (tmp_path / "answer.csv").read_text() == text
    assert json.loads((tmp_path / "answer.json").read_text()) == [want]
    [row] = pq.read_table(tmp_path / "answer.parquet").to_pylist()
    assert np.isnan(row.pop("x"))
    assert row == {name: value for name, value in want.items() if name != "x"}


def test_no_rows_in_every_format(run: Run, tmp_path: Path) -> None:
    nothing = "SELECT uri, score FROM instances WHERE score > 2"
    assert run(nothing, "--format", "csv")[1] == "uri,score\n"
    assert run(nothing, "--format", "json")[1] == "[]\n"
    assert run(nothing, "--format", "jsonl")[1] == ""
    run(nothing, "--out", str(tmp_path / "x.parquet"))
    assert pq.read_table(tmp_path / "x.parquet").schema == pa.schema([("uri", pa.string()), ("score", pa.float32())])
    assert "0 rows" in run(nothing)[1]


def test_a_table_is_for_people(run: Run, truth: Truth) -> None:
    code, shown, _ = run("SELECT category, count(*) AS n FROM instances GROUP BY 1 ORDER BY 1")
    assert code == 0
    assert [line.split("│")[1].strip() for line in shown.splitlines() if "│" in line][2:] == ["bottle", "dog", "person"]
    with raymask.open(truth.out).connect() as connection:
        hostile = connection.sql("SELECT chr(27) || '[2J' || chr(10) || 'x' AS \"a\x1b[31m\", repeat('y', 500) AS long")
        text = table_text(hostile, width=100)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= 100
        assert "READ_PARQUET" in table_text(connection.sql("EXPLAIN SELECT uri FROM images"), None)
        assert table_text(connection.sql("CREATE TABLE mine (a INT)"), None) == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SELECT scor FROM instances"], ['Candidate bindings: "score"', '"DESCRIBE instances"']),
        (["SELECT\n  count(* FROM images"], ["syntax error", "LINE 2:", "^"]),
        (["FROM instance"], ['Did you mean "instances', "The tables are images and instances."]),
        (["FROM read_csv('/etc/hostname')"], ["--allow-external lifts that"]),
        (["FROM read_parquet('raymask://other')"], ["No files found"]),
        (["SELECT $a"], ["Values were not provided for the following parameters: a"]),
        (["SELECT 1", "--param", "a"], ["--param is 'a'; NAME=VALUE is meant"]),
        (["SELECT 1", "--format", "xml"], ["invalid choice: 'xml'"]),
        (["SELECT 1 AS a, 2 AS A", "--format", "json"], ["two columns 'A'; give one another name with AS"]),
        (["SELECT INTERVAL 1 DAY AS i", "--format", "parquet"], ["Parquet cannot hold this answer"]),
        (["SELECT 1", "--out", "/dev/null/x.csv"], ["cannot use '/dev/null/x.csv'"]),
        ([" "], ["SQL is empty"]),
    ],
)
def test_errors_say_what_is_wrong_and_where(run: Run, arguments: list[str], said: list[str]) -> None:
    try:
        code, shown, errors = run(*arguments)
    except SystemExit as exit:  # argparse leaves this way
        code, shown, errors = int(exit.code or 0), "", "invalid choice: 'xml'"
    assert (code, shown) == (1, "")
    assert errors.startswith(("raymask: ", "invalid"))
    for text in said:
        assert text in errors
    assert "Traceback" not in errors


def test_an_output_in_writing_says_how_far_it_is(run: Run, tmp_path: Path) -> None:
    journal = list_images(str(tmp_path), CONTENT.listed).folder
    write_part(journal, CONTENT.part.slice(0, 4), attempt=0)
    code, shown, errors = run("SELECT count(*) AS n FROM images", "--format", "csv", masks=str(tmp_path))
    assert (code, shown) == (0, "n\n4\n")
    assert errors == f"{tmp_path} is not done: 4 of 10 images so far\n"


def test_a_statement_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT count(*) AS n FROM images"))
    assert run("-", "--format", "csv") == (0, "n\n10\n", "")


def test_ctrl_c_stops_a_statement(run: Run) -> None:
    endless = "SELECT count(*) FROM range(1000000) a, range(10000000) b WHERE a.range + b.range = 7"
    key = threading.Timer(2, os.kill, [os.getpid(), signal.SIGINT])
    key.start()
    start_s = time.monotonic()
    assert run(endless) == (130, "", "\nraymask: interrupted\n")
    assert time.monotonic() - start_s < 60


# --------------------------------------------------------------------------------------------------------- the prompt


@pytest.fixture(scope="module")
def shell(truth: Truth) -> Shell:
    return Shell(ShellConfig(masks=truth.out), raymask.open)


def test_the_shell_reads_statements_from_a_pipe(
    truth: Truth, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = """.tables
    SELECT 'a;b' AS text, -- it's a comment; with a semicolon
      count(*) AS n
    FROM images; CREATE TABLE best AS FROM instances WHERE instance = 0;
    SELECT count(*) AS firsts FROM best;
    .functions
    .help
    SELECT 7 AS last"""
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert main(["shell", truth.out]) == 0
    shown = capsys.readouterr().out
    firsts = len({row["uri"] for row in truth.instances})
    for text in ("│ instances │", "│ a;b     │    10 │", f"│{firsts:>7} │", "mask_area(mask)", ".schema", "│     7 │"):
        assert text in shown
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS one; SELECT nothing; SELECT 2 AS two;\n"))
    assert main(["shell", truth.out]) == 1
    shown, errors = capsys.readouterr()
    assert " one " in shown
    assert "two" not in shown
    assert 'Referenced column "nothing"' in errors
    monkeypatch.setattr(sys, "stdin", io.StringIO(".schema images now"))
    assert main(["shell", truth.out]) == 1
    assert ".schema does not take images now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "complete"),
    [
        ("", True),
        (".help", True),
        ("SELECT 1", False),
        ("SELECT 1;", True),
        ("SELECT 1; -- so far", True),
        ("SELECT ';", False),
        ("SELECT 'it''s;", False),
        ("SELECT 1 /* ; ", False),
        ('SELECT 1 AS "a;b";\n', True),
        ("-- only a remark;", False),
    ],
)
def test_a_statement_ends_with_its_semicolon(typed: str, complete: bool) -> None:
    assert is_complete(typed) == complete


def test_typing_at_the_prompt(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        # Two lines, a line that Ctrl-C throws away, and Ctrl-D.
        keys.send_text("SELECT 1,\r2;\rSELECT 3\x03SELECT instance_count FROM images;\r\x04")
        assert list(statements(shell)) == ["SELECT 1,\n2;", "SELECT instance_count FROM images;"]
    file = tmp_path / "raymask" / "shell_history"
    assert "+SELECT instance_count FROM images;" in file.read_text()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("SELECT sc", "score"),
        ("FROM inst", "instance"),
        ("SELECT mask_a", "mask_area"),
        ("select x from images gro", "group"),
        ("SELECT x FROM images GRO", "GROUP"),
        (".sch", ".schema"),
        ("SELECT came", "camera"),
    ],
)
def test_words_are_completed(shell: Shell, typed: str, first: str) -> None:
    found = [c.text for c in Words(shell).get_completions(Document(typed), CompleteEvent())]
    assert found[0] == first
    assert not list(Words(shell).get_completions(Document("SELECT 1 "), CompleteEvent()))
