"""Files that are not what they should be: a plain error that names the file, whatever is in it, and never a crash."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fuzz_images
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from raymask.cli import main
from raymask.config import SegmentConfig
from raymask.errors import ConfigError, OutputError, RaymaskError
from raymask.evaluation.annotations import read_annotations
from raymask.jobs import read_options
from raymask.journal import Manifest, read_run
from raymask.journal.lease import read_holder
from raymask.masks import validate_rle
from raymask.model import load_model
from raymask.model.spec import ModelSpec
from raymask.published import read_published
from raymask.segmentations import to_rle
from raymask.sources import open_source
from raymask.storage import Folder
from raymask.training.dataset import read_rows

quick = settings(max_examples=40)

Scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 1e300, float("inf"), "", "ok", "a.png", "333"]),
)
Json = st.recursive(
    Scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def spoilt(draw: st.DrawFn, good: Any) -> Any:
    """`good` with some of the values in it, at any depth, replaced, or left out."""
    if draw(st.integers(0, 9)) == 0:
        return draw(Json)
    if isinstance(good, dict):
        kept = {key: draw(spoilt(value)) for key, value in good.items() if draw(st.integers(0, 15))}
        return {**kept, **draw(st.dictionaries(st.text(max_size=4), Scalars, max_size=1))}
    if isinstance(good, list):
        return [draw(spoilt(value)) for value in good if draw(st.integers(0, 15))]
    return good


def spoilt_bytes(good: bytes) -> st.SearchStrategy[bytes]:
    """A file that is cut, patched, or something else altogether."""
    patches = st.tuples(st.integers(0, len(good) - 1), st.binary(min_size=1, max_size=8))
    patched = patches.map(lambda p: good[: p[0]] + p[1] + good[p[0] + len(p[1]) :])
    cut = st.integers(0, len(good) - 1).map(lambda n: good[:n])
    return st.one_of(patched, patched, cut, st.binary(max_size=64))


def only_plain_errors(read: Callable[[], object]) -> None:
    """Either it can be read, or the error is one of raymask's own."""
    with contextlib.suppress(RaymaskError):
        read()


DEEP = b"[" * 100_000

# -------------------------------------------------------------------------------------------------------------- COCO

RLE = {"size": [4, 5], "counts": "5337"}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 5}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0, "segmentation": s}
        for s in ([[0.0, 0.0, 3.0, 0.0, 3.0, 3.0]], {"size": [4, 5], "counts": [5, 3, 12]}, RLE)
    ],
}


@quick
@given(spoilt(COCO).map(lambda value: json.dumps(value).encode()) | spoilt_bytes(json.dumps(COCO).encode()))
@example(DEEP)
@example(b'{"images": [{"id": 1, "file_name": "a", "height": -4, "width": 0}]}')
def test_annotation_files(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "coco.json")
        path.write_bytes(data)
        only_plain_errors(lambda: read_annotations(str(path)))
        only_plain_errors(lambda: read_rows(str(path), None))
        only_plain_errors(lambda: listed(path))


@quick
@given(spoilt(COCO["annotations"]), st.sampled_from([(4, 5), (0, 5), (-1, 3), (2**40, 2), (4, 2**64), (3, 5)]))
def test_segmentations_of_any_kind(annotations: Any, size_hw: tuple[int, int]) -> None:
    """What is taken is what pycocotools can work on, for it does not check."""
    for annotation in annotations if isinstance(annotations, list) else []:
        try:
            rle = to_rle(annotation["segmentation"], size_hw)
        except (KeyError, TypeError, ValueError):
            continue
        assert coco_mask.decode(rle).shape == size_hw
        assert 0 <= coco_mask.area(rle) <= size_hw[0] * size_hw[1]
        coco_mask.toBbox(rle)
        coco_mask.iou([rle], [rle], [0])


# ---------------------------------------------------------------------------------------------------------------- RLE

CRASHER = """
from pycocotools import mask
mask.toBbox({"size": [0, 5], "counts": "3333"})
"""


def test_pycocotools_crashes_on_what_it_is_not_given() -> None:
    """The reason for all the checking; should this fail one day, there is less to check."""
    assert subprocess.run([sys.executable, "-c", CRASHER], capture_output=True, timeout=60).returncode < 0


