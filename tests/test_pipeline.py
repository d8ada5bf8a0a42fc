"""Whole runs: what comes out is what the predictor says of each image, once each, whatever happened on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import draw_folder, draw_picture

import raymask
from raymask.config import SegmentConfig
from raymask.journal import Manifest, journal_folder, scan_parts
from raymask.journal.manifest import CHUNK_ROWS, ManifestFile
from raymask.model import Category, Detections, Model, Predictor, save_model
from raymask.pipeline import plan
from raymask.reading import plan_chunks

pytestmark = pytest.mark.usefixtures("ray_session")


def rows_of(out: str, table: str) -> list[dict[str, Any]]:
    """The rows of a published table as plain readers see them, in an order of their own."""
    rows = pq.read_table(f"{out}/{table}").to_pylist()
    return sorted(rows, key=lambda r: (r["uri"], r.get("instance", 0)))


def segment(source: Path | str, out: Path | str, model: str, **options: Any) -> Any:
    return raymask.segment(str(source), out=str(out), weights=model, precision="fp32", quiet=True, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("pictures"), 40, broken=3)


@pytest.fixture(scope="module")
def segmented(pictures: Path, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of `pictures`; not to be changed."""
    out = tmp_path_factory.mktemp("output")
    summary = segment(pictures, out, model_folder, images_per_part=8, images_per_file=16)
    assert (summary.images, summary.ok, summary.failed) == (43, 40, 3)
    assert summary.errors == {"not_an_image": 3}
    return out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker computes: with more threads sums are split otherwise, and the last bits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_rows_are_what_the_predictor_says(pictures: Path, segmented: Path, small_model: Model) -> None:
    predictor = Predictor(small_model, device="cpu", precision="fp32")
    images = rows_of(str(segmented), "images")
    assert [row["uri"] for row in images] == sorted(str(f) for f in pictures.iterdir())
    expected = []
    for row in images:
        broken = "broken" in row["uri"]
        assert row["image_id"] == raymask.schema.image_id(row["uri"])
        assert row["status"] == ("failed" if broken else "ok")
        assert row["bytes"] == Path(row["uri"]).stat().st_size
        if broken:
            assert (row["error"], row["height"], row["instance_count"]) == ("not_an_image", None, 0)
            continue
        assert (row["height"], row["width"], row["format"], row["error"]) == (48, 64, "png", None)
        [found] = predictor([np.array(PIL.Image.open(row["uri"]))])
        assert isinstance(found, Detections)
        assert row["instance_count"] == len(found.scores) == 5
        for i, label in enumerate(found.labels):
            category = predictor.category(int(label))
            box = [float(x) for x in found.boxes_xyxy[i]]
            mask = {"size": [48, 64], "counts": found.masks.counts[i]}
            expected.append([row["uri"], i, category.id, category.name, float(found.scores[i]), *box, mask])
    names = ("uri", "instance", "category_id", "category", "score", "x_min", "y_min", "x_max", "y_max", "mask")
    assert [[row[name] for name in names] for row in rows_of(str(segmented), "instances")] == expected


def test_tables_are_cut_near_input_order(segmented: Path) -> None:
    files = sorted((segmented / "images").iterdir())
    assert [f.name for f in files] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [pq.read_metadata(f).num_rows for f in files] == [16, 16, 11]
    uris = [uri for f in files for uri in pq.read_table(f).column("uri").to_pylist()]
    assert uris == sorted(uris)


