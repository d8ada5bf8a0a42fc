"""Bytes of images, in order and many at a time: the right ones, or the right reason why not."""

from __future__ import annotations

import http.server
import io
import itertools
import os
import random
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import botocore.exceptions as boto
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import Store, forget_file_systems, fresh_environment

from raymask import storage, web
from raymask.errors import ConfigError, ErrorKind, Failure
from raymask.fetch import REQUESTS_AT_ONCE, Fetched, Place, _open_column, ahead, fetch, fetch_one
from raymask.storage import retries

LIMIT = 1000


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    yield server
    server.fault = lambda request: None
    server.requests.clear()


@pytest.fixture
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which are not waited for."""
    waits: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    return waits


def outcome(place: Place, max_bytes: int = LIMIT) -> bytes | ErrorKind:
    """What `fetch` makes of one place: its bytes or the kind of its failure."""
    [result] = fetch([place], max_bytes=max_bytes)
    return result.kind if isinstance(result, Failure) else result.data


# ------------------------------------------------------------------------------------------- a store that is scripted


class Scripted(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """scripted://NAME gives the answers of `script` one after the other, its last one for ever."""

    protocol = "scripted"
    cachable = False
    script: ClassVar[dict[str, list[bytes | Exception]]] = {}
    reads: ClassVar[Counter[str]] = Counter()
    during_read: ClassVar[Callable[[str], None]] = lambda path: None

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        answer = self.script[path][-1]
        return {"name": path, "type": "file", "size": len(answer) if isinstance(answer, bytes) else 1}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        answers = self.script[path]
        answer = answers[min(self.reads[path], len(answers) - 1)]
        self.reads[path] += 1
        type(self).during_read(path)
        if isinstance(answer, Exception):
            raise answer
        return answer[start:end]


@pytest.fixture
def scripted() -> Iterator[type[Scripted]]:
    fsspec.register_implementation("scripted", Scripted, clobber=True)
    yield Scripted
    Scripted.script.clear()
    Scripted.reads.clear()
    Scripted.during_read = lambda path: None
    forget_file_systems()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("timed out"), ErrorKind.FETCH_FAILED),
        (ConnectionResetError("reset"), ErrorKind.FETCH_FAILED),
        (OSError(16, "SlowDown"), ErrorKind.FETCH_FAILED),
        (boto.EndpointConnectionError(endpoint_url="http://x"), ErrorKind.FETCH_FAILED),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(
    scripted: type[Scripted], waits_s: list[float], error: Exception, kind: ErrorKind
) -> None:
    scripted.script["lasts"] = [error]
    scripted.script["passes"] = [error, error, b"data"]
    assert outcome(Place("scripted://lasts", 1)) is kind
    assert scripted.reads["lasts"] == retries.ATTEMPTS
    assert outcome(Place("scripted://passes", 4)) == b"data"
    assert scripted.reads["passes"] == 3
    assert len(waits_s) == retries.ATTEMPTS - 1 + 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), ErrorKind.NOT_FOUND),
        (PermissionError("x"), ErrorKind.FORBIDDEN),
        (OSError("corrupt"), ErrorKind.FETCH_FAILED),
        (ValueError("what a library raises"), ErrorKind.FETCH_FAILED),
        (MemoryError(), ErrorKind.FETCH_FAILED),
    ],
    ids=repr,
)
def test_what_will_not_pass_is_tried_once(
    scripted: type[Scripted], waits_s: list[float], error: Exception, kind: ErrorKind
) -> None:
    scripted.script["x"] = [error]
    assert outcome(Place("scripted://x", 1)) is kind
    assert scripted.reads["x"] == 1
    assert not waits_s


@pytest.mark.parametrize(
    ("error", "reads"),
    [
        (boto.NoCredentialsError(), 1),
        (boto.PartialCredentialsError(provider="env", cred_var="KEY"), 1),
        (boto.CredentialRetrievalError(provider="x", error_msg="busy"), retries.ATTEMPTS),
    ],
    ids=repr,
)
def test_without_credentials_no_image_fails_but_the_run(
    scripted: type[Scripted], waits_s: list[float], error: Exception, reads: int
) -> None:
    scripted.script["x"] = [error]
    with pytest.raises(ConfigError, match="renew them, then run the same command again"):
        outcome(Place("scripted://x", 1))
    assert scripted.reads["x"] == reads


