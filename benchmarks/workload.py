"""The photos and the model that benchmarks share, made once and kept in benchmarks/data/."""

from __future__ import annotations

from pathlib import Path

from models import fixed_detections_model
from photos import make_photos

DATA = Path(__file__).parent / "data"


def model_folder() -> Path:
    """The folder of `fixed_detections_model`."""
    folder = DATA / "model"
    if not (folder / "model.json").exists():
        fixed_detections_model(folder)
    return folder


def photo_folder(count: int, size_hw: tuple[int, int]) -> Path:
    """A folder of `count` JPEG photos of that size."""
    folder = DATA / "photos_{}x{}_{}".format(*size_hw, count)
    if len(list(folder.glob("*.jpg"))) != count:
        make_photos(folder, count, size_hw)
    return folder
