"""Questions about an output: which images a filter leaves, in which order, and what is known of a page of them.

What a filter leaves is kept as a list of ids, 8 bytes an image, so that turning pages does not ask again. Functions
take a cursor, which whoever waits for them can interrupt.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from raymask.gallery.filters import SORTS, Condition, Filter, FilterError, joined
from raymask.output import Masks

MEMORY = "384MiB"  # of DuckDB
LISTS_KEPT = 8
ROWS_KEPT = 4096
SCORE_BINS = 20
# The columns of an image behind its instance's; `uri` and `image_id` are the instance's own.
JOINED = "instances JOIN (SELECT * EXCLUDE (uri) FROM images) AS images USING (image_id)"

Cursor = duckdb.DuckDBPyConnection


@dataclass(frozen=True, eq=False)
class Found:
    """The images that a filter leaves: their ids in order (int64), and how many of their objects it leaves."""

    ids: NDArray[np.int64]
    objects: int


@dataclass(frozen=True)
class ImageRow:
    """An image as the tables have it; size_hw in pixels, None for a failed one."""

    image_id: int
    uri: str
    status: str
    error: str | None
    error_detail: str | None
    size_hw: tuple[int, int] | None
    bytes: int | None
    instance_count: int


class Collection:
    """The images and objects of one output. For any number of threads, each with a cursor of its own."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, listed: int = 0) -> None:
        """listed: images of the input, more than the tables have while a run is still at work."""
        self.listed = listed
        self._connection = connection
        self._lock = threading.Lock()
        self._lists: OrderedDict[tuple[Filter, str], Found] = OrderedDict()
        self._rows: OrderedDict[int, ImageRow] = OrderedDict()

    @staticmethod
    def of(out: str) -> Collection:
        """The images of an output, as far as it is; OutputError if there is none."""
        masks = Masks(out)
        return Collection(masks.connect(memory=MEMORY), masks.listed)

    def cursor(self) -> Cursor:
        return self._connection.cursor()

    def find(self, cursor: Cursor, chosen: Filter, sort: str) -> Found:
        """The images that `chosen` leaves; FilterError if its SQL is none, or there is no such sort."""
        key = (chosen, sort)
        with self._lock:
            if key in self._lists:
                self._lists.move_to_end(key)
                return self._lists[key]
        found = self._find(cursor, chosen, sort)
        with self._lock:
            self._lists[key] = found
            while len(self._lists) > LISTS_KEPT:
                self._lists.popitem(last=False)
        return found

    def forget(self) -> None:
        """Ask anew from now on: what verdicts are known has changed."""
        with self._lock:
            self._lists.clear()

    def _find(self, cursor: Cursor, chosen: Filter, sort: str) -> Found:
        if sort not in SORTS:
            raise FilterError(f"no such sort: {sort}")
        source, of_objects = self._of_objects(cursor, chosen)
        of_images = [*chosen.of_images(), *self._of_images_where(cursor, chosen)]
        if (verdict := chosen.of_verdicts()) is not None:
            of_images.append(verdict)
        only, condition = joined(of_objects), joined(of_images)
        by_objects = sort in ("best", "worst", "largest", "smallest")
        if of_objects or by_objects:
            drops = chosen.drops_empty() or (source == JOINED and not chosen.verdicts)
            join = "JOIN" if of_objects and drops else "LEFT JOIN"
            found = f"""
                {join} (
                    SELECT image_id, count(*) AS objects, max(score) AS best, min(score) AS worst,
                        max(area) AS largest, min(area) AS smallest
                    FROM {source} WHERE {only.sql} GROUP BY image_id
                ) AS found USING (image_id)"""
            objects, values = "coalesce(objects, 0)", only.values
        else:
            found, objects, values = "", "instance_count", ()
        sql = f"""
            SELECT image_id, {objects} AS objects
            FROM (SELECT *, row_number() OVER () AS place FROM images) AS images {found}
            WHERE {condition.sql} ORDER BY {SORTS[sort]}"""
        columns = ask(cursor, sql, [*values, *condition.values]).fetchnumpy()
        return Found(np.asarray(columns["image_id"], np.int64), int(np.sum(columns["objects"])))

    def kept_image(self, image_id: int) -> ImageRow | None:
        """The image of an id if it has been asked for lately, without a question to the tables."""
        with self._lock:
            return self._rows.get(image_id)

    def images(self, cursor: Cursor, ids: Sequence[int]) -> list[ImageRow]:
        """The images of these ids, in their order; those asked for last are kept, for their pictures and objects."""
        with self._lock:
            rows = {number: self._rows[number] for number in ids if number in self._rows}
        if unknown := [number for number in ids if number not in rows]:
            rows |= _read_images(cursor, unknown)
            with self._lock:
                self._rows |= rows
                while len(self._rows) > ROWS_KEPT:
                    self._rows.popitem(last=False)
        return [rows[number] for number in ids if number in rows]

    def objects(
        self, cursor: Cursor, images: Sequence[ImageRow], chosen: Filter | None = None
    ) -> dict[int, list[dict[str, Any]]]:
        """Image id -> its instances, those that `chosen` leaves, by falling score."""
        found: dict[int, list[dict[str, Any]]] = {image.image_id: [] for image in images}
        if not images:
            return found
        source, conditions = self._of_objects(cursor, chosen or Filter())
        # By uri as well, because files are near its order and so hardly any has to be read.
        uris = Condition(f"instances.uri IN ({', '.join('?' * len(images))})", tuple(i.uri for i in images))
        where = joined([Condition(among(list(found))), uris, *conditions])
        sql = f"""
            SELECT image_id, instance, category_id, category, score, x_min, y_min, x_max, y_max, area, mask
            FROM {source} WHERE {where.sql} ORDER BY image_id, instance"""
        names = ("instance", "category_id", "category", "score", "x_min", "y_min", "x_max", "y_max", "area", "mask")
        for number, *values in ask(cursor, sql, where.values).fetchall():
            found[number].append(dict(zip(names, values, strict=True)))
        return found

    def summary(self, cursor: Cursor) -> dict[str, Any]:
        """Counts by category, status and kind of failure, and how scores and areas are spread.

        scores: of `SCORE_BINS` equal parts of [0, 1]. areas: of [0, 1), [1, 2), [2, 4), [4, 8), ... pixels.
        """
        images = ask(cursor, "SELECT status, error, count(*) FROM images GROUP BY ALL").fetchall()
        rows = ask(
            cursor,
            f"""
            SELECT category_id, category, least(floor(score * {SCORE_BINS})::INT, {SCORE_BINS - 1}) AS score,
                CASE WHEN area < 1 THEN 0 ELSE 1 + floor(log2(area))::INT END AS area, count(*)
            FROM instances GROUP BY ALL""",
        ).fetchall()
        categories: dict[tuple[int, str], int] = {}
        scores, areas = [0] * SCORE_BINS, [0] * (1 + max((row[3] for row in rows), default=0))
        for number, name, score, area, count in rows:
            categories[number, name] = categories.get((number, name), 0) + count
            scores[max(score, 0)] += count
            areas[area] += count
        errors: dict[str, int] = {}
        for _, error, count in images:
            if error is not None:
                errors[error] = errors.get(error, 0) + count
        return {
            "images": sum(row[2] for row in images),
            "ok": sum(row[2] for row in images if row[0] == "ok"),
            "instances": sum(categories.values()),
            "errors": [{"kind": k, "count": n} for k, n in sorted(errors.items(), key=lambda item: -item[1])],
            "categories": [
                {"id": number, "name": name, "count": count}
                for (number, name), count in sorted(categories.items(), key=lambda item: -item[1])
            ],
            "scores": scores,
            "areas": areas,
        }

    def columns(self, cursor: Cursor) -> Mapping[str, list[str]]:
        """The columns that a condition in SQL may name, by table."""
        return {
            table: [row[0] for row in ask(cursor, f"SELECT column_name FROM (DESCRIBE {table})").fetchall()]
            for table in ("images", "instances")
        }

    # --------------------------------------------------------------------------------------------- a condition in SQL

    def _of_objects(self, cursor: Cursor, chosen: Filter) -> tuple[str, list[Condition]]:
        """What to select objects from, and the conditions on them."""
        conditions = chosen.of_objects()
        if chosen.where and self._scope(cursor, chosen.where) == JOINED:
            return JOINED, [*conditions, Condition(f"({chosen.where}\n)")]
        return "instances", conditions

    def _of_images_where(self, cursor: Cursor, chosen: Filter) -> list[Condition]:
        if chosen.where and self._scope(cursor, chosen.where) == "images":
            return [Condition(f"({chosen.where}\n)")]
        return []

    def _scope(self, cursor: Cursor, where: str) -> str:
        """Whether a condition is about images alone, or about their objects."""
        try:
            _bind(cursor, "images", where)
            return "images"
        except duckdb.BinderException:
            try:
                _bind(cursor, JOINED, where)
            except duckdb.Error as error:
                raise FilterError(_plainly(error)) from error
            return JOINED
        except duckdb.Error as error:
            raise FilterError(_plainly(error)) from error


