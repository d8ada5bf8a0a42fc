"""What a report says of the tables: counts and distributions, by a few passes of DuckDB over some of their columns.

Nothing here grows with the number of images or objects but the time it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

SCORE_BINS = 50
GRID_ROWS, GRID_COLUMNS = 18, 24
SIDES_PER_DOUBLING = 2  # bins of the sizes of objects
EXAMPLES_OF_FAILURE = 4


@dataclass(frozen=True)
class Category:
    """score, area: means over the objects; area in pixels."""

    id: int
    name: str
    objects: int
    score: float
    area: float


@dataclass(frozen=True)
class Example:
    """An image that failed, and what was said of it."""

    uri: str
    detail: str


@dataclass(frozen=True)
class Failures:
    """All images that failed for one reason, with a few of them."""

    kind: str
    images: int
    examples: Sequence[Example]


@dataclass(frozen=True)
class Facts:
    """Counts of an output.

    formats: images by file format. sizes_hw: images by (height, width), the most frequent. per_image: images by number
    of objects. scores: objects in `SCORE_BINS` equal bins from 0 to 1. sides: objects by the side of a square as large
    as their mask; bin n holds sides of 2 ** (n / 2) to 2 ** ((n + 1) / 2) pixels. centres: objects by where in their
    image the centre of their box is, `GRID_ROWS` x `GRID_COLUMNS`, rows from the top.
    """

    images: int
    ok: int
    instances: int
    bytes: int
    failures: Sequence[Failures]
    formats: Mapping[str, int]
    sizes_hw: Mapping[tuple[int, int], int]
    categories: Sequence[Category]
    per_image: Mapping[int, int]
    scores: Sequence[int]
    sides: Mapping[int, int]
    centres: Sequence[Sequence[int]]


def read_facts(con: duckdb.DuckDBPyConnection) -> Facts:
    """The facts of a connection with the views `images` and `instances`."""
    outcomes = con.execute(
        "SELECT error, coalesce(format, 'not known'), count(*), sum(bytes)::HUGEINT FROM images GROUP BY ALL "
        "ORDER BY 3 DESC"
    ).fetchall()
    errors, formats = dict[str, int](), dict[str, int]()
    for error, format, count, _ in outcomes:
        by_name, name = (formats, format) if error is None else (errors, error)
        by_name[name] = by_name.get(name, 0) + count
    per_image = dict(
        con.execute("SELECT instance_count, count(*) FROM images WHERE error IS NULL GROUP BY 1 ORDER BY 1").fetchall()
    )
    sizes = con.execute(
        "SELECT height, width, count(*) FROM images WHERE error IS NULL GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT 8"
    ).fetchall()
    categories, scores, sides, centres = _of_instances(con)
    return Facts(
        images=sum(count for _, _, count, _ in outcomes),
        ok=sum(formats.values()),
        instances=sum(count * images for count, images in per_image.items()),
        bytes=sum(size or 0 for *_, size in outcomes),
        failures=_failures(con, errors),
        formats=formats,
        sizes_hw={(height, width): count for height, width, count in sizes},
        categories=categories,
        per_image=per_image,
        scores=scores,
        sides=sides,
        centres=centres,
    )


def _failures(con: duckdb.DuckDBPyConnection, errors: Mapping[str, int]) -> list[Failures]:
    rows = con.execute(
        "SELECT error, uri, coalesce(error_detail, '') FROM images WHERE error IS NOT NULL "
        f"QUALIFY row_number() OVER (PARTITION BY error ORDER BY image_id) <= {EXAMPLES_OF_FAILURE} ORDER BY image_id"
    ).fetchall()
    return [
        Failures(kind, images, [Example(uri, detail) for error, uri, detail in rows if error == kind])
        for kind, images in sorted(errors.items(), key=lambda item: -item[1])
    ]


def _of_instances(
    con: duckdb.DuckDBPyConnection,
) -> tuple[list[Category], list[int], dict[int, int], list[list[int]]]:
    """Categories, scores, sides and centres of `Facts`, in one pass over the instances."""
    rows = con.execute(f"""
        WITH binned AS (
            SELECT category_id, category, instances.score, area,
                least(floor(instances.score * {SCORE_BINS}), {SCORE_BINS - 1})::INT AS bin,
                floor({SIDES_PER_DOUBLING} * log2(greatest(sqrt(area), 1)))::INT AS side,
                least(greatest(floor((x_min + x_max) / 2 / width * {GRID_COLUMNS}), 0), {GRID_COLUMNS - 1})::INT AS x,
                least(greatest(floor((y_min + y_max) / 2 / height * {GRID_ROWS}), 0), {GRID_ROWS - 1})::INT AS y
            FROM instances JOIN (SELECT image_id, width, height FROM images) USING (image_id))
        SELECT category_id, category, bin, side, x, y, count(*), avg(score), avg(area)
        FROM binned GROUP BY GROUPING SETS ((category_id, category), (bin), (side), (x, y))
        ORDER BY 7 DESC, category_id""").fetchall()
    categories, scores, sides = list[Category](), [0] * SCORE_BINS, dict[int, int]()
    centres = [[0] * GRID_COLUMNS for _ in range(GRID_ROWS)]
    for id, name, bin, side, x, y, objects, score, area in rows:
        if id is not None:
            categories.append(Category(id, name, objects, score, area))
        elif bin is not None:
            scores[bin] = objects
        elif side is not None:
            sides[side] = objects
        else:
            centres[y][x] = objects
    return categories, scores, sides, centres
