"""The network that is trained: where its weights come from, which of them move, and what moves them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import MultiScaleRoIAlign

from raymask.errors import ConfigError
from raymask.model import Category, Model, ModelSpec, build, builder, load_model, read_tensors
from raymask.model.architectures import DEFAULT_ARCHITECTURE
from raymask.model.detector import pool, with_image_index
from raymask.storage import resolve, retried
from raymask.training.config import REFERENCE_BATCH, TrainConfig

# What depends on the categories: the last layer of the box head and that of the mask head.
HEADS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
WARMUP_IMAGES = 1000 * REFERENCE_BATCH
DEFAULT_LR = {"sgd": 0.02, "adamw": 1e-4}
DEFAULT_WEIGHT_DECAY = {"sgd": 1e-4, "adamw": 0.05}


@dataclass(frozen=True)
class Start:
    """What training starts from. weights: for every tensor of the network; said: where they come from, in words."""

    spec: ModelSpec
    weights: Mapping[str, Tensor]
    said: str


def starting_point(config: TrainConfig, categories: tuple[Category, ...]) -> Start:
    """The network of `--weights` and `--model`, for these categories; what the weights lack is random by `--seed`.

    ConfigError if they do not fit together, or `--freeze` does not fit them.
    """
    torch.manual_seed(config.seed)
    backbone = _backbone_tensors(config.weights)
    if config.weights is None or backbone is not None:
        norm = config.norm or ("frozen_batch_norm" if backbone else None)
        architecture = config.model or DEFAULT_ARCHITECTURE
        spec = _with_options(ModelSpec(architecture=architecture, categories=categories), config, norm)
        network = build(spec)
        frozen_modules(config, network)  # an error now, not in the workers
        said = "random weights"
        if backbone is not None:
            said = f"{_load_backbone(network, backbone, str(config.weights))}; all else is random"
        return Start(spec, network.state_dict(), said)
    given = load_model(config.weights, config.model)
    spec = dataclasses.replace(given.spec, categories=categories, training={}, metrics={})
    spec = _with_options(spec, config, config.norm)
    network = build(spec)
    frozen_modules(config, network)
    same = given.spec.categories == categories
    kept = {n: t for n, t in given.weights.items() if same or not n.startswith(HEADS)}
    missing, unknown = network.load_state_dict(kept, strict=False)
    lost = [n for n in [*missing, *unknown] if not n.startswith(HEADS) and not n.endswith("num_batches_tracked")]
    if lost:
        raise ConfigError(f"{config.weights} has other layers than --norm {config.norm} makes, such as {lost[0]}")
    heads = (
        ""
        if same
        else (
            f"; heads replaced: {len(given.spec.categories)} categories become {len(categories)}, their weights random"
        )
    )
    return Start(spec, network.state_dict(), f"{config.weights}, {spec.architecture}{heads}")


def build_network(config: TrainConfig, start: Start) -> MaskRCNN:
    """torchvision's network in training mode, with the weights of `start`, some of them kept from moving."""
    network = build(
        start.spec,
        rpn_pre_nms_top_n_train=config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_batch_size_per_image=config.rpn_samples,
        box_batch_size_per_image=config.box_samples,
        # Augmented images come at the size they are to have.
        _skip_resize=config.augments,
    )
    network.load_state_dict(dict(start.weights))
    _coordinates_in_float32(network)
    network.roi_heads.box_roi_pool = Pooler(network.roi_heads.box_roi_pool)
    network.roi_heads.mask_roi_pool = Pooler(network.roi_heads.mask_roi_pool)
    network.train()
    for module in frozen_modules(config, network):
        module.requires_grad_(False).eval()  # evaluated, so that BatchNorm keeps its statistics too
    return network


