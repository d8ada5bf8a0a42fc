"""Average precision from tables: published numbers, perfect and empty outputs, and what does not belong together."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from raymask.cli import main
from raymask.errors import ConfigError, OutputError
from raymask.evaluation import (
    METRICS,
    IouType,
    coco_evaluation,
    coco_metrics,
    coco_results,
    evaluate,
    match_images,
    read_annotations,
)
from raymask.journal import Run
from raymask.masks import area, encode
from raymask.output import Masks
from raymask.published import INDEX_FILE, Published, PublishedFile, Shard
from raymask.schema import INSTANCES, image_id, images_schema, with_footer
from raymask.segmentations import to_rle

REFERENCE = Path(__file__).parents[2] / "shared" / "data" / "reference_eval"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"reference numbers are not at {REFERENCE}")

SIZE_HW = (40, 60)
RECTANGLES_XYXY = [(5, 5, 25, 35), (30, 10, 55, 20)]
CATEGORIES = {1: "kite", 2: "boat"}

# -------------------------------------------------------------------------------------------------------- an output


def write_output(out: Path, images: Sequence[Mapping[str, Any]], instances: Sequence[Mapping[str, Any]]) -> str:
    """Publish tables of these rows. images: uri, size_hw (None for a failed one), maybe coco_image_id.

    instances: uri, category_id, category, score, box_xyxy, mask (an RLE), in the order wanted in the table.
    """
    run = Run(model="m", model_sha256="0" * 64, categories=(), thresholds={}, images_per_file=1000, raymask_version="0")
    carried = [pa.field("coco_image_id", pa.int64())] if any("coco_image_id" in i for i in images) else []
    failed = [image["uri"] for image in images if image["size_hw"] is None]
    seen: dict[str, int] = {}
    rows = []
    for i in instances:
        seen[i["uri"]] = seen.get(i["uri"], -1) + 1
        box = dict(zip(("x_min", "y_min", "x_max", "y_max"), i["box_xyxy"], strict=True))
        rows.append({**i, **box, "image_id": image_id(i["uri"]), "instance": seen[i["uri"]], "area": i.get("area", 1)})
    image_rows = [
        {
            **image,
            "image_id": image_id(image["uri"]),
            "status": "failed" if image["uri"] in failed else "ok",
            "error": "corrupt" if image["uri"] in failed else None,
            "height": image["size_hw"] and image["size_hw"][0],
            "width": image["size_hw"] and image["size_hw"][1],
            "instance_count": seen.get(image["uri"], -1) + 1,
        }
        for image in images
    ]
    files = {}
    for name, table_rows, schema in (("images", image_rows, images_schema(carried)), ("instances", rows, INSTANCES)):
        table = pa.Table.from_pylist(table_rows, schema=with_footer(schema, run.footer(name)))
        sink = io.BytesIO()
        pq.write_table(table, sink)
        path = out / name / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(sink.getvalue())
        digest = hashlib.sha256(sink.getvalue()).hexdigest()
        files[name] = PublishedFile(f"{name}/{path.name}", len(table_rows), path.stat().st_size, digest)
    shard = Shard("0", files["images"], files["instances"], len(images) - len(failed), {"corrupt": len(failed)})
    (out / INDEX_FILE).write_bytes(Published("0", (shard,)).to_json(run))
    return str(out)


def rectangle(box_xyxy: tuple[int, int, int, int]) -> dict[str, Any]:
    """The RLE of a filled rectangle."""
    x_min, y_min, x_max, y_max = box_xyxy
    pixels = np.zeros(SIZE_HW, np.bool_)
    pixels[y_min:y_max, x_min:x_max] = True
    return encode(pixels)


def found(uri: str, number: int, score: float = 0.9) -> dict[str, Any]:
    """A row of rectangle `number`, found perfectly."""
    box = RECTANGLES_XYXY[number]
    category = {"category_id": number + 1, "category": CATEGORIES[number + 1]}
    return {"uri": uri, "score": score, "box_xyxy": box, "mask": rectangle(box), **category}


def coco_record(*file_names: str) -> dict[str, Any]:
    """A COCO record in which every image shows both rectangles; ids of images from 10, of annotations from 0."""
    objects: list[dict[str, Any]] = []
    for number in range(len(file_names)):
        for category_id, box in enumerate(RECTANGLES_XYXY, 1):
            x_min, y_min, x_max, y_max = box
            objects.append(
                {
                    "id": len(objects),
                    "image_id": 10 + number,
                    "category_id": category_id,
                    "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                    "area": area(rectangle(box)),
                    "segmentation": [[x_min, y_min, x_max, y_min, x_max, y_max, x_min, y_max]],
                }
            )
    images = [
        {"id": 10 + i, "file_name": name, "height": SIZE_HW[0], "width": SIZE_HW[1]}
        for i, name in enumerate(file_names)
    ]
    return {
        "images": images,
        "categories": [{"id": id, "name": name} for id, name in CATEGORIES.items()],
        "annotations": objects,
    }


def write_json(folder: Path, record: Any) -> str:
    path = folder / "annotations.json"
    path.write_text(json.dumps(record))
    return str(path)


def pictures(*uris: str) -> list[dict[str, Any]]:
    return [{"uri": uri, "size_hw": SIZE_HW} for uri in uris]


# ---------------------------------------------------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """The published ground truth, results and numbers ("segm", "bbox" -> name -> value)."""
    files = {kind: REFERENCE / "cocoapi" / f"instances_val2014_fake{kind}100_results.json" for kind in ("segm", "bbox")}
    numbers = json.loads((REFERENCE / "expected.json").read_text())
    return {
        "truth": REFERENCE / "cocoapi" / "instances_val2014_100.json",
        "results": {kind: json.loads(file.read_text()) for kind, file in files.items()},
        "numbers": {kind: numbers[kind]["full100"]["published_faster_coco_eval_tests"] for kind in files},
    }


@needs_reference
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_published_numbers_from_published_results(reference: dict[str, Any], iou_type: IouType) -> None:
    truth = read_annotations(str(reference["truth"]))
    numbers = coco_metrics(truth, reference["results"][iou_type], iou_type)
    assert numbers == pytest.approx(reference["numbers"][iou_type], abs=1e-9)


@needs_reference
def test_published_numbers_from_tables(tmp_path: Path, reference: dict[str, Any]) -> None:
    truth = json.loads(reference["truth"].read_text())
    uris = {image["id"]: f"s3://bucket/val2014/{image['file_name']}" for image in truth["images"]}
    categories = {category["id"]: category["name"] for category in truth["categories"]}
    rows = []
    for mask, box in zip(*reference["results"].values(), strict=True):  # the same objects in the same order
        x, y, width, height = box["bbox"]
        rows.append(
            {
                "uri": uris[mask["image_id"]],
                "category_id": mask["category_id"],
                "category": categories[mask["category_id"]],
                "score": mask["score"],
                "box_xyxy": (x, y, x + width, y + height),
                "mask": mask["segmentation"],
            }
        )
    images = [{"uri": uris[i["id"]], "size_hw": (i["height"], i["width"])} for i in truth["images"]]
    numbers = evaluate(write_output(tmp_path / "out", images, rows), str(reference["truth"]))
    assert numbers["segm"] == pytest.approx(reference["numbers"]["segm"], abs=1e-9)
    assert numbers["bbox"] == pytest.approx(reference["numbers"]["bbox"], abs=1e-9)


def test_perfect_output(tmp_path: Path) -> None:
    # The annotation with id 0 is one of them: COCOeval would take it for an object that was not found.
    truth = write_json(tmp_path, coco_record("a.jpg"))
    out = write_output(tmp_path / "out", pictures("/photos/a.jpg"), [found("/photos/a.jpg", k) for k in (0, 1)])
    numbers = evaluate(out, truth)
    for kind in ("segm", "bbox"):
        assert tuple(numbers[kind]) == METRICS
        # Both rectangles are small; of the other sizes there are none.
        absent = {name: value for name, value in numbers[kind].items() if value == -1}
        assert set(absent) == {"APm", "APl", "ARm", "ARl"}
        assert all(value == pytest.approx(1) for name, value in numbers[kind].items() if name not in absent)


def test_nothing_found_and_failed_images_count(tmp_path: Path) -> None:
    truth = write_json(tmp_path, coco_record("a.jpg", "b.jpg"))
    nothing = write_output(tmp_path / "nothing", pictures("/p/a.jpg", "/p/b.jpg"), [])
    assert evaluate(nothing, truth)["segm"]["AP"] == 0
    images = [*pictures("/p/a.jpg"), {"uri": "/p/b.jpg", "size_hw": None}]
    half = write_output(tmp_path / "half", images, [found("/p/a.jpg", k) for k in (0, 1)])
    assert evaluate(half, truth)["segm"]["AR100"] == pytest.approx(0.5)


def test_results_are_cocos(tmp_path: Path) -> None:
    out = write_output(tmp_path / "out", pictures("/p/a.jpg"), [found("/p/a.jpg", 1, 0.25)])
    assert coco_results(Masks(out), {"/p/a.jpg": 7}) == [
        {
            "image_id": 7,
            "category_id": 2,
            "score": 0.25,
            "bbox": [30, 10, 25, 10],
            "segmentation": rectangle(RECTANGLES_XYXY[1]),
        }
    ]


def test_every_form_of_segmentation_is_the_same_object(tmp_path: Path) -> None:
    record = coco_record("a.jpg")
    box = RECTANGLES_XYXY[0]
    mask = rectangle(box)
    height, gap = box[3] - box[1], SIZE_HW[0] - (box[3] - box[1])
    columns = box[2] - box[0]
    before = box[0] * SIZE_HW[0] + box[1]
    runs = [before, *[height, gap] * (columns - 1), height]
    runs.append(SIZE_HW[0] * SIZE_HW[1] - sum(runs))
    polygon = record["annotations"][0]["segmentation"]
    for segmentation in (polygon, mask, {"size": list(SIZE_HW), "counts": runs}):
        record["annotations"] = [{**record["annotations"][0], "segmentation": segmentation}]
        truth = read_annotations(write_json(tmp_path, record))
        result = {"image_id": 10, "category_id": 1, "score": 0.5, "segmentation": mask}
        assert coco_metrics(truth, [result], "segm")["AP"] == pytest.approx(1)


# ------------------------------------------------------------------------------------- odd annotations, real ones


def rectangle_of(bbox: Sequence[float]) -> list[list[float]]:
    """A box [x, y, width, height] as a polygon."""
    x, y, width, height = bbox
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def write_results(out: Path, record: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, by_id: bool) -> str:
    """Published tables of COCO results; by_id: whether images are told by their ids, else by their names."""
    sizes_hw = {int(i["id"]): (i["height"], i["width"]) for i in record["images"]}
    uris = {int(i["id"]): f"s3://bucket/{i['file_name']}" for i in record["images"]}
    names = {c["id"]: c["name"] for c in record["categories"]}
    rows = []
    for result in results:
        x, y, width, height = result["bbox"]
        segmentation = result.get("segmentation") or rectangle_of(result["bbox"])
        rle = to_rle(segmentation, sizes_hw[result["image_id"]])
        counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
        rows.append(
            {
                "uri": uris[result["image_id"]],
                "category_id": result["category_id"],
                "category": names.get(result["category_id"], "another"),
                "score": result["score"],
                "box_xyxy": (x, y, x + width, y + height),
                "mask": {"size": list(rle["size"]), "counts": counts},
            }
        )
    images = [
        {"uri": uri, "size_hw": sizes_hw[number], **({"coco_image_id": number} if by_id else {})}
        for number, uri in uris.items()
    ]
    return write_output(out, images, rows)


def plain_numbers(record: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float]:
    """What pycocotools' own script says of annotations and results, read with nothing of raymask."""
    left_out = "segmentation" if kind == "bbox" else "bbox"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(record)
        truth.createIndex()
        found = truth.loadRes([{k: v for k, v in r.items() if k not in (left_out, "area")} for r in results])
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats.tolist(), strict=True))


