"""The predictor against torchvision's own model, and its way with odd sizes, batches and memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import draw_picture
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torchvision.models import detection

from raymask.errors import ErrorKind, Failure
from raymask.model import ARCHITECTURES, Category, Detections, Model, ModelSpec, Predictor, Thresholds, build

Pixels = NDArray[np.uint8]


def resnet50_model(min_size: int, max_size: int) -> tuple[torch.nn.Module, Model]:
    """torchvision's model with random weights that find much, and raymask's with the same weights."""
    torch.manual_seed(0)
    options = {"min_size": min_size, "max_size": max_size, "box_score_thresh": 0.05, "box_detections_per_img": 20}
    theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, **options).eval()
    # Untrained masks are grey all over; sharper logits give them outlines.
    theirs.roi_heads.mask_predictor.mask_fcn_logits.weight.data.mul_(30)
    spec = ModelSpec(
        architecture="maskrcnn_resnet50_fpn",
        categories=tuple(Category(i, f"c{i}") for i in (1, 2, 3)),
        min_size=min_size,
        max_size=max_size,
        thresholds=Thresholds(max_detections=20),
    )
    return theirs, Model.of(spec, theirs.state_dict())


def torchvision_answer(network: torch.nn.Module, pixels: Pixels) -> tuple[Any, list[str]]:
    """What torchvision says of an image, its masks pasted, cut at 0.5 and encoded by pycocotools."""
    with torch.inference_mode():
        [answer] = network([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
    pasted = answer["masks"][:, 0] > 0.5
    rles = [coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in pasted]
    return answer, [rle["counts"].decode() for rle in rles]


def assert_same(found: Detections | Failure, answer: Any, counts: list[str]) -> None:
    assert isinstance(found, Detections)
    np.testing.assert_allclose(found.boxes_xyxy, answer["boxes"].numpy(), atol=1e-4)
    np.testing.assert_array_equal(found.labels, answer["labels"].numpy())
    np.testing.assert_allclose(found.scores, answer["scores"].numpy(), atol=1e-4)
    assert found.masks.counts == counts


def test_equals_torchvision_on_real_photos(shared_data: Callable[[str], Path]) -> None:
    photos = sorted((shared_data("coco_val2014_54") / "images").glob("*.jpg"))[::3]
    theirs, model = resnet50_model(min_size=256, max_size=426)
    ours = Predictor(model, precision="fp32", device="cpu")
    masks = 0
    for photo in photos:
        pixels = np.array(PIL.Image.open(photo).convert("RGB"))
        answer, counts = torchvision_answer(theirs, pixels)
        [found] = ours([pixels])
        assert_same(found, answer, counts)
        masks += len(counts)
    assert len(photos) == 18
    assert masks > 18 * 5


@pytest.fixture(scope="module")
def small_sizes() -> tuple[torch.nn.Module, Predictor]:
    """torchvision's model at 100 to 150 pixels, and the predictor of the same weights."""
    theirs, model = resnet50_model(min_size=100, max_size=150)
    return theirs, Predictor(model, precision="fp32", device="cpu")


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (33, 200), (200, 10), (1, 1), (2, 1), (7, 13)])
def test_equals_torchvision_at_odd_sizes(size: tuple[int, int], small_sizes: tuple[torch.nn.Module, Predictor]) -> None:
    theirs, ours = small_sizes
    pixels = np.array(draw_picture(1, *size))
    answer, counts = torchvision_answer(theirs, pixels)
    [found] = ours([pixels])
    assert_same(found, answer, counts)


def test_a_side_that_would_vanish_stays_a_pixel_wide(small_model: Model) -> None:
    pixels = np.zeros((4000, 1, 3), np.uint8)
    [found] = Predictor(small_model, device="cpu")([pixels])
    assert isinstance(found, Detections)
    assert found.size_hw == (4000, 1)


def test_batches_keep_order_and_agree_with_single_images(small_model: Model) -> None:
    images = [np.array(draw_picture(i, *size)) for i, size in enumerate([(48, 64), (64, 48), (48, 64), (50, 64)] * 3)]
    single = Predictor(small_model, precision="fp32", device="cpu", batch_size=1)(images)
    batched = Predictor(small_model, precision="fp32", device="cpu", batch_size=4)(images)
    for one, other, image in zip(single, batched, images, strict=True):
        assert isinstance(one, Detections)
        assert isinstance(other, Detections)
        assert one.size_hw == other.size_hw == image.shape[:2]
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_threads_may_share_a_predictor(small_model: Model) -> None:
    predictor = Predictor(small_model, device="cpu", threads=1)
    images = [np.array(draw_picture(i)) for i in range(8)]
    alone = predictor(images)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(predictor, [images] * 8):
            for one, other in zip(alone, together, strict=True):
                assert isinstance(one, Detections)
                assert isinstance(other, Detections)
                assert one.masks.counts == other.masks.counts


def test_no_images_give_no_answers(small_model: Model) -> None:
    assert Predictor(small_model, device="cpu")([]) == []


