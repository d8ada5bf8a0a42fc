"""Whole objects behind URLs: atomic puts, one winner, exact names, and what is worth a retry."""

from __future__ import annotations

import errno
import http.client
import itertools
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions as boto
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import BUCKET, Request, Store, fresh_environment

from raymask import storage
from raymask.errors import ConfigError
from raymask.faults import is_about_credentials, is_refusal, is_transient
from raymask.storage import TEMPORARY_PREFIX, Folder, WholeFile, retried, retries
from raymask.storage import local as local_files

_numbers = itertools.count()


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    yield server
    server.fault, server.lose_answers = lambda request: None, False
    server.requests.clear()


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    name = f"folder-{next(_numbers)}"
    if request.param == "s3":
        return Folder(f"{request.getfixturevalue('store').url}/{name}")
    return Folder(str(tmp_path / name) if request.param == "local" else f"memory://{name}")


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "folder"))


@pytest.fixture
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which are not waited for."""
    waits: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    return waits


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=["empty", "small", "large"])
def test_what_is_put_is_read(folder: Folder, data: bytes) -> None:
    folder.put("a/b.bin", b"older")
    folder.put("a/b.bin", data)
    assert folder.read("a/b.bin") == folder.sub("a").read("b.bin") == data
    assert pickle.loads(pickle.dumps(folder)).read("a/b.bin") == data


def test_what_is_not_there(folder: Folder) -> None:
    assert folder.read_or_none("a") is None
    assert list(folder.list()) == list(folder.list("a")) == []
    folder.delete("a")
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def test_delete(folder: Folder) -> None:
    folder.put("a", b"1")
    folder.put("b", b"2")
    folder.delete("a")
    assert list(folder.list()) == [("b", 1)]


def test_list_is_one_level_by_name(folder: Folder) -> None:
    sizes = {"b": 2, "a": 1, "a.b": 3, "Z": 4, "c/inner": 5, "c/deep/er": 6}
    for name, size in sizes.items():
        folder.put(name, bytes(size))
    assert list(folder.list()) == [("Z", 4), ("a", 1), ("a.b", 3), ("b", 2)]
    assert list(folder.list("c")) == [("c/inner", 5)]


def test_list_of_a_store_asks_for_a_page_when_it_is_wanted(store: Store) -> None:
    names = [f"{number:04d}" for number in range(2_500)]
    for name in names:
        store.put(f"many/{name}")
    store.put("many-others/x")
    store.put("many/")
    listing = Folder(f"{store.url}/many").list()
    assert next(listing) == ("0000", 0)
    assert len(store.requests) == 1
    assert [name for name, _ in listing] == names[1:]
    assert len(store.requests) == 3


def test_list_beside_a_writer(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary file that is renamed while the folder is read hides nothing else."""
    local.put("a", b"1")
    local.put("b", b"22")
    scan = os.scandir

    class Gone:
        name = f"{TEMPORARY_PREFIX}1"

        def is_file(self) -> bool:
            return True

        def stat(self) -> None:
            raise FileNotFoundError(self.name)

    class Scan:
        def __init__(self, path: str) -> None:
            with scan(path) as entries:
                self.entries: list[Any] = [Gone(), *entries]

        def __enter__(self) -> list[Any]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Scan)
    assert list(local.list()) == [("a", 1), ("b", 2)]


# ------------------------------------------------------------------------------------------------------- atomic puts


def test_a_reader_never_sees_half_of_a_put(local: Folder) -> None:
    size = 400_000
    local.put("x", b"0" * size)
    done = threading.Event()

    def write() -> None:
        for round in range(60):
            local.put("x", (b"a", b"b")[round % 2] * size)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        data = local.read("x")
        assert len(data) == size and len(set(data)) == 1
        seen.add(data[:1])
    writer.join()
    assert len(seen) > 1
    assert [name for name, _ in local.list()] == ["x"]


