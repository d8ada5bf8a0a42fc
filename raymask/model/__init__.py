"""Mask R-CNN: architectures by name, weights from folders, files and torchvision, and the predictor."""

from raymask.model.architectures import ARCHITECTURES, build
from raymask.model.predictor import Detections, Predictor, resolve_precision
from raymask.model.spec import Category, ModelSpec, Thresholds
from raymask.model.weights import Model, load_model, save_model

__all__ = [
    "ARCHITECTURES",
    "Category",
    "Detections",
    "Model",
    "ModelSpec",
    "Predictor",
    "Thresholds",
    "build",
    "load_model",
    "resolve_precision",
    "save_model",
]