@quick
@given(
    st.lists(st.integers(-1, 2**33), max_size=3) | st.just([4, 5]) | Scalars,
    st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12) | Scalars | st.binary(max_size=8),
)
def test_what_validate_rle_lets_pass_does_no_harm(size: Any, counts: Any) -> None:
    try:
        validate_rle(size, counts)
    except ValueError:
        return
    rle = {"size": list(size), "counts": counts}
    assert 0 <= coco_mask.area(rle) <= size[0] * size[1]
    coco_mask.toBbox(rle)
    coco_mask.iou([rle], [rle], [0])


@pytest.mark.parametrize(
    "mask",
    [None, {"size": [0, 5], "counts": "3333"}, {"size": [4, 5], "counts": "9" * 50}, {"size": None, "counts": ""}],
)
def test_masks_in_tables_are_checked(mask: Any, tmp_path: Path) -> None:
    """Where results are evaluated, and where they are trained on."""
    from raymask.evaluation.results import coco_results

    row = {"uri": "a", "instance": 0, "category_id": 3, "category": "cat", "score": 0.5, "mask": mask}
    row |= dict.fromkeys(("x_min", "y_min"), 0.0) | dict.fromkeys(("x_max", "y_max"), 3.0)
    kind = pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])
    instances = pa.Table.from_pylist([row])
    instances = instances.set_column(instances.schema.get_field_index("mask"), "mask", pa.array([mask], kind))
    images = pa.table({"uri": ["a"], "status": ["ok"], "height": [4], "width": [5]})
    for name, table in (("images", images), ("instances", instances)):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "part-00000.parquet")
    with pytest.raises(ConfigError, match="malformed segmentations"):
        read_rows(str(tmp_path), None)

    class Tables:
        @property
        def instances(self) -> Any:
            return type("Table", (), {"to_arrow": staticmethod(lambda columns: instances.select(columns))})

    with pytest.raises(OutputError, match="instance 0 of 'a' is malformed"):
        coco_results(Tables(), {"a": 1})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ sources


def listed(path: Path) -> int:
    """How many images a source lists, read to its end."""
    source = open_source(SegmentConfig(source=str(path), out=f"{path.parent}/out"))
    return sum(batch.num_rows for batch in source.batches)


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


MANIFEST = pa.table({"uri": ["a.png", "b.png", "c.png"], "camera": ["x", None, "y"], "taken": [1, 2, 3]})
IMAGES = pa.table({"image": [b"abc", b"def"], "label": [1, 2]})


@quick
@given(spoilt_bytes(parquet_bytes(MANIFEST)) | spoilt_bytes(parquet_bytes(IMAGES)))
def test_parquet_files(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "list.parquet")
        path.write_bytes(data)
        only_plain_errors(lambda: listed(path))


@quick
@given(spoilt_bytes(b'uri,camera,taken\na.png,x,1\nb.png,,2\n"c,\nd".png,y,3\n'), st.sampled_from(["csv", "tsv"]))
def test_csv_files(data: bytes, ending: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, f"list.{ending}")
        path.write_bytes(data)
        only_plain_errors(lambda: listed(path))


@quick
@given(
    st.lists(spoilt({"uri": "a.png", "camera": "x", "n": 1}), max_size=4).map(
        lambda rows: "\n".join(map(json.dumps, rows)).encode()
    )
    | spoilt_bytes(b'{"uri": "a.png", "n": 1}\n{"uri": "b.png", "n": 2}\n')
)
@example(DEEP)
def test_json_lines_files(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "list.jsonl")
        path.write_bytes(data)
        only_plain_errors(lambda: listed(path))


# ----------------------------------------------------------------------------------------------------- models, options


@pytest.fixture(scope="module")
def model_json(model_folder: str) -> bytes:
    return Path(model_folder, "model.json").read_bytes()


@quick
@given(data=st.data())
def test_model_descriptions(model_json: bytes, data: st.DataObject) -> None:
    good = json.loads(model_json)
    text = data.draw(spoilt(good).map(lambda v: json.dumps(v).encode()) | spoilt_bytes(model_json) | st.just(DEEP))
    only_plain_errors(lambda: ModelSpec.from_json(text, "model.json"))


def state_dict_bytes() -> bytes:
    sink = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": torch.ones(2, 2)}, sink)
    return sink.getvalue()


@quick
@given(st.data(), st.sampled_from(["model.safetensors", "weights.pth", "weights.safetensors"]))
def test_weights(data: st.DataObject, name: str) -> None:
    import safetensors.torch

    good = safetensors.torch.save({"a": torch.zeros(3)}) if name.endswith("safetensors") else state_dict_bytes()
    with TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(data.draw(spoilt_bytes(good)))
        with pytest.raises(ConfigError):
            load_model(f"{folder}/{name}", "maskrcnn_resnet10_fpn")


