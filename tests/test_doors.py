"""Doors that stay closed: programs in weights, secrets in URLs, web servers, open clusters; and keys that are data."""

from __future__ import annotations

import contextlib
import csv
import html.parser
import http.server
import os
import pickle
import stat
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
import ray.train
import torch
from test_fetch import ODD_NAMES
from test_weights import Canary

import raymask
from raymask import cluster, web
from raymask.cli import error_text, main
from raymask.config import CleanConfig, EvaluateConfig, SegmentConfig, StatusConfig
from raymask.errors import ConfigError, ErrorKind, Failure, OutputError, RaymaskError
from raymask.fetch import Place, fetch
from raymask.jobs import read_options
from raymask.model import load_model
from raymask.progress import harmless
from raymask.sources import open_source
from raymask.storage import resolve, retries, said
from raymask.training.checkpoints import STATE_FILE, read_state
from raymask.training.config import TrainConfig
from raymask.urls import has_credentials, without_credentials

SECRET = "canary-7f1e"

# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors", "w", "model/model.safetensors"])
@pytest.mark.parametrize("format", ["torch", "old torch", "pickle"])
def test_a_program_in_weights_is_not_run(
    name: str, format: str, tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file of any name, as any command is given it."""
    evil, ran = {"model": Canary(tmp_path / "ran")}, tmp_path / "ran"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_bytes(Path(model_folder, "model.json").read_bytes())
    if format == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, tmp_path / name, _use_new_zipfile_serialization=format == "torch")
    weights = str(tmp_path / name.partition("/")[0] if "/" in name else tmp_path / name)
    with pytest.raises(ConfigError):
        load_model(weights, None if "/" in name else "maskrcnn_resnet10_fpn")
    with pytest.raises(ConfigError):
        raymask.Predictor(weights)
    assert main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), "--weights", weights, "--dry-run"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not ran.exists()


def test_a_program_in_the_state_of_a_training_is_not_run(tmp_path: Path) -> None:
    checkpoint = ray.train.Checkpoint.from_directory(str(tmp_path))
    torch.save({"step": 3, "network": {"a": torch.zeros(2)}}, tmp_path / STATE_FILE)
    assert read_state(checkpoint)["step"] == 3
    for evil in (pickle.dumps(Canary(tmp_path / "ran")), b"", b"PK\x03\x04"):
        (tmp_path / STATE_FILE).write_bytes(evil)
        with pytest.raises(OutputError, match="without running its code"):
            read_state(checkpoint)
    torch.save(Canary(tmp_path / "ran"), tmp_path / STATE_FILE)
    with pytest.raises(OutputError, match="without running its code"):
        read_state(checkpoint)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Canary(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the canary would not have sung"


# ------------------------------------------------------------------------------------------------------------- secrets

WITH_SECRET = [
    f"s3://AKIA:{SECRET}@bucket/photos",
    f"s3://{SECRET}@bucket/photos",
    f"https://user:{SECRET}@host/x.jpg",
    f"https://{SECRET}@host",
    f"https://host/x.jpg?X-Amz-Credential=a&X-Amz-Signature={SECRET}",
    f"https://host/x.jpg?se=2026&sig={SECRET}",
    f"https://host?a=b;token={SECRET}",
    f"http://host/x?X%2DAmz%2DSignature={SECRET}",
    f"ftp://user:{SECRET}@host/x",
    f"sftp://user:{SECRET}@host/x",
    f"abfs://account:{SECRET}@host/x",
]
WITHOUT_SECRET = [
    "photos/a@b:c",
    "/photos/https:/user:pw@host",
    "file:///a:b@c/x",
    "s3://bucket/user:pw@x.jpg",
    "s3://bucket/x?token=3.jpg",
    "s3://arn:aws:s3:eu-west-1:123:accesspoint/name/x",
    "sftp://user@host/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "https://host/x.jpg?width=3&page=2",
    "https://host/token/secret.jpg",
    "https://host/a:b@c",
    "memory://a:b@c",
]


@pytest.mark.parametrize("url", WITH_SECRET)
def test_urls_with_credentials_are_refused(url: str, tmp_path: Path) -> None:
    """In every option that takes a URL, in a list of images, and where a Python caller gives one."""
    assert has_credentials(url)
    assert SECRET not in without_credentials(f"cannot read {url}: {url}.")
    attempts: list[Any] = [
        *(lambda o=o: segment_config(**{o: url}, allow_http=True) for o in SEGMENT_URLS),
        *(lambda o=o: train_config(**{o: url}) for o in TRAIN_URLS),
        lambda: EvaluateConfig(out=url, annotations="x"),
        lambda: EvaluateConfig(out="x", annotations=url),
        lambda: StatusConfig(out=url),
        lambda: CleanConfig(out=url),
        lambda: raymask.open(url),
        lambda: raymask.Predictor(url),
        lambda: resolve(url),
        lambda: listed(tmp_path, ["a.jpg", url], allow_http=True),
    ]
    for attempt in attempts:
        with pytest.raises(RaymaskError, match="credentials in") as raised:
            attempt()
        assert SECRET not in str(raised.value)


def segment_config(**options: Any) -> SegmentConfig:
    return SegmentConfig(**{"source": "x", "out": "y", **options})


def train_config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"data": "x", "out": "y", **options})


SEGMENT_URLS = ("source", "out", "weights", "images")
TRAIN_URLS = ("data", "out", "images", "val", "val_images", "weights")


@pytest.mark.parametrize("url", WITHOUT_SECRET)
def test_names_that_only_look_like_credentials(url: str) -> None:
    assert not has_credentials(url)
    SegmentConfig(source=url, out="x", allow_http=True)


def listed(folder: Path, uris: list[str], **options: Any) -> list[str]:
    """What a CSV of these uris is listed as."""
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["uri"], *([uri] for uri in uris)])
    source = open_source(SegmentConfig(source=f"{folder}/list.csv", out="x", **options))
    return [uri for batch in source.batches for uri in batch.column("uri").to_pylist()]


def test_job_files_with_credentials_are_refused(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    for text in (f"secret: [{SECRET}", f"aws_secret_access_key: {SECRET}"):
        job.write_text(text)
        with pytest.raises(ConfigError) as raised:
            read_options("segment", job, ["out=x"])
        assert SECRET not in str(raised.value)
        with pytest.raises(ConfigError) as raised:
            read_options("segment", None, [text.replace(": ", "=", 1)])
        assert SECRET not in str(raised.value)
    job.write_text(f"source: s3://key:{SECRET}@bucket\nout: x\n")
    with pytest.raises(ConfigError, match="SOURCE has credentials in it") as raised:
        SegmentConfig(**read_options("segment", job, []))
    assert SECRET not in str(raised.value)


def test_errors_are_said_without_credentials_and_commands_of_the_terminal() -> None:
    error = OSError(f"cannot connect to http://me:{SECRET}@proxy:80 for /x?a=1&token={SECRET}&b=2\nnext")
    assert said(error) == "OSError: cannot connect to http://***@proxy:80 for /x?a=1&token=***&b=2 next"
    assert error_text(f"\x1b[31mred\x07 s3://k:{SECRET}@b\né😀") == "\\x1b[31mred\\x07 s3://***@b\né😀"


# --------------------------------------------------------------------------------------------------------- web servers

PRIVATE = [
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
    *("::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
    *("ff02::1", "2001:db8::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::1"])
def test_addresses_that_are_public(address: str) -> None:
    assert web.is_public(address)


@pytest.mark.parametrize("option", ["source", "weights", "images", "out"])
@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
def test_web_servers_are_off_unless_asked_for(option: str, scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://host/x"
    with pytest.raises(ConfigError, match="--allow-http"):
        segment_config(**{option: url})
    segment_config(**{option: url}, allow_http=True)
    with pytest.raises(ConfigError, match="only `raymask segment --allow-http` does"):
        listed(tmp_path, ["a.jpg", "http://host/b.jpg"])
    assert listed(tmp_path, ["http://host/b.jpg"], allow_http=True) == ["http://host/b.jpg"]
    with pytest.raises(ConfigError, match="web server"):
        train_config(data=url)
    with pytest.raises(ConfigError, match="web server"):
        StatusConfig(out=url)


@contextlib.contextmanager
def web_server(address: str) -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the paths that it is asked for; /to/URL redirects there, all else is `data`."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            _, to, target = self.path.partition("/to/")
            self.send_response(302 if to else 200)
            self.send_header(*(("Location", target) if to else ("Content-Length", "4")))
            self.end_headers()
            if not to and self.command == "GET":
                self.wfile.write(b"data")

        do_HEAD = do_GET  # noqa: N815 - a name of the standard library's

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{address}:{server.server_port}", asked
        finally:
            server.shutdown()


def outcome(url: str, size: int | None) -> bytes | ErrorKind:
    [result] = fetch([Place(url, size)], max_bytes=100)
    return result.kind if isinstance(result, Failure) else result.data


@pytest.mark.parametrize("size", [4, None])
def test_nothing_is_read_from_private_addresses(size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "ATTEMPTS", 1)
    with web_server("127.0.0.1") as (one, _), web_server("127.0.0.2") as (other, asked):
        port = other.rpartition(":")[2]
        for url in (other, f"http://localhost:{port}", f"http://[::1]:{port}", f"http://[::ffff:7f00:2]:{port}"):
            assert outcome(f"{url}/x", size) is ErrorKind.FORBIDDEN, url
        for url in (f"http://2130706434:{port}", f"http://0x7f000002:{port}", f"http://127.2:{port}"):
            assert isinstance(outcome(f"{url}/x", size), ErrorKind), url
        # The first server stands for a public one.
        monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
        assert outcome(f"{one}/x", size) == b"data"
        assert outcome(f"{one}/to/{one}/x", size) == b"data"
        for url in (other, f"{one}/to/{other}", f"{one}/to/{one}/to/{other}"):
            assert outcome(f"{url}/x", size) is ErrorKind.FORBIDDEN, url
        assert not asked


# -------------------------------------------------------------------------------------------------------------- cluster


@contextlib.contextmanager
def control_service(answers: bool) -> Iterator[str]:
    """The address of what speaks like Ray's control service, for all or for nobody."""

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
                if not answers:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Everything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("answers", [True, False])
def test_clusters_that_work_for_anybody_are_refused(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with control_service(answers) as address:
        context = type("Context", (), {"gcs_address": address})
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        cluster.check_not_open()  # which nobody else can reach
        monkeypatch.setattr(cluster, "is_loopback", lambda host: False)
        if answers:
            with pytest.raises(ConfigError, match=r"asks for no token.*RAY_AUTH_MODE=token.*--allow-open-cluster"):
                cluster.check_not_open()
        else:
            cluster.check_not_open()


@pytest.mark.usefixtures("ray_session")
def test_the_cluster_that_raymask_starts_asks_for_a_token() -> None:
    assert not cluster._answers_without_token(ray.get_runtime_context().gcs_address)
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        assert stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode) == 0o600


def test_the_token_file_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    cluster.keep_token_private()
    made = token.read_text()
    assert len(made) == 64 and int(made, 16)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    token.chmod(0o644)  # as Ray makes it
    cluster.keep_token_private()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text() == made
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    cluster.keep_token_private()
    assert not token.exists()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("[::1]", True), ("localhost", True), ("192.0.2.2", False), ("head.example", False)],
)
def test_what_other_machines_can_reach(host: str, loopback: bool) -> None:
    assert cluster.is_loopback(host) == loopback