@pytest.mark.parametrize("step", ["replace", "fsync", "open"])
def test_a_failed_put_leaves_what_was_there(local: Folder, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    local.put("x", b"old")
    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr(local_files, "open", fail, raising=False)
        else:
            patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            local.put("x", b"new")
    assert list(local.list()) == [("x", 3)]
    assert local.read("x") == b"old"


def test_an_interrupted_put_leaves_what_was_there(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    local.put("x", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            local.put("x", b"new")
    assert list(local.list()) == [("x", 3)]


def test_a_killed_put_leaves_a_name_that_tells(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    local.put("x", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: None)
        patch.setattr(os, "unlink", lambda *_: None)
        local.put("x", b"new")
    (left, size), *others = local.list()
    assert left.startswith(TEMPORARY_PREFIX) and size == 3
    assert others == [("x", 3)] and local.read("x") == b"old"


def test_a_put_is_synced_before_and_after_it_is_named(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        steps.append("file" if TEMPORARY_PREFIX in target else "folder" if target == local.url else target)
        sync(descriptor)

    def record_replace(*paths: str) -> None:
        steps.append("name")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    local.put("x", b"1")
    assert steps == ["file", "name", "folder"]


def test_a_file_in_pieces_appears_when_it_is_closed(local: Folder) -> None:
    local.put("a", b"old")
    file = WholeFile(local.url_of("a"))
    file.write(b"new " * 100_000)
    assert local.read("a") == b"old"
    file.close()
    assert local.read("a") == b"new " * 100_000
    failed, dropped = WholeFile(local.url_of("a")), WholeFile(local.url_of("a"))
    with pytest.raises(TypeError):
        failed.write("no bytes")
    failed.close()
    dropped.write(b"half")
    del dropped
    assert local.read("a") == b"new " * 100_000
    assert [name for name, _ in local.list()] == ["a"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(local: Folder, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        local.put("x", b"1")
        local.put_if_absent("y", b"1")
    finally:
        os.umask(before)
    assert {os.stat(local.url_of(name)).st_mode & 0o777 for name in "xy"} == {mode}


# -------------------------------------------------------------------------------------------------------- one winner


def test_put_if_absent_tells_what_is_there(folder: Folder) -> None:
    assert folder.put_if_absent("a/x", b"first") == b"first"
    assert folder.put_if_absent("a/x", b"second") == b"first"
    assert folder.read("a/x") == b"first"
    assert [name for name, _ in folder.list("a")] == ["a/x"]


def test_of_writers_at_once_one_wins(folder: Folder) -> None:
    writers = 12
    start = threading.Barrier(writers)

    def write(number: int) -> bytes:
        start.wait()
        return folder.put_if_absent("x", b"writer %d" % number * 100)

    with ThreadPoolExecutor(writers) as pool:
        told = set(pool.map(write, range(writers)))
    assert told == {folder.read("x")}
    assert [name for name, _ in folder.list()] == ["x"]


def test_a_conditional_put_is_one_request(store: Store) -> None:
    Folder(store.url).put_if_absent("conditional", b"1")
    assert [r.method for r in store.requests] == ["PUT", "GET"]
    fs, _ = storage.resolve(store.url)
    with pytest.raises(FileExistsError):
        fs.pipe_file(f"{BUCKET}/conditional", b"2", mode="create")


def fail_first(method: str, status: int, code: str) -> Any:
    left = [1]

    def fault(request: Request) -> tuple[int, str] | None:
        if request.method == method and left:
            left.pop()
            return status, code
        return None

    return fault


def test_put_if_absent_after_a_lost_answer(store: Store, waits_s: list[float]) -> None:
    """The put was carried out, but its answer was an error; the retry is told that the object is there."""
    store.fault, store.lose_answers = fail_first("PUT", 500, "InternalError"), True
    assert Folder(store.url).put_if_absent("lost", b"ours") == b"ours"
    assert store.count("PUT") == 2


def test_put_if_absent_where_the_store_says_it_otherwise(store: Store) -> None:
    """Some stores refuse without the element from which s3fs takes that the object exists."""
    store.put("there", b"theirs")
    store.fault = lambda request: (412, "PreconditionFailed") if request.method == "PUT" else None
    assert Folder(store.url).put_if_absent("there", b"ours") == b"theirs"
    with pytest.raises(OSError, match="injected"):
        Folder(store.url).put_if_absent("absent", b"ours")


def test_put_if_absent_refused(store: Store) -> None:
    store.fault = lambda request: (403, "AccessDenied") if request.method == "PUT" else None
    with pytest.raises(PermissionError):
        Folder(store.url).put_if_absent("refused", b"ours")


def test_create_tells_whether_it_holds_just_that(folder: Folder) -> None:
    assert folder.create("a/x", b"first")
    assert folder.create("a/x", b"first")
    assert not folder.create("a/x", b"second")
    assert folder.read("a/x") == b"first"


def test_swap_only_where_it_still_holds_what_was_read(folder: Folder) -> None:
    assert folder.swap("x", None, b"1")
    assert not folder.swap("x", None, b"2")
    assert not folder.swap("x", b"0", b"2")
    assert folder.read("x") == b"1"
    assert folder.swap("x", b"1", b"2")
    assert folder.read("x") == b"2"
    assert not folder.swap("absent", b"1", b"2")
    assert [name for name, _ in folder.list()] == ["x"]


def test_of_swaps_at_once_one_wins(folder: Folder) -> None:
    writers = 8
    folder.put("x", b"before")
    start = threading.Barrier(writers)

    def swap(number: int) -> bool:
        start.wait()
        return folder.swap("x", b"before", b"writer %d" % number)

    with ThreadPoolExecutor(writers) as pool:
        told = list(pool.map(swap, range(writers)))
    assert told.count(True) == 1
    assert folder.read("x") == b"writer %d" % told.index(True)


def test_a_swap_is_refused_where_another_came_between(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = Folder(store.url), Folder.read_or_none
    folder.put("x", b"old")

    def read_late(self: Folder, name: str) -> bytes | None:
        data = read(self, name)
        store.put("x", b"theirs")
        return data

    monkeypatch.setattr(Folder, "read_or_none", read_late)
    assert not folder.swap("x", b"old", b"ours")
    assert folder.read("x") == b"theirs"


def test_swap_after_a_lost_answer(store: Store, waits_s: list[float]) -> None:
    folder = Folder(store.url)
    folder.put("x", b"old")
    store.fault, store.lose_answers = fail_first("PUT", 500, "InternalError"), True
    assert folder.swap("x", b"old", b"ours")


def test_a_swap_where_the_store_knows_no_conditions(store: Store) -> None:
    folder = Folder(store.url)
    folder.put("x", b"old")
    store.fault = fail_first("PUT", 501, "NotImplemented")
    assert folder.swap("x", b"old", b"ours")
    assert folder.read("x") == b"ours"
    assert store.count("PUT") == 3


def test_a_swap_that_is_forbidden_is_an_error(store: Store) -> None:
    store.put("x", b"old")
    store.fault = lambda request: (403, "AccessDenied") if request.method == "PUT" else None
    with pytest.raises(PermissionError):
        Folder(store.url).swap("x", b"old", b"ours")


# ------------------------------------------------------------------------------------------------------------- names


@given(st.text(min_size=1).filter(lambda key: not key.isspace()))
def test_s3_keys_stay_as_they_are(key: str) -> None:
    fs, path = storage.resolve(f"s3://bucket/{key}/x?versionId={key}")
    assert fs.split_path(path) == ("bucket", f"{key}/x?versionId={key}".rstrip("/"), None)


def test_s3_requests_name_the_key_itself(store: Store) -> None:
    store.put("a", b"short")
    url = store.put("a?versionId=b", b"exact")
    fs, path = storage.resolve(url)
    assert fs.cat_file(path) == fs.cat_file(path, start=0, end=5) == b"exact"
    assert fs.info(path)["size"] == 5


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("/a//./b/../c/", "/a/c"),
        ("/a/b:/c", "/a/b:/c"),
        ("/a/%20b #?\n*", "/a/%20b #?\n*"),
        ("x/y", f"{os.getcwd()}/x/y"),
        ("a b://c", f"{os.getcwd()}/a b:/c"),
        ("s3://b/c", None),
        ("memory://b", None),
    ],
)
def test_local_path(url: str, path: str | None) -> None:
    assert storage.local_path(url) == path
    assert storage.absolute(url) == (url if path is None else path)
    fs, resolved = storage.resolve(url)
    assert storage.is_local(fs) == (path is not None)
    assert path in (None, resolved)


@pytest.mark.parametrize("url", ["nonsense://a/b", "S3://bucket", "zip://a.zip"])
def test_unknown_protocols(url: str) -> None:
    with pytest.raises(ConfigError, match=url.partition(":")[0]):
        storage.resolve(url)


def test_stat(local: Folder, store: Store) -> None:
    local.put("x", b"123")
    found = storage.stat(local.url_of("x"))
    assert (found.kind, found.size) == ("file", 3) and found.etag
    os.utime(local.url_of("x"), ns=(1, 1))
    assert storage.stat(local.url_of("x")).etag != found.etag
    os.mkfifo(local.url_of("pipe"))
    assert storage.stat(local.url_of("pipe")).kind == "other"
    assert storage.stat(local.url).kind == "directory"
    found = storage.stat(store.put("x", b"123"))
    assert found == storage.Stat("file", 3, "202cb962ac59075b964b07152d234b70")
    assert storage.stat(store.url).kind == "directory"
    with pytest.raises(FileNotFoundError):
        storage.stat(f"{store.url}/nothing")


# ----------------------------------------------------------------------------------------------------------- retries


def response_error(status: int) -> aiohttp.ClientResponseError:
    return aiohttp.ClientResponseError(None, (), status=status)  # type: ignore[arg-type]


TRANSIENT = [
    TimeoutError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    BrokenPipeError(),
    OSError(errno.EBUSY, "slow down"),
    OSError(errno.EREMOTEIO, "internal error"),
    OSError(errno.EIO, "a code that s3fs does not know"),
    http.client.IncompleteRead(b""),
    aiohttp.ClientPayloadError(),
    aiohttp.ServerDisconnectedError(),
    response_error(429),
    response_error(503),
    boto.EndpointConnectionError(endpoint_url="http://x"),
    boto.ConnectTimeoutError(endpoint_url="http://x"),
    boto.ReadTimeoutError(endpoint_url="http://x"),
    boto.ConnectionClosedError(endpoint_url="http://x"),
    boto.CredentialRetrievalError(provider="x", error_msg="busy"),
]
FINAL = [
    FileNotFoundError(),
    PermissionError(),
    IsADirectoryError(errno.EISDIR, ""),
    FileExistsError(),
    OSError(errno.ENOSPC, "full"),
    OSError(errno.EINVAL, "bad request"),
    OSError(errno.EREMCHG, "another region"),
    OSError("corrupt snappy data"),
    ValueError(),
    KeyError(),
    MemoryError(),
    response_error(400),
    response_error(403),
    response_error(404),
    boto.NoCredentialsError(),
    boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    boto.ParamValidationError(report="no bucket"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_transient(error: BaseException, waits_s: list[float]) -> None:
    assert is_transient(error)
    assert attempts_until(error) == retries.ATTEMPTS
    assert len(waits_s) == retries.ATTEMPTS - 1


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_final(error: BaseException, waits_s: list[float]) -> None:
    assert not is_transient(error)
    assert attempts_until(error) == 1
    assert not waits_s


def attempts_until(error: BaseException) -> int:
    attempts = []

    def call() -> None:
        attempts.append(1)
        raise error

    with pytest.raises(type(error)):
        retried(call)
    return len(attempts)


def test_refusals(store: Store) -> None:
    refused = [e for e in [*TRANSIENT, *FINAL] if is_refusal(e)]
    assert {type(e).__name__ for e in refused} == {
        "PermissionError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ClientResponseError",
    }
    fs = store.fs
    for code in ("AccessDenied", "ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        store.fault = lambda request, code=code: (403, code)  # type: ignore[misc]
        with pytest.raises(OSError, match="injected") as caught:
            fs.call_s3("get_object", Bucket=BUCKET, Key="x")
        assert is_refusal(caught.value), code
        assert is_about_credentials(caught.value) == (code != "AccessDenied")


def test_waits_double_with_jitter(waits_s: list[float]) -> None:
    for _ in range(50):
        attempts_until(TimeoutError())
    for attempt in range(retries.ATTEMPTS - 1):
        waits = waits_s[attempt :: retries.ATTEMPTS - 1]
        middle = retries.FIRST_WAIT_S * 2**attempt
        assert 0.5 * middle <= min(waits) < 0.8 * middle
        assert 1.2 * middle < max(waits) <= 1.5 * middle


def test_patience_ends(waits_s: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes long to fail, as botocore's own retries make it, is not made as often."""
    clock = itertools.count(step=40)
    monkeypatch.setattr("raymask.storage.retries.time.monotonic", lambda: next(clock))
    assert attempts_until(TimeoutError()) == 2


def test_retried_gives_what_comes_in_the_end(waits_s: list[float]) -> None:
    answers = iter([TimeoutError(), OSError(errno.EBUSY, "slow down"), "answer"])

    def call() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retried(call) == "answer"
    assert len(waits_s) == 2


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_a_store_that_is_busy_for_a_while(store: Store, waits_s: list[float], status: int, code: str) -> None:
    folder = Folder(store.url)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("GET", lambda: folder.read("busy")),
        ("GET", lambda: list(folder.list())),
        ("PUT", lambda: folder.put("busy", b"1")),
        ("DELETE", lambda: folder.delete("busy")),
    ]
    with fresh_environment({"AWS_MAX_ATTEMPTS": "1"}):
        for method, call in calls:
            store.put("busy", b"1")
            store.fault = fail_first(method, status, code)
            store.requests.clear()
            call()
            assert store.count(method) == 2


def test_a_folder_means_the_same_to_processes_that_work_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("masks")
    folder.put("a", b"here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert folder.read_or_none("a") == b"here"
    assert Folder("s3://bucket/masks").url == "s3://bucket/masks"
