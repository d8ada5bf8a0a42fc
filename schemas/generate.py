"""Write the JSON and SQL files of this folder: `python schemas/generate.py`.

Columns and their types come from `raymask/schema.py`, what they mean from the tables in `spec.md`. Do not edit what
this writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raymask.errors import ErrorKind
from raymask.published import FORMAT_VERSION
from raymask.schema import IMAGES, INSTANCES, SCHEMA_VERSION

FOLDER = Path(__file__).parent
TABLES = {"images": IMAGES, "instances": INSTANCES}
TABLE_MEANINGS = {
    "images": "One row for every image of the input, also for those that failed or show nothing",
    "instances": "One row for every object found, with the image_id of its image",
}

Meanings = dict[str, dict[str, str]]  # table -> column -> what it means


def generated() -> dict[str, str]:
    """Name -> text of every generated file."""
    meanings = {table: column_meanings(table) for table in TABLES}
    return {
        "images.arrow.json": as_json(arrow_table("images", meanings)),
        "instances.arrow.json": as_json(arrow_table("instances", meanings)),
        "footer.schema.json": as_json(footer_schema()),
        "raymask.schema.json": as_json(index_schema()),
        "duckdb.sql": duckdb_sql(meanings),
        "spark.sql": spark_sql(meanings),
        "athena.sql": athena_sql(meanings),
        "trino.sql": trino_sql(meanings),
    }


def column_meanings(table: str) -> dict[str, str]:
    """Column -> what it means, read from the first markdown table in the section of `spec.md` on this table."""
    section = (FOLDER / "spec.md").read_text("utf-8").split(f"\n## Table `{table}`\n")[1]
    rows = section[section.index("\n|") + 1 :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]
    meanings = {cell[0]: cell[3] for cell in cells}
    if list(meanings) != TABLES[table].names:
        raise ValueError(f"spec.md gives {table} the columns {list(meanings)}, schema.py {TABLES[table].names}")
    return meanings


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------------------------ Arrow schemas


def arrow_table(table: str, meanings: Meanings) -> dict[str, Any]:
    """A field has `name`, `type` (as Arrow calls it), `nullable` and, where it is nested, `children`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "table": table,
        "description": TABLE_MEANINGS[table],
        "fields": [arrow_field(f, description=meanings[table][f.name]) for f in TABLES[table]],
    }


def arrow_field(field: pa.Field, **more: str) -> dict[str, Any]:
    nested = [field.type.field(i) for i in range(field.type.num_fields)]
    children = {"children": [arrow_field(f) for f in nested]} if nested else {}
    return {"name": field.name, "type": arrow_type(field.type), "nullable": field.nullable, **more, **children}


def arrow_type(type: pa.DataType) -> str:
    if pa.types.is_nested(type):
        return "list" if pa.types.is_list(type) else "struct"
    return "float32" if pa.types.is_float32(type) else str(type)


# ------------------------------------------------------------------------------------------------------- JSON Schemas

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
ERROR_COUNTS = {
    "type": "object",
    "propertyNames": {"enum": [kind.value for kind in ErrorKind]},
    "additionalProperties": POSITIVE,
}


