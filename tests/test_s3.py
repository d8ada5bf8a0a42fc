"""From a bucket to a bucket: the same tables as from a folder to a folder, and the same ways to go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.parsers
import pyarrow.parquet as pq
import pytest
from botocore.utils import parse_timestamp
from conftest import draw_folder
from nodes import ray_cluster
from stores import Store, s3_store

import raymask
from raymask.cli import main
from raymask.s3 import parse_time
from raymask.storage import resolve, s3_pages

OPTIONS = ["--precision", "fp32", "--images-per-part", "4", "--images-per-file", "8"]


@pytest.fixture
def store() -> Iterator[Store]:
    with s3_store() as store:
        yield store


@pytest.fixture
def cluster(store: Store) -> Iterator[dict[str, str]]:
    """The environment of a cluster whose workers know the store."""
    with ray_cluster() as environment:
        yield environment


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05Z", "Fri, 02 Jan 2026 03:04:05 GMT", "1767323045", 1767323045.5],
)
def test_times_are_read_as_botocore_reads_them(text: Any) -> None:
    assert parse_time(text) == parse_timestamp(text)


def test_a_listing_has_its_times_read_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.parsers, "DEFAULT_TIMESTAMP_PARSER", lambda text: pytest.fail(f"{text} read slowly"))
    store.put("photos/one", b"1")
    [[found]] = s3_pages(resolve(f"{store.url}/photos")[0], "bucket", "photos/")
    assert abs(found["LastModified"].timestamp() - time.time()) < 60


def segment(cluster: dict[str, str], source: str, out: str, weights: str) -> str:
    """By the command line, for Ray's workers have the environment of the process that starts them."""
    command = [sys.executable, "-m", "raymask.cli", "segment", source, "--out", out, "--weights", weights, *OPTIONS]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=250, env=cluster)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def without_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what says where the image lies and which version of it was read."""
    rows = [{**row, "uri": row["uri"].rsplit("/", 1)[-1]} for row in rows]
    return [{k: v for k, v in row.items() if k not in ("image_id", "etag")} for row in rows]


def test_a_bucket_gives_the_same_tables_as_a_folder(
    store: Store, cluster: dict[str, str], model_folder: str, tmp_path: Path
) -> None:
    folder = draw_folder(tmp_path / "in", 14, broken=2)
    for file in folder.iterdir():
        store.put(f"photos/{file.name}", file.read_bytes())
    for file in Path(model_folder).iterdir():
        store.put(f"model/{file.name}", file.read_bytes())
    local, remote = str(tmp_path / "out"), f"{store.url}/masks"
    segment(cluster, str(folder), local, model_folder)
    shown = segment(cluster, f"{store.url}/photos", remote, f"{store.url}/model")
    assert "16 images: 14 ok with 70 instances, 2 failed" in shown

    here, there = raymask.open(local), raymask.open(remote)
    for table in ("images", "instances"):
        ours = getattr(there, table).to_arrow().to_pylist()
        assert without_place(ours) == without_place(getattr(here, table).to_arrow().to_pylist())
        assert all(row["uri"].startswith(f"{store.url}/photos/") for row in ours)
    etags = {row["uri"]: row["etag"] for row in there.images.to_arrow().to_pylist()}
    assert etags[f"{store.url}/photos/0000.png"] == store.fs.info("bucket/photos/0000.png")["ETag"].strip('"')
    first = there.instances.to_pandas().iloc[0]
    assert int(there.mask(first.uri, first.instance).sum()) == first.area

    # Plain readers find the files where a folder of them would be.
    keys = [item["Key"] for page in s3_pages(store.fs, "bucket", "") for item in page]
    listed = sorted(k for k in keys if k.startswith("masks/") and "_raymask" not in k)
    files = [f"masks/{t}/part-0000{n}.parquet" for t in ("images", "instances") for n in (0, 1)]
    assert listed == [*files, "masks/raymask.json"]
    assert pq.read_table(f"bucket/{files[0]}", filesystem=store.fs).num_rows == 8

    # A lost part is done again, a new image is added, and nothing else is touched.
    state = raymask.status(remote)
    assert (state.images, state.pending, state.published, state.writer) == (16, 0, True, None)
    lost = next(k for k in keys if "_raymask/parts/" in k)
    store.fs.rm_file(f"bucket/{lost}")
    store.put("photos/0099.png", (folder / "0003.png").read_bytes())
    assert " 4 of them now" in segment(cluster, f"{store.url}/photos", remote, f"{store.url}/model")
    assert "17 images: 15 ok" in segment(cluster, f"{store.url}/photos", remote, f"{store.url}/model")


@pytest.mark.usefixtures("ray_session", "store")
def test_a_bucket_that_is_not_there_is_an_error(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_folder(tmp_path / "in", 1)
    for source, out in ((str(folder), "s3://nowhere/out"), ("s3://nowhere/photos", str(tmp_path / "out"))):
        assert main(["segment", source, "--out", out, "--weights", model_folder]) == 1
        shown = capsys.readouterr().err
        assert "s3://nowhere/" in shown
        assert "Traceback" not in shown
