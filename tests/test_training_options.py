"""What the options of `raymask train` do to the network, its steps and its rates, without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights

from raymask.errors import ConfigError
from raymask.model import Category, load_model
from raymask.training.checkpoints import read_state, write_checkpoint
from raymask.training.config import TrainConfig
from raymask.training.loop import LOSSES, Batch, Progress, training_step
from raymask.training.network import (
    averaged,
    build_network,
    learning_rate,
    make_optimizer,
    model_of,
    starting_point,
)

CATEGORIES = (Category(1, "circle"), Category(2, "square"), Category(3, "star"))
# Sampling takes whatever there is, so that losses are a function of the images alone.
ALL = {"proposals": 100, "rpn_samples": 100_000, "box_samples": 100_000}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The images are so small that more threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options(**other: Any) -> TrainConfig:
    tiny = {"data": "d", "out": "o", "model": "maskrcnn_resnet10_fpn", "min_size": 64, "max_size": 64, "flip": 0.0}
    plain = {"photometric": 0.0, "min_scale": 1.0, "max_scale": 1.0, "proposals": 100, "fixed_lr": True}
    return TrainConfig(**{**tiny, **plain, **other})


def network_of(config: TrainConfig) -> MaskRCNN:
    return build_network(config, starting_point(config, CATEGORIES))


def batch(*seeds: int, size_hw: tuple[int, int] = (64, 64)) -> Batch:
    """An image of noise a seed, with two bright rectangles."""
    height, width = size_hw
    images, targets = [], []
    for seed in seeds:
        chance = torch.Generator().manual_seed(seed)
        image, masks = torch.rand((3, height, width), generator=chance) / 2, torch.zeros((2, height, width))
        corners = torch.randint(0, 20, (2, 2), generator=chance).tolist()
        boxes = [[x + width // 2 * n, y, x + width // 2 * n + 12, y + 30] for n, (x, y) in enumerate(corners)]
        for mask, (x_min, y_min, x_max, y_max) in zip(masks, boxes, strict=True):
            mask[y_min:y_max, x_min:x_max] = 1
            image[:, mask.bool()] = 1.0
        labels = torch.randint(1, 4, (2,), generator=chance)
        images.append(image)
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": labels, "masks": masks.to(torch.uint8)})
    return images, targets


def step(config: TrainConfig, network: MaskRCNN, batches: list[Batch], **other: Any) -> dict[str, float]:
    """One step by raymask's own function at `lr` 0.01, unless said otherwise."""
    optimizer = make_optimizer(config, network)
    for group in optimizer.param_groups:
        group["lr"] = other.get("lr", 0.01)
    torch.manual_seed(0)
    losses = training_step(network, optimizer, batches, bf16=other.get("bf16", False), clip=config.clip)
    return dict(zip(LOSSES, losses.tolist(), strict=True))


def copied(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


# -------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("norm", ["batch_norm", "frozen_batch_norm", "group_norm"])
def test_bf16_trains_as_fp32_does(norm: str) -> None:
    config = options(norm=norm, **ALL)
    exact, rough = network_of(config), network_of(config)
    types = set()
    rough.backbone.body.layer4[0].conv2.register_forward_hook(lambda *found: types.add(found[2].dtype))
    for seed in range(3):
        fp32 = step(config, exact, [batch(2 * seed, 2 * seed + 1)])
        bf16 = step(config, rough, [batch(2 * seed, 2 * seed + 1)], bf16=True)
        assert bf16 == pytest.approx(fp32, abs=0.15, rel=0.15)
    assert types == {torch.bfloat16}
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in rough.state_dict().values())


def test_coordinates_stay_exact_in_bf16() -> None:
    """Far from the origin of a wide image, where bf16 has steps of four pixels."""
    config = options(max_size=1024, **ALL)
    images, targets = batch(1, size_hw=(64, 1024))
    targets[0]["boxes"] += torch.tensor([0.3, 0.3, 0.3, 0.3])

    def coordinates(bf16: bool) -> list[Tensor]:
        """Anchors, and the boxes that features are pooled in, of a step."""
        seen: list[Tensor] = []
        network = network_of(config)
        network.rpn.anchor_generator.register_forward_hook(lambda _, __, found: seen.extend(found))
        network.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, given: seen.extend(given[1]))
        step(config, network, [(images, targets)], bf16=bf16)
        return seen

    (anchors, proposals), (same_anchors, rough_proposals) = coordinates(False), coordinates(True)
    assert torch.equal(anchors, same_anchors)
    assert rough_proposals.dtype == torch.float32
    for box in targets[0]["boxes"]:  # torchvision adds them to the proposals
        assert (proposals == box).all(1).any()
        assert (rough_proposals == box).all(1).any()


