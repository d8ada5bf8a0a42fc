"""Architectures by name: torchvision's Mask R-CNN over every backbone that torchvision has a feature pyramid for.

`ARCHITECTURES[name](num_classes, **parameters, **kwargs)` returns a `MaskRCNN`; kwargs go to its constructor
(sizes, thresholds). He et al. 2017, Lin et al. 2017 (FPN).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from raymask.errors import ConfigError
from raymask.model.spec import ModelSpec

DEFAULT_ARCHITECTURE = "maskrcnn_resnet50_fpn"

RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
MOBILENETS = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")


def _norm(norm: str, eps: float) -> Callable[..., nn.Module]:
    layers: dict[str, Callable[..., nn.Module]] = {
        "batch_norm": nn.BatchNorm2d,
        "frozen_batch_norm": FrozenBatchNorm2d,
        "group_norm": _GroupNorm,
    }
    if norm not in layers:
        raise ConfigError(f"norm is {norm!r}; one of {', '.join(layers)} is meant")
    return partial(layers[norm], eps=eps)


class _GroupNorm(nn.GroupNorm):
    """Wu and He 2018, with their 32 groups, or as many as the channels divide into; built like a BatchNorm."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(math.gcd(32, channels), channels, eps)


def _resnet(
    backbone: str, num_classes: int, norm: str = "batch_norm", norm_eps: float = 1e-5, **kwargs: Any
) -> MaskRCNN:
    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=_norm(norm, norm_eps), trainable_layers=5
    )
    return MaskRCNN(body, num_classes, **kwargs)


def _mobilenet(
    backbone: str, num_classes: int, norm: str = "batch_norm", norm_eps: float = 1e-5, **kwargs: Any
) -> MaskRCNN:
    body = mobilenet_backbone(
        backbone_name=backbone, weights=None, fpn=True, norm_layer=_norm(norm, norm_eps), trainable_layers=6
    )
    # Three levels of every size, as torchvision's detectors on MobileNet have them: the pyramid starts at stride 16.
    levels = 3
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * levels, ((0.5, 1.0, 2.0),) * levels)
    return MaskRCNN(body, num_classes, rpn_anchor_generator=anchors, **kwargs)


def _resnet50_v2(num_classes: int, **kwargs: Any) -> MaskRCNN:
    return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=num_classes, **kwargs)


def _resnet10(
    num_classes: int,
    fpn_channels: int = 64,
    head_width: int = 256,
    norm: str = "batch_norm",
    norm_eps: float = 1e-5,
    **kwargs: Any,
) -> MaskRCNN:
    """Four basic blocks, a narrow pyramid and narrow heads: small enough to train on two CPU cores in minutes."""
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=_norm(norm, norm_eps))
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    pyramid = BackboneWithFPN(body, layers, [64, 128, 256, 512], fpn_channels, extra_blocks=LastLevelMaxPool())
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    return MaskRCNN(
        pyramid,
        rpn_anchor_generator=anchors,
        box_head=TwoMLPHead(fpn_channels * 7 * 7, head_width),
        box_predictor=FastRCNNPredictor(head_width, num_classes),
        mask_head=MaskRCNNHeads(fpn_channels, (fpn_channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(fpn_channels, fpn_channels, num_classes),
        **kwargs,
    )


ARCHITECTURES: dict[str, Callable[..., MaskRCNN]] = {
    **{f"maskrcnn_{name}_fpn": partial(_resnet, name) for name in RESNETS},
    **{f"maskrcnn_{name}_fpn": partial(_mobilenet, name) for name in MOBILENETS},
    "maskrcnn_resnet50_fpn_v2": _resnet50_v2,
    "maskrcnn_resnet10_fpn": _resnet10,
}


def build(spec: ModelSpec, **training: Any) -> MaskRCNN:
    """The network of `spec` in evaluation mode, its weights random; ConfigError for an unknown architecture.

    training: arguments of torchvision's MaskRCNN that matter only in training.
    """
    make, t = builder(spec.architecture), spec.thresholds
    # torchvision's constructors swallow what they do not know.
    known = inspect.signature(make).parameters.keys() - {"num_classes", "kwargs"}
    if unknown := sorted(spec.parameters.keys() - known):
        raise ConfigError(
            f"{spec.architecture} has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(known))}"
        )
    return make(
        spec.num_classes,
        **spec.parameters,
        min_size=spec.min_size,
        max_size=spec.max_size,
        image_mean=list(spec.image_mean),
        image_std=list(spec.image_std),
        rpn_pre_nms_top_n_test=t.proposals,
        rpn_post_nms_top_n_test=t.proposals,
        box_score_thresh=t.min_score,
        box_nms_thresh=t.nms,
        box_detections_per_img=t.max_detections,
        **training,
    ).eval()


def build_empty(spec: ModelSpec) -> MaskRCNN:
    """The network without memory for its weights, on the meta device: names and shapes only."""
    with torch.device("meta"), _WithoutRandomWeights():
        return build(spec)


class _WithoutRandomWeights(TorchFunctionMode):
    """Initialisers leave tensors as they are; on the meta device each would be taken apart into many operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs else args[0]
        return func(*args, **(kwargs or {}))


def builder(architecture: str) -> Callable[..., MaskRCNN]:
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"unknown model {architecture!r}; known are: {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[architecture]
