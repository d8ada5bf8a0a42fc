"""Trackers get the numbers of every record, and go on with one run when training does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'raymask\[mlflow\]'"):
        track("mlflow", tmp_path)


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
