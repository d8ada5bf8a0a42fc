"""`raymask evaluate`: by category, by least score, confusion, as text, JSON and a page; against pycocotools itself."""

from __future__ import annotations

import contextlib
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval
from test_evaluation import CATEGORIES, coco_record, found, pictures, rectangle, write_json, write_output

from raymask.cli import main
from raymask.config import EvaluateConfig
from raymask.errors import ConfigError
from raymask.evaluation import (
    METRICS,
    Evaluation,
    coco_evaluation,
    coco_metrics,
    coco_results,
    evaluate_fully,
    match_images,
    read_annotations,
)
from raymask.output import Masks

URIS = ("/photos/a.jpg", "/photos/b.jpg", "/photos/c.jpg")


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[str, str]:
    """Three images of a kite and a boat each. Found: all of the first; in the second the kite as a boat, and a boat of
    low score; in the third nothing, and something where nothing is.
    """
    truth = write_json(tmp_path, coco_record("a.jpg", "b.jpg", "c.jpg"))
    nowhere = {**found(URIS[2], 0, 0.8), "box_xyxy": (50, 30, 60, 40), "mask": rectangle((50, 30, 60, 40))}
    as_boat = {**found(URIS[1], 0, 0.9), "category_id": 2, "category": CATEGORIES[2]}
    rows = [found(URIS[0], 0, 0.95), found(URIS[0], 1, 0.9), as_boat, found(URIS[1], 1, 0.15), nowhere]
    return write_output(tmp_path / "out", pictures(*URIS), rows), truth


def measure(mixed: tuple[str, str], **options: Any) -> Evaluation:
    return evaluate_fully(EvaluateConfig(out=mixed[0], annotations=mixed[1], **options))


def test_least_scores(mixed: tuple[str, str]) -> None:
    rows = {row["score"]: row for row in measure(mixed).thresholds}
    assert list(rows) == [round(n / 20, 2) for n in range(1, 20)]
    # Of six objects three are found, by five detections; from 0.2 on two, by four.
    assert rows[0.05] == {"score": 0.05, "precision": 3 / 5, "recall": 3 / 6, "f1": 6 / 11, "found": 5}
    assert rows[0.2] == {"score": 0.2, "precision": 2 / 4, "recall": 2 / 6, "f1": 4 / 10, "found": 4}
    assert rows[0.95] == {"score": 0.95, "precision": 1.0, "recall": 1 / 6, "f1": 2 / 7, "found": 1}


def test_confusion(mixed: tuple[str, str]) -> None:
    confusion = measure(mixed).confusion
    assert confusion["categories"] == ["kite", "boat"]
    assert confusion["score"] == 0.05  # of the best F1
    assert confusion["counts"] == [[1, 1, 1], [0, 2, 1], [1, 0, 0]]


def test_what_lies_in_a_crowd_is_no_mistake(tmp_path: Path) -> None:
    record = coco_record("a.jpg")
    record["annotations"][0]["iscrowd"] = 1
    rows = [found(URIS[0], 0), found(URIS[0], 1)]
    out = write_output(tmp_path / "out", pictures(URIS[0]), rows)
    evaluation = measure((out, write_json(tmp_path, record)))
    assert evaluation.confusion["counts"] == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert {row["precision"] for row in evaluation.thresholds[:18]} == {1.0}
    assert evaluation.categories[0]["objects"] == 0


def test_categories_are_those_of_an_evaluation_of_each_alone(mixed: tuple[str, str]) -> None:
    truth = read_annotations(mixed[1])
    masks = Masks(mixed[0])
    results = coco_results(masks, match_images(masks, truth))
    for category in measure(mixed).categories:
        objects = [o for o in truth.objects if o["category_id"] == category["id"]]
        alone = type(truth)(truth.url, truth.images, {category["id"]: category["name"]}, objects)
        for kind in ("segm", "bbox"):
            assert category[kind] == coco_metrics(alone, results, kind)
        assert category["objects"] == len(objects)


def test_numbers_are_those_of_pycocotools_own_summary(mixed: tuple[str, str]) -> None:
    truth = read_annotations(mixed[1])
    masks = Masks(mixed[0])
    evaluation: COCOeval = coco_evaluation(truth, coco_results(masks, match_images(masks, truth)), "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    assert measure(mixed).scores["segm"] == dict(zip(METRICS, evaluation.stats.tolist(), strict=True))


def test_more_than_a_hundred_detections_can_count(tmp_path: Path) -> None:
    record = coco_record("a.jpg")
    record["annotations"] = record["annotations"][:1]
    wrong = {**found(URIS[0], 0, 0.9), "box_xyxy": (50, 30, 60, 40), "mask": rectangle((50, 30, 60, 40))}
    out = write_output(tmp_path / "out", pictures(URIS[0]), [*[wrong] * 150, found(URIS[0], 0, 0.5)])
    truth = write_json(tmp_path, record)
    hundred, two_hundred = (
        measure((out, truth)).scores["segm"],
        measure((out, truth), max_detections=200).scores["segm"],
    )
    assert (hundred["AP"], hundred["AR100"]) == (0, 0)
    assert two_hundred["AR200"] == 1
    assert two_hundred["AP"] == pytest.approx(1 / 151)
    with pytest.raises(ConfigError, match="--max-detections is 0"):
        measure((out, truth), max_detections=0)


def test_the_command_prints_and_writes(
    mixed: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "numbers.json"), "--html", str(tmp_path / "page.html")]
    assert main(["evaluate", mixed[0], "--annotations", mixed[1], *files]) == 0
    shown = capsys.readouterr().out
    evaluation = measure(mixed)
    assert "3 images, 6 objects, 5 instances found" in shown
    assert f"masks  {evaluation.scores['segm']['AP']:.3f}" in shown
    assert "best F1 0.545 at --min-score 0.05: precision 0.600, recall 0.500" in shown
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert {kind: numbers[kind] for kind in ("segm", "bbox")} == evaluation.scores
    assert numbers["confusion"] == evaluation.confusion
    assert [c["name"] for c in numbers["categories"]] == ["kite", "boat"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<table>") == 4
    assert page.count("<svg") == 2
    assert [t for t in tags_of(page) if t == "h2"] == ["h2"] * 5
    assert "http" not in page.replace("http-equiv", "")


def test_nothing_found_gives_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_output(tmp_path / "out", pictures(URIS[0]), [])
    truth = write_json(tmp_path, coco_record("a.jpg"))
    assert main(["evaluate", out, "--annotations", truth, "--html", str(tmp_path / "page.html")]) == 0
    assert "1 images, 2 objects, 0 instances found" in capsys.readouterr().out
    evaluation = measure((out, truth))
    assert evaluation.scores["segm"]["AP"] == 0
    np.testing.assert_array_equal(evaluation.confusion["counts"], [[0, 0, 1], [0, 0, 1], [0, 0, 0]])


def tags_of(page: str) -> list[str]:
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append(tag)

    Tags().feed(page)
    return tags