def test_the_detail_names_the_error_and_stays_short(scripted: type[Scripted]) -> None:
    scripted.script["x"] = [ValueError("long " * 1000)]
    [failure] = fetch([Place("scripted://x", 1)], max_bytes=LIMIT)
    assert isinstance(failure, Failure)
    assert failure.detail.startswith("ValueError: long long") and len(failure.detail) == 200


def test_size_is_checked_before_a_byte_is_read(scripted: type[Scripted]) -> None:
    scripted.script["large"] = [bytes(LIMIT + 1)]
    scripted.script["fits"] = [bytes(LIMIT)]
    scripted.script["empty"] = [b""]
    for size in (LIMIT + 1, None):
        assert outcome(Place("scripted://large", size)) is ErrorKind.TOO_MANY_BYTES
    for size in (0, None):
        assert outcome(Place("scripted://empty", size)) is ErrorKind.EMPTY
    assert not scripted.reads
    for size in (LIMIT, None):
        assert outcome(Place("scripted://fits", size)) == bytes(LIMIT)


def test_no_listed_size_and_none_from_the_store(scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted, "info", lambda self, path: {"name": path, "type": "file", "size": None})
    scripted.script = {"fits": [b"data"], "large": [bytes(LIMIT + 1)], "empty": [b""]}
    assert outcome(Place("scripted://fits")) == b"data"
    assert outcome(Place("scripted://large")) is ErrorKind.TOO_MANY_BYTES
    assert outcome(Place("scripted://empty")) is ErrorKind.EMPTY


# ----------------------------------------------------------------------------------------------------- many at a time


def test_order_is_kept_and_requests_are_bounded(scripted: type[Scripted]) -> None:
    count, running, most, lock = 60, [0], [0], threading.Lock()
    delays = random.Random(1)

    def during_read(path: str) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        # The first of every few is the slowest, so that later ones are ready before it.
        time.sleep(0.03 if int(path) % 10 == 0 else delays.random() * 0.005)
        with lock:
            running[0] -= 1

    scripted.script = {str(n): [b"%d" % n] for n in range(count)}
    scripted.during_read = during_read
    places = [Place(f"scripted://{n}", len(str(n))) for n in range(count)]
    fetched = list(fetch(places, max_bytes=LIMIT))
    assert fetched == [Fetched(b"%d" % n, None) for n in range(count)]
    assert REQUESTS_AT_ONCE // 2 < most[0] <= REQUESTS_AT_ONCE


def test_no_more_is_held_than_announced(scripted: type[Scripted]) -> None:
    scripted.script = {str(n): [b"x"] for n in range(100)}
    results = fetch([Place(f"scripted://{n}", 1) for n in range(100)], max_bytes=LIMIT)
    for taken in range(1, 40):
        next(results)
        time.sleep(0.002)
        assert scripted.reads.total() <= taken + REQUESTS_AT_ONCE


def test_threads_end_with_the_reader(scripted: type[Scripted]) -> None:
    """When the reader stops, what has begun is finished, and what waits is not begun."""
    scripted.script = {str(n): [b"x"] for n in range(200)}
    scripted.during_read = lambda path: time.sleep(0.02)
    results = fetch([Place(f"scripted://{n}", 1) for n in range(200)], max_bytes=LIMIT)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert scripted.reads.total() <= 2 * REQUESTS_AT_ONCE
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch")]


def test_failures_stand_between_images(scripted: type[Scripted]) -> None:
    scripted.script = {"0": [b"a"], "1": [PermissionError()], "2": [b"c"]}
    places = [Place("scripted://0"), Place("scripted://1"), Place("nonsense://x"), Place("scripted://2"), Place("/no")]
    kinds = [r.kind if isinstance(r, Failure) else r.data for r in fetch(places, max_bytes=LIMIT)]
    assert kinds == [b"a", ErrorKind.FORBIDDEN, ErrorKind.FETCH_FAILED, b"c", ErrorKind.NOT_FOUND]


def test_nothing_to_fetch() -> None:
    assert list(fetch([], max_bytes=LIMIT)) == []


