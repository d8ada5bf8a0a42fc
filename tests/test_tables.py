"""Results as Arrow tables and the two tables made of them, against plain Python and one table spelled out in full."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymask.errors import ErrorKind, Failure
from raymask.masks import EncodedMasks, encode
from raymask.schema import IMAGES, INSTANCES, PART, image_id, images_schema, user_column_name
from raymask.tables import DECODED, DecodedRow, decoded_table, part_table, pixels_of, published_tables

Row = dict[str, Any]

CATEGORIES = [(1, "person"), (18, "dog"), (90, "toothbrush")]  # ids of COCO, which have gaps
TRUNCATED = Failure(ErrorKind.TRUNCATED, "OSError: image file is truncated")
TOO_LARGE = Failure(ErrorKind.OUT_OF_MEMORY, "4 x 5 does not fit cuda:0")


@dataclass(frozen=True)
class Objects:
    """What a model finds in one image; the masks as H x W bool."""

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    pixels: Sequence[NDArray[np.bool_]]
    size_hw: tuple[int, int]

    @property
    def masks(self) -> EncodedMasks:
        counts = [encode(mask)["counts"] for mask in self.pixels]
        return EncodedMasks(counts, np.array([mask.sum() for mask in self.pixels], np.int64))

    def rows(self, uri: str) -> list[Row]:
        """Its rows of `instances`, without Arrow."""
        return [
            {
                "image_id": image_id(uri),
                "uri": uri,
                "instance": number,
                "category_id": CATEGORIES[label - 1][0],
                "category": CATEGORIES[label - 1][1],
                "score": float(score),
                **dict(zip(("x_min", "y_min", "x_max", "y_max"), box.tolist(), strict=True)),
                "area": int(mask.sum()),
                "mask": encode(mask),
            }
            for number, (box, label, score, mask) in enumerate(
                zip(self.boxes_xyxy, self.labels, self.scores, self.pixels, strict=True)
            )
        ]


@dataclass(frozen=True)
class Case:
    """One image and what becomes of it: pixels and objects, no pixels, or pixels that the model cannot take."""

    uri: str
    pixels: NDArray[np.uint8] | Failure
    result: Objects | Failure | None

    def decoded(self, ordinal: int) -> DecodedRow:
        if isinstance(self.pixels, Failure):
            return DecodedRow(ordinal, self.uri, self.pixels, bytes=100)
        return DecodedRow(ordinal, self.uri, self.pixels, "jpeg", 1000 + ordinal, f"etag-{ordinal}")

    def image_row(self, ordinal: int) -> Row:
        """Its row of `images`, without Arrow."""
        decoded = self.decoded(ordinal)
        failure = next((f for f in (self.pixels, self.result) if isinstance(f, Failure)), None)
        height, width = (None, None) if isinstance(self.pixels, Failure) else self.pixels.shape[:2]
        return {
            "image_id": image_id(self.uri),
            "uri": self.uri,
            "status": "failed" if failure else "ok",
            "error": failure and failure.kind.value,
            "error_detail": failure and failure.detail,
            "height": height,
            "width": width,
            "format": decoded.format,
            "bytes": decoded.bytes,
            "etag": decoded.etag,
            "instance_count": len(self.result.scores) if isinstance(self.result, Objects) else 0,
        }


def picture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def objects(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> Objects:
    return Objects(
        boxes_xyxy=rng.uniform(0, 500, (count, 4)).astype(np.float32),
        labels=rng.integers(1, len(CATEGORIES) + 1, count),
        scores=np.sort(rng.random(count, np.float32))[::-1],
        pixels=[rng.random(size_hw) < 0.5 for _ in range(count)],
        size_hw=size_hw,
    )


def cases(plan: Sequence[int], seed: int = 0) -> list[Case]:
    """An image for each number: so many objects, -1 for no pixels, -2 for pixels that the model cannot take."""
    rng = np.random.default_rng(seed)
    made = []
    for number, count in enumerate(plan):
        height, width = rng.integers(1, 9, 2).tolist()
        pixels = TRUNCATED if count == -1 else picture(rng, height, width)
        result = {-1: None, -2: TOO_LARGE}.get(count) if count < 0 else objects(rng, count, (height, width))
        made.append(Case(f"s3://bucket/folder ü/{number}-漢字-🦒.jpg", pixels, result))
    return made


def parts(made: Sequence[Case], first_ordinal: int = 0) -> pa.Table:
    decoded = decoded_table([case.decoded(n) for n, case in enumerate(made, first_ordinal)])
    results = {n: case.result for n, case in enumerate(made) if case.result is not None}
    return part_table(decoded, results, CATEGORIES)


def manifest(made: Sequence[Case]) -> pa.Table:
    return pa.table({"uri": pa.array([case.uri for case in made], pa.string())})


def recut(table: pa.Table, cuts: Sequence[int]) -> pa.Table:
    """The same rows in chunks that end at `cuts`, each chunk a slice of a longer array."""
    bounds = [0, *sorted(cut % (len(table) + 1) for cut in cuts), len(table)]
    padded = pa.concat_tables([table, table, table]).combine_chunks()
    return pa.concat_tables([padded.slice(len(table) + start, stop - start) for start, stop in pairwise(bounds)])


def assert_rows(table: pa.Table, schema: pa.Schema, rows: list[Row]) -> None:
    table.validate(full=True)
    assert table.schema == schema
    assert table.to_pylist() == rows


PLANS = st.lists(st.integers(-2, 4), max_size=8)
CUTS = st.lists(st.integers(0, 100), max_size=4)


@settings(max_examples=150)
@given(PLANS, CUTS, st.integers(0, 2**32 - 1))
@example([], [], 0)
@example([], [0, 0], 0)
@example([-1, -2, -1], [1], 0)
@example([0, 0], [1], 0)
@example([3, 0, -1, 2, -2, 0, 1], [2, 4, 4], 0)
@example([1] * 8, range(8), 0)
def test_published_tables_hold_what_went_in(plan: list[int], cuts: Sequence[int], seed: int) -> None:
    made = cases(plan, seed)
    images, instances = published_tables(recut(parts(made), cuts), recut(manifest(made), cuts[:1]))
    assert_rows(images, IMAGES, [case.image_row(n) for n, case in enumerate(made)])
    want = [row for case in made if isinstance(case.result, Objects) for row in case.result.rows(case.uri)]
    assert_rows(instances, INSTANCES, want)


@settings(max_examples=50)
@given(PLANS, CUTS)
@example([], [0])
@example([2, -1, 0, -2], [1, 3])
def test_part_holds_what_went_in_however_the_pixels_are_cut(plan: list[int], cuts: list[int]) -> None:
    made = cases(plan)
    decoded = recut(decoded_table([case.decoded(n) for n, case in enumerate(made, 40)]), cuts)
    part = part_table(decoded, {n: case.result for n, case in enumerate(made) if case.result}, CATEGORIES)
    part.validate(full=True)
    assert part.schema == PART
    want = []
    for number, case in enumerate(made):
        row = {name: value for name, value in case.image_row(number + 40).items() if name in PART.names}
        nested = case.result.rows(case.uri) if isinstance(case.result, Objects) else []
        own = [{name: value for name, value in r.items() if name not in ("image_id", "uri")} for r in nested]
        want.append({"ordinal": number + 40, **row, "instances": own})
    assert part.to_pylist() == want


def test_two_images_spelled_out() -> None:
    mask = np.zeros((3, 4), np.bool_)
    mask[1:, 1:3] = True
    found = Objects(
        boxes_xyxy=np.array([[1, 1, 3, 3], [0, 0, 4, 1.5]], np.float32),
        labels=np.array([2, 3]),
        scores=np.array([0.75, 0.5], np.float32),
        pixels=[mask, np.zeros((3, 4), np.bool_)],
        size_hw=(3, 4),
    )
    made = [
        Case("s3://bucket/dog.jpg", np.zeros((3, 4, 3), np.uint8), found),
        Case("s3://bucket/half.jpg", TRUNCATED, None),
    ]
    images, instances = published_tables(parts(made), manifest(made))
    dog = {"image_id": 6588460903841129497, "uri": "s3://bucket/dog.jpg"}
    assert images.to_pylist() == [
        {
            **dog,
            "status": "ok",
            "error": None,
            "error_detail": None,
            "height": 3,
            "width": 4,
            "format": "jpeg",
            "bytes": 1000,
            "etag": "etag-0",
            "instance_count": 2,
        },
        {
            "image_id": 1239093247854171886,
            "uri": "s3://bucket/half.jpg",
            "status": "failed",
            "error": "truncated",
            "error_detail": "OSError: image file is truncated",
            "height": None,
            "width": None,
            "format": None,
            "bytes": 100,
            "etag": None,
            "instance_count": 0,
        },
    ]
    box = {"x_min": 1, "y_min": 1, "x_max": 3, "y_max": 3}
    assert instances.to_pylist() == [
        {
            **dog,
            **{"instance": 0, "category_id": 18, "category": "dog", "score": 0.75},
            **box,
            **{"area": 4, "mask": {"size": [3, 4], "counts": "42102"}},
        },
        {
            **dog,
            **{"instance": 1, "category_id": 90, "category": "toothbrush", "score": 0.5},
            **{"x_min": 0, "y_min": 0, "x_max": 4, "y_max": 1.5},
            **{"area": 0, "mask": {"size": [3, 4], "counts": "<"}},
        },
    ]


def test_columns_of_the_user_stand_behind_raymasks_own() -> None:
    made = cases([1, -1, 0])
    taken = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    user = {
        "source_height": pa.array([1.5, None, 2.5], pa.float64()),
        "camera": pa.array(["ä", None, ""], pa.string()),
        "taken": pa.array([taken, None, taken], pa.timestamp("us", "UTC")),
        "tags": pa.array([["a", None], None, []], pa.list_(pa.string())),
        "place": pa.array([{"lat": 1.0}, None, {"lat": None}], pa.struct([("lat", pa.float32())])),
    }
    listed = recut(manifest(made), []).add_column(0, "camera", user["camera"])
    for name in user:
        if name != "camera":
            listed = listed.append_column(name, user[name])
    images, instances = published_tables(recut(parts(made), [1]), recut(listed, [2]))
    fields = [f for f in listed.schema if f.name != "uri"]
    values = [{f.name: user[f.name][n].as_py() for f in fields} for n in range(3)]
    want = [{**case.image_row(n), **values[n]} for n, case in enumerate(made)]
    assert_rows(images, images_schema(fields), want)
    assert instances.schema == INSTANCES


def test_manifest_of_another_length_is_refused() -> None:
    made = cases([1, 0])
    listed = manifest(made[:1]).append_column("camera", pa.array(["a"]))
    with pytest.raises(pa.ArrowInvalid, match="length"):
        published_tables(parts(made), listed)


@pytest.mark.parametrize("name", ["uri", "ordinal", "etag", "size", "URI", "Height"])
def test_clashing_columns_are_renamed(name: str) -> None:
    assert user_column_name(name) == f"source_{name}"


@pytest.mark.parametrize("name", ["camera", "score", "source_uri", "uris", "Größe"])
def test_other_columns_keep_their_names(name: str) -> None:
    assert user_column_name(name) == name


def test_masks_of_more_text_than_one_array_holds() -> None:
    """Three chunks of 1 GiB each, of pages that exist only once somebody reads them."""
    text = pa.py_buffer(np.zeros(2**30, np.uint8))
    counts = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 2**30], np.int32)), text])
    [case] = cases([1])
    part = parts([case])
    row = part.column("instances").chunk(0)
    fields = {f.name: row.values.field(f.name) for f in row.type.value_type}
    mask_type = row.type.value_type.field("mask").type
    fields["mask"] = pa.StructArray.from_arrays([fields["mask"].field("size"), counts], fields=list(mask_type))
    structs = pa.StructArray.from_arrays(list(fields.values()), fields=list(row.type.value_type))
    nested = pa.ListArray.from_arrays(row.offsets, structs, type=row.type)
    large = part.set_column(part.schema.get_field_index("instances"), PART.field("instances"), nested)
    images, instances = published_tables(pa.concat_tables([large] * 3), manifest([case] * 3))
    assert images.column("instance_count").to_pylist() == [1, 1, 1]
    assert instances.schema == INSTANCES
    assert instances.column("instance").to_pylist() == [0, 0, 0]


@pytest.mark.parametrize("label", [0, 4, -1])
def test_labels_without_a_category_raise(label: int) -> None:
    [case] = cases([1])
    assert isinstance(case.result, Objects)
    case.result.labels[:] = label
    with pytest.raises(pa.ArrowIndexError):
        parts([case])


@pytest.mark.parametrize("results", [{}, {0: TOO_LARGE, 1: TOO_LARGE}, {1: TOO_LARGE}])
def test_every_image_with_pixels_needs_a_result_and_no_other_has_one(results: dict[int, Failure]) -> None:
    decoded = decoded_table([case.decoded(n) for n, case in enumerate(cases([0, -1]))])
    with pytest.raises(AssertionError):
        part_table(decoded, results, CATEGORIES)


@settings(max_examples=100)
@given(PLANS, CUTS)
@example([], [])
@example([-1], [0])
@example([0, -1, 0, 0], [1, 1, 3])
def test_pixels_come_back_by_row(plan: list[int], cuts: list[int]) -> None:
    made = cases(plan)
    rows = [case.decoded(n) for n, case in enumerate(made)]
    decoded = recut(decoded_table(rows), cuts)
    decoded.validate(full=True)
    assert decoded.schema == DECODED
    images = pixels_of(decoded)
    assert list(images) == [n for n, case in enumerate(made) if not isinstance(case.pixels, Failure)]
    for row, pixels in images.items():
        np.testing.assert_array_equal(pixels, made[row].pixels)


def test_pixels_are_views_into_the_table() -> None:
    made = cases([0, -1, 0, 0])
    decoded = recut(decoded_table([case.decoded(n) for n, case in enumerate(made)]), [2])
    buffers = [chunk.buffers()[2] for chunk in decoded.column("pixels").chunks]
    images = pixels_of(decoded)
    for pixels in images.values():
        assert any(b.address <= pixels.ctypes.data < b.address + b.size for b in buffers)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert not pixels.flags.writeable
    del decoded, buffers
    np.testing.assert_array_equal(images[3], made[3].pixels)


def test_pixels_in_any_memory_order_come_back() -> None:
    whole = picture(np.random.default_rng(0), 7, 9)
    views = [whole[::-1, ::2], whole.transpose(1, 0, 2), np.asfortranarray(whole), whole[..., ::-1], whole[3:4, 2:3]]
    for row, pixels in pixels_of(decoded_table([DecodedRow(n, str(n), v) for n, v in enumerate(views)])).items():
        np.testing.assert_array_equal(pixels, views[row])


def test_rows_are_told_apart_by_uri_alone() -> None:
    """The id follows from the uri: the same in every table, unlike for uris that only look the same."""
    uris = ["a/é.jpg", "a/e\u0301.jpg", "A/é.jpg", "a/é.jpg ", "file:///a/é.jpg"]
    made = [Case(uri, TRUNCATED, None) for uri in uris]
    images, _ = published_tables(parts(made), manifest(made))
    ids = images.column("image_id").to_pylist()
    assert len(set(ids)) == len(uris)
    assert ids == [image_id(uri) for uri in uris]
    assert all(0 <= i < 2**63 for i in ids)


def test_pixels_are_let_go_of_with_their_table() -> None:
    pixels = np.zeros((3, 4, 3), np.uint8)
    gone = weakref.ref(pixels)
    table = decoded_table([DecodedRow(0, "a", pixels)])
    del pixels, table
    gc.collect()
    assert gone() is None, "a worker would keep every image that it ever decoded"
