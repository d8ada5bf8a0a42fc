"""The gallery without a browser: filters, matches, pictures, and who is let in."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from galleries import SIZE_HW, gallery, thing, write_gallery, write_photos
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_evaluation import write_json

from raymask.errors import ConfigError, ErrorKind, Failure
from raymask.gallery import server as server_module
from raymask.gallery.collection import Collection, ImageRow
from raymask.gallery.comparison import match
from raymask.gallery.config import ViewConfig
from raymask.gallery.filters import Filter, FilterError
from raymask.gallery.pictures import Pictures
from raymask.gallery.serving import opened_in_browser
from raymask.journal import Manifest, NewRows, journal_folder
from raymask.journal.manifest import SeenIds
from raymask.masks import encode
from raymask.schema import MANIFEST, image_id

A, B, C, BROKEN = "/photos/a.png", "/photos/b.png", "/photos/C.png", "/photos/broken.png"
THINGS = [
    thing(A, 1, 0.9, (0, 0, 10, 10)),
    thing(A, 2, 0.3, (10, 0, 40, 20)),
    thing(B, 1, 0.5, (0, 0, 50, 30)),
    thing(C, 2, 0.7, (5, 5, 8, 8)),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_gallery(tmp_path_factory.mktemp("gallery") / "out", THINGS, [A, B, C], [BROKEN])


@pytest.fixture(scope="module")
def collection(out: str) -> Collection:
    return Collection.of(out)


def found(collection: Collection, sort: str = "input", **filters: Any) -> list[str]:
    cursor = collection.cursor()
    ids = collection.find(cursor, Filter(**filters), sort).ids.tolist()
    return [image.uri for image in collection.images(cursor, ids)]


# -------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("filters", "uris", "objects"),
    [
        ({}, [A, B, C, BROKEN], 4),
        ({"categories": (2,)}, [A, C], 2),
        ({"categories": (1, 2)}, [A, B, C], 4),
        ({"scores": (0.5, 0.7)}, [B, C], 2),  # both ends are in
        ({"scores": (0.7, None)}, [A, C], 2),  # which float32 has no 0.7 for
        ({"areas": (100, 600)}, [A], 2),
        ({"categories": (2,), "scores": (0.5, None)}, [C], 1),  # one object must be both
        ({"name": "c.PNG"}, [C], 1),
        ({"name": "%"}, [], 0),
        ({"status": "failed"}, [BROKEN], 0),
        ({"errors": ("corrupt",)}, [BROKEN], 0),
        ({"errors": ("truncated",)}, [], 0),
        ({"where": "instance_count = 2"}, [A], 2),
        ({"where": "score < 0.4 -- low"}, [A], 1),
        ({"where": "area > 500 AND height = 40 AND category = 'boat'"}, [A], 1),
        ({"where": "images.uri LIKE '%b.png'"}, [B], 1),
        ({"where": "score >= 0.5", "categories": (1,), "status": "ok"}, [A, B], 2),
    ],
)
def test_filters(collection: Collection, filters: dict[str, Any], uris: list[str], objects: int) -> None:
    assert found(collection, **filters) == uris
    assert collection.find(collection.cursor(), Filter(**filters), "input").objects == objects


@pytest.mark.parametrize(
    ("sort", "uris"),
    [
        ("name", [C, A, B, BROKEN]),
        ("objects", [A, B, C, BROKEN]),
        ("best", [A, C, B, BROKEN]),
        ("worst", [A, B, C, BROKEN]),
        ("largest", [B, A, C, BROKEN]),
        ("smallest", [C, A, B, BROKEN]),
    ],
)
def test_sorts(collection: Collection, sort: str, uris: list[str]) -> None:
    assert found(collection, sort) == uris


def test_sorts_are_of_the_objects_that_the_filter_leaves(collection: Collection) -> None:
    assert found(collection, "best", categories=(2,)) == [C, A]
    assert found(collection, "objects", scores=(0.4, None)) == [A, B, C]
    assert found(collection, "name", categories=(1,)) == [A, B]


def test_objects_are_those_that_the_filter_leaves(collection: Collection) -> None:
    cursor = collection.cursor()
    [image] = collection.images(cursor, [image_id(A)])
    [left] = collection.objects(cursor, [image], Filter(where="category = 'boat'"))[image_id(A)]
    assert left["score"] == pytest.approx(0.3)
    assert left["mask"] == THINGS[1]["mask"]
    assert [o["instance"] for o in collection.objects(cursor, [image])[image_id(A)]] == [0, 1]


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("scor > 1", 'column "scor" not found.*\n.*"score"'),
        ("score >", "syntax error"),
        ("true); DROP VIEW images; SELECT (1", "one condition is meant"),
        ("count(*) > 1", "aggregates"),
        ("uri IN (SELECT content FROM read_text('/etc/hostname'))", "Permission Error"),
        ("score > 'a lot'", "Conversion Error"),
    ],
)
def test_what_is_no_condition_says_why(collection: Collection, where: str, problem: str) -> None:
    with pytest.raises(FilterError, match=problem) as said:
        collection.find(collection.cursor(), Filter(where=where), "input")
    assert "LINE 1" not in str(said.value)


@pytest.mark.parametrize("query", [{"min_score": "much"}, {"category": "dog"}, {"verdict": "guilty"}])
def test_filters_of_links_are_checked(query: dict[str, str]) -> None:
    with pytest.raises(FilterError, match="not a filter"):
        Filter.parse(query)


# -------------------------------------------------------------------------------------------------------------- matches


def test_matches_are_those_of_pycocotools() -> None:
    chance = np.random.default_rng(3)

    def objects(count: int) -> list[dict[str, Any]]:
        rows = []
        for _ in range(count):
            x, y = chance.integers(0, 30), chance.integers(0, 20)
            box = (int(x), int(y), int(x + chance.integers(8, 30)), int(y + chance.integers(8, 20)))
            rows.append(thing("", int(chance.integers(1, 3)), float(chance.random()), box))
        return rows

    checked = 0
    for _ in range(60):
        shown, beside = sorted(objects(12), key=lambda o: -o["score"]), objects(8)
        crowd = [bool(chance.random() < 0.2) for _ in beside]
        mine = match(shown, beside, crowd)
        expected, excused = coco_matches(shown, beside, crowd)
        assert (mine.shown, mine.excused) == (expected, excused)
        for place, partner in enumerate(mine.beside):
            assert partner is None or mine.shown[partner] == place
        checked += len(excused) + sum(p is not None for p in expected)
    assert checked > 100


def coco_matches(
    shown: list[dict[str, Any]], beside: list[dict[str, Any]], crowd: list[bool]
) -> tuple[list[int | None], frozenset[int]]:
    """Partners of `shown` at IoU 0.5, and those that a crowd excuses, by COCOeval."""

    def index(objects: list[dict[str, Any]], crowds: list[bool]) -> COCO:
        coco = COCO()
        entries = [
            {
                **{"id": n, "image_id": 1, "category_id": o["category_id"], "segmentation": o["mask"]},
                **{"area": o["area"], "iscrowd": int(c), "score": o["score"]},
            }
            for n, (o, c) in enumerate(zip(objects, crowds, strict=True), 1)
        ]
        image = {"id": 1, "height": SIZE_HW[0], "width": SIZE_HW[1]}
        coco.dataset = {"images": [image], "categories": [{"id": 1}, {"id": 2}], "annotations": entries}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(index(beside, crowd), index(shown, [False] * len(shown)), "segm")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.evaluate()
    partners: list[int | None] = [None] * len(shown)
    excused = set()
    for part in filter(None, evaluation.evalImgs):
        for id, partner, ignored in zip(part["dtIds"], part["dtMatches"][0], part["dtIgnore"][0], strict=True):
            if partner and ignored:
                excused.add(id - 1)
            elif partner:
                partners[id - 1] = int(partner) - 1
    return partners, frozenset(excused)


def test_malformed_masks_have_no_partner() -> None:
    good = thing("", 1, 0.9, (0, 0, 10, 10))
    bad = {**good, "mask": {"size": [0, 5], "counts": "3333"}}
    other_size = {**good, "mask": encode(np.ones((5, 5), np.bool_))}
    for shown, beside in ((good, bad), (bad, good), (bad, bad), (good, other_size)):
        assert match([shown], [beside], [False]).shown == [None]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of A's things the first is right; B has a boat that was not found; a crowd of boats excuses C's."""
    boxes = [(1, 1, [0, 0, 10, 10], 0), (2, 2, [20, 20, 10, 10], 0), (3, 2, [4, 4, 6, 6], 1)]
    record = {
        "images": [
            {"id": n, "file_name": u.rpartition("/")[2], "height": 40, "width": 60} for n, u in enumerate((A, B, C), 1)
        ],
        "categories": [{"id": 1, "name": "kite"}, {"id": 2, "name": "boat"}],
        "annotations": [
            {
                **{"id": n, "image_id": image, "category_id": category, "bbox": box, "area": 100, "iscrowd": crowd},
                "segmentation": rectangle_rle(box) if crowd else [polygon(box)],
            }
            for n, (image, category, box, crowd) in enumerate(boxes)
        ],
    }
    return write_json(tmp_path_factory.mktemp("truth"), record)