def test_accumulated_batches_are_one_larger_batch() -> None:
    # The images come twice: torchvision takes means over what is sampled, of which other images have another number.
    config = options(norm="frozen_batch_norm", momentum=0.0, weight_decay=0.0, **ALL)
    at_once, in_turn = network_of(config), network_of(config)
    images, targets = batch(1, 2)
    losses = step(config, at_once, [(images * 2, targets * 2)], lr=1.0)
    assert step(config, in_turn, [(images, targets)] * 2, lr=1.0) == pytest.approx(losses, abs=1e-4)
    for name, tensor in at_once.state_dict().items():
        torch.testing.assert_close(in_turn.state_dict()[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_a_step_goes_along_the_mean_gradient_of_its_batches() -> None:
    config = options(norm="frozen_batch_norm", momentum=0.0, weight_decay=0.0, **ALL)
    network, alone = network_of(config), network_of(config)
    before = copied(network)
    batches = [batch(1, 2), batch(3)]
    step(config, network, batches, lr=1.0)
    for images, targets in batches:
        (sum(alone(images, targets).values()) / len(batches)).backward()
    for name, parameter in alone.named_parameters():
        assert parameter.grad is not None
        moved = before[name] - network.state_dict()[name]
        torch.testing.assert_close(moved, parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_gradients_are_clipped_to_a_norm() -> None:
    config = options(momentum=0.0, weight_decay=0.0, norm="frozen_batch_norm", clip=0.5)
    network = network_of(config)
    before = copied(network)
    step(config, network, [batch(1, 2)], lr=1.0)
    moved = [(tensor.detach() - before[name]).norm() for name, tensor in network.named_parameters()]
    assert float(torch.stack(moved).norm()) == pytest.approx(0.5, rel=1e-3)


# ------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("norm", ["batch_norm", "frozen_batch_norm", "group_norm"])
def test_what_a_step_moves_depends_on_the_normalisation(norm: str) -> None:
    config = options(norm=norm)
    network = network_of(config)
    before = copied(network)
    step(config, network, [batch(1, 2)])
    moved = changed(network, before)
    of_norm = {name for name in before if name.startswith("backbone.body.") and ".bn" in name}
    statistics = {name for name in of_norm if "running" in name or "num_batches" in name}
    assert not any("running" in name for name in before if norm == "group_norm")
    assert {"backbone.body.conv1.weight", "backbone.body.layer1.0.conv1.weight"} <= moved
    assert moved & of_norm == (set() if norm == "frozen_batch_norm" else of_norm)
    assert bool(statistics) == (norm != "group_norm")


@pytest.mark.parametrize("norm", ["batch_norm", "frozen_batch_norm", "group_norm"])
def test_frozen_stages_stay_as_they_are(norm: str) -> None:
    config = options(norm=norm, freeze=2)
    network = network_of(config)
    before = copied(network)
    step(config, network, [batch(1, 2)])
    moved = changed(network, before)
    stem = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.")
    assert not [name for name in moved if name.startswith(stem)]
    for layer in ("backbone.body.layer2.", "backbone.body.layer4.", "backbone.fpn.", "rpn.", "roi_heads.mask_head."):
        assert [name for name in moved if name.startswith(layer)], layer


@pytest.mark.parametrize("architecture", ["maskrcnn_resnet10_fpn", "maskrcnn_mobilenet_v3_large_fpn"])
def test_all_stages_can_be_frozen_and_no_more(architecture: str) -> None:
    network = network_of(options(model=architecture, freeze=5))
    assert not any(p.requires_grad for p in network.backbone.body.parameters())
    assert all(p.requires_grad for p in network.backbone.fpn.parameters())
    with pytest.raises(ConfigError, match="--freeze is 6, the backbone has 5 stages"):
        starting_point(options(model=architecture, freeze=6), CATEGORIES)


# ------------------------------------------------------------------------------------------------- where it starts


def test_the_heads_of_other_categories_are_replaced(model_folder: str) -> None:
    given = load_model(model_folder)
    start = starting_point(options(weights=model_folder, model=None), CATEGORIES)
    assert "heads replaced: 2 categories become 3, their weights random" in start.said
    other = {n for n, t in start.weights.items() if n not in given.weights or not torch.equal(t, given.weights[n])}
    predictor, logits = "roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits"
    layers = (f"{predictor}.cls_score", f"{predictor}.bbox_pred", logits)
    assert {n for n in other if n.endswith("weight")} == {f"{layer}.weight" for layer in layers}
    assert {n.rpartition(".")[0] for n in other} == set(layers)
    assert start.weights[f"{predictor}.cls_score.weight"].shape[0] == 4
    assert (start.spec.categories, start.spec.min_size) == (CATEGORIES, 64)


def test_the_heads_of_the_same_categories_are_kept(model_folder: str) -> None:
    given = load_model(model_folder)
    start = starting_point(options(weights=model_folder, model=None), given.spec.categories)
    assert "replaced" not in start.said
    assert all(torch.equal(start.weights[name], tensor) for name, tensor in given.weights.items())
    renamed = tuple(dataclasses.replace(c, name=f"wild {c.name}") for c in given.spec.categories)
    assert "heads replaced" in starting_point(options(weights=model_folder, model=None), renamed).said


def test_weights_of_another_normalisation_are_refused(model_folder: str) -> None:
    with pytest.raises(ConfigError, match=r"has other layers than --norm group_norm makes, such as backbone"):
        starting_point(options(weights=model_folder, model=None, norm="group_norm"), CATEGORIES)


@pytest.mark.parametrize(
    ("weights", "model", "entry"),
    [
        ("ResNet18_Weights.IMAGENET1K_V1", "maskrcnn_resnet18_fpn", ResNet18_Weights.IMAGENET1K_V1),
        ("COCO_V1", None, MaskRCNN_ResNet50_FPN_Weights.COCO_V1),
        ("MaskRCNN_ResNet50_FPN_Weights.COCO_V1", None, MaskRCNN_ResNet50_FPN_Weights.COCO_V1),
    ],
)
def test_torchvision_weights_without_network_are_an_error(
    weights: str, model: str | None, entry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(entry.value, "url", "http://127.0.0.1:9/weights-00000000.pth")
    with pytest.raises(ConfigError, match=r"cannot be had.*file") as raised:
        starting_point(options(weights=weights, model=model), CATEGORIES)
    assert "\n" not in str(raised.value)


def test_unknown_torchvision_weights_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"torchvision has no weights 'ResNet18_Weights.V9'"):
        starting_point(options(weights="ResNet18_Weights.V9", model="maskrcnn_resnet18_fpn"), CATEGORIES)


# ------------------------------------------------------------------------------------------- rates and averages


def test_the_moving_average_is_its_formula() -> None:
    config = options(norm="batch_norm", ema=0.3)
    network = network_of(config)
    progress = Progress(network, make_optimizer(config, network), averaged(network, 0.3))
    assert progress.average is not None
    kept: dict[str, Tensor] = {}
    for number in range(4):
        step(config, network, [batch(number, number + 10)], lr=0.05)
        progress.average.update_parameters(network)
        # The first is taken as it is; then the decay rises to the one that was asked for.
        decay = min(0.3, (1 + number) / (10 + number)) if number else 0.0
        for name, parameter in network.named_parameters():
            kept[name] = decay * kept.get(name, torch.zeros(())) + (1 - decay) * parameter.detach()
    found = progress.given_out.state_dict()
    for name, tensor in kept.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    statistics = [name for name in found if "running" in name]
    assert statistics and all(torch.equal(found[name], network.state_dict()[name]) for name in statistics)
    assert not torch.equal(found["rpn.head.cls_logits.weight"], network.rpn.head.cls_logits.weight)


def test_what_a_checkpoint_restores_goes_on_as_what_it_was_made_of(tmp_path: Path) -> None:
    config = options(ema=0.9, optimizer="adamw")
    start = starting_point(config, CATEGORIES)

    def begin() -> Progress:
        network = build_network(config, start)
        return Progress(network, make_optimizer(config, network), averaged(network, 0.9))

    def advance(progress: Progress, seed: int) -> None:
        for group in progress.optimizer.param_groups:
            group["lr"] = 1e-3
        torch.manual_seed(seed)
        training_step(progress.network, progress.optimizer, [batch(seed)], bf16=False, clip=None)
        assert progress.average is not None
        progress.average.update_parameters(progress.network)

    first, second = begin(), begin()
    advance(first, 1)
    first.images_seen, first.step = 1, 1
    made = write_checkpoint(str(tmp_path), model_of(start, first.given_out, {}), first.state())
    second.restore(read_state(made))
    assert (second.images_seen, second.step) == (1, 1)
    for progress in (first, second):
        advance(progress, 2)
    assert not changed(first.network, copied(second.network))
    assert not changed(first.given_out, copied(second.given_out))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, {16: 0.02, 32: 0.04, 8: 0.01}),
        ({"lr": 0.1}, {16: 0.1, 64: 0.4}),
        ({"optimizer": "adamw"}, {16: 1e-4, 64: 2e-4, 4: 5e-5}),
        ({"fixed_lr": True}, {16: 0.02, 64: 0.02}),
        ({"fixed_lr": True, "optimizer": "adamw", "lr": 0.3}, {1: 0.3, 64: 0.3}),
    ],
)
def test_the_rate_follows_the_images_a_step(other: dict[str, Any], expected: dict[int, float]) -> None:
    config = options(**{"fixed_lr": False, "warmup_images": 0, "schedule": "step", **other})
    assert {n: learning_rate(config, 0, 1000, n) for n in expected} == pytest.approx(expected)


def test_the_rate_over_a_training() -> None:
    def rates(**other: Any) -> Callable[[int], float]:
        config = options(lr=1.0, **other)
        return lambda seen: learning_rate(config, seen, 1000, 10)

    falling = rates(schedule="step", milestones=(0.5, 0.9), warmup_images=0)
    assert [falling(seen) for seen in (0, 490, 500, 890, 900, 990)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = rates(schedule="cosine", warmup_images=0)
    assert [cosine(seen) for seen in (0, 250, 500, 1000)] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0])
    rising = rates(schedule="step", warmup_images=100)
    assert [rising(seen) for seen in (0, 40, 90, 200)] == pytest.approx([0.1, 0.5, 1, 1])
    assert rates(schedule="step")(0) == pytest.approx(0.1)  # a tenth of the training, unless said otherwise
