"""Mask R-CNN: architectures by name, weights from folders, files and torchvision, and the predictor.

Predicting needs torch, torchvision, NumPy and Numba. What reads and writes weights, and the clients of stores with it,
is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import raymask.model.light_torchvision  # noqa: F401  # before what imports torchvision
from raymask.model.architectures import ARCHITECTURES, build, builder
from raymask.model.model import Model
from raymask.model.predictor import Detections, Predictor, resolve_precision
from raymask.model.spec import Category, ModelSpec, Thresholds

if TYPE_CHECKING:
    from raymask.model.weights import load_model, read_tensors, save_model

__all__ = [
    "ARCHITECTURES",
    "Category",
    "Detections",
    "Model",
    "ModelSpec",
    "Predictor",
    "Thresholds",
    "build",
    "builder",
    "load_model",
    "read_tensors",
    "resolve_precision",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in ("load_model", "read_tensors", "save_model"):
        from raymask.model import weights

        return getattr(weights, name)
    raise AttributeError(f"module 'raymask.model' has no attribute {name!r}")