def polygon(box: list[int]) -> list[int]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def rectangle_rle(box: list[int]) -> dict[str, Any]:
    x, y, width, height = box
    return dict(thing("", 1, 1, (x, y, x + width, y + height))["mask"])


@pytest.mark.parametrize(
    ("query", "uris", "counts"),
    [
        ("", [A, B, C, BROKEN], (1, 1, 2)),
        ("verdict=match", [A], (1, 1, 2)),
        ("verdict=miss", [B], (1, 1, 2)),
        ("verdict=false_alarm", [A, B], (1, 1, 2)),
        ("verdict=false_alarm&min_score=0.4", [B], (1, 1, 1)),
        ("verdict=miss&min_score=0.95", [A, B], (0, 2, 0)),  # what scores too little found nothing
        ("verdict=false_alarm&category=2", [A], (0, 1, 1)),
        ("min_score=0.95", [A, B, C, BROKEN], (0, 2, 0)),
    ],
)
def test_images_by_verdict(out: str, truth: str, query: str, uris: list[str], counts: tuple[int, int, int]) -> None:
    with gallery(out, annotations=truth) as link:
        page = get(f"{link}api/images?{query}")
        assert [row["uri"] for row in page["rows"]] == uris
        compared = get(f"{link}api/compared?{query}")
    assert (compared["match"], compared["miss"], compared["false_alarm"]) == counts
    assert (compared["images"], compared["is_done"]) == (4, True)