def shifted(entries: Sequence[Mapping[str, Any]], **by: int) -> list[dict[str, Any]]:
    """The entries with some of their ids lower."""
    return [{**entry, **{name: entry[name] - less for name, less in by.items()}} for entry in entries]


@pytest.fixture(scope="module")
def drawn_shapes() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three images of clouds, hearts, arrows and stars, and results, all of them polygons."""
    folder = REFERENCE / "faster_coco_eval"
    record = json.loads((folder / "gt_dataset.json").read_text())
    results = json.loads((folder / "dt_dataset.json").read_text())
    for result in results:
        size_hw = next((i["height"], i["width"]) for i in record["images"] if i["id"] == result["image_id"])
        result["segmentation"] = to_rle(result["segmentation"], size_hw)
    return record, results


@pytest.fixture(scope="module")
def crowded() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """People in a photo, a crowd among them, boxes alone; ids of images are numbers and text."""
    folder = REFERENCE / "faster_coco_eval"
    return tuple(json.loads((folder / f"{name}_ignore_test.json").read_text()) for name in ("gt", "dt"))


@needs_reference
@pytest.mark.parametrize("by_id", [True, False])
def test_ids_from_zero_change_nothing(
    drawn_shapes: tuple[dict[str, Any], list[dict[str, Any]]], by_id: bool, tmp_path: Path
) -> None:
    record, results = drawn_shapes
    expected = {kind: plain_numbers(record, results, kind) for kind in ("segm", "bbox")}
    assert 0 < expected["segm"]["AP"] < 1
    from_zero = {
        "images": shifted(record["images"], id=1),
        "categories": shifted(record["categories"], id=1),
        "annotations": shifted(record["annotations"], id=1, image_id=1, category_id=1),
    }
    moved = shifted(results, image_id=1, category_id=1)
    for name, (truth, found_there) in {"one": (record, results), "zero": (from_zero, moved)}.items():
        out = write_results(tmp_path / name, truth, found_there, by_id=by_id)
        numbers = evaluate(out, write_json(tmp_path, truth))
        for kind, values in expected.items():
            assert numbers[kind] == pytest.approx(values, abs=1e-9), (name, kind)


@needs_reference
def test_crowds_and_ids_as_text(crowded: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path) -> None:
    record, results = crowded
    with pytest.raises(ConfigError, match=r"annotations\[0\] is malformed: no 'segmentation'"):
        read_annotations(write_json(tmp_path, record))
    outlined = {
        **record,
        "annotations": [{**a, "segmentation": rectangle_of(a["bbox"])} for a in record["annotations"]],
    }
    numbered = {
        **outlined,
        "images": [{**i, "id": int(i["id"])} for i in record["images"]],
        "annotations": [{**a, "image_id": int(a["image_id"])} for a in outlined["annotations"]],
    }
    expected = plain_numbers(numbered, results, "bbox")
    assert 0 < expected["AP"] < 1
    out = write_results(tmp_path / "out", record, results, by_id=False)
    assert evaluate(out, write_json(tmp_path, outlined))["bbox"] == pytest.approx(expected, abs=1e-9)
    # What lies in the crowd counts for nothing; as people who were not found, they would count.
    alone = {**outlined, "annotations": [{**a, "iscrowd": 0} for a in outlined["annotations"]]}
    assert evaluate(out, write_json(tmp_path, alone))["bbox"]["AP"] < expected["AP"]


@needs_reference
def test_published_overlaps(crowded: tuple[dict[str, Any], list[dict[str, Any]]], tmp_path: Path) -> None:
    """The IoU of each result with each person, and for the crowd the part of the result that lies in it."""
    record, results = crowded
    outlined = [{**a, "segmentation": rectangle_of(a["bbox"])} for a in record["annotations"]]
    truth = read_annotations(write_json(tmp_path, {**record, "annotations": outlined}))
    overlaps = coco_evaluation(truth, results, "bbox").ious[2299, 1]
    published = np.load(REFERENCE / "faster_coco_eval" / "2299_1.npy")
    np.testing.assert_allclose(overlaps[: len(published)], published, atol=1e-8)


@needs_reference
def test_boxes_without_masks_are_an_error_and_with_rectangles_the_published_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((REFERENCE / "sahi" / "dataset.json").read_text())
    results = json.loads((REFERENCE / "sahi" / "result.json").read_text())
    out = write_results(tmp_path / "out", record, results, by_id=True)
    assert main(["evaluate", out, "--annotations", write_json(tmp_path, record)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("raymask: ")
    assert line.endswith("annotations[0] is malformed: segmentation is an empty list")
    outlined = [{**a, "segmentation": rectangle_of(a["bbox"])} for a in record["annotations"]]
    numbers = evaluate(out, write_json(tmp_path, {**record, "annotations": outlined}))
    expected = json.loads((REFERENCE / "expected.json").read_text())["sahi_bbox_pycocotools_2_0_11"]
    assert numbers["bbox"] == pytest.approx(expected, abs=1e-9)


def test_only_crowds_are_ignored(tmp_path: Path) -> None:
    """A field `ignore` counts for nothing, as in COCO's own code."""
    record = coco_record("a.jpg")
    out = write_output(tmp_path / "out", pictures("/p/a.jpg"), [found("/p/a.jpg", 0)])
    before = evaluate(out, write_json(tmp_path, record))
    record["annotations"][1]["ignore"] = 1
    assert evaluate(out, write_json(tmp_path, record)) == before
    record["annotations"][1]["iscrowd"] = 1
    ignored = evaluate(out, write_json(tmp_path, record))
    assert before["segm"]["AP"] == pytest.approx(0.5)
    assert ignored["segm"]["AP"] == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["/p/a.jpg", "/p/b.jpg"], ["b.jpg", "a.jpg"]),
        (["s3://b/x/1.jpg", "s3://b/y/1.jpg"], ["y/1.jpg", "x/1.jpg"]),
        (["s3://b/1.jpg", "s3://b/deep/1.jpg"], ["deep/1.jpg", "1.jpg"]),
        (["/p/shard.tar#a.jpg", "/p/shard.tar#in/b.jpg"], ["in/b.jpg", "a.jpg"]),
        (["a.jpg", "odd#b.jpg"], ["odd#b.jpg", "a.jpg"]),
    ],
)
def test_images_match_by_name(tmp_path: Path, uris: list[str], names: list[str]) -> None:
    truth = read_annotations(write_json(tmp_path, coco_record(*names)))
    masks = Masks(write_output(tmp_path / "out", pictures(*uris), []))
    assert match_images(masks, truth) == {uris[0]: 11, uris[1]: 10}


