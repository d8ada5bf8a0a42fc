"""Job files: equal to the config classes, read as they are meant, and run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import draw_folder

from raymask.cli import COMMANDS
from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.jobs import job_file, read_options

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "jobs"


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("segment", ["source", "out"]),
        ("train", ["data", "out"]),
        ("evaluate", ["out", "annotations"]),
        ("publish", ["out"]),
    ],
)
def test_the_job_file_is_what_the_config_class_says(command: str, needed: list[str]) -> None:
    text = (JOBS / f"{command}.yaml").read_text()
    assert text == job_file(command), 'write it anew: python -c "from raymask.jobs import job_file; ..."'
    config_class, _ = COMMANDS[command]
    defaults = {
        f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(config_class)
    }
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in yaml.safe_load(text).items()} == defaults
    options = read_options(command, JOBS / f"{command}.yaml", [f"{name}=a" for name in needed])
    assert config_class(**options) == config_class(**dict.fromkeys(needed, "a"))
    assert f'run_job("{command}"' in (JOBS / f"{command}.py").read_text()


def test_lists_of_numbers_are_numbers() -> None:
    options = read_options("train", None, ["data=a", "out=b", "milestones=[0.5, 0.9]", "image_mean=0.5,0.5,0.4"])
    assert (options["milestones"], options["image_mean"]) == ((0.5, 0.9), (0.5, 0.5, 0.4))
    with pytest.raises(ConfigError, match="milestones is 'soon'"):
        read_options("train", None, ["data=a", "out=b", "milestones=soon"])


def test_settings_go_over_the_file() -> None:
    options = read_options("segment", JOBS / "segment.yaml", ["source=a", "out=b", "min_score=0.5", "workers=2:4"])
    config = SegmentConfig(**options)
    assert (config.source, config.min_score, config.worker_range()) == ("a", 0.5, (2, 4))
    assert config == SegmentConfig(source="a", out="b", min_score=0.5, workers="2:4")


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("- a\n", [], "holds a list; a mapping"),
        ("a: [", [], "cannot read"),
        ("colour: red\n", ["source=a", "out=b"], "segment has no option colour; it has: source, out"),
        ("source: a\n", [], "segment needs out"),
        ("", ["source"], "'source' is not KEY=VALUE"),
        ("", ["source=["], "is not YAML"),
        ("max_pixels: many\n", ["source=a", "out=b"], "max_pixels is 'many'; a number is meant"),
        ("retry_failed: 1\n", ["source=a", "out=b"], "retry_failed is '1'; true or false is meant"),
        ("source: [a]\n", ["out=b"], "one text is meant"),
    ],
)
def test_wrong_job_files_are_refused(text: str, settings: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_options("segment", tmp_path / "job.yaml", settings)


def test_the_job_script_runs(model_folder: str, tmp_path: Path) -> None:
    source = draw_folder(tmp_path / "in", 2)
    settings = [f"source={source}", f"out={tmp_path / 'out'}", f"weights={model_folder}"]
    command = [sys.executable, str(JOBS / "segment.py"), "--config", str(JOBS / "segment.yaml")]
    for setting in settings:
        command += ["--set", setting]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert outcome.returncode == 0, outcome.stderr
    assert "2 images: 2 ok" in outcome.stdout
