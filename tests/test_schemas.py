"""`schemas/`: the generated files are those that `generate.py` makes, and what `spec.md` says is what the code does."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from raymask.errors import ErrorKind
from raymask.journal import Run
from raymask.masks import area, encode
from raymask.model.spec import Thresholds
from raymask.published import Published, PublishedFile, Shard
from raymask.schema import IMAGES, INSTANCES, MANIFEST, SCHEMA_VERSION, image_id, user_column_name

FOLDER = Path(__file__).resolve().parents[1] / "schemas"
TABLES = {"images": IMAGES, "instances": INSTANCES}

# The types of the tables as every language writes them, apart from the names that the generator has for them.
ARROW_TYPES = [pa.int32(), pa.int64(), pa.float32(), pa.string(), INSTANCES.field("mask").type]
TYPES = {
    "spec.md": ["int32", "int64", "float32", "string", "struct<size: list<int32>, counts: string>"],
    "duckdb.sql": ["INTEGER", "BIGINT", "FLOAT", "VARCHAR", "STRUCT(size INTEGER[], counts VARCHAR)"],
    "spark.sql": ["INT", "BIGINT", "FLOAT", "STRING", "STRUCT<size: ARRAY<INT>, counts: STRING>"],
    "athena.sql": ["int", "bigint", "float", "string", "struct<size:array<int>,counts:string>"],
    "trino.sql": ["integer", "bigint", "real", "varchar", "row(size array(integer), counts varchar)"],
}

RUN = Run(
    model="maskrcnn_resnet50_fpn",
    model_sha256="3f" * 32,
    categories=((1, "person"), (12, "N/A"), (26, "N/A")),
    thresholds={**dataclasses.asdict(Thresholds()), "min_size": 800, "max_size": 1333},
    images_per_file=2,
    raymask_version="0.1.0",
)
PUBLISHED = Published(
    journal="0a" * 32,
    shards=(
        Shard(
            source="b1" * 32,
            images=PublishedFile("images/part-00000.parquet", 2, 4000, "c2" * 32),
            instances=PublishedFile("instances/part-00000.parquet", 0, 2000, "d3" * 32),
            ok=1,
            errors={"truncated": 1},
        ),
    ),
)


def type_name(type: pa.DataType, language: str) -> str:
    return TYPES[language][ARROW_TYPES.index(type)]


# ------------------------------------------------------------------------------------------------- reading the folder


def text_of(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def section(title: str) -> str:
    """What stands in `spec.md` between this heading and the next, of any level."""
    parts = re.split(r"^#+ (.*)\n", text_of("spec.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def markdown_tables(title: str) -> list[list[list[str]]]:
    """The rows of every table of a section, their headings and the backticks left out."""
    tables = re.findall(r"^\|.*\n\| ---.*\n((?:\|.*\n)+)", section(title), flags=re.MULTILINE)
    return [[[c.strip().strip("`") for c in row.strip("|").split("|")] for row in t.splitlines()] for t in tables]


def code_blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), flags=re.MULTILINE | re.DOTALL)


def validator(name: str) -> Any:
    schema = json.loads(text_of(name))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("generate")


# ----------------------------------------------------------------------------------------------------- generated files


def test_generated_files_are_up_to_date(generate: ModuleType) -> None:
    """If this fails, run `python schemas/generate.py`."""
    made = generate.generated()
    assert {name: text_of(name) for name in made} == made
    assert {p.name for p in FOLDER.iterdir() if p.is_file()} == {*made, "spec.md", "generate.py"}


@pytest.mark.parametrize("text", ["the image's", "a\\b", "one; two", "x" * 256])
def test_comments_that_not_every_sql_takes_are_refused(generate: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="does not do"):
        generate.quoted(text)


def test_columns_that_the_specification_lacks_are_refused(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generate.TABLES, "images", IMAGES.append(pa.field("camera", pa.string())))
    with pytest.raises(ValueError, match="camera"):
        generate.generated()


@pytest.mark.parametrize("table", TABLES)
def test_arrow_json_gives_the_schema_back(table: str) -> None:
    def field(known: dict[str, Any]) -> pa.Field:
        children = [field(child) for child in known.get("children", ())]
        types: dict[str, Callable[[], pa.DataType]] = {
            "struct": lambda: pa.struct(children),
            "list": lambda: pa.list_(children[0]),
        }
        build = types.get(known["type"], lambda: getattr(pa, known["type"])())
        return pa.field(known["name"], build(), known["nullable"])

    record = json.loads(text_of(f"{table}.arrow.json"))
    assert pa.schema([field(known) for known in record["fields"]]) == TABLES[table]
    assert record["schema_version"] == SCHEMA_VERSION
    assert record["table"] == table


# ----------------------------------------------------------------------------------------------------- specification


def test_specification_is_of_this_version() -> None:
    assert f"This is version {SCHEMA_VERSION}." in section("Version")
    assert f"In a file of version {SCHEMA_VERSION} every column" in section("Columns of the user").replace("\n", " ")


@pytest.mark.parametrize("table", TABLES)
def test_specification_lists_the_columns(table: str) -> None:
    [rows] = markdown_tables(f"Table `{table}`")
    want = [[f.name, type_name(f.type, "spec.md"), "yes" if f.nullable else "no"] for f in TABLES[table]]
    assert [row[:3] for row in rows] == want


def test_specification_lists_the_kinds_of_error() -> None:
    [rows] = markdown_tables("`error`")
    assert [row[0] for row in rows] == list(ErrorKind)


def test_specification_lists_the_names_that_users_columns_cannot_have() -> None:
    named = set(re.findall(r"`(\w+)`", section("Columns of the user").split("\n\n")[-2]))
    assert named == {*MANIFEST.names} - {*IMAGES.names} | {"source_", "height", user_column_name("height")}


def test_specification_gives_ids_of_images() -> None:
    [rows] = markdown_tables("`image_id`")
    assert [[uri, image_id(uri)] for uri, _, _ in rows] == [[uri, int(number)] for uri, _, number in rows]
    assert [int(digest, 16) >> 1 for _, digest, _ in rows] == [int(number) for _, _, number in rows]


def test_specification_lists_the_fields_of_the_footer() -> None:
    fields, thresholds = markdown_tables("Footer")
    assert [row[0] for row in fields] == list(RUN.footer("images"))
    assert {row[0] for row in thresholds} == set(RUN.thresholds)
    allowed = json.loads(text_of("footer.schema.json"))["properties"]["thresholds"]
    assert [row[:2] for row in thresholds] == [[k, v["type"]] for k, v in allowed["properties"].items()]
    assert allowed["required"] == [row[0] for row in thresholds[:3]]  # "the first three"


def test_specification_lists_the_fields_of_the_index() -> None:
    [rows] = markdown_tables("raymask.json")
    assert [row[0] for row in rows] == list(json.loads(PUBLISHED.to_json(RUN)))


MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(max_examples=200)
@given(MASKS)
@example(np.ones((1, 1), np.bool_))
@example(np.zeros((40, 25), np.bool_))
@example(np.arange(60 * 50).reshape(60, 50) % 1237 > 600)
@example(np.arange(300 * 200).reshape(300, 200) > 33_000)
def test_decoder_in_the_specification_reads_masks(mask: NDArray[np.bool_]) -> None:
    [code] = code_blocks("Mask", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_array_equal(names["decode"](**encode(mask)), mask)


def test_longer_run_in_the_specification() -> None:
    assert encode(np.zeros((40, 25), np.bool_))["counts"] == "Xo0"
    assert "1,000" in section("Example")
    assert "the text `Xo0`" in section("Example")


# ------------------------------------------------------------------------------------------- example, and JSON Schemas


def example_rows() -> dict[str, pa.Table]:
    """The example in the specification; building the tables checks the names and types."""
    rows = [json.loads(block) for block in code_blocks("Example", "json")[:2]]
    return {t: pa.Table.from_pylist(r, schema=TABLES[t]) for t, r in zip(TABLES, rows, strict=True)}


def test_example_keeps_its_own_rules() -> None:
    tables = example_rows()
    images = {row["image_id"]: row for row in tables["images"].to_pylist()}
    for row in tables["images"].to_pylist():
        assert list(row) == IMAGES.names
        assert row["image_id"] == image_id(row["uri"])
        assert row["error"] is None or row["error"] in list(ErrorKind)
    for number, row in enumerate(tables["instances"].to_pylist()):
        image = images[row["image_id"]]
        assert row["uri"] == image["uri"]
        assert row["instance"] == number
        assert row["mask"]["size"] == [image["height"], image["width"]]
        assert row["area"] == area(row["mask"])
    assert [row["instance_count"] for row in images.values()] == [2, 0]
    [drawing] = re.findall(r"^```\n((?:[01] [01] [01] [01] .*\n)+)```", section("Example"), flags=re.MULTILINE)
    drawn = np.array([[int(c) for c in line[:8].split()] for line in drawing.splitlines()], np.bool_)
    assert encode(drawn) == tables["instances"].column("mask")[0].as_py()
    numbers = [[int(n) for n in line[8:].split()] for line in drawing.splitlines()]
    assert numbers == np.arange(12).reshape(4, 3).T.tolist()


def test_example_is_valid() -> None:
    footer, index = (json.loads(block) for block in code_blocks("Example", "json")[2:])
    validator("footer.schema.json").validate(footer)
    validator("raymask.schema.json").validate(index)
    assert list(footer) == list(RUN.footer("instances"))
    assert list(index) == list(json.loads(PUBLISHED.to_json(RUN)))
    tables = example_rows()
    assert index["counts"] == {"images": 2, "ok": 1, "failed": 1, "instances": 2}
    assert {t: index["tables"][t]["rows"] for t in TABLES} == {t: len(tables[t]) for t in TABLES}
    categories = {(c["id"], c["name"]) for c in footer["categories"]}
    assert {(r["category_id"], r["category"]) for r in tables["instances"].to_pylist()} <= categories


def test_what_the_code_writes_is_valid() -> None:
    for table in TABLES:
        validator("footer.schema.json").validate(RUN.footer(table))
    validator("raymask.schema.json").validate(json.loads(PUBLISHED.to_json(RUN)))


def test_every_kind_of_error_may_be_counted() -> None:
    kinds = {kind.value: 1 for kind in ErrorKind}
    shard = dataclasses.replace(PUBLISHED.shards[0], errors=kinds)
    validator("raymask.schema.json").validate(json.loads(Published("0a" * 32, (shard,)).to_json(RUN)))


DROP = object()
FOOTER_FAULTS: list[tuple[str, Any]] = [
    *((name, DROP) for name in RUN.footer("images")),
    ("schema_version", "2.0"),
    ("schema_version", 1.0),
    ("table", "masks"),
    ("model.name", ""),
    ("model.name", DROP),
    ("model.sha256", "3F" * 32),
    ("model.sha256", "3f" * 31),
    ("categories", []),
    ("categories", {"1": "person"}),
    ("categories.0.id", "1"),
    ("categories.0.name", DROP),
    ("thresholds.min_score", 1.5),
    ("thresholds.min_score", DROP),
    ("thresholds.mask_threshold", None),
    ("thresholds.max_detections", 0),
    ("thresholds.nms", "0.5"),
    ("thresholds.min_size", 800.5),
]
INDEX_FAULTS: list[tuple[str, Any]] = [
    *((name, DROP) for name in json.loads(PUBLISHED.to_json(RUN))),
    ("format_version", 2),
    ("counts.images", -1),
    ("counts.failed", DROP),
    ("errors.truncated", 0),
    ("errors.unlucky", 1),
    ("tables.images", DROP),
    ("tables.images.files", []),
    ("tables.images.files.0.path", "instances/part-00000.parquet"),
    ("tables.images.files.0.path", "/images/part-00000.parquet"),
    ("tables.images.files.0.path", "images/part-0.parquet"),
    ("tables.images.files.0.path", "_raymask/parts/images-00000-0123456789abcdef.parquet"),
    ("tables.images.files.0.path", "_raymask/tables/instances-00000-0123456789abcdef.parquet"),
    ("tables.images.files.0.sha256", DROP),
    ("tables.instances.rows", 1.5),
    ("shards.0.errors.unlucky", 1),
    ("shards.0.is_copied", DROP),
]


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        *(("footer.schema.json", *fault) for fault in FOOTER_FAULTS),
        *(("raymask.schema.json", *fault) for fault in INDEX_FAULTS),
    ],
)
def test_schemas_refuse(name: str, path: str, value: Any) -> None:
    good = RUN.footer("images") if name == "footer.schema.json" else json.loads(PUBLISHED.to_json(RUN))
    bad = copy.deepcopy(good)
    *folders, last = (int(step) if step.isdigit() else step for step in path.split("."))
    place: Any = bad
    for step in folders:
        place = place[step]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    assert not validator(name).is_valid(bad)


@pytest.mark.parametrize("name", ["footer.schema.json", "raymask.schema.json"])
def test_schemas_allow_what_later_versions_add(name: str) -> None:
    good = RUN.footer("images") if name == "footer.schema.json" else json.loads(PUBLISHED.to_json(RUN))
    good["thresholds"]["points"] = 7
    good["model"]["licence"] = "CC0"
    validator(name).validate({**good, "note": "new"})


# ---------------------------------------------------------------------------------------------------------------- SQL

# What stands between the columns of a table and its end, for each of the files that define tables over Parquet.
STATEMENTS = {
    "spark.sql": ("CREATE TABLE {0}", "`", "\nUSING parquet\nLOCATION '@OUT@/{0}'\nCOMMENT '{1}'"),
    "athena.sql": ("CREATE EXTERNAL TABLE {0}", "`", "\nCOMMENT '{1}'\nSTORED AS PARQUET\nLOCATION '@OUT@/{0}/'"),
    "trino.sql": (
        "CREATE TABLE {0}",
        '"',
        "\nCOMMENT '{1}'\nWITH (format = 'PARQUET', external_location = '@OUT@/{0}')",
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_external_tables_column_by_column(name: str) -> None:
    begin, quote, end = STATEMENTS[name]
    lines = text_of(name).splitlines()
    code = "\n".join(line for line in lines if not line.startswith("--"))
    *statements, rest = code.split(";")
    assert not rest.strip()
    for (table, schema), statement in zip(TABLES.items(), statements, strict=True):
        match = re.fullmatch(r"(.*) \(\n(.*)\n\)(.*)", statement.strip(), flags=re.DOTALL)
        assert match
        head, body, tail = match.groups()
        meanings = [row[3].replace("`", "") for row in markdown_tables(f"Table `{table}`")[0]]
        assert head == begin.format(table)
        [about] = re.findall(r"^COMMENT '([^']*)'$", tail, flags=re.MULTILINE)
        assert tail == end.format(table, about)
        assert body.split(",\n") == [
            f"    {quote}{f.name}{quote} {type_name(f.type, name)}"
            f"{' NOT NULL' if name == 'spark.sql' and not f.nullable else ''} COMMENT '{meaning}'"
            for f, meaning in zip(schema, meanings, strict=True)
        ]


@pytest.fixture
def output(tmp_path: Path) -> str:
    """The example as files, a second one without rows, and a column of the user's behind those of raymask."""
    for table, rows in example_rows().items():
        (tmp_path / table).mkdir()
        if table == "images":
            rows = rows.append_column("camera", pa.array(["left", None]))
        for number, part in enumerate((rows, rows.slice(0, 0))):
            pq.write_table(part, tmp_path / table / f"part-{number:05d}.parquet")
    return str(tmp_path)


