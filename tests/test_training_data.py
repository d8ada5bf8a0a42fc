"""What training reads: every annotation is trained on or counted, and boxes and masks follow their image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import draw_picture
from pycocotools import mask as coco_mask

from raymask.errors import ConfigError
from raymask.masks import encode
from raymask.model import Category
from raymask.schema import INSTANCES
from raymask.sources.json_entries import MAX_JSON_DEPTH
from raymask.training.augment import Augmentation
from raymask.training.dataset import AnnotatedRows, read_rows
from raymask.training.samples import Reading, batch_of, make_samples, order, sample_table, target_of

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


def annotation(number: int | None, **other: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "segmentation": [SQUARE]}
    return {**entry, "area": 400, "iscrowd": 0, **other}


def write(folder: Path, annotations: list[dict[str, Any]], images: list[dict[str, Any]] | None = None) -> str:
    listed = images or [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}]
    record = {
        "annotations": annotations,  # before what they refer to: the order in the file does not matter
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": listed,
    }
    (folder / "gt.json").write_text(json.dumps(record))
    return str(folder / "gt.json")


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (annotation(9, bbox=[10, 10, 0, 5]), "boxes without an area, left out"),
        (annotation(9, bbox=[10, 10, -3, 5]), "boxes without an area, left out"),
        (annotation(9, bbox=[100, 100, 5, 5]), "boxes without an area, left out"),
        (annotation(9, bbox=["wide", 10, 5, 5]), "malformed segmentations or boxes, left out"),
        (annotation(9, segmentation=[[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]), "masks without a pixel, left out"),
        (annotation(9, segmentation=[]), "malformed segmentations or boxes, left out"),
        (annotation(9, segmentation=[[1, 2, 3]]), "malformed segmentations or boxes, left out"),
        (annotation(9, segmentation={"size": [5, 5], "counts": "3333"}), "malformed segmentations or boxes, left out"),
        (annotation(9, segmentation=None), "malformed segmentations or boxes, left out"),
        (annotation(9, bbox=[1, 2, 3]), "malformed segmentations or boxes, left out"),
        (annotation(9, category_id=8), "annotations of categories that are not listed, left out"),
        (annotation(9, image_id=2), "annotations of images that are not listed, left out"),
        (annotation(1), "annotations with an id used before, left out"),
        (annotation(9, iscrowd=1), "crowd regions, which are not trained on"),
    ],
)
def test_what_cannot_be_trained_on_is_left_out_and_counted(bad: dict[str, Any], problem: str, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, [annotation(1), bad]), None)
    assert rows.problems == {problem: 1}
    assert rows.objects == 1


def test_what_can_be_mended_is_kept_and_counted(tmp_path: Path) -> None:
    beyond = [-20.0, 10.0, 30.0, 10.0, 30.0, 30.0, -20.0, 30.0]
    missing = annotation(None)
    del missing["id"], missing["bbox"]
    found = read_rows(write(tmp_path, [missing, annotation(2, segmentation=[beyond], bbox=[-20, 10, 50, 20])]), None)
    assert found.problems == {"annotations without id, kept": 1, "polygons that reach out of their image, clipped": 1}
    [row] = found.table.to_pylist()
    assert row["uri"] == str(tmp_path / "a.png")
    assert [o["box_xyxy"] for o in row["objects"]] == [[10, 10, 30, 30], [0, 10, 30, 30]]
    assert found.categories == (Category(3, "cat"), Category(7, "dog"))
    assert {o["label"] for o in row["objects"]} == {2}
    rle = coco_mask.merge(coco_mask.frPyObjects([SQUARE], 48, 64))
    assert row["objects"][0]["counts"] == rle["counts"].decode()


def test_images_are_kept_without_objects_and_left_out_twice_or_unsized(tmp_path: Path) -> None:
    listed = [
        {"id": 0, "file_name": "zero.png", "height": 48, "width": 64},
        {"id": 1, "file_name": "a.png", "height": 48, "width": 64},
        {"id": 1, "file_name": "b.png", "height": 48, "width": 64},
        {"id": 2, "file_name": "c.png"},
        {"file_name": "d.png", "height": 48, "width": 64},
    ]
    rows = read_rows(write(tmp_path, [annotation(1), annotation(2)], listed), "s3://bucket/photos")
    assert rows.table.column("uri").to_pylist() == ["s3://bucket/photos/zero.png", "s3://bucket/photos/a.png"]
    assert [len(o) for o in rows.table.column("objects").to_pylist()] == [0, 2]
    assert rows.problems == {
        "images without objects, kept": 1,
        "images with an id used before, left out": 1,
        "images without height and width, left out": 1,
        "images without id or file_name, left out": 1,
    }


def test_rows_come_back_from_parquet(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, [annotation(1), annotation(2, iscrowd=1)]), None)
    assert AnnotatedRows.from_parquet(rows.to_parquet()) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no list 'categories'"),
        ("[1, 2]", "no list 'categories'"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "no list 'images'"),
        ("{", "cannot read"),
    ],
)
def test_files_that_are_no_annotations_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_rows(str(tmp_path / "gt.json"), None)
    with pytest.raises(ConfigError, match="does not exist"):
        read_rows(str(tmp_path / "none.json"), None)
    with pytest.raises(ConfigError, match="no object to train on"):
        read_rows(write(tmp_path, [annotation(1, iscrowd=1)]), None)


def test_files_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    """However the brackets lie in what is read at once; as deep as may be is read."""
    for levels in ([9_000, 2_000], [9_000, 900]):
        opened = "".join("[" * count + " " * 100_000 for count in levels)
        (tmp_path / "gt.json").write_text(f'{{"categories": {opened}{"]" * sum(levels)}}}')
        too_deep = sum(levels) > MAX_JSON_DEPTH
        with pytest.raises(ConfigError, match="nested more than 10000" if too_deep else "no list 'categories'"):
            read_rows(str(tmp_path / "gt.json"), None)


def test_tables_of_masks_are_annotations_too(tmp_path: Path) -> None:
    mask = np.zeros((48, 64), bool)
    mask[10:30, 10:30] = True
    instance = {"image_id": 0, "uri": "/photos/a.png", "instance": 0, "category_id": 7, "category": "dog", "score": 0.9}
    box = {"x_min": 10.0, "y_min": 10.0, "x_max": 30.0, "y_max": 30.0}
    listed = [instance | box | {"area": 400, "mask": encode(mask)}]
    listed.append({**listed[0], "instance": 1, "x_max": 10.0})
    images = [
        {"uri": "/photos/a.png", "status": "ok", "height": 48, "width": 64},
        {"uri": "/photos/b.png", "status": "failed", "height": None, "width": None},
        {"uri": "/photos/c.png", "status": "ok", "height": 48, "width": 64},
    ]
    for name, table in (
        ("images", pa.Table.from_pylist(images)),
        ("instances", pa.Table.from_pylist(listed, INSTANCES)),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "part.parquet")
    rows = read_rows(str(tmp_path), None)
    assert rows.table.column("uri").to_pylist() == ["/photos/a.png", "/photos/c.png"]
    [kept] = rows.table.column("objects").to_pylist()[0]
    assert kept == {"label": 1, "box_xyxy": [10, 10, 30, 30], "counts": encode(mask)["counts"]}
    assert rows.categories == (Category(7, "dog"),)
    assert rows.problems == {
        "boxes without an area, left out": 1,
        "images that failed when they were segmented, left out": 1,
        "images without objects, kept": 1,
    }


# ------------------------------------------------------------------------------------------------------------ samples


def test_every_epoch_has_every_row_in_another_order() -> None:
    first, second = order(5, 0, 100), order(5, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert list(first) != list(second)
    assert list(first) != list(order(6, 0, 100))


@pytest.mark.usefixtures("ray_session")
def test_samples_do_not_depend_on_where_the_stream_begins(tmp_path: Path) -> None:
    import ray

    listed = [{"id": n, "file_name": f"{n}.png", "height": 48, "width": 64} for n in range(5)]
    for number in range(5):
        draw_picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"ABORT!!")  # at which the decoder below ends its process
    rows = read_rows(write(tmp_path, [annotation(n + 1, image_id=n) for n in range(5)], listed), None)
    augmentation = Augmentation(min_size=48, max_size=64, flip=0.5, min_scale=0.5, max_scale=2.0, photometric=0.5)
    reading = Reading(ray.put(rows.table), 5, 1, augmentation, 10**6, 10**6, "poison_decoder:decode")
    whole = list(make_samples(reading, 0, 12))
    assert [t.num_rows for t in whole] == [1] * 12
    assert pa.concat_tables(whole[4:9]).equals(pa.concat_tables(make_samples(reading, 4, 9)))
    replaced = [t.column("replaced")[0].as_py() for t in whole]
    assert replaced[:10].count(str(tmp_path / "3.png")) == 2
    assert not any(t.equals(whole[0]) for t in whole[1:])


def test_a_sample_goes_through_a_table_unchanged() -> None:
    image = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    targets = {
        "boxes": torch.tensor([[1.5, 2, 3, 4]]),
        "labels": torch.tensor([2]),
        "masks": torch.randint(0, 2, (1, 7, 9), dtype=torch.uint8),
    }
    empty = target_of({"objects": [], "height": 7, "width": 9})
    table = pa.concat_tables([sample_table(0, image, targets, None), sample_table(1, image, empty, "a.png")])
    images, back = batch_of(table)
    torch.testing.assert_close(images, [image.float() / 255] * 2)
    for found, given in zip(back, (targets, empty), strict=True):
        assert all(torch.equal(found[name], given[name]) for name in ("boxes", "labels", "masks"))


# ------------------------------------------------------------------------------------------------------- augmentation


def scene() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Two white rectangles on black, one in the middle and one at the edge."""
    masks = torch.zeros((2, 60, 80), dtype=torch.uint8)
    masks[0, 20:40, 30:50] = 1
    masks[1, 0:10, 60:80] = 1
    image = (masks.sum(0).clamp(max=1) * 255).expand(3, -1, -1).contiguous().to(torch.uint8)
    boxes = torch.tensor([[30.0, 20, 50, 40], [60, 0, 80, 10]])
    return image, {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks}


