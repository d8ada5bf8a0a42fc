"""A model in memory: what it is, its weights, and a hash that tells it from every other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from raymask.errors import ConfigError
from raymask.model.architectures import build_empty
from raymask.model.spec import ModelSpec


@dataclass(frozen=True)
class Model:
    """A spec and the weights that fit it. `sha256` identifies both: equal models, and only those, give equal hashes."""

    spec: ModelSpec
    weights: Mapping[str, Tensor]
    sha256: str

    @staticmethod
    def of(spec: ModelSpec, weights: Mapping[str, Tensor]) -> Model:
        """A model of tensors in memory; ConfigError where they do not fit the architecture."""
        _check_fit(spec, weights)
        return Model(spec, weights, _identity(spec, weights))


def _check_fit(spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    network = build_empty(spec).state_dict()
    missing = sorted(n for n in network.keys() - weights.keys() if not n.endswith("num_batches_tracked"))
    unknown = sorted(n for n in weights.keys() - network.keys() if not n.endswith("num_batches_tracked"))
    if missing or unknown:
        parts = [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
        parts += [f"{len(unknown)} unknown, such as {unknown[0]}"] if unknown else []
        raise ConfigError(f"the weights do not fit {spec.architecture}: {'; '.join(parts)}; --model names another")
    for name, tensor in network.items():
        if name in weights and weights[name].shape != tensor.shape:
            raise ConfigError(
                f"the weights do not fit {spec.architecture}: {name} is {tuple(weights[name].shape)}, "
                f"{tuple(tensor.shape)} is meant"
            )


def _identity(spec: ModelSpec, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of what decides the network's answers: architecture, preprocessing, categories and every tensor.

    Thresholds are left out: they are options of a run, which records them beside this.
    """
    digest = hashlib.sha256()
    head = [
        spec.architecture,
        dict(spec.parameters),
        [asdict(c) for c in spec.categories],
        list(spec.image_mean),
        list(spec.image_std),
    ]
    digest.update(json.dumps(head, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
