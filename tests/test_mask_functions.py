"""The functions on columns of masks against pycocotools, shapely and NumPy: 10,000 random masks, COCO's annotations.

What is asked of shapely are the outlines: that they are valid, wind as they should and have the mask's pixels in them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from raymask.masks import (
    box_iou,
    decode,
    encode,
    mask_area,
    mask_bbox,
    mask_centroid,
    mask_contains,
    mask_crop,
    mask_from_polygon,
    mask_geojson,
    mask_intersection,
    mask_iou,
    mask_perimeter,
    mask_polygon,
    mask_resize,
    mask_union,
    validate_rle,
)
from raymask.masks.functions import FUNCTIONS, ROWS_A_PIECE
from raymask.masks.types import MASK, RowError

Pixels = NDArray[np.bool_]
Rle = dict[str, Any]

COUNT = 10_000
SIDES = ("x_min", "y_min", "x_max", "y_max")


class Pairs(NamedTuple):
    """Pairs of masks of one size, as pixels, as RLE and as columns."""

    pixels: list[tuple[Pixels, Pixels]]
    first: list[Rle]
    second: list[Rle]
    a: pa.Array
    b: pa.Array


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 25, (COUNT, 2)).tolist()
    pixels = [(random_mask(rng, *size), random_mask(rng, *size)) for size in sizes]
    first, second = ([encode(masks[i]) for masks in pixels] for i in (0, 1))
    return Pairs(pixels, first, second, pa.array(first, MASK), pa.array(second, MASK))


def random_mask(rng: np.random.Generator, height: int, width: int) -> Pixels:
    kind = rng.integers(5)
    if kind == 0:
        return rng.random((height, width)) < rng.random()
    mask = np.zeros((height, width), np.bool_)
    if kind == 1:  # rectangles, cut out of each other
        for _ in range(rng.integers(1, 5)):
            y, x = rng.integers(0, height), rng.integers(0, width)
            mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] ^= True
    elif kind == 2:  # an ellipse with a hole
        rows, columns = np.mgrid[:height, :width] + 0.5
        distance = ((rows - rng.uniform(0, height)) / height) ** 2 + ((columns - rng.uniform(0, width)) / width) ** 2
        mask = (distance < 0.2) & (distance > rng.uniform(-0.1, 0.1))
    elif kind == 3:  # touching corners
        mask[rng.integers(2) :: 2, ::2] = True
        mask[rng.integers(2) :: 2, 1::2] = True
    else:
        mask[:] = rng.integers(2)
    return mask


def sized(rle: Rle) -> tuple[int, int]:
    height, width = rle["size"]
    return height, width


def text_of(rle: Any) -> Rle:
    """An RLE of pycocotools with its counts as str."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def xywh(box: dict[str, float]) -> list[float]:
    return [box["x_min"], box["y_min"], box["x_max"] - box["x_min"], box["y_max"] - box["y_min"]]


def perimeter(pixels: Pixels) -> int:
    framed = np.pad(pixels, 1)
    return int((framed[1:] != framed[:-1]).sum() + (framed[:, 1:] != framed[:, :-1]).sum())