class Pooler(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision has no types
    """torchvision's, but with a gradient on CPUs that takes no sixth of each step."""

    def __init__(self, given: MultiScaleRoIAlign) -> None:
        super().__init__(
            given.featmap_names,
            given.output_size,
            given.sampling_ratio,
            canonical_scale=given.canonical_scale,
            canonical_level=given.canonical_level,
        )

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        return pool(x, with_image_index(boxes), self, max(height for height, _ in image_shapes))


def frozen_modules(config: TrainConfig, network: MaskRCNN) -> list[nn.Module]:
    """Those that `--freeze` keeps as they are; ConfigError if it says more stages than there are."""
    stages = list(backbone_stages(network))
    if config.freeze > len(stages):
        raise ConfigError(f"--freeze is {config.freeze}, the backbone has {len(stages)} stages")
    return [module for stage in stages[: config.freeze] for module in stage]


def _coordinates_in_float32(network: MaskRCNN) -> None:
    """Under autocast too: torchvision computes anchors and boxes in the type of the features.

    In bf16 that is a step of 4 pixels above 512, for the boxes that are to be learnt as well.
    """

    def float_features(_: nn.Module, arguments: tuple[Any, list[Tensor]]) -> tuple[Any, list[Tensor]]:
        images, features = arguments
        return images, [f.new_empty(f.shape[-2:], dtype=torch.float32) for f in features]  # only their sizes are read

    def float_proposals(_: nn.Module, __: Any, found: tuple[list[Tensor], list[Tensor]]) -> Any:
        return tuple([values.float() for values in levels] for levels in found)

    network.rpn.anchor_generator.register_forward_pre_hook(float_features)
    network.rpn.head.register_forward_hook(float_proposals)


def backbone_stages(network: MaskRCNN) -> Iterator[list[nn.Module]]:
    """The layers of the backbone by the stride they work at, the stem first."""
    stage: list[nn.Module] = []
    for name, module in network.backbone.body.named_children():
        # A ResNet's stages are layer1 to layer4; MobileNet marks the first block of a stage.
        if stage and (name.startswith("layer") or getattr(module, "_is_cn", False)):
            yield stage
            stage = []
        stage.append(module)
    yield stage


def make_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over all that moves; biases and normalisation are not decayed with AdamW."""
    moving = [p for p in network.parameters() if p.requires_grad]
    decay = DEFAULT_WEIGHT_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(moving, lr=1.0, momentum=config.momentum, weight_decay=decay, fused=True)
    groups = [
        {"params": [p for p in moving if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0, fused=True)


def learning_rate(config: TrainConfig, images_seen: int, total_images: int, step_images: int) -> float:
    """The rate of the step that begins after `images_seen` images; step_images: those of one step, over all workers.

    It depends on images, not on steps, so that it goes on where it was with another number of workers.
    """
    rate = DEFAULT_LR[config.optimizer] if config.lr is None else config.lr
    if not config.fixed_lr:
        ratio = step_images / REFERENCE_BATCH
        rate *= ratio if config.optimizer == "sgd" else ratio**0.5
    warmup = config.warmup_images
    if warmup is None:
        warmup = min(WARMUP_IMAGES, total_images // 10)
    done = images_seen / total_images
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        rate *= 0.1 ** sum(done >= milestone for milestone in config.milestones)
    return rate * min(1.0, (images_seen + step_images) / warmup) if warmup else rate


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the weights, which forgets the random ones at its beginning faster than by `decay`."""

    def average(kept: Any, now: Any, steps: Any) -> None:
        ramped = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(ramped)(kept, now, steps)  # type: ignore[no-untyped-call]

    return AveragedModel(network, multi_avg_fn=average)


# ----------------------------------------------------------------------------------------------------------- backbone


def _backbone_tensors(weights: str | None) -> dict[str, Tensor] | None:
    """The state dict of a classification network, if that is what `--weights` names."""
    if weights is None:
        return None
    if "_Weights." in weights and "/" not in weights:
        try:
            entry = torchvision.models.get_weight(weights)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"torchvision has no weights {weights!r}: {error}") from error
        if "detection" in inspect.getmodule(type(entry)).__name__:  # type: ignore[union-attr]
            return None
        try:
            tensors: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"torchvision's weights {weights} cannot be had ({error}); give a file instead"
            ) from error
        return tensors
    if not weights.endswith((".pth", ".pt", ".safetensors")):
        return None
    fs, path = resolve(weights)
    if not retried(lambda: fs.isfile(path)):
        return None  # load_model says what is missing
    tensors = read_tensors(weights)
    return None if any(name.startswith("roi_heads.") for name in tensors) else tensors


def _load_backbone(network: MaskRCNN, tensors: Mapping[str, Tensor], where: str) -> str:
    """Put the weights of a classification network into the backbone; ConfigError if they are not of its kind."""
    body = network.backbone.body
    # torchvision's MobileNets keep their layers in `features`, of which a detector's backbone is made.
    given = {name.removeprefix("features."): tensor.float() for name, tensor in tensors.items()}
    wanted = {n: t for n, t in body.state_dict().items() if not n.endswith("num_batches_tracked")}
    wrong = [n for n, t in wanted.items() if n not in given or given[n].shape != t.shape]
    if wrong:
        raise ConfigError(
            f"{where} does not fit the backbone: {len(wrong)} of its {len(wanted)} tensors are missing or of another "
            f"shape, such as {wrong[0]}; --model names another architecture, --norm another normalisation"
        )
    body.load_state_dict({n: given[n] for n in wanted}, strict=False)
    return f"backbone from {where} ({len(wanted)} tensors)"


def _with_options(spec: ModelSpec, config: TrainConfig, norm: str | None) -> ModelSpec:
    parameters = dict(spec.parameters)
    if norm is not None and norm != parameters.get("norm", "batch_norm"):
        if "norm" not in inspect.signature(builder(spec.architecture)).parameters:
            raise ConfigError(f"{spec.architecture} has its own normalisation; leave --norm away")
        parameters["norm"] = norm
    given = {
        name: value
        for name in ("image_mean", "image_std", "min_size", "max_size")
        if (value := getattr(config, name)) is not None
    }
    thresholds = dataclasses.replace(spec.thresholds, proposals=min(spec.thresholds.proposals, config.proposals))
    return dataclasses.replace(spec, parameters=parameters, thresholds=thresholds, **given)


def model_of(start: Start, network: nn.Module, training: Mapping[str, Any]) -> Model:
    """The network's weights as they are now, as a model."""
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return Model.of(dataclasses.replace(start.spec, training=training), weights)
