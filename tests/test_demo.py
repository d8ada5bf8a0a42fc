"""The demo's parts: data that are what their annotations say, a loop that learns, pictures that show masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from raymask.cli import build_parser
from raymask.demo import pictures
from raymask.demo.__main__ import make_folder, training_command
from raymask.demo.drawing import CATEGORIES, box_xyxy, draw, write_data_set
from raymask.errors import ConfigError
from raymask.masks import decode, encode
from raymask.training.config import TrainConfig


def test_the_data_set_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        write_data_set(tmp_path / name, train=4, held_out=2, seed=seed)
    files = [f.relative_to(tmp_path / "one") for f in (tmp_path / "one").rglob("*") if f.is_file()]
    assert len(files) == 4 + 2 + 3 + 2
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert (tmp_path / "one/train.json").read_text() != (tmp_path / "other/train.json").read_text()


def test_annotations_say_what_is_in_the_pictures(tmp_path: Path) -> None:
    write_data_set(tmp_path, train=6, held_out=3, seed=1)
    record = json.loads((tmp_path / "train.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in record["images"]}
    for image in record["images"]:
        with PIL.Image.open(tmp_path / "train" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    taken: dict[int, np.ndarray] = {}
    for annotation in record["annotations"]:
        mask = decode(annotation["segmentation"])
        assert mask.shape == sizes[annotation["image_id"]]
        assert int(mask.sum()) == annotation["area"] > 0
        x_min, y_min, x_max, y_max = box_xyxy(mask)
        assert annotation["bbox"] == [x_min, y_min, x_max - x_min, y_max - y_min]
        # Only what is visible of an object is its own, so that no two share a pixel.
        before = taken.setdefault(annotation["image_id"], np.zeros(mask.shape, bool))
        assert not (before & mask).any()
        before |= mask
    assert {a["category_id"] for a in record["annotations"]} <= set(range(1, len(CATEGORIES) + 1))


def test_objects_can_be_told_from_the_ground() -> None:
    for seed in range(20):
        drawing = draw(np.random.default_rng(seed))
        ground = ~np.logical_or.reduce(drawing.masks)
        for mask in drawing.masks:
            difference = drawing.pixels[mask].mean(axis=0) - drawing.pixels[ground].mean(axis=0)
            assert np.linalg.norm(difference) > 40


def test_the_training_command_is_one() -> None:
    options = vars(build_parser().parse_args(training_command(Path("data"), Path("model"), 8, 0)))
    assert options.pop("command") == "train"
    assert not options.pop("debug")
    assert TrainConfig(**options).epochs == 8


def test_of_rivals_the_best_is_drawn() -> None:
    left, right = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    left[5:15, 5:15] = right[5:15, 16:26] = True
    rows = [{"score": score, "mask": encode(mask)} for score, mask in ((0.6, left), (0.9, left), (0.7, right))]
    assert [row["score"] for row in pictures.without_rivals(rows)] == [0.9, 0.7]


def test_a_contact_sheet_has_room_for_all() -> None:
    assert pictures.contact_sheet([PIL.Image.new("RGB", (90, 60))] * 4).size == (3 * 98 + 8, 2 * 68 + 8)


def test_the_demo_makes_only_its_own_folders_anew(tmp_path: Path) -> None:
    make_folder(tmp_path / "demo")
    (tmp_path / "demo" / "masks").mkdir()
    (tmp_path / "demo" / "notes").touch()
    make_folder(tmp_path / "demo")
    assert not (tmp_path / "demo" / "masks").exists()
    assert (tmp_path / "demo" / "notes").exists()
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="not of an earlier demo"):
        make_folder(tmp_path)
    assert (tmp_path / "mine").exists()
