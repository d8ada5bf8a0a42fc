"""Answers of DuckDB as text or bytes: a table for people, CSV, JSON, JSON Lines and Parquet for programs.

All but the table are made batch by batch, so that an answer may be larger than memory. DuckDB itself writes the lines.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from raymask.errors import ConfigError
from raymask.progress import harmless

BATCH_ROWS = 65_536
SHOWN_ROWS = 40
NESTED = frozenset({"struct", "list", "array", "map", "union", "variant"})

Answer = duckdb.DuckDBPyRelation


def table_text(answer: Answer, width: int | None) -> str:
    """A box with the first and the last rows and their number; long values and middle columns give way to `width`.

    width: in characters; None for as wide as need be. Nothing in it commands a terminal. "" for a statement that only
    does something, and the plan as it is for one that explains.
    """
    if answer.columns == ["explain_key", "explain_value"]:
        return _harmless("\n".join(value for _, value in answer.fetchall()))
    if answer.columns in (["Count"], ["Success"]) and not answer.fetchall():
        return ""
    drawn = io.StringIO()
    with contextlib.redirect_stdout(drawn):
        answer.show(max_width=width or 1_000_000, max_rows=SHOWN_ROWS)
    return _harmless(drawn.getvalue().rstrip())


def write_csv(answer: Answer, sink: BinaryIO) -> None:
    """With a header and as few quotes as can be; null is nothing, an empty text `""`, structs and lists are JSON."""
    sink.write(_csv_header(answer.columns).encode() + b"\n")
    cells = [_csv_cell(name, str(kind.id)) for name, kind in zip(answer.columns, answer.types, strict=True)]
    for line in _lines(answer, " || ',' || ".join(cells)):
        sink.write(line + b"\n")


def write_json(answer: Answer, sink: BinaryIO) -> None:
    """A list of objects, one a row and one a line."""
    before = b"[\n"
    for line in _lines(answer, _json_object(answer)):
        sink.write(before + line)
        before = b",\n"
    sink.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def write_jsonl(answer: Answer, sink: BinaryIO) -> None:
    """An object a row, one a line."""
    for line in _lines(answer, _json_object(answer)):
        sink.write(line + b"\n")


def write_parquet(answer: Answer, sink: BinaryIO) -> None:
    """One file, compressed as the tables are. ConfigError if a column has a type that Parquet has not."""
    reader = answer.to_arrow_reader(BATCH_ROWS)
    try:
        with pq.ParquetWriter(sink, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
    except pa.ArrowNotImplementedError as error:
        raise ConfigError(f"Parquet cannot hold this answer ({error}); cast that column, as to VARCHAR") from error


WRITERS: dict[str, Callable[[Answer, BinaryIO], None]] = {
    "csv": write_csv,
    "json": write_json,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def check_names(answer: Answer) -> None:
    """ConfigError if two columns have one name, which programs could not tell apart; case makes no difference."""
    seen: set[str] = set()
    for name in answer.columns:
        if name.lower() in seen:
            raise ConfigError(f"the answer has two columns {name!r}; give one another name with AS")
        seen.add(name.lower())


def _lines(answer: Answer, expression: str) -> Iterator[bytes]:
    """The text that an expression gives for each row."""
    for batch in answer.project(expression).to_arrow_reader(BATCH_ROWS):
        yield from (line.encode() for line in batch.column(0).to_pylist())


def _csv_header(names: list[str]) -> str:
    quoted = ('"' + name.replace('"', '""') + '"' if set(name) & set('",\r\n') else name for name in names)
    return ",".join(quoted)


def _csv_cell(name: str, kind: str) -> str:
    text = f"to_json({_name(name)})::VARCHAR" if kind in NESTED else f"{_name(name)}::VARCHAR"
    quoted = f"""'"' || replace({text}, '"', '""') || '"'"""
    return f"coalesce(CASE WHEN {text} = '' OR regexp_matches({text}, '[\",\\r\\n]') THEN {quoted} ELSE {text} END, '')"


def _json_object(answer: Answer) -> str:
    columns = zip(answer.columns, answer.types, strict=True)
    pairs = ", ".join(f"{_text(name)}, {_json_value(_name(name), str(kind.id))}" for name, kind in columns)
    return f"json_object({pairs})::VARCHAR"


def _json_value(column: str, kind: str) -> str:
    # JSON has no word for what is no number.
    return f"CASE WHEN isfinite({column}) THEN {column} END" if kind in ("float", "double") else column


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _harmless(text: str) -> str:
    return "\n".join(map(harmless, text.split("\n")))
