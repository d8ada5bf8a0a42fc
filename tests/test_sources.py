"""Sources: every kind lists exactly its images, as a stream, and what was listed can be fetched."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import BUCKET, Store, forget_file_systems, fresh_environment
from test_fetch import ODD_KEYS, ODD_NAMES, write_tar

from raymask.config import SegmentConfig
from raymask.errors import ConfigError, ErrorKind, Failure
from raymask.fetch import Place, fetch
from raymask.sources import Source, advice, open_source, shards, stream
from raymask.sources.stream import LISTED
from raymask.storage import join, resolve


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    """The bucket, empty."""
    for key in [o["Key"] for o in server.fs.call_s3("list_objects_v2", Bucket=BUCKET).get("Contents", [])]:
        server.delete(key)
    server.requests.clear()
    yield server
    server.fault = lambda request: None


def opened(source: str | Path, **options: Any) -> Source:
    return open_source(SegmentConfig(source=str(source), out="out", **options))


def rows_of(source: str | Path, **options: Any) -> list[dict[str, Any]]:
    """Every row of a source; its batches are checked to be what `Source` promises."""
    opening = opened(source, **options)
    schema = pa.schema([*LISTED, *opening.user_fields])
    rows = []
    for batch in opening.batches:
        assert batch.schema == schema
        assert 0 < batch.num_rows <= stream.BATCH_ROWS
        rows += batch.to_pylist()
    return rows


def uris_of(source: str | Path, **options: Any) -> list[str]:
    return [row["uri"] for row in rows_of(source, **options)]


def fetched(rows: list[dict[str, Any]]) -> list[bytes | ErrorKind]:
    places = [Place(*(row[name] for name in LISTED.names)) for row in rows]
    return [r.kind if isinstance(r, Failure) else r.data for r in fetch(places, max_bytes=10**6)]


def write(url: str | Path, data: bytes | str) -> str:
    url = str(url)
    if "://" not in url:
        os.makedirs(os.path.dirname(url), exist_ok=True)
    with fsspec.open(url, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return url


def refused(source: str | Path, match: str, **options: Any) -> str:
    """The message with which a source is refused, when it is opened or when it is read."""
    with pytest.raises(ConfigError, match=match) as caught:
        rows_of(source, **options)
    return str(caught.value)


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on a file system of each kind."""
    if request.param == "s3":
        return str(request.getfixturevalue("store").url) + "/root"
    return str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}"


TREE = ["a.jpg", "b.PNG", "c.txt", "sub/d.jpeg", "sub/deep/e.jpg", "sub/deep/f.tar", "such/g.jpg", "none"]


@pytest.fixture
def tree(root: str) -> str:
    """A folder with a few files, each holding its own name."""
    for name in TREE:
        write(join(root, name), name)
    return root


def base_of(root: str) -> str:
    """How listed URLs of a folder begin."""
    fs, path = resolve(root)
    return f"{path}/" if "://" not in root else f"{fs.unstrip_protocol(path)}/"


# ------------------------------------------------------------------------------------------------ folders and patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.jpg", "b.PNG", "sub/d.jpeg", "sub/deep/e.jpg", "such/g.jpg"]),
        ("/", ["a.jpg", "b.PNG", "sub/d.jpeg", "sub/deep/e.jpg", "such/g.jpg"]),
        ("/sub", ["sub/d.jpeg", "sub/deep/e.jpg"]),
        ("/a.jpg", ["a.jpg"]),
        ("/c.txt", ["c.txt"]),
        ("/none", ["none"]),
        ("/*", ["a.jpg", "b.PNG"]),
        ("/*.jpg", ["a.jpg"]),
        ("/*.txt", ["c.txt"]),
        ("/*.*", ["a.jpg", "b.PNG"]),
        ("/s*/*.j*", ["sub/d.jpeg", "such/g.jpg"]),
        ("/su?/*", ["sub/d.jpeg"]),
        ("/su[a-b]/*", ["sub/d.jpeg"]),
        ("/su[!a-b]*/*", ["such/g.jpg"]),
        ("/**", ["a.jpg", "b.PNG", "sub/d.jpeg", "sub/deep/e.jpg", "such/g.jpg"]),
        ("/**/*.jpg", ["a.jpg", "sub/deep/e.jpg", "such/g.jpg"]),
        ("/sub/**", ["sub/d.jpeg", "sub/deep/e.jpg"]),
        ("/*/deep/*", ["sub/deep/e.jpg"]),
        ("/{a.jpg,c.txt}", ["a.jpg", "c.txt"]),
        ("/*.{txt,jpg}", ["c.txt", "a.jpg"]),
        ("/{sub,such}/*", ["sub/d.jpeg", "such/g.jpg"]),
        ("/z*", []),
    ],
)
def test_what_a_name_stands_for(tree: str, pattern: str, expected: list[str]) -> None:
    rows = rows_of(tree + pattern)
    assert sorted(row["uri"].removeprefix(base_of(tree)) for row in rows) == sorted(expected)
    assert [row["size"] for row in rows] == [len(row["uri"].removeprefix(base_of(tree))) for row in rows]
    assert all(row["etag"] for row in rows) or tree.startswith("memory")
    assert fetched(rows) == [row["uri"].removeprefix(base_of(tree)).encode() for row in rows]


