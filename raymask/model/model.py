"""A model in memory: what it is, its weights, and a hash that tells it from every other."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection import MaskRCNN

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

    def network(self) -> MaskRCNN:
        """The network in evaluation mode. It shares the model's tensors, which may be memory that cannot be written."""
        network = build_empty(self.spec)
        missing = network.load_state_dict(dict(self.weights), strict=False, assign=True).missing_keys
        for name in missing:  # counts of training batches, which nothing reads in evaluation
            module, _, buffer = name.rpartition(".")
            network.get_submodule(module).register_buffer(buffer, None)
        return network

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its weights as arrays, which Ray keeps once a node and maps into every worker."""
        arrays = {n: (str(t.dtype), tuple(t.shape), _bytes_of(t)) for n, t in self.weights.items()}
        return _from_arrays, (self.spec, arrays, self.sha256)


def _from_arrays(
    spec: ModelSpec, arrays: Mapping[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]], sha256: str
) -> Model:
    weights = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        for name, (dtype, shape, array) in arrays.items():
            weights[name] = torch.from_numpy(array).view(getattr(torch, dtype.removeprefix("torch."))).reshape(shape)
    return Model(spec, weights, sha256)


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


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
        tensor = weights[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor).data)
    return digest.hexdigest()
