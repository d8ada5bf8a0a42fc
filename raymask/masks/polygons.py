"""Masks as polygons in text, WKT and GeoJSON."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymask.masks.columns import Masks, masks_of, refuse, room_for, text_column, toggles_of
from raymask.masks.compiling import compiled
from raymask.masks.outlines import NONE, ZERO, Rings, trace
from raymask.masks.runs import with_room

Text = NDArray[np.uint8]
CHARACTERS_A_POINT = 32  # two numbers of at most ten digits, and what is around them


# What stands around the numbers, see `_write`.
EMPTY, BEGIN, END, OPENING, CLOSING, POINT, BETWEEN, POINT_END, COMMA = range(9)
WKT = ("MULTIPOLYGON EMPTY", "MULTIPOLYGON (", ")", "(", ")", "", " ", "", ", ")
GEOJSON = (
    '{"type":"MultiPolygon","coordinates":[]}',
    '{"type":"MultiPolygon","coordinates":[',
    "]}",
    "[",
    "]",
    "[",
    ",",
    "]",
    ",",
)


def wkt(masks: pa.Array) -> pa.Array:
    return _written(masks, WKT)


def geojson(masks: pa.Array) -> pa.Array:
    return _written(masks, GEOJSON)


def _written(masks: pa.Array, words: tuple[str, ...]) -> pa.Array:
    read = masks_of(masks)
    letters = np.array([list(word.ljust(max(map(len, words)), "\0").encode()) for word in words], np.uint8)
    text, bounds, bad = _write_all(read, letters)
    if bad >= 0:
        refuse(read, bad)
    return pc.if_else(pa.array(read.heights > 0), text_column(text, bounds), pa.scalar(None, pa.string()))


# Compiled from here on.


@compiled
def _write_all(masks: Masks, words: Text) -> tuple[Text, NDArray[np.int64], int]:
    """The text of all masks; where in it each begins; the first malformed one, or -1."""
    toggles = room_for(masks)
    rows = len(masks.heights)
    text, length = np.empty(4096, np.uint8), ZERO
    bounds = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        used = toggles_of(masks, row, toggles)
        if used < 0:
            return text, bounds, row
        if masks.heights[row] > 0:
            text, length = _write(text, length, trace(toggles, used, masks.heights[row]), words)
        bounds[row + 1] = length
    return text[:length], bounds, -1


@compiled
def _write(text: Text, length: int, rings: Rings, words: Text) -> tuple[Text, int]:
    """Add the polygons of a mask, each with its holes behind it."""
    count = len(rings.ends)
    text = with_room(text, length + CHARACTERS_A_POINT * (len(rings.xs) + 3 * count + 2))
    if count == 0:
        return text, _put(text, length, words[EMPTY])
    parts = 0
    for part in rings.parts:
        parts = max(parts, part + 1)
    first_hole, next_hole = np.full(parts, NONE), np.empty(count, np.int64)
    for ring in range(count - 1, -1, -1):
        if rings.holes[ring]:
            part = rings.parts[ring]
            next_hole[ring], first_hole[part] = first_hole[part], ring
    length = _put(text, length, words[BEGIN])
    is_first = True
    for ring in range(count):
        if rings.holes[ring]:
            continue
        if not is_first:
            length = _put(text, length, words[COMMA])
        is_first = False
        length = _put(text, length, words[OPENING])
        length = _put_ring(text, length, rings, ring, words)
        hole = first_hole[rings.parts[ring]]
        while hole != NONE:
            length = _put(text, length, words[COMMA])
            length = _put_ring(text, length, rings, hole, words)
            hole = next_hole[hole]
        length = _put(text, length, words[CLOSING])
    return text, _put(text, length, words[END])


@compiled
def _put_ring(text: Text, length: int, rings: Rings, ring: int, words: Text) -> int:
    start = rings.ends[ring - 1] if ring > 0 else np.int64(0)
    length = _put(text, length, words[OPENING])
    for i in range(start, rings.ends[ring] + 1):
        corner = i if i < rings.ends[ring] else start
        if i > start:
            length = _put(text, length, words[COMMA])
        length = _put(text, length, words[POINT])
        length = _put_number(text, length, rings.xs[corner])
        length = _put(text, length, words[BETWEEN])
        length = _put_number(text, length, rings.ys[corner])
        length = _put(text, length, words[POINT_END])
    return _put(text, length, words[CLOSING])


@compiled
def _put(text: Text, length: int, word: Text) -> int:
    """Add a word, which may end with zeros."""
    for letter in word:
        if letter != 0:
            text[length] = letter
            length += 1
    return length


@compiled
def _put_number(text: Text, length: int, number: int) -> int:
    digits, rest = 1, number // 10
    while rest > 0:
        digits, rest = digits + 1, rest // 10
    for place in range(digits - 1, -1, -1):
        text[length + place] = 48 + number % 10
        number //= 10
    return length + digits