@pytest.mark.parametrize("seed", range(20))
def test_boxes_and_masks_follow_the_image(seed: int) -> None:
    image, target = scene()
    changed, found = Augmentation(60, 80, 0.5, 0.5, 2.5, 0.0)(image, target, seed)
    assert changed.dtype == torch.uint8
    assert max(changed.shape[1:]) <= 80
    assert found["masks"].shape[1:] == changed.shape[1:]
    for box, mask in zip(found["boxes"].tolist(), found["masks"].bool(), strict=True):
        ys, xs = torch.nonzero(mask, as_tuple=True)
        around = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        assert np.abs(np.subtract(box, around)).max() <= 1
        inside = ~torch.nn.functional.max_pool2d((~mask).float()[None], 3, 1, 1)[0].bool()
        if inside.any():
            assert changed[0][mask].float().mean() > 200
        else:  # a crop left a line of it, which resizing has mixed with what lies beside it
            assert mask.sum() < 20
    covered = found["masks"].bool().any(0)
    assert changed[0][~covered].float().mean() < 20


def test_the_same_seed_gives_the_same_image_and_leaves_torch_alone() -> None:
    image, target = scene()
    augmentation = Augmentation(60, 80, 0.5, 0.8, 1.25, 1.0)
    state = torch.get_rng_state()
    one, again, other = (augmentation(image, target, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_an_image_without_objects_is_augmented() -> None:
    empty = target_of({"objects": [], "height": 60, "width": 80})
    for seed in range(5):
        changed, found = Augmentation(60, 80, 0.5, 0.5, 2.0, 0.5)(scene()[0], empty, seed)
        assert found["boxes"].shape == (0, 4)
        assert found["masks"].shape == (0, *changed.shape[1:])
