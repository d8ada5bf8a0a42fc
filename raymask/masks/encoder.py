"""Soft masks to COCO run-length encoding (RLE), without ever drawing them into an image.

A detector gives each object a box and a small soft mask, M x M probabilities (He et al. 2017, section 3: M = 28). The
usual way to the object's pixels is to stretch that mask over its box in a float32 frame of the image's size, compare
with a threshold and count runs: 33 MB a mask in a 4K image. Here each column of the box is interpolated by itself, and
only where it crosses the threshold is anything written down:

    soft mask, box -> toggles (pixels that differ from the one before, column by column) -> runs -> text
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba.extending import intrinsic
from numpy.typing import NDArray

from raymask.masks.compiling import compiled
from raymask.masks.rle import checked_size
from raymask.masks.runs import append_runs, toggle, with_room

MAX_COORDINATE = 2.0**60  # beyond any image; sums and differences still fit int64

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


@dataclass(frozen=True, eq=False)
class EncodedMasks:
    """N masks of one image.

    counts: N texts, each the `counts` of a compressed COCO RLE whose `size` is the image's [height, width].
    areas: N int64, pixels inside each mask.
    """

    counts: list[str]
    areas: NDArray[np.int64]


def encode_soft_masks(
    soft_masks: NDArray[np.float32],
    boxes_xyxy: NDArray[np.float32],
    size_hw: tuple[int, int],
    threshold: float = 0.5,
) -> EncodedMasks:
    """The pixels of an image at which each soft mask, stretched over its box, is above the threshold.

    soft_masks: N x M x M float32 in [0, 1], rows from the top of the box. NaN is not above any threshold.
    boxes_xyxy: N x 4 float32, (x_min, y_min, x_max, y_max) in pixels of the image; may reach out of it.
    size_hw: (height, width) of the image in pixels. threshold: taken as float32.
    N = 0 gives no masks. A box that lies outside the image, is narrower or lower than nothing, or has a coordinate
    that is not finite gives a mask without pixels.

    Equal, byte for byte, to torchvision's `paste_masks_in_image(soft_masks[:, None], boxes, size_hw) > threshold` in
    float32 on an x86 CPU with fused multiply-add, encoded by pycocotools. Where torch rounds otherwise, a pixel within
    a few roundings of the threshold may differ. Takes memory for the result, not for the image.

    Raises ValueError if the shapes do not fit together or the image has no pixels or more than 2**32 - 1.
    """
    height, width = checked_size(size_hw)
    count, side = len(soft_masks), soft_masks.shape[-1]
    if soft_masks.shape != (count, side, side) or side == 0 or boxes_xyxy.shape != (count, 4):
        shapes = f"{soft_masks.shape} and {boxes_xyxy.shape}"
        raise ValueError(f"soft_masks and boxes_xyxy have shapes {shapes}; wanted (N, M, M) and (N, 4)")
    # A pixel of zeros all around, as torchvision has it, and one more at the end, so that each source pixel has a next.
    # Transposed, as one column at a time is read.
    sources = np.zeros((count, side + 3, side + 3), np.float32)
    sources[:, 1 : side + 1, 1 : side + 1] = soft_masks.transpose(0, 2, 1)
    boxes = _grown(boxes_xyxy, (side + 2) / side)
    text, bounds, areas = _encode_all(sources, boxes, height, width, np.float32(threshold))
    letters = text.tobytes().decode("ascii")
    return EncodedMasks([letters[start:end] for start, end in pairwise(bounds.tolist())], areas)


def _grown(boxes_xyxy: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    """Boxes scaled about their centres and cut to whole pixels, the last ones included: N x 4 int64.

    In float32 and in this order, as torchvision's `expand_boxes`. A box that is not finite becomes one of no pixels.
    """
    boxes = boxes_xyxy.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        centres = (boxes[:, 2:] + boxes[:, :2]) * HALF
        halves = (boxes[:, 2:] - boxes[:, :2]) * HALF * np.float32(scale)
        grown = np.hstack([centres - halves, centres + halves])
    grown[~np.isfinite(grown).all(axis=1)] = 0, 0, -1, -1
    return grown.clip(-MAX_COORDINATE, MAX_COORDINATE).astype(np.int64)


# Compiled from here on.


def _emit_fma(context, a, b, c):  # type: ignore[no-untyped-def]  # numba's protocol: types in, signature and code out
    return a(a, b, c), lambda context, builder, signature, args: builder.fma(*args)


# fma(a, b, c) = a * b + c, rounded once. One instruction; on a CPU that has none, a call that gives the same.
_fma: Callable[[np.float32, np.float32, np.float32], np.float32] = intrinsic(_emit_fma)  # type: ignore[assignment]


class _Axis(NamedTuple):
    """How source pixels are stretched along one axis: output pixel i lies in cell `cells[i]`, between the source pixel
    of that number and the next, whose weights are `near[i]` and `far[i]`. Cell c ends before output pixel `stops[c]`.
    """

    cells: NDArray[np.int64]
    near: NDArray[np.float32]
    far: NDArray[np.float32]
    stops: NDArray[np.int64]


class _Column(NamedTuple):
    """One output column: its weights, the source columns on its two sides, their values interpolated to it, and on
    which side of the threshold each of these is.
    """

    near_weight: np.float32
    far_weight: np.float32
    near: NDArray[np.float32]
    far: NDArray[np.float32]
    values: NDArray[np.float32]
    sides: NDArray[np.int8]


INSIDE, UNSURE = 1, 0  # sides of the threshold; outside is -1, NaN is unsure


@compiled
def _encode_all(
    sources: NDArray[np.float32], boxes: NDArray[np.int64], height: int, width: int, threshold: np.float32
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The text of all masks; where in it each begins, and the last ends; their areas."""
    bounds = np.zeros(len(sources) + 1, np.int64)
    areas = np.empty(len(sources), np.int64)
    text, length = np.empty(4096, np.uint8), 0
    toggles = np.empty(4096, np.int64)
    for i in range(len(sources)):
        toggles, used = _find_toggles(sources[i], boxes[i], height, width, threshold, toggles)
        text, length, areas[i] = append_runs(text, length, toggles[:used], height * width)
        bounds[i + 1] = length
    return text[:length], bounds, areas