def test_index_lists_files_with_their_checksums(segmented: Path) -> None:
    import hashlib

    index = json.loads((segmented / "raymask.json").read_text())
    assert index["counts"] == {"images": 43, "ok": 40, "failed": 3, "instances": 200}
    for table in ("images", "instances"):
        assert len(index["tables"][table]["files"]) == 3
        for file in index["tables"][table]["files"]:
            data = (segmented / file["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])


def test_open_reads_tables_and_masks(segmented: Path) -> None:
    masks = raymask.open(str(segmented))
    assert (len(masks.images), len(masks.instances)) == (43, 200)
    frame = masks.instances.to_pandas()
    row = frame.iloc[17]
    mask = masks.mask(row.uri, row.instance)
    assert mask.shape == (48, 64)
    assert int(mask.sum()) == row.area
    with pytest.raises(KeyError, match="no instance 5"):
        masks.mask(row.uri, 5)


def test_a_second_run_finds_nothing_to_do(pictures: Path, segmented: Path, model_folder: str) -> None:
    before = {f: f.stat().st_mtime_ns for f in segmented.rglob("*.parquet")}
    summary = segment(pictures, segmented, model_folder)
    assert (summary.processed, summary.images) == (0, 43)
    assert {f: f.stat().st_mtime_ns for f in segmented.rglob("*.parquet")} == before


def test_another_model_or_threshold_is_refused(
    pictures: Path, segmented: Path, model_folder: str, small_model: Model, tmp_path: Path
) -> None:
    weights = {name: tensor.clone() for name, tensor in small_model.weights.items()}
    weights["roi_heads.box_predictor.cls_score.bias"] += 1
    save_model(str(tmp_path), small_model.spec, weights)
    with pytest.raises(raymask.OutputError, match=r"holds masks of model .* choose another --out"):
        segment(pictures, segmented, str(tmp_path))
    with pytest.raises(raymask.OutputError, match=r"made with min_score 0\.0, this run has min_score 0\.3"):
        segment(pictures, segmented, model_folder, min_score=0.3)
    with pytest.raises(raymask.OutputError, match="max_size"):
        plan(SegmentConfig(source=str(pictures), out=str(segmented), weights=model_folder, max_size=99))


def test_dry_run_says_what_is_to_do_and_writes_nothing(pictures: Path, model_folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = plan(SegmentConfig(source=str(pictures), out=str(out), weights=model_folder))
    assert found.source is not None
    assert (found.source.new, found.source.known, found.pending, found.done) == (43, 0, 0, 0)
    assert found.source.bytes == sum(f.stat().st_size for f in pictures.iterdir())
    assert not out.exists()


def test_new_images_are_added_and_failed_ones_tried_again(model_folder: str, tmp_path: Path) -> None:
    source, out = draw_folder(tmp_path / "in", 4, broken=1), tmp_path / "out"
    segment(source, out, model_folder, images_per_file=4)
    assert raymask.status(str(out)).failed == 1
    first = rows_of(str(out), "instances")

    draw_folder(source, 6)  # two more
    draw_picture(99).save(source / "0000-broken.png")  # mended, but not asked for again
    summary = segment(source, out, model_folder, images_per_file=4)
    assert (summary.processed, summary.images, summary.failed) == (2, 7, 1)
    second = rows_of(str(out), "instances")
    assert [row for row in second if row in first] == first
    assert len(second) == 6 * 5

    summary = segment(source, out, model_folder, images_per_file=4, retry_failed=True)
    assert (summary.processed, summary.images, summary.failed) == (1, 7, 0)
    assert len(rows_of(str(out), "instances")) == 7 * 5
    reasons = {s.reason for s in raymask.clean(str(out), dry_run=True)}
    assert reasons <= {"every image in it has a better row elsewhere", "not in raymask.json"}
    assert raymask.status(str(out)).published


def test_a_reader_of_the_index_never_sees_files_change(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each swap of the index, and between the copies after it, all that it names is there, to the byte."""
    import hashlib

    from raymask import publishing
    from raymask.storage import Folder

    out, looked = tmp_path / "out", []

    def look() -> None:
        if not (out / "raymask.json").exists():
            return
        index = json.loads((out / "raymask.json").read_text())
        for file in (f for table in index["tables"].values() for f in table["files"]):
            assert hashlib.sha256((out / file["path"]).read_bytes()).hexdigest() == file["sha256"]
        looked.append(index["counts"]["ok"])

    def looking_on(call: Any, arguments: Any) -> Any:
        for each in arguments:
            result = call(*each)
            look()
            yield result

    swap = Folder.swap

    def swap_and_look(folder: Folder, name: str, old: bytes | None, new: bytes) -> bool:
        look()
        swapped = swap(folder, name, old, new)
        look()
        return swapped

    monkeypatch.setattr(publishing, "_on_the_cluster", looking_on)
    monkeypatch.setattr(Folder, "swap", swap_and_look)
    source = draw_folder(tmp_path / "in", 5, broken=1)
    segment(source, out, model_folder, images_per_file=3)
    draw_folder(source, 7)
    segment(source, out, model_folder, images_per_file=3)
    draw_picture(99).save(source / "0000-broken.png")
    segment(source, out, model_folder, images_per_file=3, retry_failed=True)
    assert looked == sorted(looked)
    assert set(looked) == {5, 7, 8}
    assert raymask.status(str(out)).published
    assert len(rows_of(str(out), "images")) == len(raymask.open(str(out)).images) == 8
    raymask.clean(str(out))
    look()
    assert raymask.clean(str(out)) == []


def test_of_two_that_publish_at_once_neither_undoes_the_other(
    pictures: Path, segmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has read the journal before a late part came, is overtaken by another, and only then would write."""
    from raymask.journal import read_run, write_part
    from raymask.publishing import publish
    from raymask.storage import Folder

    out = tmp_path / "out"
    shutil.copytree(segmented, out)
    folder = journal_folder(str(out))
    run = read_run(str(out))
    assert run is not None
    manifest = Manifest.read(folder)
    rows = pq.read_table(next(iter(sorted((out / "_raymask" / "parts").iterdir()))))
    write_part(folder, rows.slice(1, 3), attempt=1)
    swap = Folder.swap
    others: list[Any] = []

    def overtaken(folder_: Folder, name: str, old: bytes | None, new: bytes) -> bool:
        if not others:
            others.append(None)
            write_part(folder, rows.slice(2, 1), attempt=2)
            others[0] = publish(str(out), run, manifest)
        return swap(folder_, name, old, new)

    monkeypatch.setattr(Folder, "swap", overtaken)
    published = publish(str(out), run, manifest)
    assert published == others[0]
    assert published.journal == scan_parts(folder, manifest.rows).fingerprint()


def test_resume_does_only_what_is_missing_and_gives_the_same_tables(
    pictures: Path, segmented: Path, model_folder: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(segmented, out)
    for lost in ("images", "instances"):
        shutil.rmtree(out / lost)
    (out / "raymask.json").unlink()
    parts = sorted((out / "_raymask" / "parts").iterdir())
    gone = [parts[0], parts[-1]]
    missing = sum(pq.read_metadata(p).num_rows for p in gone)
    for part in gone:
        part.unlink()
    state = raymask.status(str(out))
    assert (state.images, state.pending, state.published) == (43, missing, False)
    expected = plan(SegmentConfig(source=str(pictures), out=str(out), weights=model_folder))
    assert (expected.source, expected.pending, expected.done) == (None, missing, 43 - missing)
    summary = segment(pictures, out, model_folder)
    assert (summary.processed, summary.images) == (missing, 43)
    for table in ("images", "instances"):
        assert rows_of(str(out), table) == rows_of(str(segmented), table)


def test_columns_of_a_manifest_are_carried_and_repeated_uris_taken_once(
    pictures: Path, model_folder: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"uri,camera,width\n{pictures}/0000.png,a,7\n{pictures}/0001.png,,8\n{pictures}/0000.png,c,9\n")
    out = tmp_path / "out"
    summary = segment(manifest, out, model_folder)
    assert summary.images == 2
    rows = rows_of(str(out), "images")
    assert [(row["camera"], row["source_width"], row["width"]) for row in rows] == [("a", 7, 64), ("", 8, 64)]
    other = tmp_path / "other.csv"
    other.write_text(f"uri,lens\n{pictures}/0002.png,x\n")
    with pytest.raises(raymask.ConfigError, match=r"begun with no column lens"):
        segment(other, out, model_folder)


def test_nothing_found_is_an_error_that_says_what_was_left_out(model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(raymask.ConfigError, match=r"no images in .* 1 other files left out \(1 \.txt\)"):
        segment(tmp_path, f"{tmp_path}-out", model_folder)


def test_an_output_below_its_source_is_not_taken_for_input(model_folder: str, tmp_path: Path) -> None:
    draw_folder(tmp_path, 2)
    for _ in range(2):
        summary = segment(tmp_path, tmp_path / "out", model_folder, extensions=("all",))
        assert (summary.images, summary.ok) == (2, 2)


def test_missing_weights_are_an_error_before_anything_is_written(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(raymask.ConfigError, match="do not exist"):
        segment(pictures, tmp_path / "out", "nowhere/model")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_an_error(pictures: Path, model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(raymask.OutputError, match="file"):
        segment(pictures, tmp_path / "file", model_folder)


@pytest.mark.parametrize(
    ("total", "workers", "images_per_part"), [(1, 2, 1), (300, 2, 3), (5_000, 2, 32), (300_000, 8, 5_000)]
)
def test_chunks_cover_what_is_wanted_once(total: int, workers: int, images_per_part: int) -> None:
    wanted = np.random.default_rng(total).random(total) < 0.3
    wanted[0] = True
    files = tuple(
        ManifestFile(f"m{i}", i * 131_072, min(131_072, total - i * 131_072)) for i in range(-(-total // 131_072))
    )
    listing = type("Listing", (), {"files": files, "rows": total})()
    chunks = plan_chunks(Manifest(journal_folder("unused"), (listing,)), wanted, workers, images_per_part)
    covered = np.zeros(total, int)
    for chunk in chunks:
        assert chunk["start"] // CHUNK_ROWS == (chunk["start"] + chunk["rows"] - 1) // CHUNK_ROWS
        assert files[chunk["file"]].first_ordinal + chunk["start"] == chunk["first_ordinal"]
        covered[chunk["first_ordinal"] : chunk["first_ordinal"] + chunk["rows"]] += 1
    assert (covered[wanted] == 1).all()
    assert covered.max() == 1


def test_a_late_part_of_a_dead_run_changes_nothing(
    pictures: Path, segmented: Path, model_folder: str, tmp_path: Path
) -> None:
    """The same images in other groups, once ok and once failed: tables stay as they are."""
    from raymask.journal import write_part
    from raymask.protocol import PartName

    out = tmp_path / "out"
    shutil.copytree(segmented, out)
    folder = journal_folder(str(out))
    part = next(iter(sorted((out / "_raymask" / "parts").iterdir())))
    rows = pq.read_table(part)
    write_part(folder, rows.slice(1, 3), attempt=0)
    one = rows.slice(3, 1)
    assert one.column("error")[0].as_py() is None
    failed = one.set_column(one.schema.get_field_index("error"), one.schema.field("error"), pa.array(["fetch_failed"]))
    write_part(folder, failed, attempt=3)
    assert PartName.parse(part.name)
    assert len(scan_parts(folder, 43).parts) == len(list((segmented / "_raymask" / "parts").iterdir())) + 2
    segment(pictures, out, model_folder)
    for table in ("images", "instances"):
        assert rows_of(str(out), table) == rows_of(str(segmented), table)
    assert raymask.status(str(out)).ok == 40
    assert {s.reason for s in raymask.clean(str(out))} == {"every image in it has a better row elsewhere"}
    assert raymask.clean(str(out)) == []
    segment(pictures, out, model_folder)
    assert rows_of(str(out), "images") == rows_of(str(segmented), "images")


def test_categories_of_the_model_are_in_every_footer(segmented: Path, small_model: Model) -> None:
    for file in segmented.glob("i*/*.parquet"):
        footer = raymask.schema.footer_of(pq.read_schema(file))
        assert footer["table"] == file.parent.name
        assert footer["model"] == {"name": "maskrcnn_resnet10_fpn", "sha256": small_model.sha256}
        assert footer["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        assert Category(3, "cat") in small_model.spec.categories
