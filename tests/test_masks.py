"""RLE against pycocotools, and encoded soft masks against torchvision's paste encoded by pycocotools: the same text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from raymask.masks import EncodedMasks, area, compiled, decode, encode, encode_soft_masks, validate_rle

Floats = NDArray[np.float32]

KINDS_OF_MASK = ("blobs", "noise", "two values", "near the threshold", "rows", "constant")
KINDS_OF_BOX = ("inside", "crossing", "anywhere", "one pixel", "inside out", "whole image", "whole numbers")


def pasted(soft_masks: Floats, boxes_xyxy: Floats, size_hw: tuple[int, int], threshold: float) -> EncodedMasks:
    """The oracle. For a box that lies outside the image torchvision raises, or gives no pixels."""
    counts, areas = [], []
    for soft_mask, box in zip(torch.from_numpy(soft_masks), torch.from_numpy(boxes_xyxy), strict=True):
        try:
            values = paste_masks_in_image(soft_mask[None, None], box[None], size_hw, padding=1)[0, 0]
            mask = (values > threshold).numpy()
        except RuntimeError:
            mask = np.zeros(size_hw, np.bool_)
        rle = coco.encode(np.asfortranarray(mask, np.uint8))
        counts.append(rle["counts"].decode())
        areas.append(int(coco.area(rle)))
    return EncodedMasks(counts, np.array(areas, np.int64))


def random_masks(rng: np.random.Generator, count: int, side: int, threshold: float) -> Floats:
    kind = rng.choice(KINDS_OF_MASK)
    at = np.float32(threshold)
    shape = (count, side, side)
    if kind == "blobs":
        grid = (np.arange(side) + 0.5) / side
        logits = np.full(shape, -3.0)
        for _ in range(rng.integers(1, 5)):
            y, x = rng.uniform(0, 1, (2, count, 1, 1))
            spread, height = rng.uniform(0.05, 0.4, (count, 1, 1)), rng.uniform(-4, 9, (count, 1, 1))
            logits += height * np.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / (2 * spread**2))
        masks = 1 / (1 + np.exp(-logits))
    elif kind == "noise":
        masks = rng.random(shape)
    elif kind == "two values":
        masks = rng.choice([0, 1], shape)
    elif kind == "near the threshold":  # a few float32 steps off, where every rounding counts
        masks = at * (1 + rng.integers(-3, 4, shape) * np.float32(2**-23))
    elif kind == "rows":
        masks = np.broadcast_to(rng.choice([0, 0.25, threshold, 0.75, 1], (count, side, 1)), shape)
    else:
        values = np.array([0, 0.5, 1, at, np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(1))])
        masks = np.broadcast_to(rng.choice(values, (count, 1, 1)), shape)
    return np.ascontiguousarray(masks, np.float32)


def random_boxes(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> Floats:
    sides = np.array(size_hw[::-1], np.float64)
    kind = rng.choice(KINDS_OF_BOX, (count, 1))
    extents = sides * np.exp(rng.uniform(-4, 0, (count, 2)))
    starts = rng.uniform(0, 1, (count, 2)) * (sides - extents)
    boxes = np.hstack([starts, starts + extents])
    near = np.hstack([starts, starts]) + rng.uniform(-1, 1, (count, 4))
    sizes = np.tile(sides, 2)
    boxes = np.where(kind == "crossing", boxes + rng.uniform(-0.6, 0.6, (count, 4)) * sizes, boxes)
    boxes = np.where(kind == "anywhere", rng.uniform(-1.5, 2.5, (count, 4)) * sizes, boxes)
    boxes = np.where(kind == "one pixel", near, boxes)
    boxes = np.where(kind == "inside out", boxes[:, [2, 3, 0, 1]] + rng.uniform(-2, 2, (count, 4)), boxes)
    boxes = np.where(kind == "whole image", np.array([0, 0, *sides]) + rng.integers(-1, 2, (count, 4)), boxes)
    boxes = np.where(kind == "whole numbers", np.round(2 * boxes) / 2, boxes)
    return boxes.astype(np.float32)


def assert_equal(got: EncodedMasks, want: EncodedMasks) -> None:
    different = [i for i, (a, b) in enumerate(zip(got.counts, want.counts, strict=True)) if a != b]
    assert different == []
    np.testing.assert_array_equal(got.areas, want.areas)
    assert got.areas.dtype == np.int64


@pytest.mark.parametrize("seed", range(20))
def test_soft_masks_are_those_of_torchvision(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(200):
        size_hw = (int(np.exp(rng.uniform(0, 5.6))), int(np.exp(rng.uniform(0, 5.6))))
        side = int(rng.choice([28, 28, 28, 14, 56, 1, 7]))
        threshold = float(rng.choice([0.5, 0.5, 0.3, 0.9, 0.1, 0.0]))
        masks, boxes = random_masks(rng, 26, side, threshold), random_boxes(rng, 26, size_hw)
        assert_equal(encode_soft_masks(masks, boxes, size_hw, threshold), pasted(masks, boxes, size_hw, threshold))


@pytest.mark.parametrize("size_hw", [(1080, 1920), (2160, 3840)])
def test_soft_masks_are_those_of_torchvision_in_large_images(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(size_hw[0])
    for _ in range(8):
        masks, boxes = random_masks(rng, 6, 28, 0.5), random_boxes(rng, 6, size_hw)
        assert_equal(encode_soft_masks(masks, boxes, size_hw), pasted(masks, boxes, size_hw, 0.5))


def test_soft_masks_are_those_of_torchvision_in_boxes_far_larger_than_the_image() -> None:
    rng = np.random.default_rng(0)
    masks = np.concatenate([random_masks(rng, 5, 28, 0.5) for _ in range(40)])
    long, short = np.exp(rng.uniform(7, 14, (200, 1))), rng.uniform(0.5, 3, (200, 1))
    starts = -rng.uniform(0, 1, (200, 2)) * np.hstack([long, short])
    boxes = np.hstack([starts, starts + np.hstack([long, short])]).astype(np.float32)
    boxes[100:] = boxes[100:, [1, 0, 3, 2]]
    assert_equal(encode_soft_masks(masks, boxes, (30, 40)), pasted(masks, boxes, (30, 40), 0.5))


@pytest.mark.parametrize("total", [127, 128, 129, 130])
def test_both_of_torchs_roundings_are_met_where_they_change(total: int) -> None:
    """Torch interpolates in another order once height + width of the grown box exceed 128."""
    rng = np.random.default_rng(total)
    heights = rng.integers(1, total, 400)
    masks = np.concatenate([random_masks(rng, 20, 28, 0.5) for _ in range(20)])
    # 28 / 30 of the wanted size, about a centre at which growing it gives whole numbers and a bit.
    halves = (np.stack([total - heights - 1, heights - 1], axis=1) + 0.1) / 2 * 28 / 30
    boxes = np.hstack([64.3 - halves, 64.3 + halves]).astype(np.float32)
    assert_equal(encode_soft_masks(masks, boxes, (128, 128)), pasted(masks, boxes, (128, 128), 0.5))


def test_no_soft_masks_give_no_masks() -> None:
    encoded = encode_soft_masks(np.empty((0, 28, 28), np.float32), np.empty((0, 4), np.float32), (3, 5))
    assert encoded.counts == []
    assert encoded.areas.shape == (0,)


NOT_THERE = [
    (np.nan, 0, 9, 9),
    (0, 0, np.inf, 9),
    (-np.inf, 0, 9, 9),
    (-np.inf, -np.inf, np.inf, np.inf),
    (-3e38, 0, 3e38, 9),
    (30, 2, 40, 9),
    (2, -40, 9, -30),
    (1e9, 1e9, 2e9, 2e9),
    (9, 9, 2, 2),
    (1e30, 0, -1e30, 9),
]


@pytest.mark.parametrize("box", NOT_THERE)
def test_boxes_that_are_not_in_the_image_give_no_pixels(box: tuple[float, ...]) -> None:
    encoded = encode_soft_masks(np.ones((1, 28, 28), np.float32), np.array([box], np.float32), (10, 20))
    assert encoded.counts == [encode(np.zeros((10, 20), np.bool_))["counts"]]
    assert encoded.areas.tolist() == [0]


@pytest.mark.parametrize("reach", [1e4, 1e9, 1e30])
def test_huge_boxes_cost_no_more_than_the_image(reach: float) -> None:
    """The image is a speck in the middle of the box, where one quarter of the mask alone has a value of about 1/4."""
    masks = np.zeros((2, 28, 28), np.float32)
    masks[0, 14:, 14:] = 1
    masks[1, :14, :14] = 1
    boxes = np.array([[-reach, -reach, reach, reach]] * 2, np.float32)
    encoded = encode_soft_masks(masks, boxes, (50, 60), threshold=0.1)
    assert encoded.areas.tolist() == [3000, 3000]


def test_values_that_are_not_numbers_are_outside() -> None:
    masks = np.ones((3, 28, 28), np.float32)
    masks[0] = np.nan
    masks[1, 14, 14] = np.nan
    masks[2] = np.inf
    boxes = np.array([[10, 10, 290, 290]] * 3, np.float32)
    encoded = encode_soft_masks(masks, boxes, (300, 300))
    assert encoded.areas[0] == 0
    hole = ~decode({"size": [300, 300], "counts": encoded.counts[1]})[12:288, 12:288]
    assert 300 < hole.sum() < 500
    assert_equal(encoded, pasted(masks, boxes, (300, 300), 0.5))


def test_runs_go_on_from_one_column_to_the_next() -> None:
    box = np.array([[-100, -100, 140, 130]], np.float32)
    encoded = encode_soft_masks(np.ones((1, 28, 28), np.float32), box, (30, 40))
    assert encoded.counts == [encode(np.ones((30, 40), np.bool_))["counts"]]
    assert encoded.areas.tolist() == [1200]


def test_other_layouts_and_types_give_the_same() -> None:
    rng = np.random.default_rng(0)
    masks, boxes = random_masks(rng, 4, 28, 0.5), random_boxes(rng, 4, (60, 50))
    want = encode_soft_masks(masks, boxes, (60, 50))
    frozen = masks.copy()
    frozen.flags.writeable = False
    others: list[Any] = [frozen, np.asfortranarray(masks), masks.astype(np.float64)]
    for same in others:
        assert_equal(encode_soft_masks(same, boxes, (60, 50)), want)


@pytest.mark.parametrize(
    ("masks_shape", "boxes_shape", "size_hw"),
    [
        ((2, 28, 28), (3, 4), (9, 9)),
        ((2, 28, 14), (2, 4), (9, 9)),
        ((2, 1, 28, 28), (2, 4), (9, 9)),
        ((2, 0, 0), (2, 4), (9, 9)),
        ((2, 28, 28), (2, 5), (9, 9)),
        ((2, 28, 28), (2, 4), (0, 9)),
        ((2, 28, 28), (2, 4), (2**16, 2**16)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    masks_shape: tuple[int, ...], boxes_shape: tuple[int, ...], size_hw: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="wanted"):
        encode_soft_masks(np.zeros(masks_shape, np.float32), np.zeros(boxes_shape, np.float32), size_hw)


MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20))


@settings(max_examples=500)
@given(MASKS)
@example(np.ones((1, 1), np.bool_))
@example(np.zeros((1, 1), np.bool_))
@example(np.ones((7, 5), np.bool_))
@example(np.zeros((5, 7), np.bool_))
@example(np.eye(300, 200, dtype=np.bool_))
@example(np.tile(np.array([True, False]), (99, 50)))
def test_encode_and_decode_are_inverse_and_those_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    rle = encode(mask)
    want = coco.encode(np.asfortranarray(mask, np.uint8))
    assert rle == {"size": want["size"], "counts": want["counts"].decode()}
    np.testing.assert_array_equal(decode(rle), mask)
    np.testing.assert_array_equal(coco.decode(rle), mask)
    assert area(rle) == coco.area(rle) == mask.sum()


@pytest.mark.parametrize("mask", [np.zeros((2, 3), np.uint8), np.zeros(3, np.bool_), np.zeros((0, 3), np.bool_)])
def test_encode_refuses_what_is_not_a_mask(mask: Any) -> None:
    with pytest.raises(ValueError, match="wanted"):
        encode(mask)


def test_rle_is_read_as_pandas_and_pycocotools_hand_it_over() -> None:
    mask = np.eye(6, 4, dtype=np.bool_)
    rle = encode(mask)
    from_pandas = {"size": np.array(rle["size"], np.int32), "counts": rle["counts"]}
    from_pycocotools = {"size": (6, 4), "counts": rle["counts"].encode()}
    for same in (from_pandas, from_pycocotools):
        np.testing.assert_array_equal(decode(same), mask)
        assert area(same) == 4
        validate_rle(same["size"], same["counts"])


@settings(max_examples=2000)
@given(MASKS, st.data())
def test_what_passes_validation_is_safe_in_pycocotools(mask: NDArray[np.bool_], data: st.DataObject) -> None:
    """Whatever the change to a good RLE, it is refused, or pycocotools survives it and sees the same pixels."""
    rle = encode(mask)
    size = [side + data.draw(st.sampled_from([0, 0, 0, 1, -1, -side])) for side in rle["size"]]
    text = bytearray(rle["counts"].encode())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2) | st.sampled_from([b"0", b"o"]))
    try:
        validate_rle(size, bytes(text))
    except ValueError:
        return
    changed = {"size": size, "counts": bytes(text)}
    np.testing.assert_array_equal(decode(changed), coco.decode(changed))
    assert area(changed) == coco.area(changed)
    coco.toBbox(changed)


@pytest.mark.parametrize(
    ("size", "counts", "problem"),
    [
        ([0, 5], "3333", "sides of at least 1"),
        ([-4, -5], "d0", "sides of at least 1"),
        ([2**16, 2**16], "0", "at most 4294967295 pixels"),
        ([2.0, 5], ":", "two integers"),
        ([10], ":", "two integers"),
        (None, ":", "two integers"),
        ("ab", ":", "two integers"),
        ([2, 5], [10], "type list"),
        ([2, 5], None, "type NoneType"),
        ([2, 5], "", "fewer pixels than the mask"),
        ([2, 5], "9", "fewer pixels than the mask"),
        ([2, 5], ";", "more pixels than the mask"),
        ([2, 5], ":1", "more pixels than the mask"),
        ([2, 5], "9 1", "an illegal character after 1 of 3"),
        ([2, 5], "9p", "an illegal character"),
        ([2, 5], "9\0", "an illegal character"),
        ([2, 5], "9é", "an illegal character"),
        ([2, 5], "9\ud800", "an illegal character"),
        ([2, 5], "9o", "a number cut short after 2 of 2"),
        ([2, 5], "Z0", "a number longer than need be"),
        ([2, 5], "oooooooo0", "a number longer than need be"),
        ([2, 5], "PPPPPPPPPPPPPPP1", "a number longer than need be"),
        ([2, 5], "O", "a run below 0"),
        ([2, 5], "023M", "a run below 0"),
    ],
)
def test_validation_says_what_is_wrong(size: Any, counts: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        validate_rle(size, counts)
    with pytest.raises(ValueError, match=problem):
        decode({"size": size, "counts": counts})


def test_runs_of_an_image_as_large_as_can_be() -> None:
    """One run of 2**32 - 1 pixels, then differences as large as the text has to hold."""
    height, width = 65535, 65537
    nothing = encode_soft_masks(np.zeros((1, 28, 28), np.float32), np.zeros((1, 4), np.float32), (height, width))
    assert area({"size": [height, width], "counts": nothing.counts[0]}) == 0
    corners = np.array([[0, 0, 9, 9], [width - 9, height - 9, width, height]], np.float32)
    encoded = encode_soft_masks(np.ones((2, 28, 28), np.float32), corners, (height, width))
    assert encoded.areas.tolist() == [area({"size": [height, width], "counts": text}) for text in encoded.counts]


def test_code_is_compiled_even_where_it_cannot_be_kept() -> None:
    namespace: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", namespace)  # without a file, so there is no folder to keep it beside
    assert compiled(namespace["double"])(21) == 42
