"""Mask R-CNN: architectures by name, weights from folders, files and torchvision, and the predictor."""

from raymask.model.architectures import ARCHITECTURES, build, builder
from raymask.model.predictor import Detections, Predictor, resolve_precision
from raymask.model.spec import Category, ModelSpec, Thresholds
from raymask.model.weights import Model, load_model, read_tensors, save_model

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
