"""What a person asks to see: conditions on images and on objects, as SQL with its values as parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymask.errors import RaymaskError

# Places of a sort in SQL. `best`, `worst`, `largest` and `smallest` are of the objects that the filter leaves.
SORTS = {
    "input": "place",
    "name": "uri, place",
    "objects": "objects DESC, place",
    "best": "best DESC NULLS LAST, place",
    "worst": "worst NULLS LAST, place",
    "largest": "largest DESC NULLS LAST, place",
    "smallest": "smallest NULLS LAST, place",
}
VERDICTS = ("match", "miss", "false_alarm")


class FilterError(RaymaskError):
    """A filter that cannot be asked: the message is for the person who typed it."""


@dataclass(frozen=True)
class Condition:
    """A part of a WHERE clause and the values of its question marks."""

    sql: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Filter:
    """What to show; an empty one shows everything.

    categories: ids, of which one must be that of an object. scores: least and most, both included. areas: the same in
    pixels. name: a part of the uri, in any case of letters. status: "ok" or "failed". errors: kinds of failure, of
    which one must be the image's. verdicts: of `VERDICTS`, of which the image must have one. where: a condition in SQL
    over the columns of `images`, or of `images` and `instances`. beside: whether something stands beside the output.
    """

    categories: tuple[int, ...] = ()
    scores: tuple[float | None, float | None] = (None, None)
    areas: tuple[int | None, int | None] = (None, None)
    name: str = ""
    status: str = ""
    errors: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    where: str = ""
    beside: bool = False

    @staticmethod
    def parse(query: Mapping[str, str]) -> Filter:
        """The filter in the query of a URL; lists are separated by commas. FilterError if a value is not one."""
        try:
            verdicts = tuple(v for v in query.get("verdict", "").split(",") if v)
            if not set(verdicts) <= set(VERDICTS):
                raise ValueError(f"no such verdict: {query['verdict']}")
            return Filter(
                categories=tuple(int(c) for c in query.get("category", "").split(",") if c),
                scores=(_number(query, "min_score", float), _number(query, "max_score", float)),
                areas=(_number(query, "min_area", int), _number(query, "max_area", int)),
                name=query.get("name", ""),
                status=query.get("status", ""),
                errors=tuple(e for e in query.get("error", "").split(",") if e),
                verdicts=verdicts,
                where=query.get("where", "").strip(),
            )
        except ValueError as error:
            raise FilterError(f"not a filter: {error}") from error

    def of_objects(self) -> list[Condition]:
        """What an object must be, but for `where`; [] where any will do."""
        conditions = []
        if self.categories:
            conditions.append(_one_of("category_id", self.categories))
        for column, bounds in (("score", self.scores), ("area", self.areas)):
            for bound, sign in zip(bounds, (">=", "<="), strict=True):
                if bound is not None:
                    # A score is float32: 0.7 is what is nearest to it there.
                    cast = "::FLOAT" if column == "score" else ""
                    conditions.append(Condition(f"instances.{column} {sign} ?{cast}", (bound,)))
        return conditions

    def drops_empty(self) -> bool:
        """Whether an image must have an object that is left. Not where verdicts choose: what was missed is not there.

        Beside something else the score tells what counts, so that an image in which nothing does is seen too.
        """
        only_scores = not self.categories and self.areas == (None, None)
        return not self.verdicts and not (self.beside and only_scores)

    def of_images(self) -> list[Condition]:
        """What an image must be, but for `where` and `verdicts`."""
        conditions = []
        if self.name:
            conditions.append(Condition("contains(lower(images.uri), lower(?))", (self.name,)))
        if self.status:
            conditions.append(Condition("images.status = ?", (self.status,)))
        if self.errors:
            conditions.append(_one_of("images.error", self.errors))
        return conditions

    def of_verdicts(self) -> Condition | None:
        """What an image must have in `pairs`; see `raymask.gallery.comparison`."""
        if not self.verdicts:
            return None
        least = self.scores[0] or 0.0
        sides = {
            "match": "side = 'shown' AND score >= ? AND partner >= ?",
            "false_alarm": "side = 'shown' AND score >= ? AND NOT coalesce(partner >= ?, false)",
            "miss": "side = 'beside' AND score >= ? AND NOT coalesce(partner >= ?, false)",
        }
        chosen = " OR ".join(f"({sides[v]})" for v in self.verdicts)
        values: list[Any] = [least, least] * len(self.verdicts)
        sql = f"({chosen})"
        if self.categories:
            sql, values = f"{sql} AND {_one_of('category_id', self.categories).sql}", [*values, *self.categories]
        return Condition(f"images.image_id IN (SELECT image_id FROM pairs WHERE {sql})", tuple(values))


def joined(conditions: Sequence[Condition]) -> Condition:
    """All of them at once; TRUE where there are none."""
    sql = " AND ".join(c.sql for c in conditions) or "TRUE"
    return Condition(sql, tuple(v for c in conditions for v in c.values))


def _one_of(column: str, values: Sequence[Any]) -> Condition:
    return Condition(f"{column} IN ({', '.join('?' * len(values))})", tuple(values))


def _number(query: Mapping[str, str], name: str, kind: Any) -> Any:
    text = query.get(name, "")
    return kind(text) if text else None