def test_images_match_by_coco_image_id_first(tmp_path: Path) -> None:
    truth = read_annotations(write_json(tmp_path, coco_record("a.jpg", "b.jpg")))
    images = [{**image, "coco_image_id": 11 - i} for i, image in enumerate(pictures("/p/a.jpg", "/p/b.jpg"))]
    assert match_images(Masks(write_output(tmp_path / "out", images, [])), truth) == {"/p/a.jpg": 11, "/p/b.jpg": 10}


def test_failed_images_need_no_annotations(tmp_path: Path) -> None:
    truth = read_annotations(write_json(tmp_path, coco_record("a.jpg")))
    images = [*pictures("/p/a.jpg"), {"uri": "/p/notes.jpg", "size_hw": None}]
    assert match_images(Masks(write_output(tmp_path / "out", images, [])), truth) == {"/p/a.jpg": 10}


@pytest.mark.parametrize(
    ("uris", "names", "message"),
    [
        (["/p/a.jpg", "/p/c.jpg"], ["a.jpg"], r"1 images of .* are not in .*, such as '/p/c.jpg'"),
        (["/p/xa.jpg"], ["a.jpg"], "such as '/p/xa.jpg'"),
        (["/p/a.jpg"], ["a.jpg", "b.jpg"], r"1 images of .* are not in .*, such as 'b.jpg'"),
        (["/p/a.jpg", "/q/a.jpg"], ["a.jpg"], "'/p/a.jpg' and '/q/a.jpg' both match image 10"),
        (["/p/a.jpg"], ["a.jpg", "a.jpg"], "two images named 'a.jpg'"),
    ],
)
def test_unmatched_and_ambiguous_images_are_refused(
    tmp_path: Path, uris: list[str], names: list[str], message: str
) -> None:
    truth = write_json(tmp_path, coco_record(*names))
    out = write_output(tmp_path / "out", pictures(*uris), [])
    with pytest.raises(ConfigError, match=message):
        evaluate(out, truth)