def test_what_is_left_out_is_counted(tree: str) -> None:
    source = opened(tree)
    assert sum(batch.num_rows for batch in source.batches) == 5
    assert source.skipped == {".txt": 1, ".tar": 1, "no ending": 1}
    source = opened(tree, extensions=(" TXT", ".Png"))
    assert sum(batch.num_rows for batch in source.batches) == 2
    assert source.skipped == {".jpg": 3, ".jpeg": 1, ".tar": 1, "no ending": 1}
    source = opened(tree, extensions=("all",))
    assert sum(batch.num_rows for batch in source.batches) == len(TREE)
    assert source.skipped == {}


def test_endings_that_are_counted_are_bounded(tmp_path: Path) -> None:
    for number in range(50):
        write(tmp_path / f"x.{number}", "")
    source = opened(tmp_path)
    assert list(source.batches) == []
    assert len(source.skipped) == 21 and source.skipped["other"] == 30


def test_a_file_named_like_a_pattern(root: str) -> None:
    for name in ("a[1].jpg", "a1.jpg", "what*.jpg", "whatever.jpg", "{x,y}.jpg", "run [2]/b.jpg"):
        write(join(root, name), name)
    for name in ("a[1].jpg", "what*.jpg", "{x,y}.jpg"):
        assert fetched(rows_of(join(root, name))) == [name.encode()]
    assert fetched(rows_of(join(root, "run [2]"))) == [b"run [2]/b.jpg"]
    assert fetched(rows_of(join(root, "a?.jpg"))) == [b"a1.jpg"]


def test_a_local_folder_is_read_by_name(tmp_path: Path) -> None:
    names = [f"{number:03d}.jpg" for number in range(100)]
    for name in random.Random(3).sample(names, len(names)):
        write(tmp_path / name, "")
    assert uris_of(tmp_path) == [f"{tmp_path}/{name}" for name in names]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TREE:
        write(tmp_path / "root" / name, name)
    monkeypatch.chdir(tmp_path)
    absolute = uris_of(tmp_path / "root")
    for spec in ("root", "./root/", "root/**", "file://root", "root/sub/.."):
        assert sorted(uris_of(spec)) == sorted(absolute)
    monkeypatch.chdir(tmp_path / "root")
    assert uris_of(".") == absolute
    assert uris_of("*.jpg") == [f"{tmp_path}/root/a.jpg"]