def test_a_zip_file_that_is_no_state_dict(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(ConfigError):
        load_model(str(tmp_path / "w.pth"), "maskrcnn_resnet10_fpn")


@quick
@given(
    spoilt_bytes(b"source: photos\nout: masks\nworkers: 2:4\nextensions: [jpg, png]\nnms: 0.5\nretry_failed: true\n")
    | st.text(st.characters(codec="utf-8"), max_size=40).map(str.encode)
)
@example(b'source: "\\UFFFFFFFF"')
@example(b"source: {a: b}\nextensions: {a: b}\nnms: []")
@example(b"{" * 5000)
@example(b"&a [*a]")
def test_yaml_files(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_bytes(data)
        only_plain_errors(lambda: read_options("segment", path, []))


# ------------------------------------------------------------------------------------------------------------- outputs

RUN = {
    "model": "m",
    "model_sha256": "a" * 64,
    "categories": [[1, "cat"]],
    "thresholds": {"nms": 0.5},
    "images_per_file": 10,
    "raymask_version": "0",
    "schema_version": "1.0",
    "format_version": 1,
}
LISTING = {"number": 0, "source": {"source": "a"}, "files": [{"name": "manifest/x", "first_ordinal": 0, "rows": 3}]}
FILE = {"path": "images/part-00000.parquet", "rows": 3, "bytes": 10, "sha256": "b" * 64}
INDEX = {
    "journal": "c" * 64,
    "tables": {"images": {"rows": 3, "files": [FILE]}, "instances": {"rows": 3, "files": [FILE]}},
    "shards": [{"source": "d" * 64, "ok": 2, "errors": {"corrupt": 1}, "is_copied": False}],
}
LEASE = {"owner": "x", "host": "elsewhere/1", "pid": 1, "expires_at": 1e9}


@quick
@given(
    st.sampled_from([(RUN, "_raymask/run.json"), (LISTING, "_raymask/manifest/0000.json"), (INDEX, "raymask.json")]),
    st.data(),
)
def test_files_of_an_output(kind: tuple[Any, str], data: st.DataObject) -> None:
    good, name = kind
    text = data.draw(spoilt(good).map(lambda v: json.dumps(v).encode()) | spoilt_bytes(json.dumps(good).encode()))
    with TemporaryDirectory() as out:
        Folder(out).put(name, text)
        only_plain_errors(lambda: read_run(out))
        only_plain_errors(lambda: Manifest.read(Folder(out).sub("_raymask")))
        only_plain_errors(lambda: read_published(out))


@quick
@given(spoilt(LEASE).map(lambda v: json.dumps(v).encode()) | spoilt_bytes(json.dumps(LEASE).encode()))
def test_a_lease_of_any_kind_is_read_or_passed_over(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        Folder(folder).put("lease.json", data)
        read_holder(Folder(folder))


@pytest.mark.parametrize("name", ["coco.json", "list.csv", "list.jsonl", "list.parquet"])
def test_the_program_says_it_in_a_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00nonsense")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_bytes(b"{")
    assert main(["segment", str(tmp_path / name), "--out", f"{tmp_path}/out", "--weights", f"{tmp_path}/model"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("raymask: ") and "Traceback" not in said and "unexpected" not in said
    assert len(said.splitlines()) == 1


# -------------------------------------------------------------------------------------------------------------- images


def test_damaged_images_have_typed_outcomes() -> None:
    """A few of the hundred thousand of `make fuzz`."""
    files = fuzz_images.seeds()
    assert {"jpeg", "png", "webp", "gif", "tiff", "bmp"} <= files.keys()
    outcomes = fuzz_images.run(range(10**6, 10**6 + 400), files)
    assert outcomes.problems == []
    assert outcomes.crashed == []
    assert {"ok", "truncated", "corrupt", "not_an_image", "too_many_pixels"} <= outcomes.kinds.keys()


def test_mutations_follow_from_their_number() -> None:
    files = {"png": [b"\x89PNG" + bytes(range(100))], "gif": [b"GIF89a" + bytes(50)]}
    made = [fuzz_images.mutation(n, files) for n in range(500)]
    assert made[:100] == [fuzz_images.mutation(n, files) for n in range(100)]
    assert len({data for _, _, data in made}) > 400
    assert {name for _, done, _ in made for name in done.split("+")} == {f.__name__ for f in fuzz_images.MUTATIONS}
