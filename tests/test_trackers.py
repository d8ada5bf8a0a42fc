"""Trackers get the numbers of every record, and go on with one run when training does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from raymask.errors import ConfigError
from raymask.storage import Folder
from raymask.training.history import History, scalars
from raymask.training.trackers import open_trackers

RECORDS: list[dict[str, Any]] = [
    {"kind": "start", "images": 0, "workers": 1, "step_images": 4, "recent": []},
    {"kind": "step", "images": 4, "step": 1, "loss": 2.0, "loss_mask": 0.5, "lr": 0.1, "replaced": []},
    {"kind": "step", "images": 8, "step": 2, "loss": 1.5, "loss_mask": 0.4, "lr": 0.1, "replaced": []},
    {"kind": "validation", "images": 4, "segm_AP": 0.25},
]


def track(name: str, tmp_path: Path, options: Mapping[str, Any] | None = None) -> None:
    kept = Folder(str(tmp_path / "kept"))
    with open_trackers([name], "out", kept, options or {"lr": 0.1, "val": None}) as trackers:
        history = History(Folder(str(tmp_path / "log")), trackers)
        for record in RECORDS:
            history.add(dict(record))


def test_scalars_are_numbers_with_their_group() -> None:
    assert scalars(RECORDS[1]) == {"training/loss": 2.0, "training/loss_mask": 0.5, "training/lr": 0.1}
    assert scalars(RECORDS[3]) == {"validation/segm_AP": 0.25}
    assert scalars(RECORDS[0]) == {}


def test_what_is_not_known_or_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--track comet is not known; known are: mlflow, wandb"):
        track("comet", tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'raymask\[mlflow\]'"):
        track("mlflow", tmp_path)


def test_an_import_that_fails_in_training_is_no_missing_tracker(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="elsewhere"), open_trackers([], "out", Folder(str(tmp_path)), {}):
        raise ImportError("elsewhere")


# ------------------------------------------------------------------------------------------------ clients that record


class Client(ModuleType):
    """Stands for `mlflow` and `wandb`: notes what it is asked for, as those would be asked for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def start_run(self, run_id: str | None, run_name: str | None) -> Iterator[SimpleNamespace]:
        self.calls.append(("start_run", run_id, run_name))
        try:
            yield SimpleNamespace(info=SimpleNamespace(run_id=run_id or "run-1"))
        except BaseException:
            self.calls.append(("FAILED",))
            raise
        self.calls.append(("FINISHED",))

    def init(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("init", options))
        return SimpleNamespace(
            log=lambda values: self.calls.append(("log", values)),
            define_metric=lambda name, step_metric: self.calls.append(("define_metric", name, step_metric)),
            finish=lambda: self.calls.append(("FINISHED",)),
        )

    def log_params(self, values: Mapping[str, Any]) -> None:
        self.calls.append(("log_params", values))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append(("log_metrics", values, step))

    def asked(self, name: str) -> list[Any]:
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture(params=["mlflow", "wandb"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client(request.param)
    monkeypatch.setitem(sys.modules, request.param, client)
    return client


def test_every_record_is_sent_at_its_image(client: Client, tmp_path: Path) -> None:
    track(client.__name__, tmp_path)
    if client.__name__ == "mlflow":
        sent = [(step, values) for values, step in client.asked("log_metrics") if values]
    else:
        assert client.asked("define_metric") == [("*", "images")]
        sent = [(values.pop("images"), values) for [values] in client.asked("log") if len(values) > 1]
    assert sent == [(r["images"], scalars(r)) for r in RECORDS if scalars(r)]
    assert [step for step, _ in sent] == [4, 8, 4]  # what validation says comes late
    assert client.calls[-1] == ("FINISHED",)


def test_a_training_that_goes_on_goes_on_with_its_run(client: Client, tmp_path: Path) -> None:
    track(client.__name__, tmp_path)
    track(client.__name__, tmp_path)
    if client.__name__ == "mlflow":
        assert client.asked("start_run") == [(None, "out"), ("run-1", None)]
        assert client.asked("log_params") == [({"lr": 0.1},)]
    else:
        [[first], [second]] = client.asked("init")
        assert first == second
        assert first["id"] == (tmp_path / "kept" / "wandb.txt").read_text()
        assert (first["resume"], first["name"], first["config"]) == ("allow", "out", {"lr": 0.1, "val": None})


def test_a_training_that_fails_ends_its_run(client: Client, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_trackers([client.__name__], "out", Folder(str(tmp_path)), {}):
        raise KeyboardInterrupt
    assert client.calls[-1] == (("FAILED",) if client.__name__ == "mlflow" else ("FINISHED",))


# ---------------------------------------------------------------------------------------------- the clients themselves


@pytest.mark.filterwarnings("default")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    track("mlflow", tmp_path)
    track("mlflow", tmp_path)
    client = mlflow.MlflowClient((tmp_path / "runs").as_uri())
    [run] = client.search_runs(["0"])
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics["validation/segm_AP"] == 0.25
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "training/loss")][:2] == [
        (4, 2.0),
        (8, 1.5),
    ]


@pytest.mark.filterwarnings("default")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    track("wandb", tmp_path)
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert file.name == f"run-{(tmp_path / 'kept' / 'wandb.txt').read_text()}.wandb"
    assert file.stat().st_size > 0