def test_verdicts_of_objects(out: str, truth: str) -> None:
    ids = ",".join(str(image_id(uri)) for uri in (A, B, C))
    with gallery(out, annotations=truth) as link:
        objects = get(f"{link}api/objects?ids={ids}&min_score=0.4")
    verdicts = {
        uri: [[o["verdict"] for o in objects[str(image_id(uri))][side]] for side in ("shown", "beside")]
        for uri in (A, B, C)
    }
    assert verdicts == {A: [["match"], ["match"]], B: [["false_alarm"], ["miss"]], C: [["crowd"], ["crowd"]]}


def test_another_output_stands_beside(out: str, tmp_path: Path) -> None:
    other = write_gallery(tmp_path / "other", [THINGS[0], THINGS[3]], [A, B, C])
    with gallery(out, beside=other) as link:
        assert get(f"{link}api/about")["beside"] == {"name": other, "is_truth": False}
        compared = get(f"{link}api/compared")
        assert (compared["match"], compared["miss"], compared["false_alarm"]) == (2, 0, 2)
    with gallery(out, annotations=other) as link:
        assert get(f"{link}api/about")["beside"]["is_truth"]


def test_a_comparison_that_ends_early_says_so(out: str, truth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> Any:
        raise FilterError("the store is gone")

    monkeypatch.setattr("raymask.gallery.comparison.match", lost)
    with gallery(out, annotations=truth) as link, pytest.raises(urllib.error.HTTPError) as said:
        get(f"{link}api/compared")
    assert json.loads(said.value.read())["problem"] == "the comparison has ended: the store is gone"


# ------------------------------------------------------------------------------------------------------------- pictures


def row(uri: str, size_hw: tuple[int, int] = SIZE_HW) -> ImageRow:
    return ImageRow(image_id(uri), uri, "ok", None, None, size_hw, None, 0)


def test_pictures_are_upright_and_scaled(out: str, tmp_path: Path) -> None:
    image = PIL.Image.new("RGB", (1200, 800), "red")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    pictures = Pictures(out)
    made = {}
    for name, make in (("small", pictures.thumbnail), ("whole", pictures.whole)):
        data = make(row(str(tmp_path / "turned.jpg"), (1200, 800)))
        assert isinstance(data, bytes)
        made[name] = PIL.Image.open(io.BytesIO(data)).size
    assert made == {"small": (341, 512), "whole": (800, 1200)}


def test_what_cannot_be_shown_says_why(out: str, tmp_path: Path) -> None:
    [there] = write_photos(tmp_path, ["there.png"])
    pictures = Pictures(out)
    kinds = {}
    for name, image in {
        "gone": row(str(tmp_path / "gone.png")),
        "changed": row(there, (41, 60)),
        "web": row("http://127.0.0.1:1/x.png"),
        "failed": ImageRow(1, "x", "failed", "truncated", "too short", None, None, 0),
    }.items():
        made = pictures.thumbnail(image)
        assert isinstance(made, Failure)
        kinds[name] = made.kind
    assert kinds == {
        **{"gone": ErrorKind.NOT_FOUND, "changed": ErrorKind.CHANGED},
        **{"web": ErrorKind.FORBIDDEN, "failed": ErrorKind.TRUNCATED},
    }


def test_pictures_inside_of_shards(tmp_path: Path) -> None:
    uris = write_photos(tmp_path, ["0.png", "1.png", "2.png"])
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for uri in uris:
            tar.add(uri, Path(uri).name)
    with tarfile.open(tmp_path / "shard.tar") as tar:
        members = tar.getmembers()
    keys = [f"{tmp_path}/shard.tar#{m.name}" for m in members]
    columns: dict[str, Any] = {
        **{"uri": keys, "size": [m.size for m in members], "position": [m.offset_data for m in members]},
        **{"container": [str(tmp_path / "shard.tar")] * 3, "container_column": [None] * 3, "etag": [None] * 3},
    }
    schema = pa.schema([MANIFEST.field(name) for name in columns])
    rows = NewRows(0, SeenIds()).of([pa.record_batch(columns, schema=schema)])
    Manifest(journal_folder(str(tmp_path / "out")), ()).append({"source": "shards"}, rows)
    pictures = Pictures(str(tmp_path / "out"))
    for number, key in enumerate(keys):
        made = pictures.whole(row(key))
        assert isinstance(made, bytes)
        red = np.asarray(PIL.Image.open(io.BytesIO(made)))[..., 0].astype(int)
        assert abs(red - 40 * number).max() < 4


def test_pictures_kept_are_bounded(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = write_photos(tmp_path, ["1.png", "2.png", "3.png"])
    pictures = Pictures(out)
    sizes = [len(made) for uri in uris if isinstance(made := pictures.thumbnail(row(uri)), bytes)]
    assert pictures.kept_bytes == sum(sizes)
    monkeypatch.setattr("raymask.gallery.pictures.CACHE_BYTES", sizes[2])
    pictures.thumbnail(row(str(tmp_path / "none.png")))
    assert pictures.kept_bytes <= sizes[2]


# -------------------------------------------------------------------------------------------------------- who is let in


def get(url: str, **headers: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return json.loads(answer.read())


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code if error.headers["Content-Security-Policy"] else 0


@pytest.fixture(scope="module")
def link(out: str) -> Iterator[str]:
    with gallery(out) as address:
        yield address


def test_only_who_has_the_link_is_let_in(link: str) -> None:
    address = urllib.parse.urlsplit(link)
    root = f"http://{address.netloc}/"
    assert address.hostname == "127.0.0.1"
    assert len(address.path) > 30
    assert status_of(link) == 200
    assert [status_of(root + path) for path in ("", "x/", "x/api/about", "x/gallery.js")] == [404] * 4
    assert status_of(link[:-2] + "/api/about") == 404


def test_only_names_of_this_machine_are_answered(link: str) -> None:
    hosts = ("localhost:1234", "127.0.0.1", "[::1]:80", "rebound.example", "127.0.0.1.rebound.example:80")
    assert [status_of(link, Host=host) for host in hosts] == [200, 200, 200, 403, 403]
    sites = ("same-origin", "none", "same-site", "cross-site")
    assert [status_of(link, **{"Sec-Fetch-Site": site}) for site in sites] == [200, 200, 403, 403]


def test_only_images_of_the_tables_are_fetched(link: str) -> None:
    names = ("thumbnails/1", "pictures/99", "thumbnails/..%2f..%2fetc%2fpasswd", "..%2fserver.py", "__init__.py")
    assert [status_of(link + name) for name in names] == [404] * len(names)


def test_nothing_from_elsewhere_may_run_on_the_page(link: str) -> None:
    with urllib.request.urlopen(link, timeout=30) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in page and "onclick" not in page and "http" not in page


def test_a_condition_that_takes_too_long_is_stopped(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "TIME_LIMIT_S", 0.3)
    endless = "(SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range % 7 = b.range % 5) > score"
    with gallery(out) as link:
        with pytest.raises(urllib.error.HTTPError) as said:
            get(f"{link}api/images?{urllib.parse.urlencode({'where': endless})}")
        assert "took longer" in json.loads(said.value.read())["problem"]
        assert get(f"{link}api/images?where=score>0.4")["images"] == 3  # and the next one is answered


def test_the_command(out: str) -> None:
    command = [sys.executable, "-m", "raymask.cli", "view", out, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith(f"{out} is at http://127.0.0.1:")
        assert get(f"{said.split()[-1]}api/about")["images"] == 4
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_the_link_is_in_no_argument_of_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, str, int]] = []

    def open_browser(url: str) -> None:
        path = Path(url.removeprefix("file://"))
        opened.append((url, path.read_text(), path.parent.stat().st_mode & 0o777))

    monkeypatch.setattr("webbrowser.open", open_browser)
    monkeypatch.setenv("DISPLAY", ":0")
    with opened_in_browser("http://127.0.0.1:1/secret/"):
        pass
    [(url, content, mode)] = opened
    assert "secret" not in url
    assert "http://127.0.0.1:1/secret/" in content
    assert mode == 0o700
    assert not Path(url.removeprefix("file://")).exists()


def test_a_port_that_is_taken(out: str, link: str) -> None:
    port = urllib.parse.urlsplit(link).port
    with pytest.raises(ConfigError, match="choose another --port"), gallery(out, port=port):
        pass
    with pytest.raises(ConfigError, match="both given"):
        ViewConfig(out=out, beside="x", annotations="y")
