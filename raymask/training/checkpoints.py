"""What a checkpoint holds: a model folder, and beside it what only training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray.train
import torch

from raymask.model import Model, save_model

STATE_FILE = "state.pt"


def write_checkpoint(folder: str, model: Model, state: dict[str, Any]) -> ray.train.Checkpoint:
    """A model folder on this machine, and beside it what only training needs."""
    save_model(folder, model.spec, model.weights)
    torch.save(state, Path(folder) / STATE_FILE)
    checkpoint: ray.train.Checkpoint = ray.train.Checkpoint.from_directory(folder)
    return checkpoint


def read_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """What `write_checkpoint` was given as state; tensors on the CPU."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)
    return state