@compiled
def _find_toggles(
    source: NDArray[np.float32],
    box: NDArray[np.int64],
    height: int,
    width: int,
    threshold: np.float32,
    toggles: NDArray[np.int64],
) -> tuple[NDArray[np.int64], int]:
    """Numbers of the pixels at which one mask changes sides, in `toggles` or a larger copy, and how many they are."""
    x_min, y_min, x_max, y_max = box
    box_width, box_height = max(x_max - x_min + 1, 1), max(y_max - y_min + 1, 1)
    x_start, x_stop = max(x_min, 0), min(x_max + 1, width)
    y_start, y_stop = max(y_min, 0), min(y_max + 1, height)
    used = 0
    if x_start >= x_stop or y_start >= y_stop:
        return toggles, used
    cells, small = len(source) - 1, box_width + box_height <= SMALL
    xs = _stretch(cells, box_width, x_start - x_min, x_stop - x_min, small)
    ys = _stretch(cells, box_height, y_start - y_min, y_stop - y_min, small)
    margin = max(np.abs(source).max(), ONE) * MARGIN
    values, sides = np.empty(len(source), np.float32), np.empty(len(source), np.int8)
    for i in range(x_stop - x_start):
        column = _Column(xs.near[i], xs.far[i], source[xs.cells[i]], source[xs.cells[i] + 1], values, sides)
        for j in range(len(values)):
            values[j] = _mix(column.near[j], column.near_weight, column.far[j], column.far_weight)
        top = (x_start + i) * height + y_start
        toggles = with_room(toggles, used + y_stop - y_start + 1)
        used = _walk_down(column, ys, small, threshold, margin, top, toggles, used)
    return toggles, used


@compiled
def _walk_down(
    column: _Column,
    ys: _Axis,
    small: bool,
    threshold: np.float32,
    margin: np.float32,
    top: int,
    toggles: NDArray[np.int64],
    used: int,
) -> int:
    """Add the toggles of one column of a box, the first pixel of which is `top`; how many there are now."""
    # A cell is linear from one end to the other, so where both are well on one side, all its pixels are.
    values, sides = column.values, column.sides
    for j in range(len(values)):
        sides[j] = np.int8(values[j] > threshold + margin) - np.int8(values[j] < threshold - margin)
    inside, y = False, 0
    for cell in range(ys.cells[0], ys.cells[-1] + 1):
        start, stop = y, ys.stops[cell]
        side = sides[cell]
        if side != UNSURE and side == sides[cell + 1]:
            if inside != (side == INSIDE) and start < stop:
                used = toggle(toggles, used, top + start)
                inside = not inside
            y = stop
            continue
        above, below = values[cell], values[cell + 1]
        for y in range(start, stop):
            if small:
                value = _mix_four(column, cell, ys.near[y], ys.far[y])
            else:
                value = _mix(above, ys.near[y], below, ys.far[y])
            if (value > threshold) != inside:
                used = toggle(toggles, used, top + y)
                inside = not inside
        y = stop
    if inside:
        used = toggle(toggles, used, top + y)
    return used


# Bilinear interpolation, `align_corners=False`, with the roundings of torch's CPU kernels, which decide the pixels
# closest to the threshold. For outputs of height + width <= 128 torch sums the four source pixels, each times the
# product of its two weights; in larger ones it mixes along the rows, then down the columns
# (`_use_vectorized_kernel_cond_2d` in aten/src/ATen/native/cpu/UpSampleKernel.cpp). Its compiler makes of
# a * b + c * d the product c * d and a fused multiply-add, and in the kernel for small outputs fuses the source
# position too. So it is in torch 2.15 with AVX2 and with AVX-512, for any number of threads.
SMALL = 128
# More than these roundings add up to, some ten of 2**-24 each, where no value is above 1.
MARGIN = np.float32(2.0**-20)


@compiled
def _stretch(count: int, size: int, start: int, stop: int, small: bool) -> _Axis:
    """Output pixels start to stop of an axis along which `count` source pixels are stretched to `size`."""
    scale = np.float32(count) / np.float32(size)
    cells = np.empty(stop - start, np.int64)
    near, far = np.empty(stop - start, np.float32), np.empty(stop - start, np.float32)
    for i in range(stop - start):
        centre = np.float32(start + i) + HALF
        position = max(_fma(scale, centre, -HALF) if small else scale * centre - HALF, ZERO)
        cells[i] = min(int(position), count - 1)
        far[i] = position - np.float32(cells[i])
        near[i] = ONE - far[i]
    return _Axis(cells, near, far, np.searchsorted(cells, np.arange(count), side="right"))


@compiled
def _mix(near: np.float32, near_weight: np.float32, far: np.float32, far_weight: np.float32) -> np.float32:
    return _fma(near, near_weight, far * far_weight)


@compiled
def _mix_four(column: _Column, cell: int, near_weight: np.float32, far_weight: np.float32) -> np.float32:
    left, right, left_weight, right_weight = column.near, column.far, column.near_weight, column.far_weight
    value = _mix(left[cell], left_weight * near_weight, right[cell], right_weight * near_weight)
    value = _fma(left[cell + 1], left_weight * far_weight, value)
    return _fma(right[cell + 1], right_weight * far_weight, value)