@pytest.mark.parametrize("count", [1, 2, 7])
def test_ahead_cancels_what_waits(count: int) -> None:
    begun: list[int] = []
    gate = threading.Event()

    def call(item: int) -> int:
        begun.append(item)
        if item:
            gate.wait(5)
        return item

    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, call, range(100), count)
        assert next(results) == (0, 0)
        results.close()  # type: ignore[attr-defined]
        gate.set()
    assert len(begun) <= 3


def test_ahead_raises_where_the_call_did() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, lambda n: 1 // (2 - n), range(5), 3)
        assert [next(results), next(results)] == [(0, 0), (1, 1)]
        with pytest.raises(ZeroDivisionError):
            next(results)


# ------------------------------------------------------------------------------------------------ objects of their own

ODD_NAMES = [
    "plain.jpg",
    " a b .jpg ",
    "a#b.jpg",
    "a?b=c&d.jpg",
    "a?versionId=x.jpg",
    "a%2fb.jpg",
    "100%.jpg",
    "a+b.jpg",
    "new\nline.jpg",
    "tab\tquote'\"<&>.jpg",
    "br[1]*?{a,b}.jpg",
    "back\\slash.jpg",
    "\u00e9.jpg",  # composed and decomposed: two names
    "e\u0301.jpg",
    "\U0001f600.jpg",
    "colon:x@y,z$;=!.jpg",
    "~.jpg",
    "...jpg",
]
ODD_KEYS = [
    *ODD_NAMES,
    "a//b.jpg",
    "/lead.jpg",
    "../up.jpg",
    "d/../up.jpg",
    "d/./x.jpg",
    "s3://b/z.jpg",
    "control\x01.jpg",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_local_files(tmp_path: Path, name: str) -> None:
    for other in ODD_NAMES:
        (tmp_path / other).write_bytes(other.encode())
    for url in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
        assert outcome(Place(url)) == outcome(Place(url, len(name.encode()))) == name.encode()


def test_odd_keys(store: Store) -> None:
    for key in ODD_KEYS:
        store.put(key, key.encode())
    for sizes in (True, False):
        places = [Place(f"{store.url}/{key}", len(key.encode()) if sizes else None) for key in ODD_KEYS]
        for key, result in zip(ODD_KEYS, fetch(places, max_bytes=LIMIT), strict=True):
            assert isinstance(result, Fetched), (key, result)
            assert result.data == key.encode()


def test_local_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/socket")
        for name in ("", "pipe", "socket", "broken", "nothing", "file/inner", "file/"):
            assert outcome(Place(f"{tmp_path}/{name}")) is ErrorKind.NOT_FOUND, name
    assert outcome(Place("/dev/zero")) is ErrorKind.NOT_FOUND
    assert outcome(Place(f"{tmp_path}/loop")) is ErrorKind.FETCH_FAILED
    assert outcome(Place(f"{tmp_path}/{'x' * 300}")) is ErrorKind.FETCH_FAILED


def test_a_local_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr("raymask.storage.objects.open", refuse, raising=False)
    assert outcome(Place(f"{tmp_path}/x", 1)) is ErrorKind.FORBIDDEN


@pytest.mark.parametrize("where", ["local", "memory", "s3"])
def test_an_object_that_is_not_as_listed(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if where == "s3":
        url = request.getfixturevalue("store").put("changing", b"12345")
    else:
        url = f"{tmp_path}/x" if where == "local" else "memory://changing"
        with fsspec.open(url, "wb") as file:
            file.write(b"12345")
    assert outcome(Place(url, 5)) == b"12345"
    for listed in (4, 6, 900):
        assert outcome(Place(url, listed)) is ErrorKind.CHANGED
    if where == "s3":
        request.getfixturevalue("store").put("changing", b"")
        assert outcome(Place(url, 5)) is ErrorKind.CHANGED


def test_an_object_of_the_same_size_but_another_version(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    for url in (store.put("x", b"12345"), f"{tmp_path}/x"):
        listed = storage.stat(url)
        assert list(fetch([Place(url, 5, listed.etag)], max_bytes=LIMIT)) == [Fetched(b"12345", listed.etag)]
        assert outcome(Place(url, 5, "another")) is ErrorKind.CHANGED
        assert outcome(Place(url, 5, None)) == outcome(Place(url)) == b"12345"
    store.put("x", b"54321")
    os.utime(tmp_path / "x", ns=(1, 1))
    for url in (f"{store.url}/x", f"{tmp_path}/x"):
        assert outcome(Place(url, 5, listed.etag)) is ErrorKind.CHANGED


def test_an_object_that_has_grown_is_not_read_to_its_end(store: Store) -> None:
    url = store.put("grown", bytes(100_000))
    assert outcome(Place(url, 10)) is ErrorKind.CHANGED
    assert [r.range for r in store.requests] == ["bytes=0-10"]


def test_a_listed_object_is_one_request(store: Store) -> None:
    url, etag = store.put("one", b"12345"), "827ccb0eea8a706c4c34a16891f84e7b"
    assert list(fetch([Place(url, 5, etag)], max_bytes=LIMIT)) == [Fetched(b"12345", etag)]
    assert [r.method for r in store.requests] == ["GET"]
    store.requests.clear()
    assert list(fetch([Place(url)], max_bytes=LIMIT)) == [Fetched(b"12345", etag)]
    assert [r.method for r in store.requests] == ["HEAD", "GET"]


def test_absent_and_forbidden_in_a_store(store: Store) -> None:
    url = store.put("folder/x", b"12345")
    for absent in (f"{store.url}/nothing", "s3://no-such-bucket/x", f"{store.url}/folder", f"{url}/", store.url):
        assert outcome(Place(absent)) is ErrorKind.NOT_FOUND, absent
    for absent in (f"{store.url}/nothing", "s3://no-such-bucket/x"):
        assert outcome(Place(absent, 5)) is ErrorKind.NOT_FOUND, absent
    store.fault = lambda request: (403, "AccessDenied")
    store.requests.clear()
    assert outcome(Place(url, 5)) is ErrorKind.FORBIDDEN
    assert outcome(Place(url)) is ErrorKind.FORBIDDEN
    assert [r.method for r in store.requests] == ["GET", "HEAD", "GET"]  # the second one for its reason


@pytest.mark.parametrize(
    ("status", "code"), [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (400, "InvalidToken")]
)
@pytest.mark.parametrize("size", [5, None])
def test_credentials_that_are_not_taken(store: Store, status: int, code: str, size: int | None) -> None:
    """With a size there is a GET alone, without one first a HEAD, whose answer says nothing but the status."""
    url = store.put("x", b"12345")
    store.fault = lambda request: (status, code)
    with pytest.raises(ConfigError, match="does not take the credentials"):
        outcome(Place(url, size))


def test_a_store_without_credentials(store: Store) -> None:
    url = store.put("x", b"12345")
    missing = fresh_environment({}, unset=["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    with missing, pytest.raises(ConfigError, match="NoCredentialsError"):
        outcome(Place(url, 5))
    assert not store.requests


def test_a_store_that_is_busy_then_not(store: Store, waits_s: list[float]) -> None:
    url = store.put("x", b"12345")
    answers = iter([(500, "InternalError"), (503, "ServiceUnavailable"), None])
    store.fault = lambda request: next(answers)
    with fresh_environment({"AWS_MAX_ATTEMPTS": "1"}):
        assert outcome(Place(url, 5)) == b"12345"
    assert len(store.requests) == 3 and len(waits_s) == 2


def test_web_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "is_public", lambda address: True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

        def send_head(self) -> Any:
            if "forbidden" not in self.path:
                return super().send_head()
            return self.send_error(403)

    (tmp_path / "a b.jpg").write_bytes(b"data")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert outcome(Place(f"{url}/a%20b.jpg?width=3")) == b"data"
        assert outcome(Place(f"{url}/a%20b.jpg", 4)) == b"data"
        assert outcome(Place(f"{url}/a%20b.jpg", 5)) is ErrorKind.CHANGED
        assert outcome(Place(f"{url}/nothing.jpg")) is ErrorKind.NOT_FOUND
        assert outcome(Place(f"{url}/forbidden.jpg", 4)) is ErrorKind.FORBIDDEN
        assert outcome(Place(f"{url}/forbidden.jpg")) is ErrorKind.FORBIDDEN
        server.shutdown()


# ---------------------------------------------------------------------------------------------- members of tar shards


def write_tar(members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def places_in(url: str, tar: bytes, etag: str | None = None) -> list[Place]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        return [Place(f"{url}#{m.name}", m.size, etag, url, None, m.offset_data) for m in members]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members(tmp_path: Path, store: Store, format: int) -> None:
    long = "\u00e9" * 60 + "/x.jpg" if format == tarfile.USTAR_FORMAT else "\u00e9" * 200 + ".jpg"
    members = {"./a.jpg": b"1", "b.jpg": bytes(512), "empty.jpg": b"", long: b"long", "large.jpg": bytes(LIMIT + 1)}
    tar = write_tar(members, format)
    (tmp_path / "x.tar").write_bytes(tar)
    for url in (f"{tmp_path}/x.tar", store.put("x.tar", tar)):
        results = list(fetch(places_in(url, tar), max_bytes=LIMIT))
        assert [r.kind if isinstance(r, Failure) else r.data for r in results] == [
            b"1",
            bytes(512),
            ErrorKind.EMPTY,
            b"long",
            ErrorKind.TOO_MANY_BYTES,
        ]
    assert len(store.requests) == 3  # one a member; none where its size says enough
    assert sum(byte_count(r.range) for r in store.requests) == 3 * tarfile.BLOCKSIZE + 1 + 512 + 4


def byte_count(range: str | None) -> int:
    assert range is not None
    start, _, last = range.removeprefix("bytes=").partition("-")
    return int(last) + 1 - int(start)


def test_a_shard_of_another_version_that_looks_the_same(store: Store) -> None:
    tar, other = write_tar({"a.jpg": b"12345"}), write_tar({"a.jpg": b"54321"})
    url = store.put("x.tar", tar)
    [place] = places_in(url, tar, storage.stat(url).etag)
    assert outcome(place) == b"12345"
    store.put("x.tar", other)
    assert outcome(place) is ErrorKind.CHANGED


def test_a_shard_that_was_written_anew(tmp_path: Path) -> None:
    url = f"{tmp_path}/x.tar"
    tar = write_tar({f"{n}.jpg": bytes([n]) * (n + 1) * 100 for n in range(5)})
    places = places_in(url, tar)
    for changed in (tar[512:], write_tar({"9.jpg": b"9" * 700}), tar[: places[3].position], b"", bytes(len(tar))):
        Path(url).write_bytes(changed)
        results = list(fetch(places[2:], max_bytes=LIMIT))
        assert {r.kind for r in results if isinstance(r, Failure)} == {ErrorKind.CHANGED}
        # A member that still lies at its place is still it.
        assert [r.data for r in results if isinstance(r, Fetched)] in ([], [bytes([2]) * 300])
    Path(url).unlink()
    assert outcome(places[0]) is ErrorKind.NOT_FOUND


# ------------------------------------------------------------------------------------------ cells of a Parquet table

ROWS = 23
CELLS: list[bytes | None] = [None if n == 5 else b"" if n == 6 else b"%d" % n * 20 for n in range(ROWS)]
_STRUCT = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def write_table(where: Any, type: pa.DataType, group_rows: int = 5, **more: pa.Array) -> None:
    cells: list[Any] = CELLS
    if pa.types.is_struct(type):
        cells = [None if cell is None else {"bytes": cell, "path": f"{n}.jpg"} for n, cell in enumerate(CELLS)]
    table = pa.table({"image": pa.array(cells, type), **more})
    pq.write_table(table, where, row_group_size=group_rows, compression="none", use_dictionary=False)


def cells_of(url: str, rows: Any = range(ROWS)) -> list[Place]:
    etag = storage.stat(url).etag
    return [Place(f"{url}#{n}", None, etag, url, "image", n) for n in rows]


def expected(row: int) -> bytes | ErrorKind:
    return CELLS[row] or ErrorKind.EMPTY


def outcomes(places: list[Place], max_bytes: int = LIMIT) -> list[bytes | ErrorKind]:
    return [r.kind if isinstance(r, Failure) else r.data for r in fetch(places, max_bytes=max_bytes)]


@pytest.fixture
def group_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that were read."""
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        groups.append(group)
        return read(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    return groups


@pytest.mark.parametrize(
    "type", [pa.binary(), pa.large_binary(), _STRUCT, pa.struct([pa.field("bytes", pa.large_binary())])], ids=str
)
def test_cells(tmp_path: Path, store: Store, group_reads: list[int], type: pa.DataType) -> None:
    write_table(tmp_path / "x.parquet", type)
    for url in (f"{tmp_path}/x.parquet", store.put("x.parquet", (tmp_path / "x.parquet").read_bytes())):
        assert outcomes(cells_of(url)) == [expected(n) for n in range(ROWS)]
        assert group_reads == [0, 1, 2, 3, 4]
        group_reads.clear()
    assert outcome(cells_of(url)[20], max_bytes=39) is ErrorKind.TOO_MANY_BYTES


def test_only_the_bytes_are_read(store: Store) -> None:
    sink = io.BytesIO()
    write_table(sink, _STRUCT, other=pa.array([os.urandom(50_000) for _ in range(ROWS)]))
    url = store.put("wide.parquet", sink.getvalue())
    assert outcomes(cells_of(url)) == [expected(n) for n in range(ROWS)]
    read = sum(byte_count(r.range) for r in store.requests if r.method == "GET")
    assert read < 150_000 < len(sink.getvalue())


@given(st.lists(st.integers(0, ROWS - 1)))
def test_cells_in_any_order(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    url = str(tmp_path_factory.getbasetemp() / "any.parquet")
    if not os.path.exists(url):
        write_table(url, pa.binary(), group_rows=4)
    assert outcomes(cells_of(url, rows)) == [expected(n) for n in rows]


def test_cells_from_many_threads(tmp_path: Path) -> None:
    url = f"{tmp_path}/x.parquet"
    write_table(url, pa.binary(), group_rows=3)
    rows = random.Random(2).choices(range(ROWS), k=500)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda place: fetch_one(place, max_bytes=LIMIT), cells_of(url, rows)))
    assert [r.kind if isinstance(r, Failure) else r.data for r in results] == [expected(n) for n in rows]


def test_a_table_of_no_rows_and_groups_of_none(tmp_path: Path) -> None:
    url = f"{tmp_path}/x.parquet"
    with pq.ParquetWriter(url, pa.schema([("image", pa.binary())])) as writer:
        for cells in ([], [b"0"], [], [], [b"1", b"2"], []):
            writer.write_table(pa.table({"image": pa.array(cells, pa.binary())}), row_group_size=10)
    assert outcomes(cells_of(url, range(4))) == [b"0", b"1", b"2", ErrorKind.CHANGED]


def test_a_table_that_was_written_anew(tmp_path: Path) -> None:
    url = f"{tmp_path}/x.parquet"
    write_table(url, pa.binary())
    places = cells_of(url)
    assert outcome(places[0]) == CELLS[0]
    _open_column.cache_clear()
    write_table(url, pa.large_binary(), group_rows=7)
    assert set(outcomes(places)) == {ErrorKind.CHANGED}
    assert outcomes(cells_of(url)) == [expected(n) for n in range(ROWS)]
    os.unlink(url)
    _open_column.cache_clear()
    assert outcome(places[0]) is ErrorKind.NOT_FOUND


def test_a_damaged_group_is_read_once(tmp_path: Path, group_reads: list[int], waits_s: list[float]) -> None:
    url = f"{tmp_path}/x.parquet"
    write_table(url, pa.binary())
    start = pq.read_metadata(url).row_group(1).column(0).data_page_offset
    with open(url, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 40)
    kinds = outcomes(cells_of(url))
    assert kinds[:5] + kinds[10:] == [expected(n) for n in range(ROWS) if not 5 <= n < 10]
    assert set(kinds[5:10]) == {ErrorKind.FETCH_FAILED}
    assert group_reads == [0, 1, 2, 3, 4]
    assert not waits_s


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    url = f"{tmp_path}/x.parquet"
    write_table(url, pa.binary())
    assert outcome(Place(f"{url}#0", None, None, url, "other", 0)) is ErrorKind.FETCH_FAILED


def test_cells_of_a_busy_store(store: Store, waits_s: list[float]) -> None:
    sink = io.BytesIO()
    write_table(sink, pa.binary())
    url = store.put("busy.parquet", sink.getvalue())
    places = cells_of(url)
    numbers = itertools.count()
    store.fault = lambda request: (500, "InternalError") if next(numbers) % 3 == 1 else None
    with fresh_environment({"AWS_MAX_ATTEMPTS": "1"}):
        assert outcomes(places) == [expected(n) for n in range(ROWS)]
    assert waits_s