def test_other_sizes_and_categories_are_refused(tmp_path: Path) -> None:
    truth = write_json(tmp_path, coco_record("a.jpg"))
    turned = write_output(tmp_path / "turned", [{"uri": "/p/a.jpg", "size_hw": SIZE_HW[::-1]}], [])
    with pytest.raises(ConfigError, match=r"'/p/a.jpg' is 60 x 40 pixels .* is 40 x 60"):
        evaluate(turned, truth)
    renamed = [{**found("/p/a.jpg", 0), "category": "tree"}]
    with pytest.raises(ConfigError, match=r"category 1 is 'tree' in .*, but 'kite' in"):
        evaluate(write_output(tmp_path / "renamed", pictures("/p/a.jpg"), renamed), truth)


# -------------------------------------------------------------------------------------------------- malformed input


def test_malformed_mask_in_the_tables_raises(tmp_path: Path) -> None:
    truth = write_json(tmp_path, coco_record("a.jpg"))
    broken = {**found("/p/a.jpg", 0), "mask": {"size": [0, 5], "counts": "3333"}}  # ends pycocotools' process
    out = write_output(tmp_path / "out", pictures("/p/a.jpg"), [broken])
    with pytest.raises(OutputError, match=r"the mask of instance 0 of '/p/a.jpg' is malformed"):
        evaluate(out, truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": list(SIZE_HW), "counts": "3333"}}, "annotations.0. is malformed"),
        ({"segmentation": {"size": [1, 1], "counts": "1"}}, "has size"),
        ({"segmentation": {"size": list(SIZE_HW), "counts": [5, -5, 2400]}}, "do not add up"),
        ({"segmentation": []}, "an empty list"),
        ({"segmentation": [[1, 2, 3, 4]]}, "at least three points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "at least three points"),
        ({"segmentation": None}, "annotations.0. is malformed"),
        ({"bbox": [1, 2, 3]}, "annotations.0. is malformed"),
        ({"image_id": 99}, "image 99 or category 1 is not listed"),
        ({"category_id": 99}, "image 10 or category 99 is not listed"),
    ],
)
def test_malformed_annotations_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    record = coco_record("a.jpg")
    record["annotations"][0] |= change
    with pytest.raises(ConfigError, match=message):
        read_annotations(write_json(tmp_path, record))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read annotations"):
        read_annotations(str(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match="have no list 'images'"):
        read_annotations(write_json(tmp_path, [1, 2]))
    with pytest.raises(ConfigError, match=r"images\[0\] is malformed: no 'file_name'"):
        read_annotations(write_json(tmp_path, {**coco_record(), "images": [{"id": 1}]}))
    (tmp_path / "text.json").write_text("no JSON")
    with pytest.raises(ConfigError, match="are not JSON"):
        read_annotations(str(tmp_path / "text.json"))
    twice = coco_record("a.jpg", "b.jpg")
    twice["images"][1]["id"] = 10
    with pytest.raises(ConfigError, match="an image id or a category id twice"):
        read_annotations(write_json(tmp_path, twice))