def test_an_image_without_objects_gives_empty_detections(small_model: Model) -> None:
    [found] = Predictor(small_model, device="cpu", min_score=1.0)([np.array(draw_picture(0))])
    assert isinstance(found, Detections)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.masks.counts == []
    assert found.masks.areas.shape == (0,)


def test_options_replace_the_thresholds_of_the_model(small_model: Model) -> None:
    pixels = np.array(draw_picture(0))
    [two] = Predictor(small_model, device="cpu", max_detections=2)([pixels])
    [wide] = Predictor(small_model, device="cpu", precision="fp32", mask_threshold=0.0)([pixels])
    [narrow] = Predictor(small_model, device="cpu", precision="fp32", mask_threshold=0.6)([pixels])
    assert isinstance(two, Detections)
    assert isinstance(wide, Detections)
    assert isinstance(narrow, Detections)
    assert len(two.scores) == 2
    assert wide.masks.areas.sum() > narrow.masks.areas.sum()


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("tried to allocate 20 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]


def allocate_too_much() -> None:
    torch.empty(2**50)


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY, None], ids=lambda e: type(e).__name__)
def test_out_of_memory_halves_the_batch_and_fails_only_the_image_that_does_not_fit(
    error: Exception | None, small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(small_model, device="cpu", batch_size=8)
    forward, sizes = Predictor._forward, []

    def scarce(self: Predictor, images: list[Pixels]) -> list[Detections]:
        sizes.append(len(images))
        if len(images) > 2 or any(image.max() == 255 for image in images):
            if error is None:
                allocate_too_much()
            else:
                raise error
        return forward(self, images)

    images = [np.full((48, 64, 3), value, np.uint8) for value in (10, 20, 255, 30, 40)]
    expected = predictor(images)
    monkeypatch.setattr(Predictor, "_forward", scarce)
    found = predictor(images)
    assert isinstance(found[2], Failure)
    assert found[2].kind is ErrorKind.OUT_OF_MEMORY
    assert "48 x 64" in found[2].detail
    for number in (0, 1, 3, 4):
        ours, alone = found[number], expected[number]
        assert isinstance(ours, Detections) and isinstance(alone, Detections)
        np.testing.assert_allclose(ours.boxes_xyxy, alone.boxes_xyxy, atol=1e-3)
    assert sizes == [5, 2, 3, 1, 1, 2]  # the third again when it is alone


def test_memory_that_other_threads_have_fails_no_image(small_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(small_model, device="cpu")
    image = np.zeros((48, 64, 3), np.uint8)
    [found] = predictor([image])
    assert isinstance(found, Detections)
    lock, inside, collisions = threading.Lock(), [0], [0]

    def crowded(self: Predictor, images: list[Pixels]) -> list[Detections]:
        with lock:
            inside[0] += 1
            fits = inside[0] == 1
        time.sleep(0.005)
        with lock:
            inside[0] -= 1
        if fits:
            return [found]
        collisions[0] += 1
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    def predict_many() -> None:
        for _ in range(10):
            answers.extend(predictor([image]))

    answers: list[Detections | Failure] = []
    monkeypatch.setattr(Predictor, "_forward", crowded)
    threads = [threading.Thread(target=predict_many) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collisions[0] > 1
    assert answers == [found] * 30


def test_other_errors_are_raised(small_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong program must not pass for a lack of memory."""

    def wrong(self: Predictor, images: list[Pixels]) -> list[Detections]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Predictor, "_forward", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        Predictor(small_model, device="cpu")([np.zeros((48, 64, 3), np.uint8)])


def test_bf16_finds_about_the_same(small_model: Model) -> None:
    pixels = np.array(draw_picture(3))
    [exact] = Predictor(small_model, device="cpu", precision="fp32")([pixels])
    [rough] = Predictor(small_model, device="cpu", precision="bf16")([pixels])
    assert isinstance(exact, Detections)
    assert isinstance(rough, Detections)
    assert rough.scores.dtype == np.float32
    np.testing.assert_allclose(rough.scores, exact.scores, atol=0.05)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_predicts(name: str) -> None:
    if any(part in name for part in ("101", "152", "wide")):
        pytest.skip("as the smaller ones of its kind, only larger")
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture=name,
        categories=(Category(1, "thing"),),
        min_size=64,
        max_size=64,
        thresholds=Thresholds(min_score=0.0, max_detections=3, proposals=20),
    )
    [found] = Predictor(Model.of(spec, build(spec).state_dict()), device="cpu")([np.array(draw_picture(0))])
    assert isinstance(found, Detections)
    assert len(found.scores) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(small_model: Model) -> None:
    images = [np.array(draw_picture(i)) for i in range(5)]
    on_cpu = Predictor(small_model, device="cpu", precision="fp32")(images)
    on_gpu = Predictor(small_model, device="cuda", precision="fp32", batch_size=2)(images)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert isinstance(one, Detections)
        assert isinstance(other, Detections)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=0.05)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
