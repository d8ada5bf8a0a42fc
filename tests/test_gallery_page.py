"""The gallery in Chromium, by what a person does: look, filter, type SQL, open, point, copy, compare, turn pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from galleries import gallery, thing, write_gallery, write_photos
from playwright.sync_api import Browser, Page, expect

from raymask.masks import encode

HOSTILE = """<img src=x onerror="document.title='taken'"><script>document.title='taken'</script>'"\n.png"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def out(folder: Path) -> str:
    """Sixty-three images, a page and a bit: a kite in every one, a boat too in each third; two that have failed."""
    uris = write_photos(folder / "photos", [f"{n:03d}.png" for n in range(61)])
    things = []
    for number, uri in enumerate(uris):
        things.append(thing(uri, 1, 0.95 - number / 100, (5, 5, 25, 35)))
        if number % 3 == 0:
            things.append(thing(uri, 2, 0.2, (30, 10, 55, 20)))
    return write_gallery(folder / "out", things, uris, ["/photos/broken-1.jpg", "/photos/broken-2.jpg"])


@pytest.fixture(scope="module")
def link(out: str) -> Iterator[str]:
    with gallery(out) as address:
        yield address


@pytest.fixture
def problems() -> list[str]:
    """What the browser complained of; a page that `open_page` opened writes it here."""
    return []


@pytest.fixture
def page(browser: Browser, link: str, problems: list[str]) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    page.goto(link)
    expect(page.locator(".card").first).to_be_visible()
    expect(page.locator("#where")).to_be_visible()  # the filters, which may come after the first images
    yield page
    context.close()
    assert problems == []


def shown(page: Page) -> list[str]:
    return [name.removesuffix(".png") for name in page.locator(".card .caption .name").all_text_contents()]


def test_the_first_page(page: Page) -> None:
    expect(page.locator("#count")).to_have_text("63 images, 82 objects")
    assert shown(page) == [f"{n:03d}" for n in range(60)]
    first = page.locator(".card img").first
    expect(first).to_have_attribute("alt", "000.png: 2 objects: 1 kite, 1 boat")
    assert first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60


def test_filters_follow_the_mouse_and_the_link(page: Page) -> None:
    page.get_by_role("checkbox", name="boat").check()
    expect(page.locator("#count")).to_have_text("21 of 63 images, 21 objects")
    assert shown(page) == [f"{n:03d}" for n in range(0, 61, 3)]
    page.get_by_label("Find by name").fill("/03")
    expect(page.locator("#count")).to_have_text("4 of 63 images, 4 objects")
    assert shown(page) == ["030", "033", "036", "039"]
    page.reload()
    expect(page.locator("#count")).to_have_text("4 of 63 images, 4 objects")
    expect(page.get_by_role("checkbox", name="boat")).to_be_checked()
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("#count")).to_have_text("63 images, 82 objects")
    expect(page.get_by_role("checkbox", name="boat")).not_to_be_checked()


def test_least_score_by_keys(page: Page) -> None:
    slider = page.get_by_label("Least score")
    slider.focus()
    for _ in range(9):
        slider.press("PageUp")
    expect(page.locator("#count")).to_have_text("6 of 63 images, 6 objects")  # 0.95 down to 0.90
    page.get_by_label("Sort").select_option("worst")
    expect(page.locator(".card .name").first).to_have_text("005.png")


def test_sql_and_its_errors(page: Page) -> None:
    page.keyboard.press("s")
    page.keyboard.type("category = 'boat' AND scor < 0.5")
    page.keyboard.press("Enter")
    expect(page.locator("#where-problem")).to_contain_text('column "scor" not found')
    expect(page.locator("#where-problem")).to_contain_text('"score"')
    expect(page.locator("#where")).to_have_attribute("aria-invalid", "true")
    page.locator("#where").fill("category = 'boat' AND contains(uri, '/01')")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#count")).to_have_text("3 of 63 images, 3 objects")
    expect(page.locator("#where-problem")).to_be_hidden()
    page.locator("#where").fill("area < 0")
    page.locator("#where").press("Enter")
    expect(page.get_by_role("heading", name="Nothing like that")).to_be_visible()


def test_pages(page: Page) -> None:
    page.keyboard.press("n")
    expect(page.locator(".card")).to_have_count(3)
    assert page.locator(".card .name").all_text_contents() == ["060.png", "broken-1.jpg", "broken-2.jpg"]
    expect(page.locator(".failed").first).to_have_text("corruptit ends too soon")
    page.go_back()
    expect(page.locator(".card")).to_have_count(60)


def test_an_image_by_keys(page: Page) -> None:
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    name = page.locator("#detail-name")
    expect(name).to_have_text("001.png")
    page.keyboard.press("ArrowLeft")
    expect(name).to_have_text("000.png")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert page.evaluate("document.activeElement.querySelector('.name').textContent") == "000.png"
    page.locator("#page").fill("2")
    page.keyboard.press("Enter")
    page.get_by_text("060.png").click()
    page.keyboard.press("ArrowLeft")  # to the end of the page before
    expect(name).to_have_text("059.png")
    expect(page.locator("#detail-place")).to_have_text("60 of 63")


