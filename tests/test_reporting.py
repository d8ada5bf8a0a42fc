"""`raymask report`, `raymask draw`: numbers against counting by hand, pictures from every place, pages in Chromium."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw_folder, draw_picture
from outputs import list_images, make_content
from playwright.sync_api import Browser, Page
from stores import Store
from test_evaluation import write_output

import raymask
from raymask.cli import main
from raymask.config import SegmentConfig
from raymask.drawing import LAYERS, colour_of
from raymask.errors import ConfigError, ErrorKind, Failure
from raymask.journal import Manifest, NewRows, journal_folder, write_part
from raymask.journal.manifest import SeenIds
from raymask.masks import encode
from raymask.output import MIN_SCORE, Masks
from raymask.pictures import read_pictures
from raymask.reporting import samples
from raymask.reporting.config import DrawConfig
from raymask.reporting.document import report_html
from raymask.reporting.facts import GRID_COLUMNS, GRID_ROWS, SCORE_BINS, read_facts
from raymask.reporting.pace import pace_of, read_pace
from raymask.reporting.samples import GROUP_IMAGES, choose
from raymask.schema import PART, image_id
from raymask.sources import open_source
from raymask.storage import Folder

SIZE_HW = (48, 64)
HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">\n\u202e&amp;"


def instance(uri: str, score: float, category: str = "kite", category_id: int = 1) -> dict[str, Any]:
    """A row of a rectangle in the middle of a picture of `SIZE_HW`."""
    mask = np.zeros(SIZE_HW, bool)
    mask[10:30, 20:50] = True
    row = {"uri": uri, "category": category, "category_id": category_id, "score": score}
    return {**row, "box_xyxy": (20, 10, 50, 30), "mask": encode(mask)}


def photos_output(folder: Path, count: int, broken: int = 0) -> tuple[str, list[str]]:
    """An output over real pictures, with one object more in each than in the one before; and the pictures' paths."""
    photos = draw_folder(folder / "photos", count, broken)
    uris = [str(path) for path in sorted(photos.glob("????.png"))]
    images: list[dict[str, Any]] = [{"uri": uri, "size_hw": SIZE_HW} for uri in uris]
    images += [{"uri": str(path), "size_hw": None} for path in sorted(photos.glob("*-broken.png"))]
    instances = [instance(uri, 0.9 - 0.1 * n) for number, uri in enumerate(uris) for n in range(number)]
    return write_output(folder / "out", images, instances), uris


# ---------------------------------------------------------------------------------------------------------- numbers


