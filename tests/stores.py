"""Stores to test against: an S3 of moto's on this machine, whose requests can be watched and made to fail."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn
from unittest import mock
from urllib.parse import quote

import fsspec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

from raymask import fetch, storage
from raymask.s3 import S3
from raymask.storage import resolving

BUCKET = "bucket"
SECRET = "canary-that-nobody-may-show"
NEWLINE = "\x02"  # what moto keeps for a newline in a key, since it cannot find its way to one


@dataclass(frozen=True)
class Request:
    """One request as the server saw it. path: bucket and key, not quoted."""

    method: str
    path: str
    query: str
    range: str | None


class Trouble(Enum):
    """What can happen to a request on its way there and back."""

    BUSY = "503 SlowDown, with Retry-After; nothing is done"
    LOST = "it is done, and answered with an error"
    CLOSED = "it is done, and the connection is closed before a byte of the answer"
    REFUSED = "the connection is closed before anything is done"
    CUT = "half of the answer, then the connection is closed"
    SLOW = "the answer takes its time"


class Weather:
    """Trouble for a share of all requests, of all kinds; which one has what follows from the seed and the request.

    A request that is tried again has trouble of its own. counts: how many had which.
    """

    def __init__(self, share: float, seed: int, slow_s: float = 0.5) -> None:
        self.share, self.seed, self.slow_s = share, seed, slow_s
        self.counts: Counter[Trouble] = Counter()
        self._tries: Counter[Request] = Counter()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Trouble | None:
        with self._lock:
            self._tries[request] += 1
            chance = random.Random(f"{self.seed} {request} {self._tries[request]}")
            trouble = chance.choice(list(Trouble)) if chance.random() < self.share else None
            if trouble:
                self.counts[trouble] += 1
        if trouble is Trouble.SLOW:
            time.sleep(self.slow_s)
        return trouble


@dataclass
class Store:
    """A bucket in a server of this process.

    requests: all that came in. fault: called with each; returns (HTTP status, S3 error code) to refuse it with, or
    None to let it pass. lose_answers: carry out what `fault` refuses all the same. trouble: what happens to each.
    """

    endpoint: str
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[Request], tuple[int, str] | None] = lambda request: None
    lose_answers: bool = False
    delay_s: Callable[[Request], float] = lambda request: 0.0
    trouble: Callable[[Request], Trouble | None] = lambda request: None

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}"

    @property
    def fs(self) -> Any:
        return storage.resolve(self.url)[0]

    def put(self, key: str, data: bytes = b"") -> str:
        """Store an object under exactly this key, past the server, which is no request; returns its URL."""
        s3_backends["123456789012"]["aws"].put_object(BUCKET, key.replace("\n", NEWLINE), data)
        return f"{self.url}/{key}"

    def delete(self, key: str) -> None:
        s3_backends["123456789012"]["aws"].delete_object(BUCKET, key)

    def count(self, method: str, path_part: str = "") -> int:
        return sum(r.method == method and path_part in r.path for r in self.requests)


@contextlib.contextmanager
def s3_store() -> Iterator[Store]:
    """An empty bucket, and an environment in which `s3://` means the server that holds it, here and in child processes.

    Ray workers inherit their environment from the process that starts Ray, so enter this before.
    """
    moto = DomainDispatcherApplication(create_backend_app)
    store = Store(endpoint="")

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application; werkzeug closes the connection after each request."""
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace").removeprefix("/")
        request = Request(environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], environ.get("HTTP_RANGE"))
        store.requests.append(request)
        time.sleep(store.delay_s(request))
        refused = store.fault(request)
        trouble = store.trouble(request)
        if trouble is Trouble.BUSY:
            refused = 503, "SlowDown"
        elif trouble is Trouble.LOST:
            refused = 500, "InternalError"
        if trouble is Trouble.REFUSED:
            hang_up(environ)
        if refused is None:
            environ["PATH_INFO"] = environ["PATH_INFO"].replace("\n", NEWLINE.encode().decode("latin-1"))
            for name in ("RAW_URI", "REQUEST_URI"):
                environ[name] = environ[name].replace("%0A", quote(NEWLINE))
            # In listings; the bytes of an object are its own.
            body = b"".join(
                part.replace(quote(NEWLINE).encode(), b"%0A") if part.startswith(b"<?xml") else part
                for part in moto(environ, start_response)
            )
            if trouble is Trouble.CLOSED or (trouble is Trouble.CUT and not body):
                hang_up(environ)
            return [body[: len(body) // 2] if trouble is Trouble.CUT else body]
        if store.lose_answers or trouble is Trouble.LOST:
            list(moto(environ, lambda *_, **__: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code = refused
        text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))]
        start_response(f"{status} {code}", [*headers, ("Retry-After", "1")] if status == 503 else headers)
        return [] if request.method == "HEAD" else [text]

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="s3", daemon=True)
    thread.start()
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": f"{SECRET}-of-a-session",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with fresh_environment(environment):
            # All servers of a process share one memory.
            urllib.request.urlopen(urllib.request.Request(f"{store.endpoint}/moto-api/reset", method="POST")).close()
            store.fs.call_s3("create_bucket", Bucket=BUCKET)
            store.requests.clear()
            yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def fresh_environment(variables: dict[str, str], unset: Iterable[str] = ()) -> Iterator[None]:
    """The process environment with these variables, and file systems that were opened in it."""
    with mock.patch.dict(os.environ, variables):
        for name in unset:
            os.environ.pop(name, None)
        forget_file_systems()
        try:
            yield
        finally:
            forget_file_systems()


def forget_file_systems() -> None:
    """Close what raymask and fsspec have opened in this process: each keeps its file systems with their endpoints."""
    resolving._file_system.cache_clear()
    fetch._open_column.cache_clear()
    for kind in (S3, fsspec.get_filesystem_class("s3"), fsspec.get_filesystem_class("memory")):
        kind.clear_instance_cache()


def hang_up(environ: dict[str, Any]) -> NoReturn:
    """End a request of werkzeug's without an answer."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass
