"""The outlines of masks: exact, along the edges between pixels, traced in one sweep over the toggles.

A run becomes pieces: parts of one column, or of several that it fills. Between the pieces of two columns lie vertical
edges, where one of them is inside and the other is not. At their ends, the corners, horizontal edges begin and end:
the top and the bottom of a piece go on along pieces of the same top or bottom until the next corner.

    . # #        the line between columns 0 and 1 has a corner at the top, where the top of column 1 begins,
    # # .        one below it, where the top of column 0 ends, and none at the bottom, which goes on
    # # .

Where four pixels meet of which only two that touch by their corners are inside, an outline may come by twice. It is cut
in two there, so that no ring touches itself: polygons are valid as OGC's Simple Features (ISO 19125) have it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raymask.masks.compiling import compiled

Ints = NDArray[np.int64]
NONE = -1
ZERO: Any = np.int64(0)  # for what calls count on with, as a literal would be compiled once more


class Rings(NamedTuple):
    """The closed outlines of a mask, R rings of C corners in all; the first corner of a ring is not repeated.

    xs, ys: C int64. ends: R int64, where each ring ends among them. holes: R bool, whether it is one.
    parts: R int64, a number that it shares with the rings of the same polygon and with no others.
    The pixels are on the same side of all rings: x0 * y1 - x1 * y0, summed up, is above 0 but for holes.
    """

    xs: Ints
    ys: Ints
    ends: Ints
    holes: NDArray[np.bool_]
    parts: Ints


class _Edges(NamedTuple):
    """E vertical edges. The pixels are on one side of them: edge e leads from corner 2 * e to corner 2 * e + 1.

    xs, ys: of the corners. next: the corner to which the horizontal edge at a corner leads. twins: the other corner at
    the same point, or NONE. pieces: the piece that each edge bounds.
    """

    xs: Ints
    ys: Ints
    next: Ints
    twins: Ints
    pieces: Ints


@compiled
def trace(toggles: Ints, used: int, height: int) -> Rings:
    """The rings of a mask of that height."""
    pieces = _pieces(toggles, used, height)
    parents = np.arange(len(pieces))
    edges, count = _sweep(pieces, parents)
    return _walk(edges, count, parents)


@compiled
def _pieces(toggles: Ints, used: int, height: int) -> Ints:
    """P x 4: first and last column, top and bottom; the bottom is the row behind the last. In column-major order."""
    pieces, count = np.empty((3 * (used // 2), 4), np.int64), 0
    for i in range(0, used, 2):
        first, last = toggles[i] // height, (toggles[i + 1] - 1) // height
        top, bottom = toggles[i] - first * height, toggles[i + 1] - last * height
        if top > 0 and first < last:
            count = _add_piece(pieces, count, first, first, top, height)
            first, top = first + 1, np.int64(0)
        if bottom < height and first < last:
            count = _add_piece(pieces, count, first, last - 1, top, height)
            first, top = last, np.int64(0)
        count = _add_piece(pieces, count, first, last, top, bottom)
    return pieces[:count]


@compiled
def _add_piece(pieces: Ints, count: int, first: int, last: int, top: int, bottom: int) -> int:
    pieces[count, 0], pieces[count, 1], pieces[count, 2], pieces[count, 3] = first, last, top, bottom
    return count + 1


@compiled
def _sweep(pieces: Ints, parents: Ints) -> tuple[_Edges, int]:
    """All edges, and how many they are. Pieces that touch by more than a corner get one root among `parents`."""
    room = 4 * len(pieces)
    xs, ys = np.empty(room, np.int64), np.empty(room, np.int64)
    edges = _Edges(xs, ys, np.empty(room, np.int64), np.full(room, NONE), np.empty(room // 2, np.int64))
    pending = np.empty(room // 2, np.int64)  # corners at which the tops (2 * p) and bottoms of pieces begin
    count, left, right = ZERO, ZERO, ZERO
    while left < len(pieces):
        x = pieces[left, 1] + 1
        if right < len(pieces):
            x = min(x, pieces[right, 0])
        left_stop, right_stop = left, right
        while left_stop < len(pieces) and pieces[left_stop, 1] + 1 == x:
            left_stop += 1
        while right_stop < len(pieces) and pieces[right_stop, 0] == x:
            right_stop += 1
        count = _cross(x, pieces, left, left_stop, right, right_stop, edges, count, pending, parents)
        left, right = left_stop, right_stop
    return edges, count


@compiled
def _cross(
    x: int,
    pieces: Ints,
    left: int,
    left_stop: int,
    right: int,
    right_stop: int,
    edges: _Edges,
    count: int,
    pending: Ints,
    parents: Ints,
) -> int:
    """Add the edges of one line, between the pieces that end at it and those that begin; how many there are now."""
    in_left, in_right = 0, 0
    while left < left_stop or right < right_stop:
        left_y = pieces[left, 2 + in_left] if left < left_stop else np.int64(2**62)
        right_y = pieces[right, 2 + in_right] if right < right_stop else np.int64(2**62)
        y = min(left_y, right_y)
        above = in_left - in_right  # 1: an edge with pixels on its left, -1: on its right
        left_end, right_end = 2 * left + in_left, 2 * right + in_right
        in_left, in_right = in_left ^ (left_y == y), in_right ^ (right_y == y)
        below = in_left - in_right
        if above == 0 and below == 0:
            pending[right_end] = pending[left_end]
        else:
            upper, lower = NONE, NONE
            if above != 0:
                upper = 2 * count - 1 if above > 0 else 2 * count - 2
                edges.xs[upper], edges.ys[upper] = x, y
            if below != 0:
                edges.pieces[count] = left if below > 0 else right
                lower = 2 * count if below > 0 else 2 * count + 1
                edges.xs[lower], edges.ys[lower] = x, y
                count += 1
            if upper != NONE and lower != NONE:
                edges.twins[upper], edges.twins[lower] = lower, upper
            else:
                upper = lower = max(upper, lower)
            # Of two edges at a point each belongs to the horizontal one of its own pixel.
            if left_y == y:
                corner = upper if above > 0 else lower
                edges.next[corner], edges.next[pending[left_end]] = pending[left_end], corner
            if right_y == y:
                pending[right_end] = lower if above > 0 else upper
        if in_left == 1 and in_right == 1:
            _unite(parents, left, right)
        left += left_y == y and in_left == 0
        right += right_y == y and in_right == 0
    return count


@compiled
def _root(parents: Ints, piece: int) -> int:
    while parents[piece] != piece:
        parents[piece] = parents[parents[piece]]
        piece = parents[piece]
    return piece


@compiled
def _unite(parents: Ints, a: int, b: int) -> None:
    a, b = _root(parents, a), _root(parents, b)
    parents[a] = b


@compiled
def _walk(edges: _Edges, count: int, parents: Ints) -> Rings:
    """Follow the edges round, and cut what comes by a point twice."""
    corners = 2 * count
    rings = Rings(
        np.empty(corners, np.int64),
        np.empty(corners, np.int64),
        np.empty(count, np.int64),
        np.empty(count, np.bool_),
        np.empty(count, np.int64),
    )
    path, places, done = np.empty(corners, np.int64), np.full(corners, NONE), np.zeros(count, np.bool_)
    used = ZERO
    for first in range(count):
        length, edge = 0, first
        while not done[edge]:
            done[edge] = True
            for corner in range(2 * edge, 2 * edge + 2):
                twin = edges.twins[corner]
                if twin != NONE and places[twin] != NONE:
                    start = places[twin]
                    used = _add_ring(rings, used, edges, path[start:length], places, parents)
                    length = start
                path[length], places[corner] = corner, length
                length += 1
            edge = edges.next[2 * edge + 1] // 2
        if length > 0:
            used = _add_ring(rings, used, edges, path[:length], places, parents)
    return Rings(rings.xs, rings.ys, rings.ends[:used], rings.holes[:used], rings.parts[:used])


@compiled
def _add_ring(rings: Rings, used: int, edges: _Edges, path: Ints, places: Ints, parents: Ints) -> int:
    """Add a ring, given by its corners, which are on no path any more; how many there are now."""
    end = rings.ends[used - 1] if used > 0 else np.int64(0)
    twice_area = np.int64(0)
    for i in range(len(path)):
        corner, before = path[i], path[i - 1]
        rings.xs[end + i], rings.ys[end + i] = edges.xs[corner], edges.ys[corner]
        twice_area += edges.xs[before] * edges.ys[corner] - edges.xs[corner] * edges.ys[before]
        places[corner] = NONE
    rings.ends[used] = end + len(path)
    rings.holes[used] = twice_area < 0
    rings.parts[used] = _root(parents, edges.pieces[path[0] // 2])
    return used + 1
