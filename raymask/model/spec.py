"""What a model is apart from its weights: the `model.json` of a model folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymask.errors import ConfigError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Category:
    """A class of objects. Label i of the network (1, 2, ...; 0 is background) is the category at position i - 1."""

    id: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What turns network outputs into detections; the fields are the options of `raymask segment`."""

    min_score: float = 0.05
    nms: float = 0.5
    max_detections: int = 100
    proposals: int = 1000
    mask_threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture, categories, preprocessing and thresholds of a model.

    parameters: keyword arguments of the architecture's builder beside the number of classes.
    image_mean, image_std: of RGB in [0, 1]. min_size, max_size: pixels of the shorter and the longer side after
    resizing. training, metrics: how the model was made and how well it did, for people to read.
    """

    architecture: str
    categories: tuple[Category, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    min_size: int = 800
    max_size: int = 1333
    thresholds: Thresholds = field(default_factory=Thresholds)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Labels of the network, the background among them."""
        return len(self.categories) + 1

    def with_options(self, **options: Any) -> ModelSpec:
        """The spec with the options that are not None in place of its thresholds and sizes."""
        given = {k: v for k, v in options.items() if v is not None}
        sizes = {k: given.pop(k) for k in ("min_size", "max_size") if k in given}
        return dataclasses.replace(self, **sizes, thresholds=dataclasses.replace(self.thresholds, **given))

    def to_json(self, weights_sha256: str) -> str:
        record = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "weights_sha256": weights_sha256}
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: bytes, where: str) -> tuple[ModelSpec, str]:
        """The spec and the SHA-256 of the weights it belongs to; ConfigError names what is wrong in file `where`."""
        try:
            record = json.loads(text)
            if not isinstance(record, dict):
                raise TypeError(f"an object is meant, this is a {type(record).__name__}")
            version = record.pop("format_version")
            if version != FORMAT_VERSION:
                raise ConfigError(f"{where} has format {version}, this raymask reads {FORMAT_VERSION}; upgrade raymask")
            sha256 = str(record.pop("weights_sha256"))
            spec = ModelSpec(
                **{
                    **record,
                    "architecture": str(record["architecture"]),
                    "parameters": dict(record.get("parameters", {})),
                    "categories": tuple(Category(int(c["id"]), str(c["name"])) for c in record["categories"]),
                    "image_mean": tuple(float(x) for x in record["image_mean"]),
                    "image_std": tuple(float(x) for x in record["image_std"]),
                    "min_size": int(record["min_size"]),
                    "max_size": int(record["max_size"]),
                    "thresholds": Thresholds(**record["thresholds"]),
                }
            )
        except ConfigError:
            raise
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{where} is not a model description: {what}") from error
        return spec, sha256