def test_objects_under_the_pointer_and_their_masks(page: Page) -> None:
    page.get_by_text("000.png").click()
    expect(page.locator(".object")).to_have_count(2)
    box = page.locator(".stage canvas").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    scale = min((box["width"] - 24) / 60, (box["height"] - 24) / 40, 8)

    def point(x: float, y: float) -> None:
        page.mouse.move(middle[0] + (x - 30) * scale, middle[1] + (y - 20) * scale)

    tip = page.locator("#tip")
    point(40.5, 15.5)
    expect(tip).to_have_text("boat 0.200")
    expect(page.locator(".object.chosen summary")).to_have_text("boat0.200")
    expect(page.locator("#loupe-place")).to_have_text("x 40, y 15")
    point(5.1, 5.1)
    expect(tip).to_have_text("kite 0.950")
    point(4.9, 5.1)  # a fifth of a pixel beside it
    expect(tip).to_be_hidden()
    page.locator(".object", has_text="boat").locator("summary").click()
    page.get_by_role("button", name="Copy RLE").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied == thing("", 2, 0.2, (30, 10, 55, 20))["mask"]


def test_outlines_are_the_masks(page: Page) -> None:
    chance = np.random.default_rng(5)
    masks = [chance.random((9, 7)) < share for share in (0, 0.1, 0.5, 0.9, 1)]
    masks += [np.eye(6, dtype=np.bool_), np.pad(np.zeros((3, 3), np.bool_), 2, constant_values=True)]
    masks += [np.kron(chance.random((12, 10)) < 0.5, np.ones((3, 2))).astype(np.bool_)]
    draw = """async masks => {
        const { pathOf } = await import("./masks.js");
        return masks.map(mask => {
            const [height, width] = mask.size;
            const context = new OffscreenCanvas(width, height).getContext("2d");
            context.fill(pathOf({ mask }), "evenodd");
            return [...context.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 === 3);
        });
    }"""
    for mask, alpha in zip(masks, page.evaluate(draw, [encode(m) for m in masks]), strict=True):
        np.testing.assert_array_equal(np.reshape(alpha, mask.shape), 255 * mask)


def test_malformed_masks_draw_nothing(page: Page) -> None:
    draw = "async masks => masks.map((await import('./masks.js')).loopsOf)"
    counts = ["", "0", "~~~", "PPPPPPPPPPPP", "3333", "o" * 50, "\U0001d11e"]
    assert page.evaluate(draw, [{"size": [5, 6], "counts": c} for c in counts]) == [[]] * len(counts)


def test_hostile_names_are_text(browser: Browser, folder: Path, problems: list[str]) -> None:
    uri = f"/photos/{HOSTILE}"
    things = [{**thing(uri, 1, 0.9, (5, 5, 25, 35)), "category": HOSTILE}]
    out = write_gallery(folder / "hostile", things, [uri], [f"/broken/{HOSTILE}"])
    with gallery(out) as link:
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(link)
        expect(page.locator(".card")).to_have_count(2)
        assert HOSTILE.endswith(page.locator(".card .name").first.text_content() or "?")
        assert page.locator(".choice .name", has_text="onerror").text_content() == HOSTILE
        page.locator(".card").first.click()
        assert page.locator(".object .name").text_content() == HOSTILE
        assert uri in (page.locator(".uri").text_content() or "")
        page.keyboard.press("Escape")
        page.locator(".choice", has_text="onerror").click()
        expect(page.locator(".card")).to_have_count(1)
        assert page.title().startswith("page")
        assert page.locator("script").count() == 1
        page.close()
    assert problems == []


def test_side_by_side(browser: Browser, out: str, folder: Path) -> None:
    uris = [str(folder / "photos" / f"{n:03d}.png") for n in range(61)]
    truth = [thing(uri, 1, 1.0, (5, 5, 25, 35) if n < 50 else (30, 5, 55, 35)) for n, uri in enumerate(uris)]
    with gallery(out, annotations=write_gallery(folder / "truth", truth, uris)) as link:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(link)
        # Scores from 0.5 on count, as long as nothing else is chosen: those of the first 46 kites.
        expect(page.locator("#count")).to_have_text("63 of 63 images, 46 objects")
        expect(page.locator(".choice", has_text="Matches").locator(".count")).to_have_text("46")
        expect(page.locator(".choice", has_text="Misses").locator(".count")).to_have_text("15")
        page.get_by_label("Misses").check()
        expect(page.locator("#count")).to_have_text("15 of 63 images")
        page.locator(".card").first.click()
        expect(page.locator(".stage")).to_have_count(2)
        expect(page.locator(".objects h3")).to_have_text(["page0/out, 0 objects", "truth, 1 object"])
        expect(page.locator(".object summary")).to_have_text("kite miss1.000")
        page.close()


def test_a_phone_has_room_for_all_of_it(browser: Browser, link: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 780}, color_scheme="dark")
    page.goto(link)
    expect(page.locator(".card").first).to_be_visible()
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(wide)
    expect(page.locator("#filters")).to_be_hidden()
    page.get_by_role("button", name="Filters", exact=True).click()
    expect(page.get_by_role("checkbox", name="boat")).to_be_visible()
    assert not page.evaluate(wide)
    page.locator(".card").first.click()
    expect(page.locator(".object").first).to_be_attached()
    assert not page.evaluate(wide)
    page.close()


def test_a_server_that_is_gone_is_said_so(browser: Browser, out: str) -> None:
    page: Any = browser.new_page()
    with gallery(out) as link:
        page.goto(link)
        expect(page.locator(".card").first).to_be_visible()
    page.get_by_label("Find by name").fill("x")
    expect(page.get_by_text("The gallery has been stopped. Start")).to_be_visible()
    page.close()
