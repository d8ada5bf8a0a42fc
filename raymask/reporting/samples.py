"""Which images a report shows, and their pictures: good ones, bad ones, full ones, and where nothing was found."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

from raymask.drawing import LAYERS, draw_instances
from raymask.errors import ErrorKind, Failure, RaymaskError
from raymask.output import DRAWN_COLUMNS, MIN_SCORE
from raymask.pictures import Pixels, Row, read_pictures

GROUP_IMAGES = 3
LONGEST_SIDE = 400
WEBP_QUALITY = 80
MOST_LABELS = 12
LOOKED_AT = 100_000  # images among which the surest and the least sure are looked for


@dataclass(frozen=True)
class Sample:
    """An image as the page shows it. picture: a `data:` URL, or why there is none; shown: objects that are drawn."""

    uri: str
    size_hw: tuple[int, int]
    objects: int
    shown: int
    top_score: float | None
    picture: str | Failure


Groups = Mapping[str, Sequence[int]]
"""Ids of images by the name of their group."""


def choose(con: duckdb.DuckDBPyConnection, images: int) -> Groups:
    """The images to show, by group; no image is in two. Equal tables give equal choices.

    By the mean score of an image's objects from `MIN_SCORE` on, or by its best object. Of many images only those are
    looked at whose id is a multiple of a number, which is a random sample, for ids are hashes.
    """
    groups: dict[str, list[int]] = {}

    def take(group: str, candidates: Iterable[int], most: int) -> None:
        taken = {id for ids in groups.values() for id in ids}
        groups[group] = [id for id in candidates if id not in taken][:most]

    ranked = _ranked(con, max(1, images // LOOKED_AT))
    each = min(GROUP_IMAGES, max(1, len(ranked) // 4))
    sure = [r for r in ranked if r.mean is not None]
    take("surest", (r.image_id for r in sorted(sure, key=lambda r: r.place)), each)
    take("least sure", (r.image_id for r in sorted(ranked, key=lambda r: r.place_from_below)), each)
    take("typical", (r.image_id for r in sorted(sure, key=lambda r: r.from_middle)), each)
    full = "SELECT image_id FROM images WHERE instance_count > 0 ORDER BY instance_count DESC, image_id LIMIT 20"
    take("most objects", (id for (id,) in con.execute(full).fetchall()), each)
    empty = "SELECT image_id FROM images WHERE error IS NULL AND instance_count = 0 ORDER BY image_id LIMIT 20"
    take("nothing found", (id for (id,) in con.execute(empty).fetchall()), GROUP_IMAGES)
    return {name: groups[name] for name in GROUPS if groups[name]}


GROUPS = ("surest", "typical", "least sure", "most objects", "nothing found")


class _Ranked(NamedTuple):
    """An image with objects. mean: of the scores from `MIN_SCORE` on, None where there are none; top: the best score.

    Places are from 1, by falling mean and by rising top; from_middle: places between it and the median mean.
    """

    image_id: int
    mean: float | None
    top: float
    place: int
    place_from_below: int
    from_middle: float


def _ranked(con: duckdb.DuckDBPyConnection, every: int) -> list[_Ranked]:
    """The ends and the middle of both rankings."""
    kept = 4 * GROUP_IMAGES
    rows = con.execute(
        f"""
        WITH scored AS (
            SELECT image_id, avg(score) FILTER (score >= $least) AS mean, max(score) AS top
            FROM instances WHERE image_id % $every = 0 GROUP BY 1),
        ranked AS (
            SELECT *, row_number() OVER (ORDER BY mean DESC NULLS LAST, image_id) AS place,
                row_number() OVER (ORDER BY top, image_id) AS below, count(mean) OVER () AS sure FROM scored)
        SELECT image_id, mean, top, place, below, abs(place - (sure + 1) / 2) AS off FROM ranked
        WHERE place <= {kept} OR below <= {kept} OR off <= {kept // 2} ORDER BY image_id""",
        {"least": MIN_SCORE, "every": every},
    ).fetchall()
    return [_Ranked(*row) for row in rows]


def read_samples(
    con: duckdb.DuckDBPyConnection, out: str, groups: Groups, *, allow_http: bool
) -> dict[str, list[Sample]]:
    """The chosen images with their pictures, by group. A picture that cannot be had is no error."""
    if not groups:
        return {}
    ids = ", ".join(str(id) for group in groups.values() for id in group)
    columns = "image_id, uri, height, width, bytes, instance_count"
    images = _rows(con, f"SELECT {columns} FROM images WHERE image_id IN ({ids})")
    # Image by image and by uri, for tables are near its order, so that few row groups have to be read.
    columns = ", ".join(DRAWN_COLUMNS)
    query = f"SELECT {columns} FROM instances WHERE uri = ? ORDER BY instance"
    found = {image["image_id"]: _rows(con, query, image["uri"]) for image in images}
    samples = {}
    for image, pixels in _pictures(out, images, allow_http):
        objects = found[image["image_id"]]
        top_score = max((i["score"] for i in objects), default=None)
        drawn = [i for i in objects if i["score"] >= min(MIN_SCORE, top_score or 0)]
        samples[image["image_id"]] = Sample(
            uri=image["uri"],
            size_hw=(image["height"], image["width"]),
            objects=image["instance_count"],
            shown=len(drawn),
            top_score=top_score,
            picture=pixels if isinstance(pixels, Failure) else _data_url(pixels, drawn),
        )
    return {name: [samples[id] for id in group] for name, group in groups.items()}


def _rows(con: duckdb.DuckDBPyConnection, query: str, *parameters: Any) -> list[dict[str, Any]]:
    found = con.execute(query, parameters)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _pictures(out: str, images: Sequence[Row], allow_http: bool) -> Iterator[tuple[Row, Pixels | Failure]]:
    """`read_pictures` of all images, also where a store ends it."""
    left = list(images)
    try:
        for image, pixels in read_pictures(out, images, allow_http=allow_http):
            left.remove(image)
            yield image, pixels
    except RaymaskError as error:
        yield from ((image, Failure(ErrorKind.FORBIDDEN, str(error))) for image in left)


def _data_url(pixels: Pixels, drawn: Sequence[Row]) -> str:
    longest_side = min(LONGEST_SIDE, 4 * max(pixels.shape))  # of tiny ones not to a blur
    sink = io.BytesIO()
    layers = LAYERS if len(drawn) <= MOST_LABELS else ("masks", "boxes")  # or labels would hide what they are about
    draw_instances(pixels, drawn, longest_side=longest_side, layers=layers).save(sink, "WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
