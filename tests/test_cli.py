"""The program as a person meets it: what it prints, what its errors say, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import draw_folder
from nodes import wait_for

from raymask.cli import main

Outcome = subprocess.CompletedProcess[str]


def raymask(*arguments: str, **environment: str) -> Outcome:
    command = [sys.executable, "-m", "raymask.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def segmented(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, Path]:
    """A run of nine pictures, two of them broken: how it ended, its source and its output."""
    source = draw_folder(tmp_path_factory.mktemp("in"), 7, broken=2)
    (source / "notes.txt").write_text("not an image")
    out = tmp_path_factory.mktemp("out") / 'it\'s $HOME "out"'
    return raymask("segment", str(source), "--out", str(out), "--weights", model_folder, "--report"), source, out


def test_a_run_says_what_it_found_and_how_it_ended(segmented: tuple[Outcome, Path, Path]) -> None:
    outcome, source, out = segmented
    assert outcome.returncode == 0
    assert f"{source} (folder): 9 images" in outcome.stderr
    assert "1 other files left out (1 .txt)" in outcome.stderr
    assert "9 images: 7 ok with 35 instances, 2 failed" in outcome.stdout
    assert "2 not_an_image" in outcome.stdout
    assert f"{out}/instances/*.parquet" in outcome.stdout
    assert f"report   {out}/report.html" in outcome.stdout
    assert "<b>35</b>" in (out / "report.html").read_text()
    assert "--retry-failed" in outcome.stdout
    # Nothing of Ray's is between our lines.
    for line in outcome.stderr.splitlines():
        assert re.match(rf"{source}|\d+ of \d+ images, ", line), line


def test_the_commands_that_it_says_come_next_work(segmented: tuple[Outcome, Path, Path]) -> None:
    outcome, _, _ = segmented
    [query] = re.findall(r"next +raymask (query .*)", outcome.stdout)
    [python] = re.findall(r" python (-c .*)", outcome.stdout)

    def shown(command: str) -> str:
        command = f"{sys.executable} {command}"
        return subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=60).stdout

    table = shown(f"-m raymask.cli {query}")
    assert sum(int(row.split("│")[2]) for row in table.splitlines() if row.startswith(("│ cat", "│ dog"))) == 35
    assert "[35 rows x 12 columns]" in shown(python)


def test_status_and_clean(segmented: tuple[Outcome, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, _, out = segmented
    assert main(["status", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "images   9 listed, 9 done (100.0%), 0 to do" in shown
    assert "7 ok, 2 failed" in shown
    assert "published: 9 images, 35 instances" in shown
    assert main(["status", str(out), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["images"], state["pending"], state["published"], state["writer"]) == (9, 0, True, None)
    (out / "images" / ".tmp-123").write_bytes(b"half")
    assert main(["clean", str(out), "--dry-run"]) == 0
    assert "1 files, 0.0 MB would be deleted" in capsys.readouterr().out
    assert main(["clean", str(out)]) == 0
    assert not (out / "images" / ".tmp-123").exists()


@pytest.mark.usefixtures("ray_session")
def test_too_many_failed_images_give_exit_code_2(
    segmented: tuple[Outcome, Path, Path], model_folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, source, out = segmented
    command = ["segment", str(source), "--out", str(out), "--weights", model_folder]
    assert main([*command, "--max-failed", "2"]) == 0
    capfd.readouterr()
    assert main([*command, "--max-failed", "1", "--quiet"]) == 2
    shown = capfd.readouterr()
    assert shown.err == "raymask: 2 images failed, --max-failed is 1\n"
    assert shown.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment"], "the following arguments are required: SOURCE, --out"),
        (["segment", "x", "--out", "y", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["segment", "x", "--out", "y", "--nms", "2"], "--nms is 2.0; it lies between 0 and 1"),
        (["segment", "x", "--out", "y", "--workers", "4:2"], "--workers is '4:2'; 1 <= MIN <= MAX is meant"),
        (["segment", "x", "--out", "y", "--model", "yolo"], "unknown model 'yolo'; known are: maskrcnn_"),
        (["segment", "x", "--out", "y", "--weights", "no/such"], "weights 'no/such' do not exist"),
        (["segment", "x", "--out", "y", "--weights", "IMAGENET1K_V1"], "torchvision has no weights 'IMAGENET1K_V1'"),
        (
            ["segment", "x", "--out", "y", "--model", "maskrcnn_resnet18_fpn"],
            "no trained weights for maskrcnn_resnet18",
        ),
        (["status", "nowhere"], "'nowhere' holds no output of raymask"),
        (["clean", "nowhere"], "'nowhere' holds no output of raymask"),
        (["polish"], "invalid choice: 'polish'"),
    ],
)
def test_errors_are_a_line_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit:  # argparse leaves this way
        code = int(exit.code or 0)
    assert code == 1
    shown = capsys.readouterr().err
    assert message in shown.replace("\n", " ")
    assert "Traceback" not in shown


@pytest.mark.usefixtures("ray_session")
def test_a_source_that_is_not_there(model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "no/such/folder", "--out", str(tmp_path / "out"), "--weights", model_folder]) == 1
    shown = capsys.readouterr().err
    assert "source 'no/such/folder' does not exist" in shown
    assert "Traceback" not in shown


@pytest.mark.usefixtures("ray_session")
def test_dry_run(model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = draw_folder(tmp_path / "in", 3)
    assert main(["segment", str(source), "--out", str(tmp_path / "out"), "--weights", model_folder, "--dry-run"]) == 0
    assert "to do    3 images; nothing has been written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_session")
def test_interrupted_it_says_how_to_go_on(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = draw_folder(tmp_path / "in", 400), tmp_path / "out"
    options = ["--out", str(out), "--weights", model_folder, "--images-per-part", "8"]
    command = [sys.executable, "-m", "raymask.cli", "segment", str(source), *options]
    parts = out / "_raymask" / "parts"

    def done() -> int:
        return len(list(parts.glob("0*.parquet")))

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        before = done()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(partial(lambda before: done() > before, before), process)
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert f"What is done is kept in {out}; the same command goes on from there." in errors
        assert "Traceback" not in errors
        assert not (out / "_raymask" / "lease.json").exists()
    assert main(["segment", str(source), *options]) == 0
    shown = capsys.readouterr()
    assert "resuming: " in shown.err
    assert "400 images: 400 ok" in shown.out


def test_version_and_help_name_every_command() -> None:
    assert raymask("--version").stdout.startswith("raymask 0.")
    shown = raymask("--help").stdout
    for name in ("segment", "status", "clean", "query", "shell"):
        assert name in shown
