"""Questions to a large output: 1,000,000 images with 10,000,000 instances, made once by `generated.py`.

    python benchmarks/query.py

statement: `raymask.open(out).sql(...)` of an output that is open. duckdb: the same statement over the same files, read
by name with DuckDB alone. command: `raymask query`, from its start to its end. The files are in the page cache.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import duckdb
from generated import write_output
from measure import print_table, save, spread, timed
from workload import DATA

import raymask
import raymask.duckdb
from raymask.output import Masks
from raymask.published import read_published

IMAGES, INSTANCES = 1_000_000, 10_000_000
REPEATS, COMMANDS = 5, 3
STATEMENTS = {
    "categories, counted": "SELECT category, count(*), avg(area) FROM instances WHERE score > 0.8 GROUP BY 1 "
    "ORDER BY 2",
    "failures, counted": "SELECT error, count(*) FROM images WHERE status = 'failed' GROUP BY 1 ORDER BY 2",
    "one image's masks": "SELECT instance, mask FROM instances WHERE uri = 's3://photos/00500/000500000.jpg' "
    "ORDER BY 1",
    "ten largest": "SELECT uri, instance, area FROM instances ORDER BY area DESC, uri, instance LIMIT 10",
    "images with both": "SELECT count(*) FROM (SELECT image_id FROM instances WHERE category = 'dog' INTERSECT "
    "SELECT image_id FROM instances WHERE category = 'cat')",
    "masks of a category": "SELECT sum(mask_area(mask)) FROM instances WHERE category = 'zebra'",
}


def main() -> None:
    out = str(DATA / "million")
    if read_published(out) is None:
        write_output(out, IMAGES, INSTANCES)
    masks = raymask.open(out)
    rows: list[dict[str, Any]] = []
    with duckdb.connect() as alone:
        raymask.duckdb.register(alone)
        for table in ("images", "instances"):
            alone.execute(f"CREATE VIEW {table} AS FROM '{out}/{table}/part-*.parquet'")
        for name, statement in STATEMENTS.items():
            ways = {"statement": partial(ask, masks, statement), "duckdb": partial(ask, alone, statement)}
            if ways["statement"]() != ways["duckdb"]():
                raise SystemExit(f"the ways disagree: {name}")
            seconds = timed(ways, REPEATS) | timed({"command": partial(command, out, statement)}, COMMANDS)
            rows.append({"question": name, "sql": statement, **{way: spread(s) for way, s in seconds.items()}})
    save("query", rows, images=IMAGES, instances=INSTANCES)
    header = ["question", "statement", "DuckDB alone", "whole command"]
    medians = [[f"{row[way]['median_s']:.2f} s" for way in ("statement", "duckdb", "command")] for row in rows]
    print_table(header, [[row["question"], *shown] for row, shown in zip(rows, medians, strict=True)])


def ask(database: Masks | duckdb.DuckDBPyConnection, statement: str) -> list[tuple[Any, ...]]:
    answer = database.sql(statement)
    assert answer is not None
    return answer.fetchall()


def command(out: str, statement: str) -> None:
    subprocess.run([sys.executable, "-m", "raymask.cli", "query", out, statement], capture_output=True, check=True)


if __name__ == "__main__":
    main()
