"""Ways out of the tables and into them: real annotations there and back, other programs' readers, hostile names."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import shapely.geometry
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from outputs import list_images, make_content
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from stores import Store
from test_evaluation import coco_record, found, pictures, write_json, write_output

import raymask
from raymask.cli import main
from raymask.config import SegmentConfig
from raymask.errors import ConfigError, OutputError
from raymask.evaluation import coco_results, evaluate, match_images, read_annotations
from raymask.interop import importing
from raymask.interop.names import FileNames, safe_path
from raymask.interop.outlines import joined_rings
from raymask.interop.selection import Selection
from raymask.journal import read_run, write_part
from raymask.masks import area, decode, encode, mask_geojson
from raymask.output import Masks
from raymask.pipeline import plan
from raymask.schema import IMAGES, MASK, footer_of, image_id
from raymask.storage import resolve

COCO_FILES = [
    "coco_val2014_54/instances_val2014_54.json",
    "balloon/val_coco.json",
    "reference_eval/cocoapi/instances_val2014_100.json",
]
RING = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1]], np.bool_)


@pytest.fixture(scope="module")
def truth(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """An output made of COCO's own annotations, and those."""
    file = shared_data(COCO_FILES[0])
    out = str(tmp_path_factory.mktemp("truth") / "out")
    raymask.import_(str(file), format="coco", out=out, images=str(file.parent / "images"))
    return out, json.loads(file.read_text())


def tables_of(out: str) -> dict[str, list[dict[str, Any]]]:
    masks = Masks(out)
    return {"images": masks.images.to_arrow().to_pylist(), "instances": masks.instances.to_arrow().to_pylist()}


def masks_by_image(out: str) -> dict[str, list[tuple[str, str]]]:
    """Category and RLE of each instance, in their order, by the uri of their image."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in tables_of(out)["instances"]:
        found.setdefault(row["uri"], []).append((row["category"], row["mask"]["counts"]))
    return found


def write_coco(folder: Path, masks: Mapping[str, list[NDArray[np.bool_]]], **more: Any) -> str:
    """A COCO file of these masks by name of their image, of category 3; ids of images from 1."""
    folder.mkdir(exist_ok=True)
    images = [
        {"id": n, "file_name": name, "height": of[0].shape[0], "width": of[0].shape[1]}
        for n, (name, of) in enumerate(masks.items(), 1)
    ]
    annotations = [
        {"id": 100 * n + place, "image_id": n, "category_id": 3, "iscrowd": 0, "segmentation": encode(mask), **more}
        for n, of in enumerate(masks.values(), 1)
        for place, mask in enumerate(of)
    ]
    record = {"images": images, "categories": [{"id": 3, "name": "cat"}], "annotations": annotations}
    return write_json(folder, record)


def imported(folder: Path, masks: Mapping[str, list[NDArray[np.bool_]]], **options: Any) -> str:
    out = str(folder / "out")
    raymask.import_(write_coco(folder, masks), format="coco", out=out, **options)
    return out


# ------------------------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize("name", COCO_FILES)
def test_coco_annotations_there_and_back(
    name: str, shared_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every image, id, name, crowd and area; and every pixel as pycocotools draws the original."""
    file = shared_data(name)
    assert main(["import", str(file), "--format", "coco", "--out", f"{tmp_path}/out"]) == 0
    assert main(["export", f"{tmp_path}/out", "--format", "coco", "--out", f"{tmp_path}/back.json"]) == 0
    before, after = json.loads(file.read_text()), json.loads((tmp_path / "back.json").read_text())
    fields = ("id", "file_name", "height", "width")
    assert [{k: i[k] for k in fields} for i in before["images"]] == after["images"]
    assert sorted((c["id"], c["name"]) for c in before["categories"]) == [
        (c["id"], c["name"]) for c in after["categories"]
    ]
    there, back = COCO(str(file)), COCO(str(tmp_path / "back.json"))
    assert sorted(there.anns) == sorted(back.anns)
    crowds = 0
    for number, annotation in there.anns.items():
        same = back.anns[number]
        assert [same[k] for k in ("image_id", "category_id")] == [annotation[k] for k in ("image_id", "category_id")]
        assert same["iscrowd"] == annotation.get("iscrowd", 0)
        assert same["area"] == annotation["area"]
        assert same["bbox"] == pytest.approx(annotation["bbox"], abs=1e-3)
        assert same["segmentation"]["counts"] == there.annToRLE(annotation)["counts"].decode()
        crowds += same["iscrowd"]
    assert ("val2014" in name) == (crowds > 0)
    assert "images" in capsys.readouterr().out


