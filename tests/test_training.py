"""Training: the losses of a plain loop, the gradients of all workers averaged, and a model that segments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from raymask.demo.drawing import write_data_set
from raymask.errors import ConfigError, OutputError
from raymask.masks import decode
from raymask.model import build, load_model
from raymask.progress import Silent
from raymask.storage import Folder
from raymask.training import trainer
from raymask.training.config import TrainConfig
from raymask.training.dataset import read_rows
from raymask.training.loop import LOSSES
from raymask.training.network import starting_point
from raymask.training.samples import order, seed_of
from raymask.training.trainer import train

IMAGES = 10
PLAIN = {
    "model": "maskrcnn_resnet10_fpn",
    "min_size": 96,
    "max_size": 128,
    "flip": 0.0,
    "photometric": 0.0,
    "min_scale": 1.0,
    "max_scale": 1.0,
    "proposals": 100,
    "rpn_samples": 64,
    "box_samples": 64,
    "warmup_images": 0,
    "fixed_lr": True,
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_data_set(folder, IMAGES, 3, seed=4)
    return folder


def options(drawn: Path, out: Path, **other: Any) -> TrainConfig:
    named = {"data": str(drawn / "train.json"), "images": str(drawn / "train"), "out": str(out)}
    return TrainConfig(**{**PLAIN, **named, **other})


def read_log(out: Path, kind: str = "step") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == kind]


def plain_batches(drawn: Path, seed: int, size: int) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """The images of the data set in raymask's order, read with nothing but Pillow, json and the masks' decoder."""
    record = json.loads((drawn / "train.json").read_text())
    numbers = [n for epoch in range(10) for n in order(seed, epoch, IMAGES)]
    for start in range(0, len(numbers), size):
        images, targets = [], []
        for number in numbers[start : start + size]:
            image = record["images"][number]
            objects = [a for a in record["annotations"] if a["image_id"] == image["id"]]
            pixels = np.array(PIL.Image.open(drawn / "train" / image["file_name"]).convert("RGB"))
            images.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
            boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32)
            boxes[:, 2:] += boxes[:, :2]
            masks = np.stack([decode(a["segmentation"]) for a in objects]).astype(np.uint8)
            labels = torch.tensor([a["category_id"] for a in objects])
            targets.append({"boxes": boxes, "labels": labels, "masks": torch.from_numpy(masks)})
        yield images, targets


def plain_network(config: TrainConfig) -> MaskRCNN:
    start = starting_point(config, read_rows(config.data, config.images).categories)
    network = build(
        start.spec,
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=100,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
    )
    network.load_state_dict(dict(start.weights))
    return network.train()


@pytest.mark.usefixtures("ray_session")
def test_losses_are_those_of_a_plain_loop(drawn: Path, tmp_path: Path) -> None:
    # Frozen, because BatchNorm over two images makes of 1e-7 (another number of threads) 1e-2 in two steps.
    config = options(drawn, tmp_path / "out", epochs=2, batch_size=2, lr=0.002, norm="frozen_batch_norm", seed=3)
    train(config)
    network = plain_network(config)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    logged = read_log(tmp_path / "out")
    assert len(logged) == 10
    for step, (record, (images, targets)) in enumerate(zip(logged, plain_batches(drawn, 3, 2), strict=False)):
        torch.manual_seed(seed_of(3, 2 * step, 0))
        losses = network(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
        for name in LOSSES:
            assert record[name] == pytest.approx(losses[name].item(), abs=1e-4), f"{name} of step {step}"
        assert record["images"] == 2 * (step + 1)


@pytest.mark.usefixtures("ray_session")
def test_an_image_that_kills_its_decoder_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's workers find modules from the folder that the tests are run in.
    monkeypatch.setattr(trainer, "DECODER", f"{Path(__file__).parent.name}.poison_decoder:decode")
    write_data_set(tmp_path, 4, 1, seed=4)
    poison = min((tmp_path / "train").iterdir())
    poison.write_bytes(b"ABORT!!")
    rows = trainer.prepared_rows(options(tmp_path, tmp_path / "out"), Folder(str(tmp_path / "kept")), Silent())
    assert rows.table.num_rows == 3
    assert str(poison) not in rows.table.column("uri").to_pylist()
    assert rows.problems["images that cannot be read (crashed_worker), left out"] == 1


@pytest.mark.usefixtures("ray_session")
def test_the_step_goes_along_the_mean_gradient_of_all_workers(drawn: Path, tmp_path: Path) -> None:
    """With a rate of 1 and no momentum, one step moves the weights by the gradient itself."""
    workers = accumulate = 2
    size = IMAGES // (2 * workers * accumulate) * 2
    used = size * workers * accumulate
    config = options(
        drawn,
        tmp_path / "out",
        **{"epochs": 1, "batch_size": size, "accumulate": accumulate, "workers": str(workers), "lr": 1.0},
        **{"momentum": 0.0, "weight_decay": 0.0, "norm": "frozen_batch_norm", "checkpoint_images": used},
    )
    train(config)
    checkpoint = tmp_path / "out/_raymask/checkpoints" / f"images-{used:012d}/state.pt"
    after = torch.load(checkpoint, weights_only=True)["network"]
    network = plain_network(config)
    images, targets = next(plain_batches(drawn, 0, used))
    for rank in range(workers):
        torch.manual_seed(seed_of(0, 0, rank))
        for micro in range(accumulate):
            # Workers take turns by sample, so that a step takes the next samples whatever their number.
            mine = range(micro * size * workers + rank, (micro + 1) * size * workers, workers)
            losses = network([images[i] for i in mine], [targets[i] for i in mine])
            (sum(losses.values()) / workers / accumulate).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        moved = parameter.detach() - after[name]
        torch.testing.assert_close(moved, parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.usefixtures("ray_session")
def test_a_trained_folder_is_a_model_with_its_history(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("out")  # relative, to where workers are not
    validation = {"val": str(drawn / "val.json"), "val_images": str(drawn / "val")}
    varied = {"flip": 0.5, "photometric": 0.5, "min_scale": 0.7, "max_scale": 1.4, "ema": 0.9, "clip": 1.0}
    config = options(drawn, out, epochs=2, batch_size=5, optimizer="adamw", lr=1e-3, **varied, **validation)
    summary = train(config)
    assert (summary.images, summary.images_seen) == (IMAGES, 2 * IMAGES)
    assert [r["images"] for r in read_log(out, "validation")] == [IMAGES, 2 * IMAGES]
    assert summary.metrics["segm_AP"] == max(r["segm_AP"] for r in read_log(out, "validation"))
    model = load_model(str(out))
    assert [c.name for c in model.spec.categories] == ["circle", "square", "star"]
    assert model.spec.metrics == summary.metrics
    assert {f.name for f in out.iterdir()} >= {"log.jsonl", "curves.png", "tensorboard", "model.json"}
    with PIL.Image.open(out / "curves.png") as curves:
        assert curves.size == (1080, 840)

    # Run again, there is nothing to do; begun otherwise, it is refused.
    again = train(config)
    assert again.metrics == summary.metrics
    assert len(read_log(out)) == 4
    with pytest.raises(OutputError, match=r"begun with lr 0\.001, this run has lr 0\.1"):
        train(dataclasses.replace(config, lr=0.1))

    # Nor does it begin anew, unasked, where its checkpoints cannot be made out.
    snapshot = out / "_raymask/checkpoints/checkpoint_manager_snapshot.json"
    whole = snapshot.read_text()
    snapshot.write_text(whole[: len(whole) // 2])
    with pytest.raises(OutputError, match=r"snapshot.json does not fit .* --weights .* delete that file"):
        train(config)


class Said(Silent):
    """Remembers the lines that stay."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.usefixtures("ray_session")
def test_a_loss_that_is_no_number_ends_the_training(drawn: Path, tmp_path: Path, model_folder: str) -> None:
    size = {"epochs": 4, "batch_size": 2, "workers": "2", "max_failures": 1}
    config = options(drawn, tmp_path / "out", weights=model_folder, lr=1e30, **size)
    report = Said()
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) after \d+ images; give another --out with a lower"):
        train(config, report)
    assert [r["workers"] for r in read_log(tmp_path / "out", "start")] == [2]  # once: a retry would end the same way
    [begun] = [line for line in report.lines if line.startswith("model ")]
    assert "heads replaced: 2 categories become 3" in begun
