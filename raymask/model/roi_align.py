"""RoIAlign on a CPU, for features whose channels lie side by side (He et al. 2017, section 3).

torchvision's operator gathers and scatters one value at a time, a channel after the other, and knows no bfloat16. Here
a sampled point is four rows of C neighbours, which compile to vector instructions: a thousand boxes of 256 channels
take some 20 ms on one core instead of 400.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

from raymask.masks import compiled


def roi_align_bf16(features: Tensor, boxes: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Features of R boxes, each averaged over a grid of size x size bins.

    features: B x C x H x W bfloat16 in memory format channels_last. boxes: R x 5 float32, each the index of an image
    in the batch, then x_min, y_min, x_max, y_max in pixels of the network's input; scale: how many pixels of the
    features one of those is. samples: points across a bin; the samples² points of a bin are interpolated between four
    pixels each. Returns R x C x size x size bfloat16 in channels_last; R = 0 gives that, empty. The values are those of
    `torchvision.ops.roi_align(..., aligned=False)` in float32, rounded once.
    """
    rows = features.permute(0, 2, 3, 1)
    pooled = torch.empty((len(boxes), size, size, features.shape[1]), dtype=torch.bfloat16)
    # NumPy has no bfloat16: both sides are handed over as bits.
    _roi_align(
        rows.view(torch.uint16).numpy(), boxes.numpy(), np.float32(scale), samples, pooled.view(torch.uint16).numpy()
    )
    return pooled.permute(0, 3, 1, 2)