def test_coco_results_there_and_back(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Published results come out with the same ids, scores and masks, and as good as they are published to be."""
    folder = shared_data("coco_val2014_54")
    results, annotations = str(folder / "fakesegm_results_54.json"), str(folder / "instances_val2014_54.json")
    out = f"{tmp_path}/out"
    raymask.import_(results, format="coco-results", annotations=annotations, out=out)
    summary = raymask.export(out, format="coco-results", out=f"{tmp_path}/back.json")
    before, after = json.loads(Path(results).read_text()), json.loads((tmp_path / "back.json").read_text())
    assert summary.instances == len(before) == len(after)

    def key(result: dict[str, Any]) -> Any:
        text = result["segmentation"]["counts"]
        return result["image_id"], result["category_id"], float(np.float32(result["score"])), text

    assert sorted(map(key, before)) == sorted(map(key, after))
    truth = read_annotations(annotations)
    assert after == coco_results(Masks(out), match_images(Masks(out), truth))
    expected = json.loads((shared_data("reference_eval") / "expected.json").read_text())
    numbers = expected["segm"]["subset54_pycocotools_2_0_11"]
    assert evaluate(out, annotations)["segm"] == pytest.approx(numbers, abs=1e-9)


def test_annotations_of_an_export_are_as_good_as_the_original(
    truth: tuple[str, dict[str, Any]], shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shared_data("coco_val2014_54")
    annotations = str(folder / "instances_val2014_54.json")
    raymask.export(truth[0], format="coco", out=f"{tmp_path}/back.json")
    raymask.import_(
        str(folder / "fakesegm_results_54.json"), format="coco-results", annotations=annotations, out=f"{tmp_path}/out"
    )
    assert evaluate(f"{tmp_path}/out", f"{tmp_path}/back.json") == evaluate(f"{tmp_path}/out", annotations)


def test_polygons_of_coco_are_the_masks(truth: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Holes and parts included, by pycocotools' own rasterising."""
    raymask.export(truth[0], format="coco", out=f"{tmp_path}/rle.json")
    raymask.export(truth[0], format="coco", polygons=True, out=f"{tmp_path}/polygons.json")
    rle, polygons = (COCO(f"{tmp_path}/{name}.json") for name in ("rle", "polygons"))
    for number, annotation in polygons.anns.items():
        assert isinstance(annotation["segmentation"], dict if annotation["iscrowd"] else list)
        expected = rle.anns[number]["segmentation"]["counts"]
        assert annotation["iscrowd"] or polygons.annToRLE(annotation)["counts"].decode() == expected
    out = imported(tmp_path, {"a.png": [RING]})
    raymask.export(out, format="coco", polygons=True, out=f"{tmp_path}/ring.json")
    ring = COCO(f"{tmp_path}/ring.json")
    np.testing.assert_array_equal(ring.annToMask(ring.anns[100]), RING)


def test_ids_where_there_are_none(tmp_path: Path) -> None:
    """Images are numbered from 1 by their place in the table, also those that failed, and named below their folder."""
    images = [*pictures("/p/x/b.jpg"), {"uri": "/p/c.jpg", "size_hw": None}, *pictures("/p/y/b.jpg")]
    out = write_footed(tmp_path / "out", images, [found("/p/x/b.jpg", 1), found("/p/y/b.jpg", 0, 0.5)])
    summary = raymask.export(out, format="coco", out=f"{tmp_path}/a.json")
    assert (summary.images, summary.failed, summary.folder) == (2, 1, "/p/")
    record = json.loads((tmp_path / "a.json").read_text())
    assert [(i["id"], i["file_name"]) for i in record["images"]] == [(1, "x/b.jpg"), (3, "y/b.jpg")]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in record["annotations"]] == [(1, 1, 2), (2, 3, 1)]
    raymask.export(out, format="coco", out=f"{tmp_path}/a.json", min_score=0.6)
    assert [a["image_id"] for a in json.loads((tmp_path / "a.json").read_text())["annotations"]] == [1]
    raymask.export(out, format="coco", out=f"{tmp_path}/a.json", categories=("kite",))
    record = json.loads((tmp_path / "a.json").read_text())
    assert [c["name"] for c in record["categories"]] == ["kite"]
    assert [a["image_id"] for a in record["annotations"]] == [3]


def test_images_that_join_those_of_a_coco_file_get_further_ids(tmp_path: Path) -> None:
    images = [{**i, "coco_image_id": n} for i, n in zip(pictures("/p/a.jpg", "/p/b.jpg"), (40, None), strict=True)]
    raymask.export(write_footed(tmp_path / "out", images, []), format="coco", out=f"{tmp_path}/a.json")
    assert [i["id"] for i in json.loads((tmp_path / "a.json").read_text())["images"]] == [40, 42]
    images[1]["coco_image_id"] = 40
    with pytest.raises(ConfigError, match=r"two images of .* have the COCO id 40"):
        raymask.export(write_footed(tmp_path / "twice", images, []), format="coco", out=f"{tmp_path}/b.json")
    assert not (tmp_path / "b.json").exists()
    assert raymask.export(f"{tmp_path}/twice", format="yolo-seg", out=f"{tmp_path}/yolo").images == 2