def test_duckdb_makes_the_tables_and_fills_them(output: str) -> None:
    with duckdb.connect() as db:
        db.execute(text_of("duckdb.sql").replace("@OUT@", output))
        for table, schema in TABLES.items():
            columns = db.execute(
                "SELECT column_name, data_type, is_nullable, comment FROM duckdb_columns() WHERE table_name = ?",
                [table],
            ).fetchall()
            meanings = [row[3].replace("`", "") for row in markdown_tables(f"Table `{table}`")[0]]
            assert columns == [
                (f.name, type_name(f.type, "duckdb.sql"), f.nullable, meaning)
                for f, meaning in zip(schema, meanings, strict=True)
            ]
            assert db.sql(f"FROM {table}").to_arrow_table().to_pylist() == example_rows()[table].to_pylist()
        [[comment]] = db.sql("SELECT comment FROM duckdb_tables() WHERE table_name = 'images'").fetchall()
        assert comment.startswith("One row for every image")


def test_duckdb_views_leave_the_rows_where_they_are(output: str) -> None:
    views = re.findall(r"^-- +(CREATE VIEW .*)$", text_of("duckdb.sql"), flags=re.MULTILINE)
    with duckdb.connect() as db:
        for view in views:
            db.execute(view.replace("@OUT@", output))
        found = db.sql("SELECT camera, category FROM images JOIN instances USING (image_id) ORDER BY score").fetchall()
    assert found == [("left", "person"), ("left", "dog")]


def test_every_sql_file_says_which_version() -> None:
    for path in FOLDER.glob("*.sql"):
        assert path.read_text("utf-8").startswith(f"-- The tables of raymask {SCHEMA_VERSION} ")


def test_links_in_the_specification_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", text_of("spec.md"), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text_of("spec.md")):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (FOLDER / target).is_file()
