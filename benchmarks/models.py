"""An untrained `maskrcnn_resnet50_fpn` that finds as many objects in a photo as the benchmarks ask for.

    python benchmarks/models.py FOLDER

Speed depends on how many candidates and detections there are and how large they are, so weights as PyTorch draws them
will not do: either no score reaches the threshold or 90,000 do. Here each layer is set by what it gets from a few
photos (as in Krähenbühl et al. 2016, "Data-dependent initializations"), and so that some hundred (box, class) pairs of
any photo stay above the threshold. Boxes and masks are of all sizes, and mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from photos import make_photos
from torch import Tensor, nn
from torchvision.io import decode_image
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights

from raymask.model import Category, Model, ModelSpec, build

PHOTOS = 6
EVERY = 15  # of the photos that `make_photos` cuts is taken: those that follow come from the same place
SIZE_HW = (480, 640)
CANDIDATES = 550  # (box, class) pairs of a photo above min_score before NMS, on average

# Standard deviation of a layer's output where it is not 1: less at the finer pyramid levels, which have most anchors
# and would fill the proposals with boxes of 32 pixels; shifts of anchors, in their own sizes; logits that decide.
STD = {
    "backbone.fpn.layer_blocks.0.0": 0.5,
    "backbone.fpn.layer_blocks.1.0": 0.65,
    "backbone.fpn.layer_blocks.2.0": 0.8,
    "rpn.head.bbox_pred": 0.15,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
}
CLASS_LOGITS_STD = 4.0
RESIDUAL_SCALE = 0.2  # of a residual block beside its shortcut; at 1, contrast of a photo grows from block to block


def calibrated_model(images: list[Tensor]) -> Model:
    """A network that finds more than 100 objects in images like these, 3 x H x W float32 in [0, 1].

    Its categories are COCO's. The option `max_detections` thus says how many detections each image has, up to 100.
    BatchNorm is frozen, as it is in torchvision's COCO weights of this architecture.
    """
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    spec = ModelSpec(
        architecture="maskrcnn_resnet50_fpn",
        categories=tuple(Category(i, name) for i, name in enumerate(names) if i > 0),
        training={"weights": "random, set on photos for benchmarks"},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(spec)
    _calibrate(network, images, spec.thresholds.min_score)
    weights = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    return Model.of(dataclasses.replace(spec, parameters={"norm": "frozen_batch_norm", "norm_eps": 0.0}), weights)


def fixed_detections_model(folder: str | Path) -> Model:
    """Write a model folder of the network calibrated on the shared photos; FileNotFoundError where they are absent."""
    from raymask.model import save_model  # whose clients of stores nothing else here needs

    with tempfile.TemporaryDirectory() as photos:
        model = calibrated_model(_read(make_photos(photos, PHOTOS * EVERY, SIZE_HW)[::EVERY]))
    return save_model(str(folder), model.spec, model.weights)


@torch.no_grad()
def _calibrate(network: MaskRCNN, images: list[Tensor], min_score: float) -> None:
    """One pass over the images, in which each layer is set by what it gets, before the next one sees its output."""
    # Four equal taps: masks with outlines as objects have them, not chequered ones with an RLE many times as long.
    taps = network.roi_heads.mask_predictor.conv5_mask.weight
    taps.copy_(taps.mean((2, 3), keepdim=True))
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            if name.endswith("bn3"):
                layer.weight.fill_(RESIDUAL_SCALE)
            hooks.append(layer.register_forward_pre_hook(_set_statistics))
        elif name == "roi_heads.box_predictor.cls_score":
            hooks.append(layer.register_forward_hook(partial(_set_classes, min_score=min_score, images=len(images))))
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not name.startswith("backbone.body"):
            hooks.append(layer.register_forward_hook(_Standardise(STD.get(name, 1.0))))
    network(images)
    for hook in hooks:
        hook.remove()


def _set_statistics(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
    norm.running_var, norm.running_mean = torch.var_mean(inputs[0], (0, 2, 3))


class _Standardise:
    """A hook that sets a layer so that each channel of its output has zero mean and deviation `std`, the first time.

    Layers that serve all pyramid levels are thus set by the finest.
    """

    def __init__(self, std: float) -> None:
        self._std = std
        self._done = False

    def __call__(self, layer: Any, _inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if self._done:
            return None
        self._done = True
        deviation, mean = torch.std_mean(output.transpose(0, 1).flatten(1), 1)
        scale = self._std / deviation
        weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
        layer.bias.copy_((layer.bias - mean) * scale)
        as_channels = (-1, *[1] * (output.ndim - 2))
        return (output - mean.view(as_channels)) * scale.view(as_channels)


def _set_classes(scores: nn.Linear, inputs: tuple[Tensor], _logits: Tensor, *, min_score: float, images: int) -> Tensor:
    """Set the classes' logits against the background's so that on average CANDIDATES pairs of a photo are left.

    All logits are proportional to the features, the background's along their mean and the others across it: how many
    pairs are left hardly depends on a photo's contrast, then.
    """
    features = inputs[0]
    mean = features.mean(0)
    mean /= mean.square().sum()
    weight = scores.weight - torch.outer(scores.weight @ mean, mean) / mean.square().sum()
    weight *= CLASS_LOGITS_STD / (features @ weight.T).std(0)[:, None]
    low, high = 0.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        weight[0] = middle * mean
        left = ((features @ weight.T).softmax(1)[:, 1:] > min_score).sum() / images
        low, high = (middle, high) if left > CANDIDATES else (low, middle)
    scores.weight.copy_(weight)
    scores.bias.zero_()
    return features @ weight.T


def _read(photos: list[Path]) -> list[Tensor]:
    return [decode_image(str(photo)) / 255 for photo in photos]


def verify(model: Model, size_hw: tuple[int, int], count: int) -> None:
    """Print what the model finds in photos that did not set it; SystemExit unless it is 20 and 100 where asked for."""
    with tempfile.TemporaryDirectory() as folder:
        images = _read(make_photos(folder, count * EVERY, size_hw)[1::EVERY])
    min_score, candidates = model.spec.thresholds.min_score, list[int]()
    for precision in ("fp32", "bf16"):
        for limit in (20, 100):
            network = build(model.spec.with_options(max_detections=limit))
            network.load_state_dict(dict(model.weights))
            network.roi_heads.box_predictor.register_forward_hook(
                lambda _layer, _inputs, out: candidates.append(int((out[0].softmax(1)[:, 1:] > min_score).sum()))
            )
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found = [network([image])[0] for image in images]
            counts = {len(objects["scores"]) for objects in found}
            if counts != {limit}:
                raise SystemExit(f"{precision}: {counts} detections an image where {limit} are meant")
        boxes, scores = (torch.cat([objects[key].float() for objects in found]) for key in ("boxes", "scores"))
        masks = torch.cat([objects["masks"][:, 0] > 0.5 for objects in found])
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        filled = masks.sum((1, 2)) / sides.square().clamp(min=1)
        # Runs of pixels in the column where a mask has most, were it one blob that would be 1.
        starts = (masks[:, 1:] & ~masks[:, :-1]).sum(1).float()
        runs = starts.sum(1) / (starts > 0).sum(1).clamp(min=1)
        print(
            f"{size_hw[0]} x {size_hw[1]} {precision}, {count} photos: 20 and 100 detections where so many are asked "
            f"for; candidates {min(candidates)} to {max(candidates)}; of the 100, 5th, 50th and 95th percentile of "
            f"square roots of areas {_percentiles(sides)} pixels, scores {_percentiles(scores)}, "
            f"share of the box in the mask {_percentiles(filled)}, runs in a column of it {_percentiles(runs)}"
        )
        candidates.clear()


def _percentiles(values: Tensor) -> str:
    return " / ".join(f"{v:.3g}" for v in values.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--photos", type=int, default=4, help="of each size to verify the model on")
    args = parser.parse_args()
    model = fixed_detections_model(args.folder)
    for size_hw in ((480, 640), (1080, 1920)):
        verify(model, size_hw, args.photos)


if __name__ == "__main__":
    main()