def record(properties: dict[str, Any], optional: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """An object whose `properties` are all required but the optional ones. Others are allowed: later versions add."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties, **more}


MODEL = record({"name": {"type": "string", "minLength": 1}, "sha256": SHA256})
CATEGORIES = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": record({"id": {"type": "integer"}, "name": {"type": "string"}}),
}
THRESHOLDS = record(
    {
        "min_score": PROBABILITY,
        "mask_threshold": PROBABILITY,
        "max_detections": POSITIVE,
        "nms": PROBABILITY,
        "proposals": POSITIVE,
        "min_size": POSITIVE,
        "max_size": POSITIVE,
    },
    optional=("nms", "proposals", "min_size", "max_size"),
)
# What the footer of every file and the index say alike.
ORIGIN = {
    "model": MODEL,
    "categories": CATEGORIES,
    "thresholds": THRESHOLDS,
    "raymask_version": {"type": "string", "minLength": 1},
}


def footer_schema() -> dict[str, Any]:
    return {
        "$schema": DRAFT,
        "$id": f"urn:raymask:footer:{SCHEMA_VERSION}",
        "title": "Footer of a raymask file",
        "description": "The JSON under the key `raymask` in the key-value metadata of every Parquet file of a table.",
        **record({"schema_version": {"const": SCHEMA_VERSION}, "table": {"enum": list(TABLES)}, **ORIGIN}),
    }


def index_schema() -> dict[str, Any]:
    def files_of(table: str) -> dict[str, Any]:
        plain, aside = rf"{table}/part-[0-9]{{5,}}", rf"_raymask/tables/{table}-[0-9]{{5,}}-[0-9a-f]{{16}}"
        path = {"type": "string", "pattern": rf"^({plain}|{aside})\.parquet$"}
        file = record({"path": path, "rows": COUNT, "bytes": POSITIVE, "sha256": SHA256})
        return record({"rows": COUNT, "files": {"type": "array", "minItems": 1, "items": file}})

    return {
        "$schema": DRAFT,
        "$id": f"urn:raymask:index:{SCHEMA_VERSION}",
        "title": "raymask.json",
        "description": "The index of an output: which files make up its tables, and how many rows they have.",
        **record(
            {
                "format_version": {"const": FORMAT_VERSION},
                "schema_version": {"const": SCHEMA_VERSION},
                **ORIGIN,
                "counts": record(dict.fromkeys(("images", "ok", "failed", "instances"), COUNT)),
                "errors": ERROR_COUNTS,
                "tables": record({table: files_of(table) for table in TABLES}),
                "journal": {**SHA256, "description": "The writer's own."},
                "shards": {
                    "type": "array",
                    "minItems": 1,
                    "items": record(
                        {"source": SHA256, "ok": COUNT, "errors": ERROR_COUNTS, "is_copied": {"type": "boolean"}}
                    ),
                    "description": "The writer's own: one for each pair of files, in their order.",
                },
            }
        ),
    }


# ---------------------------------------------------------------------------------------------------------------- SQL

HEAD = """\
-- The tables of raymask {version} {what}
-- Made by schemas/generate.py from schemas/spec.md. Put the URL of an output in the place of @OUT@:
--     sed 's|@OUT@|s3://bucket/masks|' schemas/{file}
-- Columns that came with your own input are in images too: add them by name and type.
"""


@dataclass(frozen=True)
class Dialect:
    """What an engine calls the types of the tables. list_of: of the items' type; struct_of: of (name, type) pairs."""

    scalars: dict[pa.DataType, str]
    list_of: Callable[[str], str]
    struct_of: Callable[[list[tuple[str, str]]], str]

    def type_name(self, type: pa.DataType) -> str:
        if pa.types.is_list(type):
            return self.list_of(self.type_name(type.value_type))
        if pa.types.is_struct(type):
            return self.struct_of([(f.name, self.type_name(f.type)) for f in type.fields])
        return self.scalars[type]


DUCKDB = Dialect(
    {pa.int32(): "INTEGER", pa.int64(): "BIGINT", pa.float32(): "FLOAT", pa.string(): "VARCHAR"},
    lambda item: f"{item}[]",
    lambda fields: f"STRUCT({', '.join(f'{name} {type}' for name, type in fields)})",
)
SPARK = Dialect(
    {pa.int32(): "INT", pa.int64(): "BIGINT", pa.float32(): "FLOAT", pa.string(): "STRING"},
    lambda item: f"ARRAY<{item}>",
    lambda fields: f"STRUCT<{', '.join(f'{name}: {type}' for name, type in fields)}>",
)
ATHENA = Dialect(
    {pa.int32(): "int", pa.int64(): "bigint", pa.float32(): "float", pa.string(): "string"},
    lambda item: f"array<{item}>",
    lambda fields: f"struct<{','.join(f'{name}:{type}' for name, type in fields)}>",
)
TRINO = Dialect(
    {pa.int32(): "integer", pa.int64(): "bigint", pa.float32(): "real", pa.string(): "varchar"},
    lambda item: f"array({item})",
    lambda fields: f"row({', '.join(f'{name} {type}' for name, type in fields)})",
)


def duckdb_sql(meanings: Meanings) -> str:
    """Tables of DuckDB's own, and their rows from the files."""
    text = HEAD.format(version=SCHEMA_VERSION, what="in DuckDB: copies in its own storage.", file="duckdb.sql")
    text += "-- To query the files where they are, two views do:\n"
    for table in TABLES:
        text += f"--     CREATE VIEW {table} AS SELECT * FROM read_parquet('@OUT@/{table}/part-*.parquet');\n"
    for table, schema in TABLES.items():
        columns = [f"{f.name} {DUCKDB.type_name(f.type)}{'' if f.nullable else ' NOT NULL'}" for f in schema]
        text += f"\nCREATE TABLE {table} (\n    {joined(columns)}\n);\n"
        text += f"COMMENT ON TABLE {table} IS {quoted(TABLE_MEANINGS[table])};\n"
        for name in schema.names:
            text += f"COMMENT ON COLUMN {table}.{name} IS {quoted(meanings[table][name])};\n"
        text += f"INSERT INTO {table} BY NAME\nSELECT\n    {joined(schema.names)}\n"
        text += f"FROM read_parquet('@OUT@/{table}/part-*.parquet');\n"
    return text


def spark_sql(meanings: Meanings) -> str:
    """Tables over the files, for Spark 3 and later."""
    text = HEAD.format(version=SCHEMA_VERSION, what="in Spark SQL, over the files.", file="spark.sql")
    for table, schema in TABLES.items():
        columns = [
            f"`{f.name}` {SPARK.type_name(f.type)}{'' if f.nullable else ' NOT NULL'}"
            f" COMMENT {quoted(meanings[table][f.name])}"
            for f in schema
        ]
        text += f"\nCREATE TABLE {table} (\n    {joined(columns)}\n)\nUSING parquet\n"
        text += f"LOCATION '@OUT@/{table}'\nCOMMENT {quoted(TABLE_MEANINGS[table])};\n"
    return text


def athena_sql(meanings: Meanings) -> str:
    """External tables over the files, in the Hive DDL that Athena shares with Hive."""
    text = HEAD.format(version=SCHEMA_VERSION, what="in Athena and Hive, over the files.", file="athena.sql")
    text += "-- Athena takes one statement at a time.\n"
    for table, schema in TABLES.items():
        columns = [f"`{f.name}` {ATHENA.type_name(f.type)} COMMENT {quoted(meanings[table][f.name])}" for f in schema]
        text += f"\nCREATE EXTERNAL TABLE {table} (\n    {joined(columns)}\n)\n"
        text += f"COMMENT {quoted(TABLE_MEANINGS[table])}\nSTORED AS PARQUET\nLOCATION '@OUT@/{table}/';\n"
    return text


def trino_sql(meanings: Meanings) -> str:
    """External tables over the files, for the Hive connector of Trino."""
    text = HEAD.format(version=SCHEMA_VERSION, what="in Trino (Hive connector), over the files.", file="trino.sql")
    for table, schema in TABLES.items():
        columns = [f'"{f.name}" {TRINO.type_name(f.type)} COMMENT {quoted(meanings[table][f.name])}' for f in schema]
        text += f"\nCREATE TABLE {table} (\n    {joined(columns)}\n)\nCOMMENT {quoted(TABLE_MEANINGS[table])}\n"
        text += f"WITH (format = 'PARQUET', external_location = '@OUT@/{table}');\n"
    return text


def joined(lines: list[str]) -> str:
    return ",\n    ".join(lines)


def quoted(text: str) -> str:
    """As an SQL string. Engines differ on quotes and backslashes in it, shells on semicolons: so there are none."""
    if set("'\\;") & set(text) or len(text) > 255:
        raise ValueError(f"{text!r} does not do as a comment in every SQL: no quotes, no semicolons, 255 characters")
    return f"'{text}'"


if __name__ == "__main__":
    for name, text in generated().items():
        (FOLDER / name).write_text(text, "utf-8")
