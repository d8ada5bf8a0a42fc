"""Stores and disks in trouble: the right tables all the same, or an error within a minute and a way to go on."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import draw_folder, draw_picture
from nodes import ray_cluster
from stores import SECRET, Request, Store, Trouble, Weather, fresh_environment
from test_fetch import ODD_KEYS

import raymask
from raymask.cli import main
from raymask.errors import ErrorKind, OutputError
from raymask.fetch import Fetched, Place, fetch
from raymask.sources.stream import ending_of
from raymask.storage import Folder, s3_pages, stat, used_plainly

MINUTE_S = 60.0
# Keys are data, so that whatever is true of plain ones has to be true of these.
KEYS = [f"photos/{key}" for key in ODD_KEYS if ending_of(key) in (".jpg", ".png")]
KEYS += ["photos/<script>alert('x')</script>.png", 'photos/"; DROP TABLE images; --.png']
KEYS += [f"photos/{'k' * 1013}.png", *(f"photos/{number:04d}.png" for number in range(12))]
PICTURES = len(KEYS)


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    yield server
    server.fault, server.trouble, server.lose_answers = lambda request: None, lambda request: None, False
    server.requests.clear()


# --------------------------------------------------------------------------------------------------------- by object


@pytest.mark.parametrize("seed", range(2))
def test_objects_are_as_if_nothing_had_happened(store: Store, seed: int) -> None:
    """Every verb against a model in memory, where every second request is in trouble and botocore does not help."""
    chance, folder, model = random.Random(seed), Folder(f"{store.url}/seed-{seed}"), dict[str, bytes]()
    store.trouble = weather = Weather(0.5, seed, slow_s=0.01)
    with fresh_environment({"AWS_MAX_ATTEMPTS": "1"}), pytest.MonkeyPatch.context() as patch:
        patch.setattr("raymask.storage.retries.FIRST_WAIT_S", 0.001)
        patch.setattr("raymask.storage.retries.ATTEMPTS", 40)
        for step in range(40):
            name, data = chance.choice("abc"), b"%d " % step * chance.choice([1, 300])
            match chance.choice(["put", "create", "swap", "lost swap", "read", "list", "delete"]):
                case "put":
                    folder.put(name, data)
                    model[name] = data
                case "create":
                    assert folder.create(name, data) == (model.setdefault(name, data) == data)
                case "swap":
                    assert folder.swap(name, model.get(name), data)
                    model[name] = data
                case "lost swap":
                    assert not folder.swap(name, b"something else", data)
                case "read":
                    assert folder.read_or_none(name) == model.get(name)
                case "list":
                    assert list(folder.list()) == sorted((n, len(d)) for n, d in model.items())
                case "delete":
                    folder.delete(name)
                    model.pop(name, None)
    assert weather.counts.keys() == set(Trouble)


def test_images_are_read_whatever_happens(store: Store) -> None:
    store.trouble = weather = Weather(0.15, seed=3, slow_s=0.05)
    places = [Place(store.put(f"read/{n}", b"%d " % n * 100), len(b"%d " % n * 100)) for n in range(300)]
    results = list(fetch(places, max_bytes=1000))
    assert [r.data for r in results if isinstance(r, Fetched)] == [b"%d " % n * 100 for n in range(300)]
    assert weather.counts.keys() == set(Trouble)


# ------------------------------------------------------------------------------------------------------- by whole run


@pytest.fixture(scope="module")
def cluster(server: Store) -> Iterator[dict[str, str]]:
    """The environment of a cluster whose workers know the store."""
    with ray_cluster() as environment:
        yield environment


@pytest.fixture(scope="module")
def photos(server: Store, model_folder: str) -> str:
    for number, key in enumerate(KEYS):
        server.put(key, png(number))
    for file in Path(model_folder).iterdir():
        server.put(f"model/{file.name}", file.read_bytes())
    return f"{server.url}/photos"


def png(number: int) -> bytes:
    sink = io.BytesIO()
    draw_picture(number).save(sink, "png")
    return sink.getvalue()


SAID: list[str] = []  # by all commands of this module


def segment(cluster: dict[str, str], source: str, out: str, *options: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command, which takes a minute at the most."""
    command = [sys.executable, "-m", "raymask.cli", "segment", source, "--out", out, *options]
    command += ["--weights", f"{source.rpartition('/')[0]}/model", "--precision", "fp32", "--images-per-part", "2"]
    started_s = time.monotonic()
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=250, env=cluster)
    assert time.monotonic() - started_s < MINUTE_S
    assert ("Traceback" in outcome.stderr) == ("--debug" in options)
    SAID.extend((outcome.stdout, outcome.stderr))
    return outcome.returncode, outcome.stdout, outcome.stderr


