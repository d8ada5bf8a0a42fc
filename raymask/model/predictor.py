"""From uint8 pixels to boxes, categories, scores and RLE masks, on one device, without Ray.

Shapes: an image is H x W x 3 uint8 RGB; inside, B x 3 x h x w float, h and w multiples of 32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.transform import resize_boxes

from raymask.errors import ErrorKind, Failure
from raymask.masks import EncodedMasks, encode_soft_masks
from raymask.model.detector import Detector, Objects, Precision
from raymask.model.device_time import DeviceTime
from raymask.model.model import Model
from raymask.model.out_of_memory import is_out_of_memory
from raymask.model.spec import Category, ModelSpec
from raymask.timing import count, stage
from raymask.turns import Turns

SIZE_DIVISOR = 32  # stride of the coarsest pyramid level that the backbone computes


@dataclass(frozen=True)
class Detections:
    """The objects of one image, best first.

    boxes_xyxy: N x 4 float32, pixels of the image as it was given. labels: N int64, 1 .. number of categories.
    scores: N float32 in [0, 1]. masks: N RLEs of `size_hw` = (height, width). N = 0 where nothing was found.
    """

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: EncodedMasks
    size_hw: tuple[int, int]


class Predictor:
    """A Mask R-CNN on one device.

    >>> predictor = Predictor("model/", min_score=0.5)
    >>> [found] = predictor([pixels])            # pixels: H x W x 3 uint8 RGB
    >>> found.boxes_xyxy, found.masks.counts

    In fp32 with images of one, boxes, scores and masks are those of torchvision's own model, the masks pixel for
    pixel; they are made from the 28 x 28 soft masks without ever being pasted into an image (He et al. 2017).
    """

    device_faults = (torch.AcceleratorError,)  # after which nothing works on the device any more, not for this process

    def __init__(
        self,
        model: Model | str | None = None,
        *,
        device: str | torch.device | None = None,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        batch_size: int | None = None,
        min_score: float | None = None,
        nms: float | None = None,
        max_detections: int | None = None,
        proposals: int | None = None,
        mask_threshold: float | None = None,
        min_size: int | None = None,
        max_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        """model: a loaded model, or what `raymask.model.load_model` takes. threads: those that torch may use on the
        CPU, in the whole process. Other options: as of `raymask segment`.
        """
        if threads:
            torch.set_num_threads(threads)
        if not isinstance(model, Model):
            from raymask.model.weights import load_model

            model = load_model(model)
        self.spec: ModelSpec = model.spec.with_options(
            min_score=min_score,
            nms=nms,
            max_detections=max_detections,
            proposals=proposals,
            mask_threshold=mask_threshold,
            min_size=min_size,
            max_size=max_size,
        )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = resolve_precision(precision, self.device)
        self.batch_size = batch_size or (8 if self.device.type == "cuda" else 1)
        self._turns = Turns()
        self._device_time = DeviceTime(self.device)
        network = dataclasses.replace(model, spec=self.spec).network()
        self._detector = Detector(network, self.device, self.precision)
        mean, std = (torch.tensor(x, device=self.device) for x in (self.spec.image_mean, self.spec.image_std))
        self._mean, self._std = mean[:, None, None], std[:, None, None]

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.spec.categories

    def category(self, label: int) -> Category:
        """The category of a label of `Detections.labels`."""
        return self.spec.categories[label - 1]

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections | Failure]:
        """The detections of each image, in order; a Failure for one that does not fit the device's memory alone.

        May be called by several threads at once. Images are grouped so that a batch needs little padding; [] gives [].
        """
        results: list[Detections | Failure | None] = [None] * len(images)
        for group in self._groups(images):
            for index, result in zip(group, self._predict([images[i] for i in group]), strict=True):
                results[index] = result
        return [r for r in results if r is not None]

    def _groups(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[list[int]]:
        """Indices of images of the same padded shape, `batch_size` at a time."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            shapes.setdefault(_padded(self._resized_hw(image.shape[0], image.shape[1])), []).append(index)
        for indices in shapes.values():
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    def _predict(self, images: list[NDArray[np.uint8]]) -> list[Detections | Failure]:
        with self._turns.together():
            found = self._forward_or_reason(images)
        if isinstance(found, list):
            return [*found]
        if len(images) > 1:
            half = len(images) // 2
            return self._predict(images[:half]) + self._predict(images[half:])
        with self._turns.alone():  # for what was missing other threads may have had
            found = self._forward_or_reason(images)
        if isinstance(found, list):
            return [*found]
        height, width = images[0].shape[:2]
        return [Failure(ErrorKind.OUT_OF_MEMORY, f"{height} x {width} does not fit {self.device}: {found}"[:200])]

    def _forward_or_reason(self, images: list[NDArray[np.uint8]]) -> list[Detections] | str:
        """The detections, or in words that there is not enough memory for these images together."""
        try:
            return self._forward(images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # libraries cannot have what torch keeps for itself
        return reason

    @torch.inference_mode()
    def _forward(self, images: list[NDArray[np.uint8]]) -> list[Detections]:
        count("passes")
        start = self._device_time.mark()
        with stage("copy"):
            batch, sizes_hw = self._preprocess(images)
        with stage("compute"):
            of_images = self._detector(batch, sizes_hw)
        end = self._device_time.mark()
        found = [
            self._detections(objects, inner_hw, image.shape[:2])
            for objects, inner_hw, image in zip(of_images, sizes_hw, images, strict=True)
        ]
        count("device_s", self._device_time.between(start, end))
        return found

    def _preprocess(self, images: list[NDArray[np.uint8]]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalised, resized and padded: B x 3 x h x w, and the (height, width) in it of each image."""
        sizes_hw = [self._resized_hw(*image.shape[:2]) for image in images]
        height, width = _padded((max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)))
        batch = torch.zeros((len(images), 3, height, width), dtype=self._detector.dtype, device=self.device).contiguous(
            memory_format=self._detector.memory_format
        )
        for slot, image, (h, w) in zip(batch, images, sizes_hw, strict=True):
            # Arrow's buffers are read-only, which torch does not know: copied then, as they would be to a device.
            pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(self.device)
            values = (pixels.permute(2, 0, 1).float().div(255) - self._mean) / self._std
            slot[:, :h, :w] = functional.interpolate(values[None], size=(h, w), mode="bilinear", align_corners=False)[0]
        return batch, sizes_hw

    def _resized_hw(self, height: int, width: int) -> tuple[int, int]:
        """Size inside the network: the shorter side `min_size`, the longer at most `max_size`, none below 1 pixel."""
        short, long = min(height, width), max(height, width)
        scale = min(self.spec.min_size / short, self.spec.max_size / long)
        return max(1, int(height * scale)), max(1, int(width * scale))

    def _detections(self, objects: Objects, inner_hw: tuple[int, int], size_hw: tuple[int, ...]) -> Detections:
        height, width = size_hw
        with stage("compute"):  # which a GPU is still at
            boxes = resize_boxes(objects.boxes_xyxy, list(inner_hw), [height, width]).cpu().numpy()
            soft_masks = objects.soft_masks.cpu().numpy()
            labels, scores = objects.labels.cpu().numpy(), objects.scores.cpu().numpy()
        with stage("encode"):
            masks = encode_soft_masks(soft_masks, boxes, (height, width), self.spec.thresholds.mask_threshold)
        return Detections(boxes_xyxy=boxes, labels=labels, scores=scores, masks=masks, size_hw=(height, width))


def _padded(size_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size_hw)
    return height, width


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the device computes in it: CUDA from compute capability 8, CPUs with AMX or AVX-512 bf16."""
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if _cpu_has_bf16() else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
