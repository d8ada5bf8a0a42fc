"""One annotated image, changed by chance: colours, size, crop and mirror image; boxes and masks follow.

Shapes: an image is 3 x H x W uint8, RGB; boxes N x 4 float32, x_min, y_min, x_max, y_max in pixels; labels N int64;
masks N x H x W uint8, 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import InterpolationMode, v2

from raymask.training.config import TrainConfig

Target = dict[str, Tensor]
"""`boxes`, `labels` and `masks` of one image, as torchvision's detectors take them."""


@dataclass(frozen=True)
class Augmentation:
    """What is changed, and how likely. min_size, max_size: of an image inside the network."""

    min_size: int
    max_size: int
    flip: float
    min_scale: float
    max_scale: float
    photometric: float

    @staticmethod
    def of(config: TrainConfig, min_size: int, max_size: int) -> Augmentation | None:
        """None where nothing is to be changed: images then keep their size, which the network changes itself."""
        if not config.augments:
            return None
        return Augmentation(min_size, max_size, config.flip, config.min_scale, config.max_scale, config.photometric)

    def __call__(self, image: Tensor, target: Target, seed: int) -> tuple[Tensor, Target]:
        """The changed image and what is left of its objects, at the size the network computes at."""
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from torch's own generator
            torch.manual_seed(seed)
            size_hw = (int(image.shape[1]), int(image.shape[2]))
            scale = float(torch.empty(1).uniform_(self.min_scale, self.max_scale))
            whole_hw = self._inner_hw(size_hw, 1.0)
            scaled_hw = self._inner_hw(size_hw, scale)
            crop_hw = (min(whole_hw[0], scaled_hw[0]), min(whole_hw[1], scaled_hw[1]))
            change = v2.Compose(
                [
                    v2.Resize(scaled_hw, InterpolationMode.BILINEAR, antialias=True),
                    v2.RandomCrop(crop_hw),
                    v2.RandomHorizontalFlip(self.flip),
                    v2.RandomApply([v2.RandomPhotometricDistort()], self.photometric),  # last, on the fewest pixels
                ]
            )
            changed, boxes, masks = change(
                tv_tensors.Image(image),
                tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size_hw),
                tv_tensors.Mask(target["masks"]),
            )
        found = {"boxes": boxes.as_subclass(Tensor), "labels": target["labels"], "masks": masks.as_subclass(Tensor)}
        if crop_hw != scaled_hw:
            found = _cut(found)
        return changed.as_subclass(Tensor), found

    def _inner_hw(self, size_hw: tuple[int, int], scale: float) -> tuple[int, int]:
        """As torchvision's detectors resize, times `scale`."""
        factor = scale * min(self.min_size / min(size_hw), self.max_size / max(size_hw))
        height, width = (max(1, int(side * factor)) for side in size_hw)
        return height, width


def _cut(target: Target) -> Target:
    """Objects that a crop left something of, each in the box around what it left."""
    left = target["masks"].bool().flatten(1).any(1)
    kept = {name: values[left] for name, values in target.items()}
    if not len(kept["labels"]):
        return {**kept, "boxes": kept["boxes"].reshape(0, 4)}
    around = masks_to_boxes(kept["masks"])
    around[:, 2:] += 1  # masks_to_boxes names the last pixel, a box its far edge
    return {**kept, "boxes": around}