def write_footed(out: Path, images: list[dict[str, Any]], instances: list[dict[str, Any]]) -> str:
    """`write_output`, with the categories in the footers."""
    write_output(out, images, instances)
    for path in out.glob("*/part-*.parquet"):
        table = pq.read_table(path)
        footer = {**footer_of(table.schema), "categories": [{"id": 1, "name": "kite"}, {"id": 2, "name": "boat"}]}
        pq.write_table(table.replace_schema_metadata({b"raymask": json.dumps(footer).encode()}), path)
    return str(out)


# -------------------------------------------------------------------------------------------------------- polygons


def test_labelme_there_and_back(truth: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    raymask.export(truth[0], format="labelme", out=f"{tmp_path}/labelme")
    file = next((tmp_path / "labelme").glob("0*.json"))
    record = json.loads(file.read_text())
    image = file.parent / record["imagePath"]  # as LabelMe looks for it
    with PIL.Image.open(image) as opened:
        assert opened.size == (record["imageWidth"], record["imageHeight"])
    assert image.stem == file.stem
    raymask.import_(f"{tmp_path}/labelme", format="labelme", out=f"{tmp_path}/out")
    assert masks_by_image(f"{tmp_path}/out") == masks_by_image(truth[0])
    assert read_run(f"{tmp_path}/out").categories == read_run(truth[0]).categories  # type: ignore[union-attr]


def test_labelme_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of shape by its own rule; groups are one object; what has no area or no sense is counted and said."""
    mask = io.BytesIO()
    PIL.Image.fromarray(RING).save(mask, "PNG")
    ring = base64.b64encode(mask.getvalue()).decode()
    shapes: list[Any] = [
        {"label": "dog", "points": [[1, 1], [5, 1], [5, 4], [1, 4]], "shape_type": "polygon"},
        {"label": "cat", "points": [[10, 10], [14, 12]], "shape_type": "rectangle", "group_id": 7},
        {"label": "cat", "points": [[20, 12], [16, 10]], "shape_type": "rectangle", "group_id": 7},
        {"label": "sun", "points": [[30, 10], [30, 15]], "shape_type": "circle", "score": 0.5},
        {"label": "ring", "points": [[2, 20], [7, 23]], "shape_type": "mask", "mask": ring},
        {"label": "x", "points": [[1, 1]], "shape_type": "point"},
        {"label": "x", "points": [[1, 1], [2, 2]], "shape_type": "line"},
        {"label": "x", "points": [[1, 1], [2, 2]], "shape_type": "polygon"},
        {"label": "x", "points": [[39, 30], [45, 33]], "shape_type": "mask", "mask": "no base64"},
        {"label": "x", "points": [[1, 1], [5, 1], [5, 4]], "shape_type": "polygon", "score": 7},
        None,
    ]
    record = {"imagePath": "..\\photos\\a.jpg", "imageHeight": 30, "imageWidth": 40, "shapes": shapes}
    folder = tmp_path / "labels"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "a.json").write_text(json.dumps(record))
    (folder / "empty.json").write_text(json.dumps({**record, "imagePath": "e.jpg", "shapes": []}))
    (folder / "other.json").write_text("[1, 2")
    out = f"{tmp_path}/out"
    assert main(["import", str(folder), "--format", "labelme", "--out", out]) == 0
    said = capsys.readouterr().err
    for line in ("2 points and lines", "3 malformed shapes", "1 objects whose score", "1 files that are no LabelMe"):
        assert line in said
    tables = tables_of(out)
    assert [i["uri"] for i in tables["images"]] == [f"{folder}/e.jpg", f"{folder}/photos/a.jpg"]
    rows = {row["category"]: row for row in tables["instances"]}
    assert [row["category"] for row in tables["instances"]] == ["dog", "cat", "ring", "sun"]  # by falling score
    assert {name: row["category_id"] for name, row in rows.items()} == {"cat": 1, "dog": 2, "ring": 3, "sun": 4}
    pixels = {name: decode(row["mask"]) for name, row in rows.items()}
    expected = np.zeros((30, 40), np.bool_)
    expected[1:4, 1:5] = True
    np.testing.assert_array_equal(pixels["dog"], expected)
    expected[:] = False
    expected[10:12, 10:14] = expected[10:12, 16:20] = True
    np.testing.assert_array_equal(pixels["cat"], expected)
    expected[:] = False
    expected[20:24, 2:8] = RING
    np.testing.assert_array_equal(pixels["ring"], expected)
    ys, xs = np.mgrid[:30, :40] + 0.5
    np.testing.assert_array_equal(pixels["sun"], np.hypot(ys - 10, xs - 30) <= 5)
    assert (rows["sun"]["score"], rows["cat"]["x_min"], rows["cat"]["x_max"], rows["cat"]["area"]) == (0.5, 10, 20, 16)


def test_labelme_with_images_elsewhere_and_listed_categories(tmp_path: Path) -> None:
    shape = {"points": [[1, 1], [5, 1], [5, 4]], "shape_type": "polygon"}
    record = {"imagePath": "C:\\x\\a.jpg", "imageHeight": 30, "imageWidth": 40}
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shapes = [{**shape, "label": "dog"}, {**shape, "label": "__ignore__"}]
    (tmp_path / "in" / "sub" / "a.json").write_text(json.dumps({**record, "shapes": shapes}))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = {"format": "labelme", "images": "s3://b/photos", "categories": f"{tmp_path}/names.txt"}
    summary = raymask.import_(f"{tmp_path}/in", out=f"{tmp_path}/out", **options)  # type: ignore[arg-type]
    assert summary.problems == [
        "          1 objects with a label that is no listed category, left out, such as '__ignore__' in sub/a.json"
    ]
    [row] = tables_of(f"{tmp_path}/out")["instances"]
    assert (row["uri"], row["category_id"], row["category"]) == ("s3://b/photos/sub/a.jpg", 2, "dog")


def test_yolo_lines_are_the_masks(truth: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """A line an object; by the even-odd rule at the centres of pixels it covers the mask, parts and holes included."""
    raymask.export(truth[0], format="yolo-seg", out=f"{tmp_path}/yolo")
    about = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    images = {i["uri"]: i for i in tables_of(truth[0])["images"]}
    expected: dict[str, list[dict[str, Any]]] = {Path(uri).stem: [] for uri in images}
    for row in tables_of(truth[0])["instances"]:
        expected[Path(row["uri"]).stem].append(row)
    for stem, rows in expected.items():
        lines = (tmp_path / "yolo" / "labels" / f"{stem}.txt").read_text().splitlines()
        assert [about["names"][int(line.split()[0])] for line in lines] == [row["category"] for row in rows]
        for line, row in zip(lines, rows, strict=True):
            height, width = row["mask"]["size"]
            xy = np.array(line.split()[1:], float).reshape(-1, 2) * (width, height)
            assert np.abs(xy - xy.round()).max() < 0.01
            [drawn] = coco_mask.frPyObjects([xy.round().reshape(-1).tolist()], height, width)
            assert drawn["counts"].decode() == row["mask"]["counts"]


def test_geojson_is_the_exact_outline(truth: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    raymask.export(truth[0], format="geojson", out=f"{tmp_path}/geojson")
    files = sorted((tmp_path / "geojson").iterdir())
    assert len(files) == 54
    seen = 0
    for file in files:
        record = json.loads(file.read_text())
        assert Path(record["uri"]).stem == file.stem
        for feature in record["features"]:
            shape = shapely.geometry.shape(feature["geometry"])
            assert shape.is_valid
            assert shape.area == feature["properties"]["area"]
            seen += 1
    assert seen == 461


@given(st.integers(0, 2**16 - 1).map(lambda bits: np.array([bits >> n & 1 for n in range(16)], bool).reshape(4, 4)))
def test_joined_rings_cover_what_the_rings_cover(mask: NDArray[np.bool_]) -> None:
    [text] = mask_geojson(pa.array([encode(mask)], MASK)).to_pylist()
    rings = [[tuple(p) for p in ring[:-1]] for polygon in json.loads(text)["coordinates"] for ring in polygon]
    flat = [float(v) for point in joined_rings(rings) for v in point]
    drawn = coco_mask.decode(coco_mask.frPyObjects([flat], 4, 4))[..., 0] if flat else np.zeros((4, 4))
    np.testing.assert_array_equal(drawn.astype(bool), mask)


# ------------------------------------------------------------------------------------------------------- label maps


def test_label_maps_show_the_best_on_top_and_come_back(truth: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    raymask.export(truth[0], format="masks", out=f"{tmp_path}/masks")
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in tables_of(truth[0])["instances"]:
        rows.setdefault(row["uri"], []).append(row)
    visible: dict[str, list[tuple[str, str]]] = {}
    for uri, found_there in rows.items():
        left = np.ones(found_there[0]["mask"]["size"], bool)
        classes, objects = np.zeros(left.shape, int), np.zeros(left.shape, int)
        for row in found_there:
            seen = decode(row["mask"]) & left
            left &= ~seen
            classes[seen], objects[seen] = row["category_id"], row["instance"] + 1
            if seen.any():
                visible.setdefault(uri, []).append((row["category"], encode(seen)["counts"]))
        for folder, expected in (("SegmentationClass", classes), ("SegmentationObject", objects)):
            with PIL.Image.open(tmp_path / "masks" / folder / f"{Path(uri).stem}.png") as image:
                np.testing.assert_array_equal(np.asarray(image), expected)
    images = str(Path(next(iter(rows))).parent)
    raymask.import_(f"{tmp_path}/masks", format="masks", images=images, out=f"{tmp_path}/out")
    assert masks_by_image(f"{tmp_path}/out") == visible
    assert read_run(f"{tmp_path}/out").categories == read_run(truth[0]).categories  # type: ignore[union-attr]


def test_label_maps_of_other_programs(tmp_path: Path) -> None:
    """8 and 16 bits, palettes and colours; a value is a category, or an object of the one that is named."""
    values = np.array([[0, 1, 1, 300], [0, 0, 300, 300], [1, 0, 0, 0]], np.uint16)
    (tmp_path / "maps" / "sub").mkdir(parents=True)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("deep.jpg", "sub/palette.jpg", "sub/palette.png", "alone.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"never read")
    PIL.Image.fromarray(values).save(tmp_path / "maps" / "deep.png")
    palette = PIL.Image.fromarray((values // 300).astype(np.uint8))
    palette.putpalette(bytes(range(256)) * 3)
    palette.save(tmp_path / "maps" / "sub" / "palette.png.png")
    (tmp_path / "maps" / "nothing.png").write_bytes(b"no image of that name")
    maps, images = f"{tmp_path}/maps", f"{tmp_path}/photos"
    summary = raymask.import_(maps, format="masks", images=images, out=f"{tmp_path}/out")
    assert [line.split(", such as")[0].strip() for line in summary.problems] == [
        "2 images without a map, left out",
        "1 maps of no image, left out",
    ]
    rows = tables_of(f"{tmp_path}/out")["instances"]
    assert [(Path(r["uri"]).name, r["category_id"], r["category"], r["area"]) for r in rows] == [
        ("deep.jpg", 1, "1", 3),
        ("deep.jpg", 300, "300", 3),
        ("palette.png", 1, "1", 3),
    ]
    np.testing.assert_array_equal(decode(rows[1]["mask"]), values == 300)
    (tmp_path / "listed.json").write_text(json.dumps([{"id": 9, "name": "cell", "value": 300}]))
    summary = raymask.import_(
        maps, format="masks", images=images, out=f"{tmp_path}/b", categories=f"{tmp_path}/listed.json"
    )
    assert "2 objects with a value that is no listed category" in "".join(summary.problems)
    assert [(r["category_id"], r["category"]) for r in tables_of(f"{tmp_path}/b")["instances"]] == [(9, "cell")]
    raymask.import_(maps, format="masks", images=images, out=f"{tmp_path}/c", category="nucleus")
    assert [(r["instance"], r["category"]) for r in tables_of(f"{tmp_path}/c")["instances"]] == [
        (0, "nucleus"),
        (1, "nucleus"),
        (0, "nucleus"),
    ]


def test_label_maps_of_colours(tmp_path: Path) -> None:
    colours = np.zeros((2, 3, 3), np.uint8)
    colours[0, 1:], colours[1, 0] = (128, 64, 128), (0, 0, 7)
    for folder in ("maps", "photos"):
        (tmp_path / folder).mkdir()
    PIL.Image.fromarray(colours).save(tmp_path / "maps" / "a.png")
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    options = {"format": "masks", "images": f"{tmp_path}/photos"}
    raymask.import_(f"{tmp_path}/maps", out=f"{tmp_path}/out", **options)  # type: ignore[arg-type]
    rows = tables_of(f"{tmp_path}/out")["instances"]
    assert [(r["category_id"], r["category"], r["area"]) for r in rows] == [(7, "#000007", 1), (0x804080, "#804080", 2)]
    (tmp_path / "maps" / "categories.json").write_text(
        json.dumps([{"id": 1, "name": "road", "color": [128, 64, 128]}, {"id": 2, "name": "sky", "color": [0, 0, 7]}])
    )
    raymask.import_(f"{tmp_path}/maps", out=f"{tmp_path}/listed", **options)  # type: ignore[arg-type]
    rows = tables_of(f"{tmp_path}/listed")["instances"]
    assert {r["category"]: r["area"] for r in rows} == {"road": 2, "sky": 1}


# ------------------------------------------------------------------------------------------------------- CSV, names


def test_csv_has_every_instance_and_quotes_what_it_must(tmp_path: Path) -> None:
    uris = ['/p/a "b",\nc.jpg', "/p/=1+1.jpg"]
    out = write_footed(
        tmp_path / "out", pictures(*uris), [found(uris[0], 0), found(uris[0], 1, 0.5), found(uris[1], 1)]
    )
    raymask.export(out, format="csv", out=f"{tmp_path}/a.csv")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = tables_of(out)["instances"]
    assert [r["uri"] for r in rows] == [r["uri"] for r in table]
    for row, expected in zip(rows, table, strict=True):
        rle = {"size": [int(row["height"]), int(row["width"])], "counts": row["rle"]}
        assert rle == expected["mask"]
        for name in ("image_id", "instance", "category_id", "x_min", "score"):
            assert float(row[name]) == pytest.approx(expected[name], rel=1e-6)


HOSTILE = [
    "../../../etc/passwd.jpg",
    "a/../../b.jpg",
    "//c.jpg",
    ".",
    "..",
    "a\nb.jpg",
    "a\\..\\b.jpg",
    "C:\\x.jpg",
    "quote\"'<script>.jpg",
    "%2E%2E/d.jpg",
    "nul\0.jpg",
    "x" * 300 + ".jpg",
    "same.jpg",
    "same.png",
    "SAME.JPG",
    "same.jpg.json",
    "deep/same.jpg",
    "no-ending",
    "categories.jpg",
    "\ud7ff\u2028é.jpg",
]


@pytest.mark.parametrize("format", ["labelme", "yolo-seg", "geojson", "masks"])
def test_no_name_leads_out_of_the_folder_or_over_another(format: Any, tmp_path: Path) -> None:
    uris = [f"s3://bucket/p/{name}" for name in HOSTILE]
    out = write_footed(tmp_path / "out", pictures(*uris), [found(uri, n % 2) for n, uri in enumerate(uris)])
    before = set(tmp_path.rglob("*"))
    summary = raymask.export(out, format=format, out=f"{tmp_path}/deep/est/export")
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p not in before]
    assert all(p.is_relative_to(tmp_path / "deep" / "est" / "export") for p in files)
    kept = [p for p in files if p.name not in ("categories.json", "data.yaml")]
    if format in ("labelme", "masks"):
        assert [c["name"] for c in json.loads((tmp_path / "deep/est/export/categories.json").read_text())] == [
            "kite",
            "boat",
        ]
    assert len({str(p).casefold() for p in kept}) == len(uris) * (2 if format == "masks" else 1)
    assert summary.renamed >= 3
    assert any(p.stem == "same" for p in kept)


@given(st.lists(st.text(max_size=20), unique=True, max_size=10))
@example(["..", "%2E%2E", "%", "", "%25"])
def test_safe_paths_differ_and_stay_below(names: list[str]) -> None:
    paths = [safe_path(name) for name in names]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert os.path.normpath(path) == path
        assert not path.startswith(("/", ".."))
        assert path.isprintable()


@given(st.lists(st.sampled_from(["a", "A.b", "a.b", "a.c", "a.c.x", "a.b.x", "a.x.2", "a.b.2"]), unique=True))
def test_file_names_are_of_one_image_each(names: list[str]) -> None:
    files = FileNames(".x")
    made = [files.name_of(name).casefold() for name in names]
    assert len(set(made)) == len(made)


def test_a_name_in_a_terminal_is_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_footed(tmp_path / "out", pictures("/p\x1b[2J/a.jpg"), [])
    assert main(["export", out, "--format", "coco", "--out", f"{tmp_path}/a.json"]) == 0
    assert "\x1b" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ whole, or nothing


def test_an_export_to_a_store_is_one_object_or_none(server: Store, tmp_path: Path) -> None:
    out = write_footed(tmp_path / "out", pictures("/p/a.jpg"), [found("/p/a.jpg", 0)])
    url = f"{server.url}/exports/a.json"
    raymask.export(out, format="coco", out=url)
    fs, path = resolve(url)
    before = fs.cat_file(path)
    assert len(json.loads(before)["annotations"]) == 1
    raymask.export(out, format="masks", out=f"{server.url}/exports/maps")
    assert fs.cat_file(resolve(f"{server.url}/exports/maps/SegmentationClass/a.png")[1]).startswith(b"\x89PNG")
    raymask.export(out, format="labelme", out=f"{server.url}/exports/labelme")
    raymask.import_(f"{server.url}/exports/labelme", format="labelme", out=f"{server.url}/imported")
    [row] = tables_of(f"{server.url}/imported")["instances"]
    assert (row["uri"], row["mask"]) == (f"{server.url}/exports/labelme/a.jpg", found("/p/a.jpg", 0)["mask"])
    broken = {**found("/p/a.jpg", 0), "mask": {"size": [0, 5], "counts": "3333"}}
    bad = write_footed(tmp_path / "bad", pictures("/p/a.jpg"), [found("/p/a.jpg", 1), broken])
    for target in (url, f"{tmp_path}/local.json"):
        with pytest.raises(OutputError, match=r"the mask of instance 1 of '/p/a.jpg' in .* is malformed"):
            raymask.export(bad, format="coco", out=target)
    assert fs.cat_file(path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "voc"}, "--format is 'voc'; one of coco, "),
        ({"out": "OUT/raymask.json"}, "lies in the output"),
        ({"out": "OUT"}, "lies in the output"),
        ({"out": "folder/"}, "is a folder; name a file"),
        ({"min_score": 2}, "between 0 and 1"),
        ({"categories": ("tree",)}, "no category 'tree'; it has kite, boat"),
        ({"format": "csv", "polygons": True}, "--polygons is for --format coco"),
    ],
)
def test_exports_that_cannot_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    out = write_footed(tmp_path / "out", pictures("/p/a.jpg"), [])
    options = {"format": "coco", "out": f"{tmp_path}/a.json", **options}
    options["out"] = options["out"].replace("OUT", out)
    with pytest.raises(ConfigError, match=message):
        raymask.export(out, **options)


def test_instances_of_another_image_are_refused(tmp_path: Path) -> None:
    out = write_footed(tmp_path / "out", pictures("/p/a.jpg", "/p/b.jpg"), [found("/p/b.jpg", 0), found("/p/a.jpg", 0)])
    with pytest.raises(OutputError, match=r"the instances of '/p/a.jpg' .* are not those"):
        list(Selection(out).pictures())


# ----------------------------------------------------------------------------------------------------------- import


def test_an_import_is_an_output_by_the_specification(truth: tuple[str, dict[str, Any]]) -> None:
    schemas = Path(__file__).parents[1] / "schemas"
    out, record = truth
    masks = Masks(out)
    for name, table in (("images", masks.images), ("instances", masks.instances)):
        jsonschema.validate(footer_of(table.schema), json.loads((schemas / "footer.schema.json").read_text()))
        assert footer_of(table.schema)["table"] == name
    jsonschema.validate(
        json.loads((Path(out) / "raymask.json").read_text()), json.loads((schemas / "raymask.schema.json").read_text())
    )
    tables = tables_of(out)
    assert masks.images.schema.names[: len(IMAGES.names)] == IMAGES.names
    for image in tables["images"]:
        assert (image["image_id"], image["status"], image["error"]) == (image_id(image["uri"]), "ok", None)
        assert len(image["coco_annotations"]) == image["instance_count"]
    assert sum(len(i["coco_crowds"]) for i in tables["images"]) == 5
    places: dict[str, int] = {}
    sizes = {i["uri"]: [i["height"], i["width"]] for i in tables["images"]}
    for row in tables["instances"]:
        assert row["instance"] == places.get(row["uri"], 0)
        places[row["uri"]] = row["instance"] + 1
        assert row["mask"]["size"] == sizes[row["uri"]]
        assert row["area"] == area(row["mask"])
        assert 0 <= row["x_min"] <= row["x_max"] <= sizes[row["uri"]][1]
        assert row["score"] == 1
    assert len(tables["images"]) == len(record["images"])


def test_wrong_annotations_are_left_out_counted_and_said(tmp_path: Path) -> None:
    record = coco_record("a.jpg", "b.jpg")
    good = record["annotations"][0]
    record["annotations"] += [
        {**good, "id": 50, "image_id": 99},
        {**good, "id": 51, "category_id": 99},
        {**good, "id": 52, "segmentation": []},
        {**good, "id": 53, "segmentation": [[1, 2, 3, 4]]},
        {**good, "id": 54, "segmentation": {"size": [40, 60], "counts": "3333"}},
        {**good, "id": 55, "score": 1.5},
        {**good, "id": 56, "bbox": [-5, 1, 500, 2]},
        {**good, "id": None, "bbox": None, "area": None},
        "none",
    ]
    record["annotations"][3]["id"] = 1
    record["images"] += [{**record["images"][0], "id": 12}, {"id": 13, "file_name": "c.jpg"}]
    summary = raymask.import_(write_json(tmp_path, record), format="coco", out=f"{tmp_path}/out")
    assert [line.split(", such as ") for line in summary.problems] == [
        ["          2 annotations without an id or with one used before, given a free one", "annotations[3]"],
        ["          2 objects of images that are not listed, left out", "annotations[4]"],
        ["          2 objects with a malformed mask, left out", "annotations[7]"],
        ["          1 images with an id or a file_name used before, left out", "images[2]"],
        ["          1 images without height and width, left out", "images[3]"],
        ["          1 objects of categories that are not listed, left out", "annotations[5]"],
        ["          1 objects without a mask, left out", "annotations[6]"],
        ["          1 objects whose score is no number from 0 to 1, left out", "annotations[9]"],
    ]
    assert (summary.images, summary.instances) == (2, 6)
    raymask.export(f"{tmp_path}/out", format="coco", out=f"{tmp_path}/back.json")
    annotations = json.loads((tmp_path / "back.json").read_text())["annotations"]
    assert [a["id"] for a in annotations] == [0, 1, 56, 57, 2, 58]
    assert [a["area"] for a in annotations] == [600, 250, 600, 600, 600, 250]
    rows = tables_of(f"{tmp_path}/out")["instances"]
    clipped, without_box = rows[2], rows[3]
    assert [clipped[k] for k in ("x_min", "y_min", "x_max", "y_max")] == [0, 1, 60, 3]
    assert [without_box[k] for k in ("x_min", "y_min", "x_max", "y_max")] == [5, 5, 25, 35]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coco-results"}, "give the COCO file with --annotations"),
        ({"format": "masks"}, "with --images"),
        ({"format": "voc"}, "one of coco, coco-results, labelme, masks"),
        ({"format": "coco", "category": "x"}, "--category is for masks"),
        ({"format": "coco", "annotations": "x.json"}, "--annotations is for coco-results"),
        ({"format": "coco", "file": "absent.json"}, "absent.json does not exist"),
        ({"format": "coco", "file": "list.json"}, "has no list 'images'"),
        ({"format": "coco-results", "annotations": "coco.json", "file": "coco.json"}, "it has none.; a list of COCO"),
        ({"format": "coco-results", "annotations": "coco.json", "file": "boxes.json"}, "1 objects without a mask"),
        ({"format": "labelme", "file": "."}, "no LabelMe file in"),
        ({"format": "masks", "file": ".", "images": "."}, "no label maps of images in"),
        ({"format": "labelme", "categories": "list.json"}, "has no categories"),
    ],
)
def test_imports_that_cannot_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "coco.json").write_text(json.dumps(coco_record("a.jpg")))
    (tmp_path / "boxes.json").write_text('[{"image_id": 10, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]')
    paths = {k: f"{tmp_path}/{v}" if k != "category" else v for k, v in options.items() if k != "format"}
    with pytest.raises(ConfigError, match=message):
        raymask.import_(**{"file": f"{tmp_path}/list.json", **paths, "format": options["format"], "out": "/nowhere"})
    assert not Path("/nowhere").exists()


def test_an_import_again_changes_nothing_and_another_is_refused(tmp_path: Path, model_folder: str) -> None:
    out = imported(tmp_path, {"a.png": [RING], "b.png": [~RING, RING]})
    before = {p: p.stat().st_mtime_ns for p in Path(out).rglob("*") if p.is_file()}
    assert imported(tmp_path, {"a.png": [RING], "b.png": [~RING, RING]}) == out
    assert {p: p.stat().st_mtime_ns for p in Path(out).rglob("*") if p.is_file()} == before
    with pytest.raises(OutputError, match=r"holds masks of model import:coco .*choose another --out"):
        imported(tmp_path, {"a.png": [~RING], "b.png": [~RING, RING]})
    status = raymask.status(out)
    assert (status.images, status.ok, status.pending, status.published) == (2, 2, 0, True)
    assert raymask.clean(out) == []
    with pytest.raises(OutputError, match=r"holds masks of model import:coco"):
        plan(SegmentConfig(source=str(tmp_path), out=out, weights=model_folder))


class Killed(BaseException):
    """As a SIGKILL: nothing in raymask catches it."""


@pytest.mark.parametrize("step", range(5))
def test_an_import_that_is_cut_off_is_repeated(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off before the run, the listing, the first part, the second part or the tables."""
    masks = {f"{n}.png": [RING] * (n % 3) or [~RING] for n in range(5)}
    monkeypatch.setattr(importing, "IMAGES_PER_PART", 3)
    for folder in ("undisturbed", "cut"):
        (tmp_path / folder).mkdir()
    undisturbed = imported(tmp_path / "undisturbed", masks)
    name = ["create_run", "_listed", "write_part", "write_part", "publish"][step]
    calls, real = [0], getattr(importing, name)

    def cut_off(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == (2 if step == 3 else 1):
            raise Killed
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(importing, name, cut_off)
        with pytest.raises(Killed):
            imported(tmp_path / "cut", masks)
    if step > 1:
        assert raymask.status(f"{tmp_path}/cut/out").published is False
    out = imported(tmp_path / "cut", masks)
    ordered = [[row["mask"]["counts"] for row in tables_of(o)["instances"]] for o in (out, undisturbed)]
    assert ordered[0] == ordered[1]
    assert raymask.status(out).published
    assert raymask.clean(out) == []


def test_an_import_that_is_killed_is_repeated(tmp_path: Path) -> None:
    file = write_coco(tmp_path, {f"{n}.png": [RING] for n in range(4)})
    code = (
        "import os, signal, raymask; from raymask.interop import importing; importing.IMAGES_PER_PART = 2\n"
        "real, calls = importing.write_part, []\n"
        "def write(*a, **k):\n"
        "    calls.append(1) or len(calls) == 2 and os.kill(os.getpid(), signal.SIGKILL); return real(*a, **k)\n"
        f"importing.write_part = write; raymask.import_({file!r}, format='coco', out={str(tmp_path / 'out')!r})"
    )
    died = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert raymask.status(f"{tmp_path}/out").pending == 2
    raymask.import_(file, format="coco", out=f"{tmp_path}/out")
    assert [i["uri"] for i in tables_of(f"{tmp_path}/out")["images"]] == [f"{tmp_path}/{n}.png" for n in range(4)]


def test_an_import_needs_no_ray(tmp_path: Path) -> None:
    file = write_coco(tmp_path, {"a.png": [RING]})
    run = f"raymask.import_({file!r}, format='coco', out={str(tmp_path / 'out')!r})"
    code = f"import sys; sys.modules['ray'] = None; import raymask; {run}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_output_that_is_not_published_yet_is_exported(tmp_path: Path) -> None:
    content = make_content((2, 0, 3))
    write_part(list_images(str(tmp_path / "out"), content.listed).folder, content.part, attempt=0)
    assert main(["export", str(tmp_path / "out"), "--format", "csv", "--out", str(tmp_path / "all.csv")]) == 0
    assert len(list(csv.reader((tmp_path / "all.csv").read_text().splitlines()))) == 1 + len(content.instances)
