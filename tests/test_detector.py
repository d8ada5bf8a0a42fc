"""What bfloat16 changes in the forward pass, against torchvision's operators and the network as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import draw_picture
from torch import nn
from torchvision.ops import roi_align
from torchvision.ops.misc import FrozenBatchNorm2d

from raymask.model import ARCHITECTURES, Category, Detections, Model, ModelSpec, Predictor, build
from raymask.model.detector import fold_batch_norms
from raymask.model.roi_align import RoIAlign, roi_align_bf16

LARGE = ("101", "152", "wide")


def features(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * height + width)
    values = torch.randn(batch, channels, height, width, generator=generator).bfloat16()
    return values.to(memory_format=torch.channels_last)


def random_boxes(count: int, batch: int, height: float, width: float) -> torch.Tensor:
    """Boxes of all sizes, some of them empty, thin, partly or wholly outside of height x width."""
    generator = torch.Generator().manual_seed(count)
    image = torch.randint(batch, (count, 1), generator=generator)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([1.4 * width, 1.4 * height]) - 0.2 * height
    sides = torch.rand(count, 2, generator=generator) ** 3 * width
    sides[::7] = 0
    return torch.cat([image, corners, corners + sides], 1)


@pytest.mark.parametrize(
    ("shape", "size", "scale", "samples"),
    [
        ((1, 256, 50, 68), 7, 0.25, 2),
        ((2, 64, 25, 34), 14, 1 / 8, 2),
        ((3, 5, 7, 1), 7, 1 / 32, 2),
        ((1, 1, 1, 1), 3, 1.0, 1),
        ((2, 33, 20, 30), 2, 0.5, 3),
    ],
)
def test_roi_align_is_torchvisions_rounded_once(
    shape: tuple[int, int, int, int], size: int, scale: float, samples: int
) -> None:
    values = features(*shape)
    boxes = random_boxes(200, shape[0], shape[2] / scale, shape[3] / scale)
    ours = roi_align_bf16(values, boxes, size, scale, samples)
    theirs = roi_align(values.float(), boxes, size, scale, samples)
    assert ours.dtype == torch.bfloat16
    assert ours.is_contiguous(memory_format=torch.channels_last)
    # Half a unit in bfloat16's last place is up to 2^-8 of the value; float32's own rounding adds little.
    torch.testing.assert_close(ours.float(), theirs, rtol=2**-8, atol=3e-5)
    assert (theirs != 0).float().mean() > 0.2


@pytest.mark.parametrize(
    ("shape", "size", "scale", "samples"),
    [
        ((1, 256, 50, 68), 7, 0.25, 2),
        ((3, 5, 7, 1), 14, 1 / 32, 2),
        ((1, 1, 1, 1), 3, 1.0, 1),
        ((2, 33, 20, 30), 2, 0.5, 3),
    ],
)
@pytest.mark.parametrize("count", [0, 200])
def test_the_gradient_of_roi_align_is_torchvisions(
    shape: tuple[int, int, int, int], size: int, scale: float, samples: int, count: int
) -> None:
    boxes = random_boxes(count, shape[0], shape[2] / scale, shape[3] / scale)
    ours, theirs = (features(*shape).float().requires_grad_() for _ in range(2))
    gradient = torch.randn((count, shape[1], size, size), generator=torch.Generator().manual_seed(0))
    RoIAlign.apply(ours, boxes, size, scale, samples).backward(gradient)
    roi_align(theirs, boxes, size, scale, samples).backward(gradient)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert bool(theirs.grad.any()) == bool(count)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5 * float(theirs.grad.abs().max()))


def test_roi_align_of_no_boxes() -> None:
    assert roi_align_bf16(features(1, 8, 4, 4), torch.zeros(0, 5), 7, 0.25, 2).shape == (0, 8, 7, 7)


@pytest.mark.parametrize("norm", ["batch_norm", "frozen_batch_norm"])
@pytest.mark.parametrize("name", sorted(name for name in ARCHITECTURES if not any(part in name for part in LARGE)))
def test_folded_networks_compute_the_same(name: str, norm: str) -> None:
    fixed_norm = name in ("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet10_fpn")
    if fixed_norm and norm != "batch_norm":
        pytest.skip(f"{name} has one kind of normalisation")
    torch.manual_seed(0)
    parameters = {} if fixed_norm else {"norm": norm}
    network = build(ModelSpec(architecture=name, categories=(Category(1, "thing"),), parameters=parameters))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert norms
    for layer in norms:
        with torch.no_grad():
            layer.get_buffer("running_mean").normal_(0, 0.1)
            layer.get_buffer("running_var").uniform_(0.8, 1.2)
            layer.weight.uniform_(0.8, 1.2)
            layer.bias.normal_(0, 0.1)
    pixels, pooled = torch.randn(1, 3, 64, 96), torch.randn(2, network.backbone.out_channels, 7, 7)

    def outputs() -> list[torch.Tensor]:
        maps = list(network.backbone(pixels).values())
        logits, deltas = network.rpn.head(maps)
        heads = network.roi_heads
        return [*maps, *logits, *deltas, heads.box_head(pooled), heads.mask_predictor(heads.mask_head(pooled))]

    with torch.inference_mode():
        before = outputs()
        fold_batch_norms(network)
        after = outputs()
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_bf16_finds_the_same_objects_in_batches(small_model: Model) -> None:
    images = [np.array(draw_picture(i)) for i in range(5)]
    singly = Predictor(small_model, device="cpu", precision="bf16", batch_size=1)(images)
    together = Predictor(small_model, device="cpu", precision="bf16", batch_size=3)(images)
    for one, other in zip(singly, together, strict=True):
        assert isinstance(one, Detections)
        assert isinstance(other, Detections)
        np.testing.assert_allclose(one.scores, other.scores, atol=0.02)
