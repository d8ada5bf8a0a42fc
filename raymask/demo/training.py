"""Train a small Mask R-CNN on the drawn data set, with a plain loop, in two minutes on two CPU cores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from raymask.demo.drawing import CATEGORIES, SIDE
from raymask.masks import decode
from raymask.model import Category, Model, ModelSpec, Thresholds, build, save_model

BATCH_SIZE = 8
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
WARM_UP_STEPS = 20
LARGEST_GRADIENT = 10.0

SPEC = ModelSpec(
    architecture="maskrcnn_resnet10_fpn",
    categories=tuple(Category(id, name) for id, name in enumerate(CATEGORIES, 1)),
    min_size=SIDE,
    max_size=SIDE,
    thresholds=Thresholds(proposals=200, max_detections=20),
)

Sample = tuple[Tensor, dict[str, Tensor]]
"""An image, 3 x H x W float32 in [0, 1], and its objects: boxes N x 4, labels N, masks N x H x W uint8."""


def train(
    annotations: Path, images: Path, model_folder: str, steps: int, seed: int, say: Callable[[str], None]
) -> Model:
    """Train on COCO annotations (segmentations as RLE) and write a model folder. `say` gets a line a step."""
    torch.manual_seed(seed)
    samples = read_samples(annotations, images)
    network = build(SPEC).train()
    # Fewer boxes a picture than torchvision's defaults, which are meant for photos of 800 pixels.
    network.rpn._post_nms_top_n["training"] = 200
    network.rpn.fg_bg_sampler.batch_size_per_image = 64
    network.roi_heads.fg_bg_sampler.batch_size_per_image = 64
    losses = fit(network, samples, steps, np.random.default_rng(seed), say)
    training = {"steps": steps, "batch_size": BATCH_SIZE, "seed": seed, "images": len(samples), "last_loss": losses[-1]}
    spec = ModelSpec(**{**vars(SPEC), "training": training})
    return save_model(model_folder, spec, network.state_dict())


def read_samples(annotations: Path, images: Path) -> list[Sample]:
    """Every annotated image with its objects, in memory."""
    record = json.loads(annotations.read_text())
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in record["images"]}
    for annotation in record["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    return [_sample(images / image["file_name"], objects[image["id"]]) for image in record["images"]]


def _sample(file: Path, objects: Sequence[dict[str, Any]]) -> Sample:
    pixels = torch.from_numpy(np.array(PIL.Image.open(file).convert("RGB")))
    x, y, width, height = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).unbind(1)
    target = {
        "boxes": torch.stack([x, y, x + width, y + height], dim=1),
        "labels": torch.tensor([o["category_id"] for o in objects]),
        "masks": torch.from_numpy(np.stack([decode(o["segmentation"]) for o in objects]).astype(np.uint8)),
    }
    return pixels.permute(2, 0, 1).float() / 255, target


def fit(
    network: nn.Module, samples: Sequence[Sample], steps: int, rng: np.random.Generator, say: Callable[[str], None]
) -> list[float]:
    """AdamW with a warm-up and a cosine to zero; returns the loss of each step."""
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(step, steps))
    losses = []
    for step in range(steps):
        batch = [maybe_mirrored(samples[i], rng) for i in rng.choice(len(samples), BATCH_SIZE, replace=False)]
        parts = network([image for image, _ in batch], [target for _, target in batch])
        loss = torch.stack(list(parts.values())).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        shown = ", ".join(f"{name.removeprefix('loss_')} {part.item():.2f}" for name, part in parts.items())
        say(f"step {step + 1} of {steps}, loss {losses[-1]:.2f} ({shown})")
    return losses


def learning_rate(step: int, steps: int) -> float:
    """The share of `LEARNING_RATE` at a step."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def maybe_mirrored(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample, or with even chance its mirror image."""
    image, target = sample
    if rng.random() < 0.5:
        return sample
    x_min, y_min, x_max, y_max = target["boxes"].unbind(1)
    width = image.shape[2]
    boxes = torch.stack([width - x_max, y_min, width - x_min, y_max], dim=1)
    return image.flip(2), {**target, "boxes": boxes, "masks": target["masks"].flip(2)}