# ----------------------------------------------------------------------------------------------------- keys are data

HOSTILE = ["<script>alert(1)</script>", "'; DROP TABLE images; --", '"&gt;\n<img src=x onerror=alert(1)>', "$\\frac{$"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_keys_in_a_csv(name: str, tmp_path: Path) -> None:
    """As a program that writes CSV quotes them."""
    for key in (f"s3://bucket/{name}", f"s3://bucket/../{name}", f"s3://bucket/%2f{'x' * 900}{name}"):
        assert listed(tmp_path, [key]) == [key]


class Page(html.parser.HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements += [tag, *(name for name, _ in attributes)]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_in_a_page() -> None:
    from raymask.evaluation import Evaluation
    from raymask.evaluation.report import SHOWN, report_html, report_text

    numbers = dict.fromkeys(SHOWN, 0.5)
    evaluation = Evaluation(
        out=HOSTILE[0],
        annotations=HOSTILE[2],
        images=1,
        objects=1,
        instances=1,
        max_detections=100,
        scores={"segm": numbers, "bbox": numbers},
        categories=[{"name": n, "objects": 1, "segm": numbers, "bbox": numbers} for n in HOSTILE],
        thresholds=[{"score": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "found": 1}],
        confusion={"score": 0.5, "categories": HOSTILE, "counts": [[0] * (len(HOSTILE) + 1)] * (len(HOSTILE) + 1)},
        curves={"segm": {"IoU 0.50": [1.0, 0.5]}, "bbox": {"IoU 0.50": [1.0, 0.5]}},
    )
    page = Page(report_html(evaluation))
    assert not {"script", "img", "onerror", "src"} & set(page.elements)
    for name in HOSTILE:
        assert harmless(name) in page.text
        assert name in report_text(evaluation)
