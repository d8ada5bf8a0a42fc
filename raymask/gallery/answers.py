"""What the page asks the server, answered as plain data for JSON; ids are text, as JavaScript's integers end sooner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymask.drawing import colour_of
from raymask.gallery.collection import Collection, Cursor, ImageRow
from raymask.gallery.comparison import Comparison
from raymask.gallery.filters import Filter, FilterError
from raymask.gallery.pictures import Places

PAGE_IMAGES = 60
# A page shows the best of an image that has more than these; asked for alone, it shows all.
PAGE_OBJECTS = 100


@dataclass(frozen=True)
class Answers:
    """One output, maybe beside something else. Every method takes a cursor of `collection`'s."""

    out: str
    collection: Collection
    places: Places
    comparison: Comparison | None = None

    def about(self, cursor: Cursor) -> dict[str, Any]:
        """The output as a whole: what there is to filter by."""
        summary = self.collection.summary(cursor)
        for category in summary["categories"]:
            category["colour"] = "#{:02x}{:02x}{:02x}".format(*colour_of(category["id"]))
        beside = self.comparison and {"name": self.comparison.name, "is_truth": self.comparison.is_truth}
        more = {"listed": self.collection.listed, "columns": self.collection.columns(cursor)}
        return {"out": self.out, "beside": beside, **more, **summary}

    def page(self, cursor: Cursor, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of what a filter leaves, its images without their objects."""
        chosen = replace(Filter.parse(query), beside=self.comparison is not None)
        if chosen.verdicts and self.comparison is None:
            raise FilterError("there is nothing beside this output to have a verdict about")
        found = self.collection.find(cursor, chosen, query.get("sort", "input"))
        number = _page_number(query)
        ids = found.ids[PAGE_IMAGES * number : PAGE_IMAGES * (number + 1)].tolist()
        images = self.collection.images(cursor, ids)
        self.places.of(images)
        return {
            "images": len(found.ids),
            "objects": found.objects,
            "page": number,
            "images_a_page": PAGE_IMAGES,
            "pages": -(-len(found.ids) // PAGE_IMAGES),
            "rows": [_image(image) for image in images],
        }

    def objects(self, cursor: Cursor, query: Mapping[str, str]) -> dict[str, Any]:
        """Of each image in `ids`, by its id, the objects that the filter leaves, and those beside them.

        Pages ask for them some images at a time, since masks far apart in the tables take longer than all the rest.
        """
        try:
            ids = [int(number) for number in query.get("ids", "").split(",") if number][:PAGE_IMAGES]
        except ValueError as error:
            raise FilterError(f"not ids of images: {query['ids']}") from error
        most = None if len(ids) == 1 else PAGE_OBJECTS
        return self._objects(cursor, self.collection.images(cursor, ids), Filter.parse(query), most)

    def compared(self, cursor: Cursor, query: Mapping[str, str]) -> dict[str, Any]:
        """How far the comparison is, and its counts so far under the filter's categories and least score."""
        if self.comparison is None:
            raise FilterError("there is nothing beside this output")
        if self.comparison.problem is not None:
            raise FilterError(self.comparison.problem)
        far = {"images": self.comparison.done, "is_done": self.comparison.is_done}
        return {**far, **self.comparison.counts(cursor, Filter.parse(query))}

    def picture_row(self, cursor: Cursor, image_id: int) -> ImageRow | None:
        """The image of an id, None where there is none."""
        return next(iter(self.collection.images(cursor, [image_id])), None)

    def _objects(self, cursor: Cursor, images: Sequence[ImageRow], chosen: Filter, most: int | None) -> dict[str, Any]:
        left = self.collection.objects(cursor, images, chosen)
        if self.comparison is None:
            return {str(number): {"shown": [_object(o) for o in rows[:most]]} for number, rows in left.items()}
        # What belongs together does so whatever the filter leaves of it.
        everything = left if chosen == Filter() else self.collection.objects(cursor, images)
        beside = self.comparison.beside.objects(self.comparison.beside.cursor(), images)
        found = {}
        for image in images:
            number = image.image_id
            kept = {o["instance"] for o in left[number]}
            shown, other = self._verdicts(image, everything[number], beside[number], chosen.scores[0] or 0.0)
            found[str(number)] = {
                "shown": [o for o in shown if o["instance"] in kept][:most],
                "beside": [o for o in other if _is_left(o, chosen)][:most],
            }
        return found

    def _verdicts(
        self, image: ImageRow, shown: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]], least: float
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The objects of both sides, each with its verdict among those that score at least `least`."""
        assert self.comparison is not None
        pairs = self.comparison.matched(image, shown, beside)

        def verdict(partner: dict[str, Any] | None, otherwise: str) -> str:
            return "match" if partner is not None and partner["score"] >= least else otherwise

        mine = [
            _object(o) | {"verdict": verdict(None if p is None else beside[p], "false_alarm")}
            for o, p in zip(shown, pairs.shown, strict=True)
        ]
        for place in pairs.excused:
            mine[place]["verdict"] = "crowd"
        other = [
            _object(o) | {"verdict": verdict(None if p is None else shown[p], "miss")}
            for o, p in zip(beside, pairs.beside, strict=True)
        ]
        for one in other:
            if (image.image_id, one["instance"]) in self.comparison.crowds:
                one["verdict"] = "crowd"
        return mine, other


def _image(image: ImageRow) -> dict[str, Any]:
    return {
        "id": str(image.image_id),
        "uri": image.uri,
        "status": image.status,
        "error": image.error,
        "detail": image.error_detail,
        "size": image.size_hw,
        "count": image.instance_count,
    }


def _object(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "instance": row["instance"],
        "category": row["category_id"],
        "name": row["category"],
        "score": round(row["score"], 4),
        "box": [round(row[edge], 2) for edge in ("x_min", "y_min", "x_max", "y_max")],
        "area": row["area"],
        "mask": row["mask"],
    }


def _is_left(one: Mapping[str, Any], chosen: Filter) -> bool:
    """Whether a filter leaves an object of the other side, whose category ids are taken to be the same."""
    return (not chosen.categories or one["category"] in chosen.categories) and all(
        bound is None or sign * one[key] >= sign * bound
        for key, bounds in (("score", chosen.scores), ("area", chosen.areas))
        for sign, bound in zip((1, -1), bounds, strict=True)
    )


def _page_number(query: Mapping[str, str]) -> int:
    try:
        return max(int(query.get("page", "0")), 0)
    except ValueError as error:
        raise FilterError(f"no page {query['page']}") from error