def test_links_pipes_and_loops(tmp_path: Path) -> None:
    write(tmp_path / "photos/a.jpg", "a")
    write(tmp_path / "elsewhere/b.jpg", "b")
    (tmp_path / "photos/link.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/broken.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "photos/self.jpg").symlink_to(tmp_path / "photos/self.jpg")
    os.mkfifo(tmp_path / "photos/pipe.jpg")
    rows = rows_of(tmp_path / "photos")
    found = dict(zip([os.path.relpath(row["uri"], tmp_path / "photos") for row in rows], fetched(rows), strict=True))
    assert found == {
        "a.jpg": b"a",
        "broken.jpg": ErrorKind.NOT_FOUND,
        "link.jpg": b"b",
        "linked/b.jpg": b"b",
        "self.jpg": ErrorKind.FETCH_FAILED,
    }


def test_odd_names_of_local_files(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        write(tmp_path / name, name)
    rows = rows_of(tmp_path, extensions=("all",))
    assert sorted(fetched(rows)) == sorted(name.encode() for name in ODD_NAMES)
    for row in rows:
        assert fetched(rows_of(row["uri"])) == [os.path.basename(row["uri"]).encode()]


def test_a_name_that_is_not_unicode_is_a_row_that_fails(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", "a")
    (tmp_path / "sub").mkdir()
    with open(os.fsencode(tmp_path) + b"/sub/\xff\xe9.jpg", "wb") as file:
        file.write(b"x")
    rows = rows_of(tmp_path)
    assert [os.path.relpath(row["uri"], tmp_path) for row in rows] == ["a.jpg", r"sub/\xff\xe9.jpg"]
    assert fetched(rows) == [b"a", ErrorKind.NOT_FOUND]
    refused(os.fsdecode(os.fsencode(tmp_path) + b"/sub/\xff\xe9.jpg"), "is not UTF-8")
    refused(tmp_path, "is not UTF-8", images="\ud800")


def test_odd_keys(store: Store) -> None:
    store.put("folder/", b"")
    for key in ODD_KEYS:
        store.put(key, key.encode())
    rows = rows_of(store.url, extensions=("all",))
    assert [row["uri"] for row in rows] == sorted((f"{store.url}/{key}" for key in ODD_KEYS), key=str.encode)
    assert fetched(rows) == [row["uri"].removeprefix(f"{store.url}/").encode() for row in rows]
    for key in ODD_KEYS:
        assert fetched(rows_of(f"{store.url}/{key}", extensions=("all",))) == [key.encode()], key


def test_a_key_and_a_folder_of_one_name(store: Store) -> None:
    store.put("photos", b"key")
    store.put("photos/a.jpg", b"a")
    store.put("photos-2/b.jpg", b"b")
    assert fetched(rows_of(f"{store.url}/photos")) == [b"key"]
    assert fetched(rows_of(f"{store.url}/photos/")) == [b"a"]
    assert fetched(rows_of(f"{store.url}/photos*/*")) == [b"b", b"a"]


def test_a_bucket_is_listed_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 1_000)
    keys = [f"photos/{number:05d}.jpg" for number in range(5_000)]
    for key in keys:
        store.put(key)
    source = opened(f"{store.url}/photos")
    before = store.count("GET")
    first = next(source.batches)
    assert store.count("GET") - before <= 2
    rest = [row["uri"] for batch in source.batches for row in batch.to_pylist()]
    assert first.column("uri").to_pylist() + rest == [f"{store.url}/{key}" for key in keys]
    assert store.count("GET") - before == 5
    for key in keys:
        store.delete(key)


def test_no_more_of_a_listing_is_held_than_a_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a store that has keys without end, as many pages are asked for as fill the batches."""
    pages: list[int] = []

    def endless(method: str, **_: Any) -> dict[str, Any]:
        pages.append(len(pages))
        contents = [{"Key": f"{pages[-1]}-{n}.jpg", "Size": n, "ETag": '"tag"'} for n in range(1_000)]
        return {"Contents": contents, "IsTruncated": True, "NextContinuationToken": "next"}

    monkeypatch.setattr(store.fs, "call_s3", endless)
    batches = opened(store.url).batches
    for count in range(1, 6):
        assert next(batches).num_rows == stream.BATCH_ROWS
        assert len(pages) <= count * stream.BATCH_ROWS // 1_000 + 1


def test_a_pattern_lists_no_more_than_it_needs(store: Store) -> None:
    for key in ("a/1.jpg", "a/2.jpg", "a/sub/1.jpg", "b/1.jpg"):
        store.put(key)
    for pattern, prefix, delimiter in [
        ("a/1*.jpg", "a/1", "/"),
        ("*/1.jpg", "", ""),
        ("a/**/1.jpg", "a/", ""),
        ("*.jpg", "", "/"),
    ]:
        source = opened(f"{store.url}/{pattern}")
        store.requests.clear()
        list(source.batches)
        [query] = [parse_qs(r.query, keep_blank_values=True) for r in store.requests]
        assert query["prefix"] == [prefix] and query.get("delimiter", [""]) == [delimiter]


def test_a_local_pattern_walks_no_deeper_than_it_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a/b/c/x.jpg", "")
    write(tmp_path / "a/y.jpg", "")
    walked: list[str] = []
    listdir = os.listdir

    def watched(path: str) -> list[str]:
        walked.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", watched)
    assert uris_of(tmp_path / "*/*.jpg") == [f"{tmp_path}/a/y.jpg"]
    assert walked == [str(tmp_path), f"{tmp_path}/a"]


def test_what_is_not_there(tree: str) -> None:
    assert "does not exist" in refused(join(tree, "nothing"), "nothing")
    assert "does not exist" in refused(join(tree, "nothing.csv"), r"nothing\.csv")
    assert "check the pattern" in refused(join(tree, "*.csv"), "nothing matches")
    assert "does not exist" in refused(join(tree, "x-{1..3}.tar"), "x-1")
    assert "does not exist" in refused(join(tree, "{a"), "{a")


def test_folders_without_images(root: str) -> None:
    write(join(root, "x.tar"), write_tar({"a.jpg": b"a"}))
    write(join(root, "y.txt"), "")
    source = opened(root)
    assert list(source.batches) == []
    text = advice(root, source.skipped)
    assert text == f".tar files are read where a pattern names their ending, such as '{root}/**/*.tar'"
    assert fetched(rows_of(f"{root}/**/*.tar")) == [b"a"]
    assert "such as" not in advice(f"{root}/**", source.skipped)
    assert "--extensions" in advice(root, {".txt": 3, ".json": 4})


def test_things_that_are_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "a file is meant")
    (tmp_path / "x.csv").mkdir()
    assert rows_of(tmp_path / "x.csv") == []  # Spark writes tables as folders of such names
    (tmp_path / "x.tar").mkdir()
    refused(tmp_path / "{x,y}.tar", "does not exist|a file is meant")


@pytest.mark.parametrize(
    "spec", ["s3://", "s3:///x", "s3://buck*/x.jpg", "s3://no-such-bucket/x", "s3://no-such-bucket"]
)
def test_buckets_that_are_not_there(store: Store, spec: str) -> None:
    refused(spec, "bucket|does not exist|cannot read")


def test_unknown_protocols() -> None:
    refused("nonsense://x/y", "nonsense")
    refused("nonsense://x/*.tar", "nonsense")


# ------------------------------------------------------------------------------------------------- stores that refuse

KINDS = ["photos/", "photos/a.jpg", "*.jpg", "m.csv", "m.jsonl", "m.parquet", "c.json", "x.tar", "*.tar"]


@pytest.fixture
def one_of_each(store: Store) -> Store:
    store.put("photos/a.jpg", b"a")
    store.put("m.csv", b"uri\na.jpg\n")
    store.put("m.jsonl", b'{"uri": "a.jpg"}\n')
    store.put("m.parquet", parquet(uri=["a.jpg"]))
    store.put("c.json", b'{"images": [{"file_name": "a.jpg"}]}')
    store.put("x.tar", write_tar({"a.jpg": b"a"}))
    return store


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize("name", KINDS)
def test_a_store_that_refuses(one_of_each: Store, name: str) -> None:
    url = f"{one_of_each.url}/{name}"
    rows_of(url)
    for method in ("HEAD", "GET"):
        one_of_each.fault = lambda request, method=method: (  # type: ignore[misc]
            (403, "AccessDenied") if request.method == method else None
        )
        with contextlib.suppress(ConfigError):
            rows_of(url)  # what needs no such request still works
    one_of_each.fault = lambda request: (403, "AccessDenied")
    assert "check its permissions" in refused(url, "no permission to read")
    # Later requests than the first may be refused as well.
    for allowed in range(1, 4):
        left = iter(range(allowed))
        one_of_each.fault = lambda request, left=left: None if next(left, None) is not None else (403, "AccessDenied")  # type: ignore[misc]
        with contextlib.suppress(ConfigError):
            rows_of(url)


@pytest.mark.parametrize("name", KINDS)
def test_a_store_without_credentials(one_of_each: Store, name: str) -> None:
    with fresh_environment({}, unset=["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]):
        assert "NoCredentialsError" in refused(f"{one_of_each.url}/{name}", "no permission to read")


@pytest.mark.parametrize("name", ["photos/", "*.jpg", "m.csv"])
def test_a_store_that_is_not_there(one_of_each: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymask.storage.retries.ATTEMPTS", 1)
    with fresh_environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}):
        assert "127.0.0.1:1" in refused(f"{one_of_each.url}/{name}", "cannot reach")


def test_a_public_bucket_needs_no_credentials(one_of_each: Store) -> None:
    with fresh_environment({"FSSPEC_S3_ANON": "true"}, unset=["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]):
        fsspec.config.set_conf_env(fsspec.config.conf)
        try:
            assert len(rows_of(f"{one_of_each.url}/photos/")) == 1
        finally:
            fsspec.config.conf.clear()


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jpg", "")
    write(tmp_path / "locked/b.jpg", "")
    listdir = os.listdir

    def guarded(path: str) -> list[str]:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)
    assert "locked" in refused(tmp_path, "no permission to read")
    assert len(rows_of(tmp_path / "*.jpg")) == 1


# ---------------------------------------------------------------------------------------------------------- manifests

MANIFEST_ROWS = [
    {"uri": "a.jpg", "label": "cat, dog", "status": 1, "weight": 0.5},
    {"uri": "sub/b c.jpg", "label": 'quote "x"\nnew line', "status": 2, "weight": None},
    {"uri": "../up.jpg", "label": "\u00e9", "status": 3, "weight": -1.0},
]


def write_manifest(url: str, rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if url.endswith((".parquet", ".pq")):
        return write(url, parquet(**{name: [row[name] for row in rows] for name in rows[0]}))
    if url.endswith((".jsonl", ".ndjson")):
        return write(url, "\n".join(json.dumps(row) for row in rows))
    table = csv.DictWriter(text, list(rows[0]), delimiter="\t" if url.endswith(".tsv") else ",")
    table.writeheader()
    table.writerows(rows)
    return write(url, text.getvalue())


@pytest.mark.parametrize("ending", ["parquet", "pq", "csv", "CSV", "tsv", "jsonl", "ndjson"])
def test_manifests(root: str, ending: str) -> None:
    url = write_manifest(join(root, f"lists/m.{ending}"), MANIFEST_ROWS)
    rows = rows_of(url)
    base = base_of(root).rstrip("/")
    up = "up.jpg" if "://" not in root else "lists/../up.jpg"
    assert [row["uri"] for row in rows] == [f"{base}/lists/a.jpg", f"{base}/lists/sub/b c.jpg", f"{base}/{up}"]
    assert [(row["label"], row["source_status"], row["weight"]) for row in rows] == [
        (row["label"], row["status"], row["weight"]) for row in MANIFEST_ROWS
    ]
    assert all(row[name] is None for row in rows for name in LISTED.names if name != "uri")
    assert [field.name for field in opened(url).user_fields] == ["label", "source_status", "weight"]


@pytest.mark.parametrize("manifest", ["memory://anchors/m.csv", "local", "s3"])
def test_where_a_manifest_may_point(manifest: str, tmp_path: Path, store: Store) -> None:
    manifest = {"local": f"{tmp_path}/m.csv", "s3": f"{store.url}/lists/m.csv"}.get(manifest, manifest)
    local = write(tmp_path / "images/a b.jpg", "local")
    remote = store.put("images/a?versionId=#.jpg", b"remote")
    uris = [local, f"file://{local}", remote, "nonsense://x", "images/relative.jpg", "C:\\x.jpg"]
    write_manifest(manifest, [{"uri": uri} for uri in uris])
    rows = rows_of(manifest)
    folder = base_of(manifest.rpartition("/")[0]).rstrip("/")
    assert [row["uri"] for row in rows] == [
        *[local, local, remote, "nonsense://x"],
        *[f"{folder}/images/relative.jpg", f"{folder}/C:\\x.jpg"],
    ]
    assert fetched(rows) == [b"local", b"local", b"remote", ErrorKind.FETCH_FAILED] + [ErrorKind.NOT_FOUND] * 2
    for images in (f"{store.url}/images/", f"{store.url}/images"):
        rows = rows_of(manifest, images=images)
        assert rows[4]["uri"] == f"{store.url}/images/images/relative.jpg"
        assert [row["uri"] for row in rows[:4]] == uris[:1] * 2 + uris[2:4]
    assert rows_of(manifest, images=str(tmp_path))[4]["uri"] == f"{tmp_path}/images/relative.jpg"


@pytest.mark.parametrize("images", [".", "images", "images/../images"])
def test_images_root_is_relative_to_here(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("m.csv" if images == "." else str(tmp_path / "lists/m.csv"), "uri\na.jpg\n") if images != "." else write(
        tmp_path / "lists/m.csv", "uri\na.jpg\n"
    )
    expected = tmp_path / ("a.jpg" if images == "." else "images/a.jpg")
    assert uris_of("lists/m.csv", images=images) == [str(expected)]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_several_manifests_are_one(root: str, ending: str) -> None:
    write_manifest(join(root, f"1.{ending}"), [{"uri": "a.jpg", "n": 1, "extra": "x"}])
    write_manifest(join(root, f"2.{ending}"), [{"extra": "y", "uri": "b.jpg", "n": 2}])
    write_manifest(join(root, f"3.{ending}"), [{"uri": "c.jpg", "n": 3}])
    for pattern in (f"*.{ending}", f"{{1,2,3}}.{ending}", f"{{1..3}}.{ending}", f"**/[123].{ending}"):
        rows = rows_of(join(root, pattern))
        assert [row["uri"].rpartition("/")[2] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
        assert [(row["n"], row["extra"]) for row in rows] == [(1, "x"), (2, "y"), (3, None)]
    write_manifest(join(root, f"4.{ending}"), [{"uri": "d.jpg", "n": 4, "late": 1}])
    assert "late" in refused(join(root, f"*.{ending}"), "comes up after")
    write_manifest(join(root, f"4.{ending}"), [{"n": 4}])
    assert "row 3 " in refused(join(root, f"*.{ending}"), "has no uri")
    write_manifest(join(root, f"4.{ending}"), [{"uri": "d.jpg", "n": "text"}])
    refused(join(root, f"*.{ending}"), "text")


def test_a_manifest_of_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BATCH_ROWS", 100)
    monkeypatch.setattr("raymask.sources.manifests.BATCH_ROWS", 100)
    monkeypatch.setattr("raymask.sources.parquet.BATCH_ROWS", 100)
    rows = [{"uri": f"{n}.jpg", "n": n} for n in range(1_234)]
    for ending in ("parquet", "csv", "jsonl"):
        url = write_manifest(f"{tmp_path}/m.{ending}", rows)
        assert [(r["uri"], r["n"]) for r in rows_of(url)] == [(f"{tmp_path}/{n}.jpg", n) for n in range(1_234)]


def test_nested_null_and_late_columns(tmp_path: Path) -> None:
    """Types that no table could hold become those that can: null is text, and so are the items of empty lists."""
    url = write_manifest(
        f"{tmp_path}/m.jsonl",
        [
            {"uri": "a", "none": None, "empty": [], "deep": {"x": [{"y": None}], "n": 1}, "day": "2024-01-01"},
            {"uri": "b", "none": None, "empty": [], "deep": {"x": [], "n": 2.5}, "day": "x", "late": [1]},
        ],
    )
    source = opened(url)
    assert {field.name: str(field.type) for field in source.user_fields} == {
        "none": "string",
        "empty": "list<item: string>",
        "deep": "struct<x: list<item: struct<y: string>>, n: double>",
        "day": "string",
        "late": "list<item: int64>",
    }
    table = pa.Table.from_batches(source.batches)
    assert table.column("late").to_pylist() == [None, [1]]
    pq.write_table(table, tmp_path / "written.parquet")
    assert pq.read_table(tmp_path / "written.parquet").column("deep").to_pylist()[1] == {"x": [], "n": 2.5}


def test_encoded_columns_become_plain(tmp_path: Path) -> None:
    label = pa.array(["x", "y", "x"]).dictionary_encode()
    nested = pa.StructArray.from_arrays([label], ["label"])
    uri = pa.array(["a", "b", "c"]).dictionary_encode()
    url = write(
        tmp_path / "m.parquet", parquet(uri=uri, label=label, nested=nested, when=pa.array([1, 2, 3], "date32"))
    )
    source = opened(url)
    assert [str(field.type) for field in source.user_fields] == ["string", "struct<label: string>", "date32[day]"]
    assert [row["nested"] for batch in source.batches for row in batch.to_pylist()] == [{"label": x} for x in "xyx"]


def test_uris_that_are_no_text(tmp_path: Path) -> None:
    assert uris_of(write(tmp_path / "n.parquet", parquet(uri=[1, 2]))) == [f"{tmp_path}/1", f"{tmp_path}/2"]
    assert uris_of(write(tmp_path / "n.csv", "uri\n001\n")) == [f"{tmp_path}/001"]
    assert uris_of(write(tmp_path / "n.jsonl", '{"uri": 7}')) == [f"{tmp_path}/7"]
    refused(write(tmp_path / "l.parquet", parquet(uri=[["a"]])), "cannot read")
    refused(write(tmp_path / "b.parquet", parquet(uri=[b"\xff"])), "cannot read")


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl"])
def test_columns_a_manifest_lacks_or_has_twice(tmp_path: Path, ending: str) -> None:
    url = f"{tmp_path}/m.{ending}"
    write_manifest(url, [{"file": "a", "label": "b"}])
    assert "file, label" in refused(url, "has no column 'uri'") or ending == "parquet"
    write_manifest(url, [{"uri": "a", "Label": 1, "label": 2}])
    assert "label" in refused(url, "has a column twice")
    write_manifest(url, [{"uri": "a", "status": 1, "source_status": 2}])
    assert "source_status" in refused(url, "has a column twice")
    write_manifest(url, [{"uri": "a", "URI": "b", "": 1, "Size": 3}])
    assert [field.name for field in opened(url).user_fields] == ["source_URI", "unnamed", "source_Size"]
    write_manifest(url, [{"uri": "a"}, {"uri": "b"}, {"uri": ""}])
    assert "row 2 " in refused(url, "has no uri")
    if ending not in ("csv", "tsv"):
        write_manifest(url, [{"uri": "a"}, {"uri": None}])
        assert "row 1 " in refused(url, "has no uri")
    if ending != "parquet":
        refused(url, "--image-column is for Parquet", image_column="x")
        refused(write(url, b""), "empty|Empty")


def test_csv_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{tmp_path}/m.csv"
    names = [f"{tmp_path}/{name}" for name in (" a ", "b,c", "NA", "null")]
    write(url, '\ufeffuri,x\r\n a ,1\r\n"b,c",\r\nNA,3\r\nnull,4\r\n')
    assert uris_of(url) == names
    assert rows_of(write(url, "uri,x\n")) == []
    refused(write(url, "uri;x\na;1\n"), "'uri', but uri;x; name it so")
    for text in ("uri,x\na\n", 'uri,x\n"a,1\n'):
        refused(write(url, text), "cannot read .*m.csv as CSV")
    for text in ("uri,uri\na,b\n", "uri,,\na,1,2\n", "uri,x,x\na,1,2\n"):
        refused(write(url, text), "has a column twice")
    for data in (b"uri\na\xe9\n", "uri\na\n".encode("utf-16"), b"uri,\xe9\na,1\n"):
        refused(write(url, data), "cannot read|has no column 'uri'")
    monkeypatch.setattr("raymask.sources.manifests.CSV_BLOCK_BYTES", 1_000)
    write(url, "uri,text\n" + 'a,"1\n\n2,\n3"\n' * 1_000)
    assert [row["text"] for row in rows_of(url)] == ["1\n\n2,\n3"] * 1_000
    assert "'text'" in refused(write(url, "uri,n\n" + "a,1\n" * 1_000 + "a,text\n"), "as CSV")


def test_json_lines_as_they_come(tmp_path: Path) -> None:
    url = f"{tmp_path}/m.jsonl"
    assert uris_of(write(url, '\ufeff{"uri": "a\\nb"}\r\n\n  \n{"uri": "c"}')) == [f"{tmp_path}/a\nb", f"{tmp_path}/c"]
    assert "line 2" in refused(write(url, '{"uri": "a"}\n{"uri":'), "as JSON")
    assert "line 1" in refused(write(url, '[{"uri": "a"}]'), "an object with 'uri' is meant")
    assert "column 'n'" in refused(write(url, '{"uri": "a", "n": 1}\n{"uri": "b", "n": "x"}'), "values of one type")
    assert "column 'n'" in refused(write(url, '{"uri": "a", "n": %s}' % ("9" * 30)), "values of one type")
    refused(write(url, '{"uri": "\\ud800"}'), "cannot read")
    refused(write(url, b'{"uri": "\xff"}'), "cannot read")
    refused(write(url, "{}\n{}\n"), "has no column 'uri'")
    for depth in (100, 1_000, 100_000):
        for nested in ("[" * depth + "]" * depth, '{"x":' * depth + "1" + "}" * depth, "[" * depth):
            refused(write(url, f'{{"uri": "a", "x": {nested}}}'), "nested more than|cannot read")


# ------------------------------------------------------------------------------------------------------------- COCO


def test_coco(root: str, store: Store) -> None:
    record = {
        "info": {"images": ["not these"]},
        "categories": [],
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 3, "nested": {"file_name": "x", "list": [1, [2]]}},
            {"id": "text", "file_name": f"{store.url}/b.jpg"},
            {"file_name": "../c.jpg"},
        ],
        "annotations": [{"id": n, "segmentation": [[1.5] * 6]} for n in range(10)],
    }
    url = write(join(root, "labels/train.json"), json.dumps(record))
    rows = rows_of(url, images=store.url)
    assert [row["uri"] for row in rows] == [f"{store.url}/a.jpg", f"{store.url}/b.jpg", f"{store.url}/../c.jpg"]
    assert [row["coco_image_id"] for row in rows] == [7, None, None]
    assert opened(url).user_fields == [pa.field("coco_image_id", pa.int64())]
    assert uris_of(url)[0] == f"{base_of(root)}labels/a.jpg"
    write(url, json.dumps(dict(reversed(record.items()))))
    assert rows_of(url, images=store.url) == rows


def test_what_comes_after_the_images_of_coco_is_not_read(store: Store) -> None:
    images = json.dumps([{"id": n, "file_name": f"{n}.jpg"} for n in range(100)])
    url = store.put("big.json", f'{{"images": {images}, "annotations": [{"1," * 2_000_000}1]}}'.encode())
    assert len(rows_of(url)) == 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"images": []}',
        '{"images": {"file_name": "a"}}',
        '{"info": {"images": [{"file_name": "a"}]}}',
        '[{"images": [{"file_name": "a"}]}]',
        '[{"images": 0}, [{"file_name": "a"}]]',
        '{"images": [{"file_name": "a"}',
        '{"images": [{"file_name": "a"}, 7]}',
        '{"images": ["a.jpg"]}',
        '{"images": [["a.jpg"]]}',
        '{"images": [{"file_name": null}]}',
        '{"images": [{"file_name": "a", "id": 99999999999999999999}]}',
        '{"images": ' + "[" * 100_000,
        '{"images": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"x": ' + '{"x":' * 100_000,
        "uri\na.jpg\n",
    ],
    ids=lambda text: text[:40],
)
def test_json_that_is_not_coco(tmp_path: Path, text: str) -> None:
    refused(write(tmp_path / "x.json", text), "x.json")


def test_one_coco_file_at_a_time(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write(tmp_path / name, '{"images": [{"file_name": "a"}]}')
    refused(tmp_path / "*.json", "2 JSON files; name one")
    assert len(rows_of(tmp_path / "a*.json")) == 1
    write(tmp_path / "c.csv", "uri\na\n")
    refused(tmp_path / "{a.json,c.csv}", "mixes .csv and .json")
    write(tmp_path / "d.jpg", "")
    refused(tmp_path / "{d.jpg,c.csv}", "mixes .csv and .jpg")


# ------------------------------------------------------------------------------------------------- tables of images

_STRUCT = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


@pytest.mark.parametrize("type", [pa.binary(), pa.large_binary(), _STRUCT], ids=str)
def test_tables_of_images(root: str, type: pa.DataType) -> None:
    cells: list[Any] = [b"%d" % n for n in range(25)]
    if pa.types.is_struct(type):
        cells = [{"bytes": cell, "path": None} for cell in cells]
    sink = io.BytesIO()
    table = pa.table({"label": range(25), "image": pa.array(cells, type), "size": ["large"] * 25})
    pq.write_table(table, sink, row_group_size=7)
    url = write(join(root, "t.parquet"), sink.getvalue())
    rows = rows_of(url)
    assert [row["uri"] for row in rows] == [f"{base_of(root)}t.parquet#{n}" for n in range(25)]
    assert [(row["label"], row["source_size"]) for row in rows] == [(n, "large") for n in range(25)]
    assert fetched(rows) == [b"%d" % n for n in range(25)]
    assert rows_of(url, image_column="image") == rows


def test_columns_of_bytes(tmp_path: Path) -> None:
    both = {"a": [b"a0", b"a1"], "b.c": [b"b0", b"b1"]}
    url = write(tmp_path / "t.parquet", parquet(**both))
    assert "a, b.c" in refused(url, "more than one column of bytes")
    assert fetched(rows_of(url, image_column="b.c")) == [b"b0", b"b1"]
    assert "those are: a, b.c" in refused(url, "no column 'd' of bytes", image_column="d")
    refused(write(tmp_path / "n.parquet", parquet(n=[1])), "no column 'uri' and no column of bytes")
    sink = io.BytesIO()
    pq.write_table(pa.table([[b"1"], [b"2"]], names=["a", "a"]), sink)
    refused(write(tmp_path / "twice.parquet", sink.getvalue()), "has a column twice: a", image_column="a")
    named = write(tmp_path / "u.parquet", parquet(uri=["x.jpg"], image=[b"i"]))
    assert uris_of(named) == [f"{tmp_path}/x.jpg"]
    rows = rows_of(named, image_column="image")
    assert fetched(rows) == [b"i"] and rows[0]["source_uri"] == "x.jpg"
    # Only images: no column to carry.
    assert len(rows_of(write(tmp_path / "only.parquet", parquet(image=[b"%d" % n for n in range(30)])))) == 30
    assert rows_of(write(tmp_path / "none.parquet", parquet(image=pa.array([], pa.binary())))) == []


def test_several_tables_of_images(root: str) -> None:
    write(join(root, "1.parquet"), parquet(image=[b"0", b"1"], n=[0, 1]))
    write(join(root, "2.parquet"), parquet(n=[2], image=pa.array([b"2"], pa.large_binary())))
    rows = rows_of(join(root, "*.parquet"))
    assert fetched(rows) == [b"0", b"1", b"2"]
    assert [row["n"] for row in rows] == [0, 1, 2]
    write(join(root, "3.parquet"), parquet(n=[3]))
    refused(join(root, "*.parquet"), "no column 'image' of bytes")
    write(join(root, "3.parquet"), parquet(image=[b"3"], n=[3], more=[4]))
    refused(join(root, "*.parquet"), "'more' comes up after")


def test_listing_a_table_reads_no_images(store: Store) -> None:
    images = [os.urandom(100_000) for _ in range(20)]
    url = store.put("t.parquet", parquet(n=range(20), image=images, m=range(20)))
    assert len(rows_of(url)) == 20
    got = [r.range.removeprefix("bytes=").split("-") for r in store.requests if r.range]
    assert sum(int(last) - int(first) + 1 for first, last in got) < 400_000


def test_parquet_that_is_none(tmp_path: Path) -> None:
    whole = parquet(uri=["a"] * 1000, n=range(1000))
    for data in (b"", b"PAR1", b"x" * 100, whole[:-1], whole[5:], whole[: len(whole) // 2], b"PAR1" + whole[4:-8]):
        refused(write(tmp_path / "x.parquet", data), "cannot read .*x.parquet as Parquet")
    text = parquet(uri=["a"], note=pa.array([b"\xff\xfe"]))
    refused(write(tmp_path / "x.parquet", invalid_text(text)), "cannot read")


def invalid_text(data: bytes) -> bytes:
    """A Parquet file whose column `note` says that its bytes are UTF-8, which they are not."""
    table = pq.read_table(io.BytesIO(data))
    note = pa.Array.from_buffers(pa.string(), 1, table.column("note").chunk(0).buffers())
    return parquet(uri=table.column("uri"), note=note)


# --------------------------------------------------------------------------------------------------------- tar shards


def test_shards(root: str) -> None:
    names = ["./a.jpg", "b.PNG", "c.txt", "x" * 150 + "/d.jpg", "e", "\u00e9 #?%.jpg"]
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode() + b" "))
        for name, type in [("dir", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type, "a.jpg"
            tar.addfile(info)
    url = write(join(root, "x.tar"), sink.getvalue())
    source = opened(url)
    rows = [row for batch in source.batches for row in batch.to_pylist()]
    kept = [names[0], names[1], names[3], names[5]]
    assert [row["uri"] for row in rows] == [f"{base_of(root)}x.tar#{name}" for name in kept]
    assert [row["size"] for row in rows] == [len(name) for name in kept]
    assert fetched(rows) == [name.encode()[: len(name)] for name in kept]
    assert source.skipped == {".txt": 1, "no ending": 1, "link": 2}
    assert len(rows_of(url, extensions=("all",))) == len(names)


def test_many_shards_keep_their_order(root: str) -> None:
    for number in range(12):
        write(join(root, f"s-{number:03d}.tar"), write_tar({f"{n}.jpg": b"%d %d" % (number, n) for n in range(3)}))
    expected = [b"%d %d" % (number, n) for number in range(12) for n in range(3)]
    for pattern in ("s-{000..011}.tar", "*.tar", "**/s-*.tar", "s-{00{0..9},010,011}.tar"):
        assert fetched(rows_of(join(root, pattern))) == expected
    assert fetched(rows_of(join(root, "s-{000..001}.tar"))) == expected[:6]
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_a_shard_of_names_that_are_not_unicode(tmp_path: Path) -> None:
    data = write_tar({"XX.jpg": b"x"}).replace(b"XX.jpg", b"\xff\xe9.jpg")
    header = bytearray(data[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    rows = rows_of(write(tmp_path / "x.tar", bytes(header) + data[512:]))
    assert [row["uri"] for row in rows] == [rf"{tmp_path}/x.tar#\xff\xe9.jpg"]
    assert fetched(rows) == [b"x"]


def test_a_shard_that_is_not_whole(root: str) -> None:
    whole = write_tar({f"{n}.jpg": bytes([n]) * 700 for n in range(4)})
    end = 4 * (512 + 1024)
    url = join(root, "x.tar")
    for length in (0, 100, 512, 600, 1536, 1537, 2000, 2600, end - 1, end):
        refused(write(url, whole[:length]), "cannot read .*x.tar as a tar shard")
    for damaged in (1536, 3 * 1536, 2 * 1536 + 150):
        data = bytearray(whole)
        data[damaged] ^= 0xFF
        refused(write(url, bytes(data)), "cannot read .*x.tar as a tar shard")
    for length in (end + 512, end + 1024, len(whole)):
        assert len(rows_of(write(url, whole[:length]))) == 4
    assert rows_of(write(url, bytes(10_240))) == []
    write(url, whole)
    write(join(root, "y.tar"), whole[:2000])
    refused(join(root, "{x,y}.tar"), "y.tar as a tar shard")


def test_shards_of_odd_members(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = -512
    negative = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    refused(write(tmp_path / "x.tar", negative), "sparse or damaged")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    refused(write(tmp_path / "x.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)), "sparse or damaged")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "X.TAR.XZ"])
def test_packed_shards(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"\x1f\x8b")
    assert "unpack it" in refused(tmp_path / name, "compressed tar")
    assert "unpack it" in refused(tmp_path / f"*{name[1:]}", "compressed tar")
    write(tmp_path / "y.tar", b"\x1f\x8b" + bytes(1000))
    refused(tmp_path / "y.tar", "as a tar shard")


def test_a_shard_is_held_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile's own list of members, a kilobyte each, is not kept."""
    lengths: list[int] = []
    next_member = tarfile.TarFile.next

    def watched(self: tarfile.TarFile) -> tarfile.TarInfo | None:
        lengths.append(len(self.members))  # type: ignore[attr-defined]
        return next_member(self)

    monkeypatch.setattr(tarfile.TarFile, "next", watched)
    url = write(tmp_path / "x.tar", write_tar({f"{n}.jpg": b"x" for n in range(300)}))
    assert len(rows_of(url)) == 300
    assert len(lengths) >= 300 and max(lengths) <= 1


def test_a_reader_that_stops_early(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"{number}.tar", write_tar({"a.jpg": b"x"}))
    batches = opened(tmp_path / "*.tar").batches
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]
    assert shards.READERS_AT_ONCE > 1


def test_too_many_names_in_braces(tmp_path: Path) -> None:
    refused(tmp_path / "{0..99999999999}.tar", "100,000 is the most")
    refused(tmp_path / "{0..999}{0..999}.tar", "1,000,000 files")


# ----------------------------------------------------------------------------------------------------- any bytes at all

_SEEDS = {
    "csv": b'uri,n\na.jpg,1\n"b",2\n',
    "tsv": b"uri\tn\na.jpg\t1\n",
    "jsonl": b'{"uri": "a.jpg", "n": [{"x": null}]}\n{"uri": "b"}\n',
    "json": b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}',
    "parquet": parquet(uri=["a.jpg", "b.jpg"], n=[1, 2]),
    "pq": parquet(image=[b"a", b"b"], n=[1, 2]),
    "tar": write_tar({"a.jpg": b"1", "x" * 120: b"2", "b.jpg": b""}, tarfile.PAX_FORMAT),
}


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """A file with a few bytes changed, dropped or put in; or bytes that were never one."""
    data = bytearray(seed)
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        data[at : at + length] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.parametrize("ending", list(_SEEDS))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_a_stream_or_a_config_error(tmp_path: Path, ending: str, data: st.DataObject) -> None:
    url = write(tmp_path / f"x.{ending}", data.draw(damaged(_SEEDS[ending])))
    with contextlib.suppress(ConfigError):
        rows_of(url, extensions=("all",))


@given(spec=st.text(min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_is_a_source_or_a_config_error(tmp_path: Path, spec: str) -> None:
    with contextlib.suppress(ConfigError):
        rows_of(f"{tmp_path}/{spec}")


def test_file_systems_can_be_forgotten(store: Store) -> None:
    before = store.fs
    forget_file_systems()
    assert store.fs is not before
