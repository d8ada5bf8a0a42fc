"""Weights from every place they may come from, and what is said when they cannot be had."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.models import detection

from raymask.errors import ConfigError
from raymask.model import Category, Model, ModelSpec, Thresholds, build, load_model, save_model
from raymask.model.weights import _check_cached


def assert_equal_weights(model: Model, weights: dict[str, torch.Tensor]) -> None:
    assert model.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(model.weights[name], tensor, rtol=0, atol=0)


@pytest.fixture
def edited_folder(model_folder: str, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], str]:
    """A copy of the model folder whose model.json is changed by a function."""

    def edit(change: Callable[[dict[str, Any]], None]) -> str:
        copy = tmp_path / "model"
        shutil.copytree(model_folder, copy)
        record = json.loads((copy / "model.json").read_text())
        change(record)
        (copy / "model.json").write_text(json.dumps(record))
        return str(copy)

    return edit


def test_a_model_folder_gives_back_what_was_saved(small_model: Model, model_folder: str) -> None:
    loaded = load_model(model_folder)
    assert loaded.spec == small_model.spec
    assert loaded.sha256 == small_model.sha256
    assert_equal_weights(loaded, dict(small_model.weights))


def test_the_hash_follows_weights_and_categories_but_not_thresholds(small_model: Model) -> None:
    spec, weights = small_model.spec, dict(small_model.weights)
    assert Model.of(spec.with_options(min_score=0.7, min_size=32), weights).sha256 == small_model.sha256
    name = "roi_heads.mask_predictor.mask_fcn_logits.bias"
    assert Model.of(spec, {**weights, name: weights[name] + 1e-6}).sha256 != small_model.sha256
    fields = {**vars(spec), "categories": (Category(3, "cat"), Category(7, "hound"))}
    assert Model.of(ModelSpec(**fields), weights).sha256 != small_model.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=2), "has format 2, this raymask reads 1"),
        (lambda r: r.pop("categories"), "no 'categories'"),
        (lambda r: r.update(weights_sha256="0" * 64), "has SHA-256"),
        (lambda r: r.update(architecture="yolo"), "unknown model 'yolo'"),
        (lambda r: r.update(surprise=1), "surprise"),
        (lambda r: r["thresholds"].update(x=1), "not a model description"),
        (lambda r: r.update(parameters={"depth": 9}), "has no parameter depth; it has: fpn_channels"),
        (lambda r: r["categories"].append({"id": 9, "name": "cow"}), "cls_score"),
    ],
)
def test_a_wrong_model_folder_is_refused(
    edited_folder: Callable[[Callable[[dict[str, Any]], None]], str],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace("{", r"\{")):
        load_model(edited_folder(change))


def test_half_a_model_folder_is_refused(model_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folder without model\.json"):
        load_model(str(tmp_path))
    shutil.copy(Path(model_folder, "model.json"), tmp_path)
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        load_model(str(tmp_path))
    with pytest.raises(ConfigError, match="--model says maskrcnn_resnet18_fpn"):
        load_model(model_folder, "maskrcnn_resnet18_fpn")


@pytest.fixture(scope="module")
def resnet18_weights() -> dict[str, torch.Tensor]:
    spec = ModelSpec(architecture="maskrcnn_resnet18_fpn", categories=(Category(1, "a"), Category(2, "b")))
    torch.manual_seed(1)
    return dict(build(spec).state_dict())


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w, "epoch": 3}, lambda w: {"state_dict": w}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_state_dicts(
    wrap: Callable[[Any], Any], prefix: str, resnet18_weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap({prefix + name: tensor for name, tensor in resnet18_weights.items()}), path)
    model = load_model(str(path), "maskrcnn_resnet18_fpn")
    assert_equal_weights(model, resnet18_weights)
    assert [c.name for c in model.spec.categories] == ["class_1", "class_2"]
    assert model.spec.parameters == {}


def test_safetensors_files(resnet18_weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(resnet18_weights, path)
    assert_equal_weights(load_model(str(path), "maskrcnn_resnet18_fpn"), resnet18_weights)
    with pytest.raises(ConfigError, match=r"do not fit maskrcnn_resnet50_fpn: .* --model names another"):
        load_model(str(path))


def test_weights_with_frozen_statistics_are_told_from_their_names(
    resnet18_weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    frozen = {n: t for n, t in resnet18_weights.items() if not n.endswith("num_batches_tracked")}
    torch.save(frozen, tmp_path / "weights.pth")
    model = load_model(str(tmp_path / "weights.pth"), "maskrcnn_resnet18_fpn")
    assert model.spec.parameters == {"norm": "frozen_batch_norm", "norm_eps": 1e-5}


class Canary:
    """Unpickled as code it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Canary(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="without running its code"):
        load_model(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 half a zip", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_that_are_no_weights(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="weights"):
        load_model(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("COCO_V9", "torchvision has no weights 'COCO_V9' for maskrcnn_resnet50_fpn; it has: COCO_V1"),
        ("MaskRCNN_ResNet50_FPN_Weights.V7", "torchvision has no weights"),
        ("ResNet50_Weights.IMAGENET1K_V1", "are not of a Mask R-CNN"),
    ],
)
def test_unknown_torchvision_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(name)


@pytest.fixture
def published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, torch.Tensor], Path]:
    """torchvision's COCO_V1 entry, pointing at a file made here; its weights; and the empty cache they go to."""
    torch.manual_seed(2)
    network = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    frozen = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(frozen, tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()[:8]
    file = (tmp_path / "weights.pth").rename(tmp_path / f"maskrcnn-{digest}.pth")
    entry = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCH_HOME", str(cache))
    monkeypatch.setattr(entry.value, "url", file.as_uri())
    return entry, frozen, cache


@pytest.mark.parametrize("name", [None, "COCO_V1", "DEFAULT", "MaskRCNN_ResNet50_FPN_Weights.COCO_V1"])
def test_torchvision_weights_by_name(
    name: str | None, published_weights: tuple[Any, dict[str, torch.Tensor], Path]
) -> None:
    entry, weights, cache = published_weights
    model = load_model(name)
    assert_equal_weights(model, weights)
    assert model.spec.architecture == "maskrcnn_resnet50_fpn"
    assert model.spec.parameters == {"norm": "frozen_batch_norm", "norm_eps": 0.0}
    assert model.spec.categories[0] == Category(1, "person")
    assert model.spec.categories[89] == Category(90, "toothbrush")
    assert model.spec.thresholds == Thresholds()
    # As torchvision builds it for these weights: frozen statistics, with an eps of 0.
    theirs = {type(m).__name__ for m in build(model.spec).backbone.modules()}
    assert "FrozenBatchNorm2d" in theirs
    assert "BatchNorm2d" not in theirs
    [cached] = (cache / "hub" / "checkpoints").iterdir()
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    with pytest.raises(OSError, match="damaged"):
        _check_cached(entry.url)
    with pytest.raises(ConfigError, match="cannot be had"):
        load_model(name)


def test_torchvision_weights_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    monkeypatch.setattr(entry.value, "url", "http://127.0.0.1:9/weights-00000000.pth")
    with pytest.raises(ConfigError, match=r"cannot be had from http://127.*; download the file elsewhere"):
        load_model()


def test_categories_of_91_classes_are_those_of_coco(tmp_path: Path) -> None:
    network = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert load_model(str(tmp_path / "weights.pth")).spec.categories[16] == Category(17, "cat")


def test_model_folders_lie_behind_any_url(small_model: Model) -> None:
    url = "memory://models/small"
    save_model(url, small_model.spec, small_model.weights)
    assert load_model(url).sha256 == small_model.sha256