def tables(out: str) -> list[list[dict[str, Any]]]:
    masks = raymask.open(out)
    return [sorted(t.to_arrow().to_pylist(), key=str) for t in (masks.images, masks.instances)]


BAD = {
    "photos/bad/absent.png": ErrorKind.NOT_FOUND,
    "photos/bad/changed.png": ErrorKind.CHANGED,
    "photos/bad/forbidden.png": ErrorKind.FORBIDDEN,
    "photos/bad/grown.png": ErrorKind.CHANGED,
    "photos/bad/half.png": ErrorKind.TRUNCATED,
    "photos/bad/large.png": ErrorKind.TOO_MANY_BYTES,
    "photos/bad/shrunk.png": ErrorKind.CHANGED,
}


def put_bad(store: Store) -> None:
    for key in BAD:
        store.put(key, png(1))
    store.put("photos/bad/half.png", png(1)[:-2000])
    store.put("photos/bad/large.png", bytes(50_000))


def misbehave(store: Store, request: Request) -> tuple[int, str] | None:
    """What becomes of the bad objects once they are listed."""
    if request.method != "GET" or "/bad/" not in request.path:
        return None
    match request.path.rpartition("/")[2]:
        case "absent.png":
            store.delete("photos/bad/absent.png")
        case "changed.png":
            store.put("photos/bad/changed.png", bytes(len(png(1))))
        case "grown.png":
            store.put("photos/bad/grown.png", png(1) + b"more")
        case "shrunk.png":
            store.put("photos/bad/shrunk.png", png(1)[:-1])
        case "forbidden.png":
            return 403, "AccessDenied"
    return None


def test_a_bad_store_gives_the_tables_of_a_good_one(store: Store, cluster: dict[str, str], photos: str) -> None:
    """15 % of all requests in trouble, from the weights to the index; and objects that are not as they were listed."""
    outs = [f"{store.url}/calm", f"{store.url}/stormy"]
    weathers = [Weather(0, seed=1), Weather(0.15, seed=1, slow_s=2)]
    took_s = []
    for out, weather in zip(outs, weathers, strict=True):
        put_bad(store)
        store.fault = lambda request: misbehave(store, request)
        store.trouble = weather
        started_s = time.monotonic()
        code, shown, errors = segment(cluster, photos, out, "--max-bytes", "40000")
        took_s.append(time.monotonic() - started_s)
        assert code == 0, errors
        assert f"{PICTURES + len(BAD)} images: {PICTURES} ok" in shown
    store.fault, store.trouble = lambda request: None, lambda request: None
    assert weathers[1].counts.keys() == set(Trouble)
    written = [r for r in store.requests if r.method == "PUT" and "stormy" in r.path]
    assert len(written) > len({r.path for r in written})  # some were put more than once
    print(f"calm {took_s[0]:.1f} s, stormy {took_s[1]:.1f} s: {dict(weathers[1].counts)}")

    calm, stormy = map(tables, outs)
    assert stormy == calm
    failed = {row["uri"].removeprefix(f"{store.url}/"): row["error"] for row in calm[0] if row["status"] == "failed"}
    assert failed == {key: kind.value for key, kind in BAD.items()}
    for key in BAD:
        store.delete(key)


def test_credentials_that_expire_in_the_middle(store: Store, cluster: dict[str, str], photos: str) -> None:
    """No image fails for it; the run ends and goes on once they are renewed."""
    out = f"{store.url}/expired"
    parts = [0]

    def expire(request: Request) -> tuple[int, str] | None:
        parts[0] += request.method == "PUT" and "/parts/" in request.path
        return (400, "ExpiredToken") if parts[0] > 3 else None

    store.fault = expire
    code, _, errors = segment(cluster, photos, out, "--debug")
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith("raymask: ") and "renew" in last and "goes on from what is done" in last
    store.fault = lambda request: None
    code, shown, errors = segment(cluster, photos, out)
    assert code == 0, errors
    assert "resuming: " in errors and f"{PICTURES} images: {PICTURES} ok" in shown
    assert tables(out)[0] == [row for row in tables(out)[0] if row["status"] == "ok"]


