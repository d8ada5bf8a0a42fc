"""Mask R-CNN's forward pass at inference, over torchvision's modules: pixels in, boxes and soft masks out.

Shapes: B images of h x w in one tensor; R boxes of all images together, each a row of image index, x_min, y_min,
x_max, y_max in pixels of the input. He et al. 2017; the numbers are those of torchvision's `MaskRCNN`.

It differs from torchvision's own forward pass in what it leaves out (anchors are decoded after the best are chosen,
masks are not pasted) and in bfloat16 (weights cast once, BatchNorm folded into the convolutions, channels beside each
other in memory). Coordinates and scores are float32 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.detection import MaskRCNN
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, remove_small_boxes, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.ops.poolers import LevelMapper

from raymask.model.roi_align import RoIAlign, roi_align_bf16

Precision = Literal["fp32", "bf16"]
Features = dict[str, Tensor]

MIN_BOX_SIDE = 1e-2  # pixels; smaller detections are dropped


@dataclass(frozen=True)
class Objects:
    """Objects of one image. boxes_xyxy: N x 4, labels: N int64 from 1, scores: N, soft_masks: N x 28 x 28 in [0, 1]."""

    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    soft_masks: Tensor


class Detector:
    """A `MaskRCNN` prepared for inference on one device, which it takes over.

    fp32 leaves the network as it is and gives torchvision's numbers. bf16 is some four times faster where the device
    has bfloat16 arithmetic.
    """

    def __init__(self, network: MaskRCNN, device: torch.device, precision: Precision) -> None:
        if precision == "bf16":
            fold_batch_norms(network)
            network.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
        self._network = network.to(device).requires_grad_(False)
        self._network.rpn.anchor_generator.set_cell_anchors(torch.float32, device)
        self.device, self.dtype = device, torch.bfloat16 if precision == "bf16" else torch.float32
        self.memory_format = torch.channels_last if precision == "bf16" else torch.contiguous_format

    def __call__(self, batch: Tensor, sizes_hw: list[tuple[int, int]]) -> list[Objects]:
        """The objects of each image. batch: B x 3 x h x w, normalised and padded; sizes_hw: what is not padding."""
        features: Features = self._network.backbone(batch)
        proposals = self._propose(features, batch, sizes_hw)
        boxes, labels, scores = self._classify(features, proposals, batch, sizes_hw)
        soft_masks = self._segment(features, boxes, labels, batch)
        of_images = (boxes[:, 0] == image for image in range(len(sizes_hw)))
        return [Objects(boxes[own, 1:], labels[own], scores[own], soft_masks[own]) for own in of_images]

    def _propose(self, features: Features, batch: Tensor, sizes_hw: list[tuple[int, int]]) -> Tensor:
        """Region proposals: R x 5."""
        rpn, maps = self._network.rpn, list(features.values())
        grids = [m.shape[-2:] for m in maps]
        strides = [[batch.shape[2] // height, batch.shape[3] // width] for height, width in grids]
        anchors = rpn.anchor_generator.grid_anchors(grids, strides)
        boxes, scores, levels = [], [], []
        for level, (logits, deltas) in enumerate(zip(*rpn.head(maps), strict=True)):
            # Anchors in the order of pixels, and at each pixel by shape; the best are taken before they are decoded.
            logits, deltas = logits.permute(0, 2, 3, 1).flatten(1), deltas.permute(0, 2, 3, 1).flatten(1)
            best, index = logits.topk(min(rpn.pre_nms_top_n(), logits.shape[1]), dim=1)
            chosen = deltas.unflatten(1, (-1, 4)).gather(1, index[..., None].expand(-1, -1, 4)).float()
            decoded = rpn.box_coder.decode_single(chosen.flatten(0, 1), anchors[level][index.flatten()])
            boxes.append(decoded.unflatten(0, index.shape))
            scores.append(best.float().sigmoid())
            levels.append(torch.full_like(index, level))
        of_image = zip(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1), sizes_hw, strict=True)
        proposals = []
        for image_boxes, image_scores, image_levels, size_hw in of_image:
            clipped = clip_boxes_to_image(image_boxes, size_hw)
            large = remove_small_boxes(clipped, rpn.min_size)
            clipped = clipped[large]
            kept = batched_nms(clipped, image_scores[large], image_levels[large], rpn.nms_thresh)
            proposals.append(clipped[kept[: rpn.post_nms_top_n()]])
        return with_image_index(proposals)

    def _classify(
        self, features: Features, proposals: Tensor, batch: Tensor, sizes_hw: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best boxes of each image: R x 5, labels R int64, scores R float32."""
        heads = self._network.roi_heads
        logits, deltas = heads.box_predictor(
            heads.box_head(pool(features, proposals, heads.box_roi_pool, batch.shape[2]))
        )
        probabilities = logits.float().softmax(-1)
        deltas = deltas.unflatten(1, (-1, 4))
        boxes, labels, scores = [], [], []
        for image, size_hw in enumerate(sizes_hw):
            own = torch.where(proposals[:, 0] == image)[0]
            row, label = torch.where(probabilities[own, 1:] > heads.score_thresh)
            row, label = own[row], label + 1  # label 0 is the background
            decoded = heads.box_coder.decode_single(deltas[row, label].float(), proposals[row, 1:])
            clipped = clip_boxes_to_image(decoded, size_hw)
            large = remove_small_boxes(clipped, MIN_BOX_SIDE)
            clipped, label, score = clipped[large], label[large], probabilities[row, label][large]
            kept = batched_nms(clipped, score, label, heads.nms_thresh)[: heads.detections_per_img]
            boxes.append(clipped[kept])
            labels.append(label[kept])
            scores.append(score[kept])
        return with_image_index(boxes), torch.cat(labels), torch.cat(scores)

    def _segment(self, features: Features, boxes: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        """The soft mask of each box for its label: R x 28 x 28 float32."""
        heads = self._network.roi_heads
        logits = heads.mask_predictor(heads.mask_head(pool(features, boxes, heads.mask_roi_pool, batch.shape[2])))
        return logits[torch.arange(len(labels), device=labels.device), labels].float().sigmoid()  # type: ignore[no-any-return]


def pool(features: Features, boxes: Tensor, pooler: MultiScaleRoIAlign, input_height: int) -> Tensor:
    """Features of each box, R x C x size x size, from the pyramid level that fits its size (Lin et al. 2017, eq. 1)."""
    maps = [features[name] for name in pooler.featmap_names if name in features]
    exponents = [round(log2(m.shape[2] / input_height)) for m in maps]
    of_area = LevelMapper(-exponents[0], -exponents[-1], pooler.canonical_scale, pooler.canonical_level)
    levels = of_area([boxes[:, 1:]])
    size, samples = pooler.output_size[0], pooler.sampling_ratio
    layout = torch.channels_last if maps[0].dtype == torch.bfloat16 else torch.contiguous_format
    shape = (len(boxes), maps[0].shape[1], size, size)
    pooled = torch.empty(shape, dtype=maps[0].dtype, device=maps[0].device, memory_format=layout)
    for level, (values, exponent) in enumerate(zip(maps, exponents, strict=True)):
        index = torch.where(levels == level)[0]
        rois, scale = boxes[index], 2.0**exponent
        if values.device.type != "cpu":
            pooled[index] = roi_align(values.float(), rois, size, scale, samples).to(values.dtype)
        elif values.dtype == torch.bfloat16 and not torch.is_grad_enabled():
            pooled[index] = roi_align_bf16(values, rois, size, scale, samples)
        else:
            pooled[index] = RoIAlign.apply(values.float(), rois, size, scale, samples).to(values.dtype)
    return pooled


def with_image_index(boxes: list[Tensor]) -> Tensor:
    """Boxes of B images, each N x 4, as one tensor R x 5 whose first column says which image."""
    index = [torch.full_like(of_image[:, :1], image) for image, of_image in enumerate(boxes)]
    return torch.cat([torch.cat(index), torch.cat(boxes)], 1)


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every BatchNorm that follows a convolution into the convolution's weights, in place.

    It relies on torchvision's habit to register each normalisation right after the convolution whose output it takes.
    """
    convolution: nn.Conv2d | None = None
    for name, child in list(module.named_children()):
        if convolution is not None and isinstance(child, nn.BatchNorm2d | FrozenBatchNorm2d):
            mean, variance = child.get_buffer("running_mean"), child.get_buffer("running_var")
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, mean, variance, child.eps, child.weight, child.bias
            )
            setattr(module, name, nn.Identity())
        fold_batch_norms(child)
        convolution = child if isinstance(child, nn.Conv2d) else None