def filled(outlines: shapely.Geometry, size_hw: tuple[int, int]) -> Pixels:
    """The pixels whose middles lie in outlines."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    inside: Pixels = shapely.contains_xy(outlines, columns, rows)
    return inside


def assert_same_as_pycocotools(first: list[Rle], second: list[Rle]) -> None:
    """Area, box, IoU, intersection and union of masks, which are in pairs of one size."""
    a, b = pa.array(first, MASK), pa.array(second, MASK)
    assert mask_area(a).to_pylist() == [coco.area(rle) for rle in first]
    assert [xywh(box) for box in mask_bbox(a).to_pylist()] == [coco.toBbox(rle).tolist() for rle in first]
    both = list(zip(first, second, strict=True))
    assert mask_iou(a, b).to_pylist() == [coco.iou([x], [y], [0])[0, 0] for x, y in both]
    assert mask_intersection(a, b).to_pylist() == [text_of(coco.merge([x, y], intersect=True)) for x, y in both]
    assert mask_union(a, b).to_pylist() == [text_of(coco.merge([x, y])) for x, y in both]


def assert_outlines(masks: list[Rle]) -> None:
    """That polygons are valid, wind as GeoJSON has it, and agree with area, perimeter and centroid."""
    column = pa.array(masks, MASK)
    outlines = shapely.from_wkt(mask_polygon(column).to_pylist())
    assert shapely.is_valid(outlines).all()
    assert shapely.equals_identical(outlines, shapely.from_geojson(mask_geojson(column).to_pylist())).all()
    assert shapely.area(outlines).tolist() == mask_area(column).to_pylist()
    assert shapely.length(outlines).tolist() == mask_perimeter(column).to_pylist()
    parts = shapely.get_parts(outlines)
    holes = shapely.get_rings(parts)
    is_exterior = shapely.is_ccw(holes)
    assert is_exterior.sum() == len(parts)
    assert shapely.is_ccw(shapely.get_exterior_ring(parts)).all()
    centroids = [c and (c["x"], c["y"]) for c in mask_centroid(column).to_pylist()]
    want = [None if point.is_empty else (point.x, point.y) for point in shapely.centroid(outlines)]
    assert [c is None for c in centroids] == [c is None for c in want]
    np.testing.assert_allclose([c for c in centroids if c], [c for c in want if c], rtol=1e-9, atol=1e-6)


def test_random_masks_are_measured_and_merged_as_by_pycocotools(pairs: Pairs) -> None:
    assert_same_as_pycocotools(pairs.first, pairs.second)


def test_perimeter_and_centroid_are_those_of_the_pixels(pairs: Pairs) -> None:
    assert mask_perimeter(pairs.a).to_pylist() == [perimeter(pixels) for pixels, _ in pairs.pixels]
    for point, (pixels, _) in zip(mask_centroid(pairs.a).to_pylist(), pairs.pixels, strict=True):
        rows, columns = np.nonzero(pixels)
        if len(rows) == 0:
            assert point is None
        else:
            assert (point["x"], point["y"]) == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5), rel=1e-12)


def test_outlines_of_random_masks(pairs: Pairs) -> None:
    assert_outlines(pairs.first)


def test_outlines_filled_are_the_mask(pairs: Pairs) -> None:
    outlines = shapely.from_wkt(mask_polygon(pairs.a.slice(0, 1500)).to_pylist())
    for outline, (pixels, _) in zip(outlines, pairs.pixels, strict=False):
        np.testing.assert_array_equal(filled(outline, pixels.shape), pixels)


def test_outlines_of_all_small_masks() -> None:
    """Every way in which pixels can touch."""
    every = np.array(list(product([False, True], repeat=12))).reshape(-1, 3, 4)
    masks = [encode(pixels) for pixels in every]
    assert_outlines(masks)
    for outline, pixels in zip(shapely.from_wkt(mask_polygon(masks).to_pylist()), every, strict=True):
        np.testing.assert_array_equal(filled(outline, (3, 4)), pixels)


def test_polygons_are_written_so() -> None:
    pixels = np.zeros((5, 12), np.bool_)
    pixels[0:3, 0:3] = True
    pixels[1, 1] = False
    pixels[3:5, 10] = True
    masks = [encode(pixels), encode(np.zeros((2, 2), np.bool_)), None]
    ring, hole, other = "0 3, 0 0, 3 0, 3 3, 0 3", "1 1, 1 2, 2 2, 2 1, 1 1", "10 5, 10 3, 11 3, 11 5, 10 5"
    wkt = f"MULTIPOLYGON ((({ring}), ({hole})), (({other})))"
    assert mask_polygon(masks).to_pylist() == [wkt, "MULTIPOLYGON EMPTY", None]
    lists = [
        [[[int(n) for n in point.split()] for point in r.split(", ")] for r in part] for part in [[ring, hole], [other]]
    ]
    geojson = json.dumps({"type": "MultiPolygon", "coordinates": lists}, separators=(",", ":"))
    assert mask_geojson(masks).to_pylist() == [geojson, '{"type":"MultiPolygon","coordinates":[]}', None]


def test_points_are_in_the_pixels_that_they_are_in(pairs: Pairs) -> None:
    rng = np.random.default_rng(1)
    x, y = np.where(rng.random((2, COUNT)) < 0.3, rng.integers(-1, 26, (2, COUNT)), rng.uniform(-2, 26, (2, COUNT)))
    x[:3], y[:3] = [np.nan, np.inf, 0.5], [0.5, 0.5, -np.inf]
    want = [
        bool(0 <= px < m.shape[1] and 0 <= py < m.shape[0] and m[int(py), int(px)])
        for (m, _), px, py in zip(pairs.pixels, x.tolist(), y.tolist(), strict=True)
    ]
    assert mask_contains(pairs.a, x, y).to_pylist() == want


def test_crops_are_slices_of_the_pixels(pairs: Pairs) -> None:
    rng = np.random.default_rng(2)
    corners = rng.uniform(-8, 25, (COUNT, 2))
    boxes = np.hstack([corners, corners + rng.uniform(-1, 20, (COUNT, 2))])
    boxes[::2] = np.round(boxes[::2])
    column = pa.array([dict(zip(SIDES, box, strict=True)) for box in boxes.tolist()])
    for crop, (pixels, _), box in zip(mask_crop(pairs.a, column).to_pylist(), pairs.pixels, boxes, strict=True):
        (x_min, y_min), (x_max, y_max) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        if x_max <= x_min or y_max <= y_min:
            assert crop is None
        else:
            framed = np.pad(pixels, 30)[y_min + 30 : y_max + 30, x_min + 30 : x_max + 30]
            want = np.zeros((y_max - y_min, x_max - x_min), np.bool_)
            want[: framed.shape[0], : framed.shape[1]] = framed
            assert crop == encode(want)


def test_a_mask_cut_to_its_own_box_has_all_its_pixels(pairs: Pairs) -> None:
    crops = mask_crop(pairs.a, mask_bbox(pairs.a))
    assert [area or 0 for area in mask_area(crops).to_pylist()] == mask_area(pairs.a).to_pylist()


def test_resizing_takes_the_pixel_at_each_middle(pairs: Pairs) -> None:
    rng = np.random.default_rng(3)
    sizes = np.where(rng.random((COUNT, 1)) < 0.1, rng.integers(1, 90, (COUNT, 2)), rng.integers(1, 30, (COUNT, 2)))
    resized = mask_resize(pairs.a, sizes[:, 0], sizes[:, 1]).to_pylist()
    for rle, (pixels, _), (height, width) in zip(resized, pairs.pixels, sizes.tolist(), strict=True):
        rows = (2 * np.arange(height) + 1) * pixels.shape[0] // (2 * height)
        columns = (2 * np.arange(width) + 1) * pixels.shape[1] // (2 * width)
        assert rle == encode(np.ascontiguousarray(pixels[rows[:, None], columns]))


def test_polygons_are_rasterised_as_by_pycocotools() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 40, (COUNT, 2)).tolist()
    polygons = [[random_polygon(rng) for _ in range(rng.integers(1, 4))] for _ in range(COUNT)]
    masks = mask_from_polygon(polygons, *zip(*sizes, strict=True)).to_pylist()
    for mask, parts, (height, width) in zip(masks, polygons, sizes, strict=True):
        assert mask == text_of(coco.merge(coco.frPyObjects(parts, height, width)))


def random_polygon(rng: np.random.Generator) -> list[float]:
    points = 2 * rng.integers(3, 9)
    kind = rng.integers(4)
    if kind == 0:
        return [float(n) for n in rng.integers(-4, 44, points)]  # on the sides of pixels
    if kind == 1:
        return list(rng.integers(-20, 220, points) / 5 + rng.choice([0, 0.1]))  # where roundings change
    if kind == 2:
        return list(np.repeat(rng.uniform(0, 40, points), 2))  # points that are the one before
    return list(rng.uniform(-60, 100, points))


def test_an_outline_without_holes_gives_its_mask_again() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        height, width = rng.integers(2, 40, 2).tolist()
        top, left = rng.integers(0, height), rng.integers(0, width)
        pixels = np.zeros((height, width), np.bool_)
        pixels[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
        [outlines] = shapely.from_wkt(mask_polygon([encode(pixels)]).to_pylist())
        polygon = shapely.get_coordinates(outlines.geoms[0].exterior).ravel().tolist()
        assert mask_from_polygon([[polygon]], height, width).to_pylist() == [encode(pixels)]


def test_box_iou_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(6)
    corners = rng.integers(-40, 100, (2, COUNT, 2)) / 4
    boxes = np.concatenate([corners, corners + rng.integers(0, 80, (2, COUNT, 2)) / 4], axis=2).tolist()
    a, b = ([dict(zip(SIDES, box, strict=True)) for box in column] for column in boxes)
    want = [coco.iou(np.array([xywh(x)]), np.array([xywh(y)]), [0])[0, 0] for x, y in zip(a, b, strict=True)]
    assert box_iou(a, b).to_pylist() == want
    assert np.isnan(box_iou([{**a[0], "x_min": np.nan}], a[0])[0].as_py())


def segmentations_of(folders: Callable[[str], Path]) -> list[tuple[Any, int, int]]:
    """Every segmentation of the shared data with the height and width of its image."""
    found = []
    for folder, names in {
        "coco_val2014_54": ["instances_val2014_54.json"],
        "balloon": ["train_coco.json", "val_coco.json"],
        "reference_eval": ["instances_val2014_100.json"],
    }.items():
        for name in names:
            [file] = folders(folder).rglob(name)
            record = json.loads(file.read_text())
            sizes = {image["id"]: (image["height"], image["width"]) for image in record["images"]}
            found += [(a["segmentation"], *sizes[a["image_id"]]) for a in record["annotations"]]
    return found


def test_all_annotations_are_as_by_pycocotools(shared_data: Callable[[str], Path]) -> None:
    every = segmentations_of(shared_data)
    polygons = [(s, h, w) for s, h, w in every if isinstance(s, list)]
    want = [text_of(coco.merge(coco.frPyObjects(s, h, w))) for s, h, w in polygons]
    parts, heights, widths = zip(*polygons, strict=True)
    assert mask_from_polygon(parts, heights, widths).to_pylist() == want
    crowds = [text_of(coco.frPyObjects(s, h, w)) for s, h, w in every if isinstance(s, dict)]
    masks = sorted([*want, *crowds], key=sized)
    beside = [
        other if sized(other) == sized(mask) else mask for mask, other in zip(masks, masks[1:] + masks[:1], strict=True)
    ]
    assert len(masks) > 1000
    assert_same_as_pycocotools(masks, beside)
    assert_outlines(masks)
    for outline, mask in zip(shapely.from_wkt(mask_polygon(masks[::25]).to_pylist()), masks[::25], strict=True):
        np.testing.assert_array_equal(filled(outline, sized(mask)), coco.decode(mask))


FOUR = [encode(np.eye(4, dtype=np.bool_))]
BOX = {"x_min": 0, "y_min": 1, "x_max": 3, "y_max": 4}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "mask_contains": (FOUR, [1.5], [1.5]),
    "mask_iou": (FOUR, FOUR),
    "mask_intersection": (FOUR, FOUR),
    "mask_union": (FOUR, FOUR),
    "mask_crop": (FOUR, [BOX]),
    "mask_resize": (FOUR, [2], [3]),
    "mask_from_polygon": ([[[0, 0, 3, 0, 3, 3]]], [4], [5]),
    "box_iou": ([BOX], [BOX]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_null_in_null_out_and_types_as_promised(name: str) -> None:
    function, columns = FUNCTIONS[name], ARGUMENTS.get(name, (FOUR,))
    [value] = function(*columns).to_pylist()
    assert value is not None
    for missing in range(len(columns)):
        given = [[None, column[0]] if i == missing else column * 2 for i, column in enumerate(columns)]
        result = function(*given)
        assert result.to_pylist() == [None, value]
        assert result.type == function.result
        result.validate(full=True)
        given[missing] = pa.nulls(2)
        assert function(*given).to_pylist() == [None, None]
    for part in ("size", "counts", "x_min"):
        if isinstance(columns[0][0], dict) and part in columns[0][0]:
            assert function([{**columns[0][0], part: None}], *columns[1:]).to_pylist() == [None]
    assert function(*(pa.array([], kind) for kind in function.arguments.values())).type == function.result
    # Single values count for every row, and columns may come by name, in chunks and as slices of others.
    assert function(columns[0] * 3, *(column[0] for column in columns[1:])).to_pylist() == [value] * 3
    arrays = {n: pa.array(c * 5, k) for (n, k), c in zip(function.arguments.items(), columns, strict=True)}
    cuts = dict(zip(arrays, ([1, 2], [0, 3], [2, 1]), strict=False))
    chunked = {n: pa.chunked_array([c[1 : 1 + cuts[n][0]], c[4 - cuts[n][1] : 4]]) for n, c in arrays.items()}
    result = function(**chunked)
    assert isinstance(result, pa.ChunkedArray)
    assert result.to_pylist() == [value] * 3


def test_masks_are_taken_in_every_type_that_holds_them(pairs: Pairs) -> None:
    sizes, counts = pairs.a.field("size"), pairs.a.field("counts")
    want = mask_area(pairs.a)
    for size, text in [
        (sizes.cast(pa.large_list(pa.int64())), counts.cast(pa.large_string())),
        (sizes.cast(pa.list_(pa.int32(), 2)), counts.cast(pa.binary())),
        (sizes, counts.cast(pa.string_view())),
        (sizes, counts.dictionary_encode()),
    ]:
        column = pa.StructArray.from_arrays([text, size], ["counts", "size"])
        assert mask_area(column).equals(want)
        assert mask_area(column.slice(7, 5)).equals(want.slice(7, 5))
    as_pycocotools = [coco.encode(np.asfortranarray(pixels, np.uint8)) for pixels, _ in pairs.pixels[:99]]
    assert mask_area(as_pycocotools).equals(want.slice(0, 99))
    frozen = pa.ipc.open_stream(_stream(pa.table({"mask": pairs.a}))).read_all()
    assert mask_area(frozen["mask"]).combine_chunks().equals(want)


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_arguments_that_do_not_fit_are_refused(pairs: Pairs) -> None:
    for wrong in ([1, 2], pa.array([{"size": [1, 1]}])):
        with pytest.raises((TypeError, pa.ArrowInvalid), match=r"mask|struct"):
            mask_area(wrong)
    with pytest.raises(TypeError, match="wanted a column"):
        mask_area(FOUR[0])
    with pytest.raises(TypeError, match="argument"):
        mask_iou(FOUR)
    with pytest.raises(ValueError, match="wanted one length"):
        mask_iou(FOUR, FOUR * 2)
    with pytest.raises(ValueError, match="row 1: masks of 4 x 4 and 3 x 5 pixels; wanted one size"):
        mask_union(FOUR * 2, [FOUR[0], encode(np.ones((3, 5), np.bool_))])
    for box in ({**BOX, "x_min": np.nan}, {**BOX, "x_max": 1e300}, {**BOX, "x_max": 2e9}):
        with pytest.raises(ValueError, match=r"row 0: a box \[.*wanted"):
            mask_crop(FOUR, box)
    for size in ((0, 4), (4, -1), (2**17, 2**17)):
        with pytest.raises(ValueError, match=r"row 0: a (new size|mask of size)"):
            mask_resize(FOUR, *size)
        with pytest.raises(ValueError, match="row 0: a mask of size"):
            mask_from_polygon([[[0, 0, 3, 0, 3, 3]]], *size)
    malformed: list[Any] = [
        [],
        [[]],
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 2]],
        [[0, 0, 1, 1, 2, np.nan]],
        [[0, 0, 1, 1, 2, 1e7]],
        [None],
    ]
    for polygons in malformed:
        with pytest.raises(ValueError, match="wanted polygons"):
            mask_from_polygon([polygons], 4, 4)


def test_the_row_of_a_bad_mask_is_named(pairs: Pairs) -> None:
    """In whichever piece and column it lies."""
    rows = 2 * ROWS_A_PIECE + 3
    good = pa.array(FOUR * rows, MASK)
    bad = pa.array([*FOUR * (rows - 2), {"size": [4, 4], "counts": "zz"}, FOUR[0]], MASK)
    for function, columns in [(mask_area, [bad]), (mask_iou, [good, bad]), (mask_union, [bad, good])]:
        with pytest.raises(RowError, match=f"row {rows - 2}: counts of a 4 x 4 mask: an illegal character") as caught:
            function(*columns)
        assert caught.value.row == rows - 2


def test_masks_as_large_as_can_be() -> None:
    """All but one pixel of them, without memory for it."""
    for height, width in [(1, 2**31 - 1), (2**31 - 1, 2), (65535, 65537)]:
        rest = {"size": [height, width], "counts": rle_text([1, height * width - 1])}
        pixels = height * width - 1
        assert mask_area([rest]).to_pylist() == [pixels]
        assert mask_iou([rest], [rest]).to_pylist() == [1]
        assert mask_bbox([rest]).to_pylist()[0]["x_max"] == width
        [outline] = shapely.from_wkt(mask_polygon([rest]).to_pylist())
        assert outline.area == pixels
        assert outline.length == mask_perimeter([rest]).to_pylist()[0]
        [middle] = mask_centroid([rest]).to_pylist()
        want = shapely.centroid(outline)
        assert (middle["x"], middle["y"]) == pytest.approx((want.x, want.y), rel=1e-6)
        assert mask_area(mask_resize([rest], 3, 7)).to_pylist()[0] >= 20
        framed = mask_crop(FOUR, {"x_min": 0, "y_min": 0, "x_max": width, "y_max": height})
        assert mask_area(framed).to_pylist() == [min(4, height, width)]


def rle_text(runs: list[int]) -> str:
    text = ""
    for i, run in enumerate(runs):
        number, more = run - runs[i - 2] if i > 2 else run, True
        while more:
            chunk, number = number & 31, number >> 5
            more = number != (-1 if chunk & 16 else 0)
            text += chr(48 + chunk + 32 * more)
    return text


def test_the_documentation_has_them_all() -> None:
    page = (Path(__file__).parents[1] / "docs" / "functions.md").read_text()
    sections = [
        f"### `{name}({', '.join(f.arguments)})`\n\n{inspect.cleandoc(f.doc)}\n\nGives `{f.result}`.\n"
        for name, f in FUNCTIONS.items()
    ]
    assert page.endswith("## The functions\n\n" + "\n".join(sections))


@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=20),
    st.integers(1, 6),
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 2), st.sampled_from([b"", b"0", b"o", b"P0", b"\xff", b"O"]))
    ),
    st.sampled_from([(0, 0)] * 4 + [(1, 0), (0, -1), (-9, 0), (2**31, 0)]),
)
def test_hostile_masks_are_errors_or_as_by_pycocotools(
    runs: list[int], height: int, changes: list[tuple[int, int, bytes]], larger: tuple[int, int]
) -> None:
    """Whatever the change to a good RLE: the error that `validate_rle` has for it, or what pycocotools makes of it."""
    runs = [*runs, height - sum(runs) % height]  # runs of no pixels are well-formed
    text = bytearray(rle_text(runs).encode())
    for at, length, put in changes[:3]:
        text[at : at + length] = put
    size = [height + larger[0], sum(runs) // height + larger[1]]
    rows = pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.binary())])
    column = pa.array([{"size": size, "counts": bytes(text)}], rows)
    problem = problem_of(size, bytes(text))
    if problem:
        for name, function in FUNCTIONS.items():
            kinds = enumerate(function.arguments.values())
            given = [column if kind == MASK else ARGUMENTS[name][i] for i, kind in kinds]
            if any(value is column for value in given):
                with pytest.raises(ValueError, match=r"row 0: a mask of size|counts") as caught:
                    function(*given)
                assert "of size" in str(caught.value) or problem in str(caught.value)
        return
    pixels = coco.decode({"size": size, "counts": bytes(text)}).astype(np.bool_)
    tidy = encode(pixels)
    for function in (mask_area, mask_bbox, mask_centroid, mask_perimeter, mask_polygon):
        assert function(column).equals(function([tidy]))
    for pair in (mask_union, mask_intersection):
        assert pair(column, column).to_pylist() == [tidy]
    assert mask_resize(column, *size).to_pylist() == [tidy]
    whole = {"x_min": 0, "y_min": 0, "x_max": size[1], "y_max": size[0]}
    np.testing.assert_array_equal(decode(mask_crop(column, whole).to_pylist()[0]), pixels)


def problem_of(size: list[int], counts: bytes) -> str:
    """What is wrong with an RLE, nothing if it is fine."""
    try:
        validate_rle(size, counts)
    except ValueError as error:
        return str(error)
    return ""