class RoIAlign(torch.autograd.Function):
    """`torchvision.ops.roi_align(..., aligned=False)` of float32 features, with a faster way back on a CPU."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, size: int, scale: float, samples: int) -> Tensor:
        ctx.save_for_backward(boxes)
        ctx.of = (features.shape, scale, samples)
        pooled: Tensor = roi_align(features, boxes, size, scale, samples)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        return roi_align_gradient(gradients[0], boxes, *ctx.of), None, None, None, None


def roi_align_gradient(gradient: Tensor, boxes: Tensor, shape: torch.Size, scale: float, samples: int) -> Tensor:
    """The gradient of the features, from that of what RoIAlign made of them.

    gradient: R x C x size x size float32. boxes, scale, samples: as of `roi_align_bf16`. shape: of the features,
    B x C x H x W, as is what is returned, float32 in memory format channels_last; R = 0 gives zeros.
    """
    batch, channels, height, width = shape
    features = torch.zeros((batch, height, width, channels))
    pooled = gradient.permute(0, 2, 3, 1).contiguous()
    _roi_align_gradient(pooled.numpy(), boxes.numpy(), np.float32(scale), samples, features.numpy())
    return features.permute(0, 3, 1, 2)


@compiled
def _roi_align(
    features: NDArray[np.uint16],
    boxes: NDArray[np.float32],
    scale: np.float32,
    samples: int,
    pooled: NDArray[np.uint16],
) -> None:
    """features: B x H x W x C, pooled: R x size x size x C."""
    _, height, width, channels = features.shape
    flat = features.reshape(-1)
    size = pooled.shape[1]
    points = size * samples
    sums = np.empty(channels, np.float32)
    starts, weights = np.empty(4 * samples * samples, np.uint64), np.empty(4 * samples * samples, np.float32)
    for r in range(pooled.shape[0]):
        first_pixel = int(boxes[r, 0]) * height * width
        before, after, weight_after, inside = _sample(boxes[r], scale, points, width, height)
        for i in range(size):
            for j in range(size):
                k = 0
                for y in range(i * samples, (i + 1) * samples):
                    for x in range(j * samples, (j + 1) * samples):
                        share = inside[1, y] * inside[0, x] / np.float32(samples * samples)
                        for pixel_y, weight_y in (
                            (before[1, y], np.float32(1) - weight_after[1, y]),
                            (after[1, y], weight_after[1, y]),
                        ):
                            row = first_pixel + pixel_y * width
                            starts[k] = (row + before[0, x]) * channels
                            starts[k + 1] = (row + after[0, x]) * channels
                            weights[k] = share * weight_y * (np.float32(1) - weight_after[0, x])
                            weights[k + 1] = share * weight_y * weight_after[0, x]
                            k += 2
                _add_rows(flat, starts, weights, sums, pooled[r, i, j])


@compiled
def _roi_align_gradient(
    pooled: NDArray[np.float32],
    boxes: NDArray[np.float32],
    scale: np.float32,
    samples: int,
    features: NDArray[np.float32],
) -> None:
    """features: B x H x W x C, to which is added; pooled: R x size x size x C."""
    _, height, width, channels = features.shape
    flat = features.reshape(-1)
    size = pooled.shape[1]
    points = size * samples
    for r in range(pooled.shape[0]):
        first_pixel = int(boxes[r, 0]) * height * width
        before, after, weight_after, inside = _sample(boxes[r], scale, points, width, height)
        for y in range(points):
            for x in range(points):
                share = inside[1, y] * inside[0, x] / np.float32(samples * samples)
                of_bin = pooled[r, y // samples, x // samples]
                for pixel_y, weight_y in (
                    (before[1, y], np.float32(1) - weight_after[1, y]),
                    (after[1, y], weight_after[1, y]),
                ):
                    row = first_pixel + pixel_y * width
                    one, other = (row + before[0, x]) * channels, (row + after[0, x]) * channels
                    _add_row(
                        flat[one : one + channels], of_bin, share * weight_y * (np.float32(1) - weight_after[0, x])
                    )
                    _add_row(flat[other : other + channels], of_bin, share * weight_y * weight_after[0, x])


@compiled
def _sample(box: NDArray[np.float32], scale: np.float32, points: int, width: int, height: int) -> tuple[Any, ...]:
    """Of the points across (0) and down (1) a box: the pixels before and after, how much the one after weighs, and
    whether the point is inside.
    """
    before, after = np.empty((2, points), np.int64), np.empty((2, points), np.int64)
    weight_after, inside = np.empty((2, points), np.float32), np.empty((2, points), np.float32)
    for axis in range(2):
        start, length = box[1 + axis] * scale, width if axis == 0 else height
        step = max(box[3 + axis] * scale - start, np.float32(1)) / np.float32(points)
        for p in range(points):
            at = start + (np.float32(p) + np.float32(0.5)) * step
            inside[axis, p] = -1 <= at <= length  # a pixel beyond the edge still counts
            at = min(max(at, np.float32(0)), np.float32(length - 1))
            before[axis, p] = int(at)
            after[axis, p] = min(int(at) + 1, length - 1)
            weight_after[axis, p] = at - np.float32(int(at))
    return before, after, weight_after, inside


@compiled
def _add_row(total: NDArray[np.float32], values: NDArray[np.float32], weight: np.float32) -> None:
    for k in range(len(total)):
        total[k] += weight * values[k]


@compiled
def _add_rows(
    flat: NDArray[np.uint16],
    starts: NDArray[np.uint64],
    weights: NDArray[np.float32],
    sums: NDArray[np.float32],
    total: NDArray[np.uint16],
) -> None:
    """total: the weighted sum of the rows that begin at `starts`, four at a time so that `sums` is touched less."""
    sums[:] = 0
    channels = len(sums)
    for q in range(0, len(starts), 4):
        a, b = flat[starts[q] : starts[q] + channels], flat[starts[q + 1] : starts[q + 1] + channels]
        c, d = flat[starts[q + 2] : starts[q + 2] + channels], flat[starts[q + 3] : starts[q + 3] + channels]
        for k in range(channels):
            sums[k] += (
                weights[q] * _from_bits(a[k])
                + weights[q + 1] * _from_bits(b[k])
                + weights[q + 2] * _from_bits(c[k])
                + weights[q + 3] * _from_bits(d[k])
            )
    for k in range(channels):
        bits = np.float32(sums[k]).view(np.uint32)  # rounded to the nearest bfloat16, ties to even
        total[k] = np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled
def _from_bits(bits: np.uint16) -> np.float32:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
