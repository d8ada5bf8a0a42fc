"""Weights from a model folder, a state dict file, or torchvision: read once, checked, never unpickled as code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from raymask.errors import ConfigError
from raymask.model.architectures import DEFAULT_ARCHITECTURE, builder
from raymask.model.model import Model
from raymask.model.spec import Category, ModelSpec
from raymask.storage import Folder, join, resolve, retried, said

WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "model.json"
WITH_TORCHVISION_WEIGHTS = (DEFAULT_ARCHITECTURE, "maskrcnn_resnet50_fpn_v2")


def load_model(weights: str | None = None, architecture: str | None = None) -> Model:
    """The model that `--weights` and `--model` name.

    weights: URL of a model folder or of a state dict (.pth, .pt, .safetensors), a torchvision weights name such as
    "COCO_V1" or "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1", or None for torchvision's COCO weights of `architecture`.
    ConfigError says what was looked for, where, and what else can be given.
    """
    if weights is None or _is_torchvision_name(weights):
        return _from_torchvision(weights, architecture)
    fs, path = resolve(weights)
    try:
        is_folder, exists = retried(lambda: (fs.isdir(path), fs.exists(path)))
    except Exception as error:  # whatever a store's library raises when it cannot be asked
        raise ConfigError(f"cannot read weights {weights!r}: {said(error)}") from error
    if not exists:
        raise ConfigError(
            f"weights {weights!r} do not exist; give a model folder, a .pth or .safetensors file, "
            f"or a torchvision weights name such as COCO_V1"
        )
    return _from_folder(weights, architecture) if is_folder else _from_file(weights, architecture)


def save_model(url: str, spec: ModelSpec, weights: Mapping[str, Tensor]) -> Model:
    """Write a model folder: `model.safetensors`, then `model.json`, which makes it whole."""
    model = Model.of(spec, {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    data = safetensors.torch.save(dict(model.weights))
    folder = Folder(url)
    folder.put(WEIGHTS_FILE, data)
    folder.put(SPEC_FILE, spec.to_json(hashlib.sha256(data).hexdigest()).encode())
    return model


def _from_folder(url: str, architecture: str | None) -> Model:
    folder = Folder(url)
    text = folder.read_or_none(SPEC_FILE)
    if text is None:
        raise ConfigError(f"{url!r} is a folder without {SPEC_FILE}, so it is no model folder")
    spec, sha256 = ModelSpec.from_json(text, join(url, SPEC_FILE))
    if architecture not in (None, spec.architecture):
        raise ConfigError(f"{url} holds a {spec.architecture}, but --model says {architecture}; leave --model away")
    data = folder.read_or_none(WEIGHTS_FILE)
    if data is None:
        raise ConfigError(f"{url!r} has {SPEC_FILE} but no {WEIGHTS_FILE}; the copy is not whole")
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ConfigError(
            f"{join(url, WEIGHTS_FILE)} has SHA-256 {found[:12]}…, {SPEC_FILE} says {sha256[:12]}…; copy it again"
        )
    return Model.of(spec, _parse_safetensors(data, join(url, WEIGHTS_FILE)))


def _from_file(url: str, architecture: str | None) -> Model:
    """A plain state dict: its categories and its normalisation are read off the tensors as far as they tell."""
    architecture = architecture or DEFAULT_ARCHITECTURE
    builder(architecture)
    tensors = read_tensors(url)
    predictor = tensors.get("roi_heads.box_predictor.cls_score.weight")
    if predictor is None:
        raise ConfigError(f"{url} is no Mask R-CNN state dict of torchvision's: it has no roi_heads.box_predictor")
    categories = _guessed_categories(predictor.shape[0] - 1)
    spec = ModelSpec(architecture=architecture, categories=categories, parameters=_norm_of(architecture, tensors))
    return Model.of(spec, tensors)


def read_tensors(url: str) -> dict[str, Tensor]:
    """A state dict by name: a .safetensors file, or one that torch.save wrote; ConfigError if it is neither."""
    fs, path = resolve(url)
    data = retried(lambda: fs.cat_file(path))
    return _parse_safetensors(data, url) if url.endswith(".safetensors") else _parse_pickle(data, url)


def _parse_safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except Exception as error:  # of a parser on any input
        raise ConfigError(f"{where} is not a safetensors file: {error}") from error
    return tensors


def _parse_pickle(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{where} is not a state dict that can be loaded without running its code: {reason}"
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):  # where training scripts keep it in a checkpoint
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ConfigError(f"{where} holds a {type(content).__name__}, not a state dict (names to tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _norm_of(architecture: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whether the backbone was trained with its BatchNorm frozen, as torchvision does when it starts from weights.

    Frozen statistics keep no count of batches. The eps of a frozen maskrcnn_resnet50_fpn is 0, as in COCO_V1, from
    which such models are fine-tuned.
    """
    if architecture == "maskrcnn_resnet50_fpn_v2" or any(n.endswith("num_batches_tracked") for n in tensors):
        return {}
    if not any(name.endswith("running_mean") for name in tensors):
        return {}
    return {"norm": "frozen_batch_norm", "norm_eps": 0.0 if architecture == DEFAULT_ARCHITECTURE else 1e-5}