def test_keys_in_the_tables_in_sql_and_in_csv(
    store: Store, cluster: dict[str, str], photos: str, tmp_path: Path
) -> None:
    """Of the output of the run before."""
    uris = [f"{store.url}/{key}" for key in KEYS]
    out = f"{store.url}/expired"
    frame = raymask.open(out).images.to_pandas()
    assert sorted(frame["uri"]) == sorted(uris)
    for place in ("images", "instances"):
        (tmp_path / place).mkdir()
        data = store.fs.cat_file(f"bucket/expired/{place}/part-00000.parquet")
        (tmp_path / place / "part-00000.parquet").write_bytes(data)
    for uri in uris:
        query = f"SELECT uri FROM '{tmp_path}/images/*.parquet' WHERE uri = ?"
        assert duckdb.execute(query, [uri]).fetchall() == [(uri,)]
        literal = uri.replace("'", "''")
        query = f"SELECT DISTINCT uri FROM '{tmp_path}/instances/*.parquet' WHERE uri = '{literal}'"
        assert duckdb.execute(query).fetchall() == [(uri,)]
    duckdb.sql(f"COPY (SELECT uri FROM '{tmp_path}/images/*.parquet') TO '{tmp_path}/duckdb.csv' (HEADER)")
    frame[["uri"]].to_csv(tmp_path / "pandas.csv", index=False)
    for name in ("duckdb.csv", "pandas.csv"):
        with open(tmp_path / name, newline="") as file:
            assert sorted(row["uri"] for row in csv.DictReader(file)) == sorted(uris)


def test_secrets_are_nowhere(store: Store, cluster: dict[str, str]) -> None:
    """Not in what the runs of this module said, not in what they wrote, not in Ray's logs."""
    assert len(SAID) >= 8 and any("Traceback" in said for said in SAID)
    secrets = {SECRET, cluster["RAY_AUTH_TOKEN"]}
    for secret in secrets:
        assert not [said for said in SAID if secret in said]
    written = [item["Key"] for page in s3_pages(store.fs, "bucket", "") for item in page]
    assert len(written) > 3 * PICTURES
    logs = [path for path in Path(cluster["TEST_RAY_FOLDER"]).rglob("*") if path.is_file()]
    assert logs
    contents = {key: store.fs.read_version(f"bucket/{key}", None, None)[0] for key in written}
    contents |= {str(path): path.read_bytes() for path in logs}
    for secret in secrets:
        assert not [name for name, data in contents.items() if secret.encode() in data]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("refused", "code", "said"),
    [
        ("PUT", "AccessDenied", "check its permissions and your keys, or choose another --out"),
        ("PUT", "ExpiredToken", "renew the credentials"),
        ("GET", "ExpiredToken", "PermissionError: injected"),
        ("GET", "SignatureDoesNotMatch", "PermissionError: injected"),
    ],
)
def test_a_refusal_is_known_before_any_work(
    store: Store,
    photos: str,
    model_folder: str,
    refused: str,
    code: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store.fault = lambda request: (400 if code == "ExpiredToken" else 403, code) if request.method == refused else None
    started_s = time.monotonic()
    assert main(["segment", photos, "--out", f"{store.url}/refused", "--weights", model_folder]) == 1
    assert time.monotonic() - started_s < MINUTE_S / 2
    errors = capsys.readouterr().err
    assert said in errors and len(errors.splitlines()) == 1, errors
    assert not store.count("GET", "/photos/0000")
    assert {r.path for r in store.requests if r.method == "PUT"} <= {"bucket/refused/_raymask/lease.json"}


# --------------------------------------------------------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB; the test is skipped where this user cannot make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)):
        pytest.skip("making a small file system needs root and the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def mounted(*options: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["mount", *options], capture_output=True).returncode == 0
    return False


@pytest.mark.usefixtures("ray_session")
def test_a_disk_that_fills_up_then_is_made_larger_then_read_only(
    small_disk: Path, tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = draw_folder(tmp_path / "in", 400), small_disk / "out"
    command = ["segment", str(source), "--out", str(out), "--weights", model_folder, "--images-per-part", "4"]
    started_s = time.monotonic()
    assert main(command) == 1
    assert time.monotonic() - started_s < MINUTE_S
    errors = capsys.readouterr().err
    assert f"cannot use '{out}'" in errors and "No space left on device" in errors and "make room there" in errors
    assert "Traceback" not in errors and "unexpected" not in errors
    done = raymask.status(str(out))
    assert 0 < done.ok < 400 and done.failed == 0
    assert mounted("-o", "remount,size=20m", str(small_disk))
    assert main(command) == 0
    assert "400 images: 400 ok" in capsys.readouterr().out
    assert raymask.status(str(out)).published

    assert mounted("-o", "remount,ro", str(small_disk))
    for where in (out, small_disk / "other"):
        assert main([*command[:3], str(where), *command[4:]]) == 1
        errors = capsys.readouterr().err
        assert "Read-only file system" in errors and "choose another --out" in errors


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    Folder(str(tmp_path)).put("small", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"File too large.*make room there"), used_plainly(str(tmp_path)):
            Folder(str(tmp_path)).put("small", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Counter(os.listdir(tmp_path)) == {"small": 1}
    assert Folder(str(tmp_path)).read("small") == b"old"
    assert stat(f"{tmp_path}/small").size == 3
