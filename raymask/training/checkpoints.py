"""What a checkpoint holds: a model folder, and beside it what only training needs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ray.train
import torch

from raymask.errors import OutputError
from raymask.model import Model, save_model
from raymask.training.storage import name_of

STATE_FILE = "state.pt"


def write_checkpoint(folder: str, model: Model, state: dict[str, Any]) -> ray.train.Checkpoint:
    """A model folder on this machine, and beside it what only training needs."""
    save_model(folder, model.spec, model.weights)
    torch.save(state, Path(folder) / STATE_FILE)
    checkpoint: ray.train.Checkpoint = ray.train.Checkpoint.from_directory(folder)
    return checkpoint


def read_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """What `write_checkpoint` was given as state; tensors on the CPU. OutputError if the file holds something else."""
    with checkpoint.as_directory() as folder:
        data = Path(folder, STATE_FILE).read_bytes()
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of a parser on any input
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutputError(
            f"{name_of(checkpoint)}/{STATE_FILE} cannot be loaded without running its code ({why}); begin anew from "
            f"that checkpoint with --weights and another --out"
        ) from error
    return state