def made_up(count: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both tables: images of three sizes, some failed, with up to six objects anywhere in and beyond them."""
    chance = np.random.default_rng(seed)
    images, instances = [], []
    for number in range(count):
        failed = chance.random() < 0.2
        height, width = [(480, 640), (640, 480), (100, 3000)][int(chance.integers(3))]
        objects = 0 if failed else int(chance.integers(0, 7))
        images.append(
            {
                "image_id": image_id(str(number)),
                "uri": str(number),
                "error": str(chance.choice(["corrupt", "empty"])) if failed else None,
                "error_detail": "why" if failed else None,
                "height": None if failed else height,
                "width": None if failed else width,
                "format": None if failed else str(chance.choice(["jpeg", "png"])),
                "bytes": None if number == 3 else int(chance.integers(1, 1000)),
                "instance_count": objects,
            }
        )
        for _ in range(objects):
            x, y = sorted(chance.uniform(-20, width + 20, 2)), sorted(chance.uniform(-20, height + 20, 2))
            category = int(chance.integers(1, 4))
            box = {"x_min": x[0], "x_max": x[1], "y_min": y[0], "y_max": y[1]}
            score, area = (
                float(chance.choice([0, 0.02, 0.5, 0.999, 1.0, chance.random()])),
                int(chance.integers(0, 9999)),
            )
            named = {"image_id": image_id(str(number)), "category_id": category, "category": f"c{category}"}
            instances.append({**named, **box, "score": score, "area": area})
    return images, instances


def connected(images: list[dict[str, Any]], instances: list[dict[str, Any]]) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    types = {"error": pa.string(), "error_detail": pa.string(), "format": pa.string()}
    ints = dict.fromkeys(("image_id", "height", "width", "bytes", "instance_count", "area"), pa.int64())
    for name, rows in (("images", images), ("instances", instances)):
        table = pa.Table.from_pylist(rows)
        fields = [pa.field(f.name, {**types, **ints}.get(f.name, f.type)) for f in table.schema]
        con.register(name, table.cast(pa.schema(fields)))
    return con


def test_facts_are_those_of_counting_by_hand() -> None:
    images, instances = made_up(400)
    facts = read_facts(connected(images, instances))
    ok = [i for i in images if i["error"] is None]
    by_id = {i["image_id"]: i for i in images}
    assert (facts.images, facts.ok, facts.instances) == (400, len(ok), len(instances))
    assert facts.bytes == sum(i["bytes"] or 0 for i in images)
    assert {f.kind: f.images for f in facts.failures} == Counter(i["error"] for i in images if i["error"])
    assert all(1 <= len(f.examples) <= 4 and f.examples[0].detail == "why" for f in facts.failures)
    assert facts.formats == Counter(i["format"] for i in ok)
    assert facts.sizes_hw == Counter((i["height"], i["width"]) for i in ok)
    assert facts.per_image == Counter(i["instance_count"] for i in ok)
    assert {c.name: c.objects for c in facts.categories} == Counter(i["category"] for i in instances)
    for c in facts.categories:
        of_it = [i for i in instances if i["category_id"] == c.id]
        assert c.score == pytest.approx(np.mean([i["score"] for i in of_it]))
        assert c.area == pytest.approx(np.mean([i["area"] for i in of_it]))
    bins = Counter(min(math.floor(i["score"] * SCORE_BINS), SCORE_BINS - 1) for i in instances)
    assert list(facts.scores) == [bins[n] for n in range(SCORE_BINS)]
    assert facts.sides == Counter(math.floor(2 * math.log2(max(math.sqrt(i["area"]), 1))) for i in instances)
    centres = np.zeros((GRID_ROWS, GRID_COLUMNS), int)
    for i in instances:
        y = (i["y_min"] + i["y_max"]) / 2 / by_id[i["image_id"]]["height"] * GRID_ROWS
        x = (i["x_min"] + i["x_max"]) / 2 / by_id[i["image_id"]]["width"] * GRID_COLUMNS
        centres[min(max(int(y), 0), GRID_ROWS - 1), min(max(int(x), 0), GRID_COLUMNS - 1)] += 1
    np.testing.assert_array_equal(facts.centres, centres)


def test_samples_are_the_best_the_worst_the_middle_and_the_extremes() -> None:
    # Image n has n objects of a score each that falls with n: image 0 none at all, the last ones none that is sure.
    images = [
        {"image_id": n, "uri": str(n), "error": None, "height": 9, "width": 9, "bytes": 1, "instance_count": n}
        for n in range(40)
    ]
    instances = [
        {"image_id": n, "score": 1 - n / 50 - k / 10_000, "category_id": 1} for n in range(40) for k in range(n)
    ]
    groups = choose(connected(images, instances), 40)
    assert groups["surest"] == [1, 2, 3]
    assert groups["least sure"] == [39, 38, 37]
    assert groups["most objects"] == [36, 35, 34]
    assert groups["nothing found"] == [0]
    assert len(groups["typical"]) == GROUP_IMAGES
    assert all(abs(n - 12.5) < 3 for n in groups["typical"])  # 1 to 24 have objects from 0.5 on


def test_pace_leaves_pauses_out() -> None:
    # Ten images every second for a minute, an hour of nothing, then twenty a second for half a minute.
    parts = [(1000.0 + n, 10) for n in range(61)] + [(5000.0 + n, 20) for n in range(31)]
    pace = pace_of(parts)
    assert pace is not None
    assert pace.images == 610 + 620
    assert [(s.start_s, s.stop_s, s.images) for s in pace.stretches] == [(1000, 1060, 600), (5000, 5030, 600)]
    assert pace.working_s == 90
    assert pace.rate == pytest.approx(1200 / 90)
    assert sum(rate * pace.bin_s for rate in pace.rates) == pytest.approx(1200)
    assert pace.rates[0] == pytest.approx(10)
    assert pace.rates[-1] == pytest.approx(20)
    assert pace_of([]) is None
    assert pace_of([(7.0, 10), (7.0, 10)]) is None


def test_pace_is_read_from_the_times_of_parts(tmp_path: Path) -> None:
    folder = journal_folder(str(tmp_path))
    for number in range(3):
        rows = [{"ordinal": 2 * number + n, "uri": "u", "status": "ok", "instances": []} for n in range(2)]
        name = write_part(folder, pa.Table.from_pylist(rows, schema=PART), 0)
        os.utime(tmp_path / "_raymask/parts" / str(name), (0, 100 + 4 * number))
    (tmp_path / "_raymask/parts/.tmp-1").touch()
    pace = read_pace(str(tmp_path))
    assert pace is not None
    assert (pace.images, pace.working_s, pace.rate) == (6, 8, 0.5)
    assert read_pace(str(tmp_path / "nowhere")) is None


def test_a_store_says_when_its_objects_were_put(server: Store) -> None:
    folder = Folder(f"{server.url}/times")
    folder.put("a/x", b"1")
    [(name, put_s)] = folder.times("a")
    assert name == "a/x"
    assert abs(put_s - time.time()) < 60


# --------------------------------------------------------------------------------------------------------- pictures


def test_draw_shows_what_scores_enough(tmp_path: Path) -> None:
    out, uris = photos_output(tmp_path, 4)
    masks = Masks(out)
    pixels = np.asarray(draw_picture(3))
    plain = np.asarray(masks.draw(uris[3], min_score=0.95))
    np.testing.assert_array_equal(plain, pixels)
    drawn = np.asarray(masks.draw(uris[3], layers=["masks"]))
    assert tuple(drawn[20, 20]) == colour_of(1)
    assert masks.draw(uris[3], longest_side=640).size == (640, 480)
    with pytest.raises(ConfigError, match=r"no image 'elsewhere\.png'"):
        masks.draw("elsewhere.png")


def contained(out: str, source: str) -> list[dict[str, Any]]:
    """List a source into the manifest of an output; the rows of its images."""
    batches = open_source(SegmentConfig(source=source, out=out)).batches
    manifest = Manifest(journal_folder(out), ()).append({"source": source}, NewRows(0, SeenIds()).of(batches))
    rows = manifest.read_rows(0, manifest.rows, ["image_id", "uri"]).to_pylist()
    return [{**row, "height": SIZE_HW[0], "width": SIZE_HW[1], "bytes": None} for row in rows]


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_pictures_come_out_of_containers(kind: str, where: str, tmp_path: Path, server: Store) -> None:
    root = str(tmp_path) if where == "local" else f"{server.url}/containers-{kind}"
    photos = sorted(draw_folder(tmp_path / "photos", 5).iterdir())
    sink = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for photo in photos:
                tar.add(photo, photo.name)
    else:
        pq.write_table(pa.table({"image": [photo.read_bytes() for photo in photos]}), sink)
    Folder(root).put(f"all.{kind}", sink.getvalue())
    images = contained(f"{root}/out", f"{root}/all.{kind}")
    wanted = [images[4], images[1]]
    shown = [np.array(pixels) for _, pixels in read_pictures(f"{root}/out", wanted)]
    np.testing.assert_array_equal(shown, [np.asarray(draw_picture(4)), np.asarray(draw_picture(1))])


def test_pictures_that_are_not_what_they_were(tmp_path: Path) -> None:
    _, uris = photos_output(tmp_path, 4)
    row = {"image_id": 0, "height": SIZE_HW[0], "width": SIZE_HW[1], "bytes": None}
    draw_picture(1, 10, 10).save(uris[1])
    Path(uris[2]).write_bytes(b"no picture any more")
    Path(uris[3]).unlink()
    web = "https://example.com/a.png"
    found = [pixels for _, pixels in read_pictures(str(tmp_path), [{**row, "uri": uri} for uri in (*uris, web)])]
    assert isinstance(found[0], np.ndarray)
    kinds = [pixels.kind for pixels in found[1:] if isinstance(pixels, Failure)]
    assert kinds == [ErrorKind.CHANGED, ErrorKind.NOT_AN_IMAGE, ErrorKind.NOT_FOUND, ErrorKind.FORBIDDEN]
    assert list(read_pictures(str(tmp_path), [])) == []


# ------------------------------------------------------------------------------------------------------------ pages


def pictures_in(page: str) -> list[PIL.Image.Image]:
    urls = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', page)
    return [PIL.Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]


def test_a_report_is_one_page_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = photos_output(tmp_path, 9, broken=2)
    file = tmp_path / "report.html"
    assert main(["report", out, "-o", str(file)]) == 0
    assert f"{file}: " in capsys.readouterr().out
    page = file.read_text()
    for text in (
        "<b>11</b>",
        "18.2 %",
        "<b>36</b>",
        "corrupt",
        "0000-broken.png",
        "kite",
        "4.0",
        "Least sure",
        "0008.png",
    ):
        assert text in page
    assert len(pictures_in(page)) == 9  # two of each group, and the one without objects
    assert {picture.size for picture in pictures_in(page)} == {(256, 192)}  # small ones are not blown up further
    assert "://" not in page
    assert "<script" not in page


def test_where_nothing_is_sure_the_best_is_shown(tmp_path: Path) -> None:
    [uri] = [str(path) for path in draw_folder(tmp_path / "photos", 1).iterdir()]
    rows = [instance(uri, score) for score in (0.3, 0.2)]
    out = write_output(tmp_path / "out", [{"uri": uri, "size_hw": SIZE_HW}], rows)
    assert 'alt="0000.png: 1 of 2 objects drawn"' in report_html(out)


def test_a_source_that_is_gone_leaves_the_rest(tmp_path: Path) -> None:
    out, _ = photos_output(tmp_path, 9)
    shutil.rmtree(tmp_path / "photos")
    page = report_html(out)
    assert "cannot be read any more where they were: not_found: no such object" in page
    assert "<svg" in page
    assert pictures_in(page) == []


def test_credentials_that_expire_leave_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = photos_output(tmp_path, 9)

    def expiring(out: str, images: Sequence[Any], **options: Any) -> Iterator[Any]:
        yield from islice(read_pictures(out, images, **options), 3)
        raise ConfigError("renew the credentials")

    monkeypatch.setattr(samples, "read_pictures", expiring)
    page = report_html(out)
    assert len(pictures_in(page)) == 3
    assert page.count("forbidden: renew the credentials") == 6


def test_an_output_that_is_being_written_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_content((3, "truncated", 2, 0, 1))
    manifest = list_images(str(tmp_path), content.listed)
    write_part(manifest.folder, content.part.slice(0, 3), 0)
    gone = Failure(ErrorKind.NOT_FOUND, "no such object")
    monkeypatch.setattr(samples, "read_pictures", lambda out, images, **_: ((image, gone) for image in images))
    page = report_html(str(tmp_path))
    assert "found so far, in 3 of 5 images" in page
    assert "<b>5</b>" in page  # objects
    assert "3 of 5" in Masks(str(tmp_path))._repr_html_()


@pytest.mark.parametrize("images", [0, 1])
def test_outputs_with_nothing_in_them(images: int, tmp_path: Path) -> None:
    rows = [{"uri": "/gone.png", "size_hw": None}] * images
    page = report_html(write_output(tmp_path / "out", rows, []))
    assert "No object was found." in page
    assert "No image could be read." in page


def test_a_report_of_a_store_into_the_store(server: Store, tmp_path: Path) -> None:
    _, uris = photos_output(tmp_path, 3)
    for file in (tmp_path / "out").rglob("*.*"):
        server.put(f"reported/{file.relative_to(tmp_path / 'out')}", file.read_bytes())
    raymask.report(f"{server.url}/reported", out=f"{server.url}/reported/report.html")
    page = Folder(f"{server.url}/reported").read("report.html").decode()
    assert len(pictures_in(page)) == 3
    assert isinstance(raymask.draw(f"{server.url}/reported", uris[2]), PIL.Image.Image)


def test_the_draw_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, uris = photos_output(tmp_path, 2, broken=1)
    for ending, format in (("png", "PNG"), ("JPG", "JPEG"), ("webp", "WEBP")):
        file = tmp_path / f"drawn.{ending}"
        assert main(["draw", out, uris[1], "-o", str(file), "--longest-side", "128"]) == 0
        with PIL.Image.open(file) as picture:
            assert (picture.format, picture.size) == (format, (128, 96))
    assert "drawn.png: 128 x 96 pixels" in capsys.readouterr().out
    refusals = {
        ("nowhere.png", "-o", "x.png"): "no image 'nowhere.png'",
        (str(tmp_path / "photos/0000-broken.png"), "-o", "x.png"): "failed (corrupt)",
        (uris[0], "-o", "x.tiff"): "ends in .png, .jpg, .jpeg, .webp",
        (uris[0], "-o", "x.png", "--layers", "masks,hats"): "--layers has hats",
        (uris[0], "-o", "x.png", "--min-score", "2"): "--min-score is 2.0",
        (uris[0], "-o", "x.png", "--longest-side", "0"): "--longest-side is 0",
    }
    for arguments, said in refusals.items():
        assert main(["draw", out, *arguments]) == 1
        assert said in capsys.readouterr().err


def test_the_command_draws_what_the_method_draws() -> None:
    config = DrawConfig(masks="masks", uri="a.png", out="a.png")
    assert (config.layers, config.min_score) == (LAYERS, MIN_SCORE)


def test_a_notebook_shows_an_output(tmp_path: Path) -> None:
    out, _ = photos_output(tmp_path / "<b>", 3, broken=1)
    shown = Masks(out)._repr_html_()
    assert "<td>corrupt</td><td>1</td>" in shown
    assert "&lt;b&gt;" in shown


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """The page about an output whose folder, keys and category are hostile."""
    folder = tmp_path / HOSTILE.replace("/", "|")
    out, uris = photos_output(folder, 4, broken=1)
    shutil.rmtree(out)
    odd = tmp_path / f"{HOSTILE.replace('/', '|')}.png"
    shutil.copy(uris[0], odd)
    rows = [instance(str(odd), 0.9, HOSTILE), *(instance(uri, 0.4, HOSTILE, 5) for uri in uris)]
    images = [{"uri": uri, "size_hw": SIZE_HW} for uri in (str(odd), *uris)]
    write_output(Path(out), [*images, {"uri": f"{odd}\x00\x1b", "size_hw": None}], rows)
    file = tmp_path / "page.html"
    raymask.report(out, out=str(file))
    return file


def opened(browser: Browser, file: Path, width: int, scheme: Any) -> tuple[Page, list[str]]:
    said: list[str] = []
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(file.as_uri())
    return page, said


def test_hostile_names_are_text_in_a_browser(hostile: Path, browser: Browser) -> None:
    page, said = opened(browser, hostile, 1200, "light")
    assert said == []
    assert page.title() != "owned"
    assert page.locator("script").count() == 0
    assert page.locator("img:not([src^='data:image/webp'])").count() == 0
    shown = page.inner_text("main")
    assert "<script>document.title='owned'</script>\"'><img src=x onerror=" in page.inner_text("#categories")
    assert "\\n\\u202e&amp;" in shown  # as it is written, neither obeyed nor left out
    assert "\u202e" not in shown
    assert page.get_by_role("img", name="score").count() >= 1  # charts say what they show
    # Every picture has come through the page's own policy.
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert widths == [256] * len(widths) != []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(hostile: Path, browser: Browser, scheme: str) -> None:
    page, said = opened(browser, hostile, 390, scheme)
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light_ground = sum(map(int, re.findall(r"\d+", ground))) > sum(map(int, re.findall(r"\d+", ink)))
    assert light_ground == (scheme == "light")
