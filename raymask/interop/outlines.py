"""Outlines of masks as formats take them that know polygons alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raymask.interop.selection import Picture
from raymask.masks import mask_geojson
from raymask.schema import MASK

MAX_SAMPLE = 256

Point = tuple[float, float]
Ring = list[Point]
Polygon = list[Ring]  # the outer ring, then those of the holes


def outlines_of(picture: Picture) -> list[list[Polygon]]:
    """Of each instance of an image its parts; exact, along the edges between pixels. Rings are not closed."""
    masks = pa.array([picture.rle(instance) for instance in picture.instances], MASK)
    return [_parts(text) for text in mask_geojson(masks).to_pylist()]


def joined_rings(rings: Sequence[Ring]) -> Ring:
    """One closed walk along all rings: there and back along a cut from the first to each other, where they come close.

    A cut has no area, so by the even-odd rule, and by pycocotools', what lies inside is the same. [] gives [].
    """
    if len(rings) < 2:
        return list(rings[0]) if rings else []
    detours: dict[int, Ring] = {}
    for ring in rings[1:]:
        start, entry = _close_points(rings[0], ring)
        detours.setdefault(start, []).extend([*ring[entry:], *ring[: entry + 1], rings[0][start]])
    return [point for place, point in enumerate(rings[0]) for point in (point, *detours.get(place, []))]


def _close_points(one: Ring, other: Ring) -> tuple[int, int]:
    """Places in both rings, as close to each other as a sample of their points tells."""
    steps = [len(ring) // MAX_SAMPLE + 1 for ring in (one, other)]
    a, b = (np.asarray(ring[::step], np.float64) for ring, step in zip((one, other), steps, strict=True))
    distances = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    place, place_b = np.unravel_index(np.argmin(distances), distances.shape)
    return int(place) * steps[0], int(place_b) * steps[1]


def _parts(geojson: str) -> list[Polygon]:
    return [[[(x, y) for x, y in ring[:-1]] for ring in polygon] for polygon in json.loads(geojson)["coordinates"]]