def _read_images(cursor: Cursor, ids: Sequence[int]) -> dict[int, ImageRow]:
    sql = f"""
        SELECT image_id, uri, status, error, error_detail, height, width, bytes, instance_count
        FROM images WHERE {among(ids)}"""
    rows = {}
    for number, uri, status, error, detail, height, width, size, count in ask(cursor, sql).fetchall():
        size_hw = None if height is None else (height, width)
        rows[number] = ImageRow(number, uri, status, error, detail, size_hw, size, count)
    return rows


def ask(cursor: Cursor, sql: str, values: Sequence[Any] = ()) -> Cursor:
    """Run a statement; FilterError for what the filter in it has led to."""
    try:
        return cursor.execute(sql, list(values))
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        raise FilterError(_plainly(error)) from error


def among(ids: Sequence[int]) -> str:
    return f"image_id IN ({', '.join(str(int(number)) for number in ids)})"


def _bind(cursor: Cursor, source: str, where: str) -> None:
    """Raise duckdb.Error unless `where` is one condition over `source`."""
    # The line break ends a comment, so that the bracket counts.
    sql = f"SELECT 1 FROM {source} WHERE ({where}\n) LIMIT 0"
    statements = cursor.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise FilterError("one condition is meant, such as: score > 0.5 AND category = 'dog'")
    cursor.execute(statements[0]).fetchall()


def _plainly(error: duckdb.Error) -> str:
    """What DuckDB says without the statement around the condition."""
    return str(error).partition("\n\nLINE ")[0].strip()