def _guessed_categories(count: int) -> tuple[Category, ...]:
    coco = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if count == len(coco) - 1:
        return tuple(Category(i, name) for i, name in enumerate(coco) if i > 0)
    return tuple(Category(i, f"class_{i}") for i in range(1, count + 1))


# -------------------------------------------------------------------------------------------------------- torchvision


def _is_torchvision_name(weights: str) -> bool:
    return not ("/" in weights or "\\" in weights or os.path.exists(weights)) and (
        "_Weights." in weights or weights.isupper()
    )


def _from_torchvision(name: str | None, architecture: str | None) -> Model:
    entry = _torchvision_entry(name, architecture)
    architecture = next((a for a in WITH_TORCHVISION_WEIGHTS if _weights_of(a) is type(entry)), None)
    if architecture is None:
        raise ConfigError(f"torchvision's weights {entry} are not of a Mask R-CNN; name others with --weights")
    try:
        tensors = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        _check_cached(entry.url)
    except (URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"torchvision's weights {entry} cannot be had from {entry.url} ({error}); download the file elsewhere and "
            f"give it with --weights FILE, or give a model folder"
        ) from error
    names = entry.meta["categories"]
    # torchvision sets eps to 0 with these weights: they were trained with frozen statistics of detectron2's.
    parameters = {"norm": "frozen_batch_norm", "norm_eps": 0.0} if architecture == DEFAULT_ARCHITECTURE else {}
    spec = ModelSpec(
        architecture=architecture,
        parameters=parameters,
        categories=tuple(Category(i, name) for i, name in enumerate(names) if i > 0),
        training={"weights": str(entry)},
    )
    return Model.of(spec, tensors)


def _torchvision_entry(name: str | None, architecture: str | None) -> Any:
    if name is not None and "." in name:
        try:
            return torchvision.models.get_weight(name)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"torchvision has no weights {name!r}: {error}") from error
    architecture = architecture or DEFAULT_ARCHITECTURE
    builder(architecture)
    weights = _weights_of(architecture)
    if weights is None:
        raise ConfigError(
            f"torchvision has no trained weights for {architecture}, only for "
            f"{' and '.join(WITH_TORCHVISION_WEIGHTS)}; give your own with --weights"
        )
    if name is None:
        return weights.DEFAULT
    if name not in weights.__members__:
        raise ConfigError(
            f"torchvision has no weights {name!r} for {architecture}; it has: {', '.join(weights.__members__)}"
        )
    return weights[name]


def _weights_of(architecture: str) -> Any:
    try:
        return torchvision.models.get_model_weights(architecture)
    except ValueError:
        return None


def _check_cached(url: str) -> None:
    """Check the cached file against the hash in its name: torch does so after a download, but not ever after."""
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    wanted = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise OSError(f"the cached file {path} is damaged: SHA-256 {found[:8]}, its name says {wanted}; delete it")


# ----------------------------------------------------------------------------------------------------------- checking
