"""What `segment --log-json` and `plan` print, of runs that do not run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymask import pipeline
from raymask.cli import main
from raymask.cli.plan import forecast_text
from raymask.errors import OutputError
from raymask.forecast.forecast import Forecast, _call_s
from raymask.listing import Found
from raymask.stages import Room, Times

TIMES = Times(
    room=Room(cpus=2, gpus=0, calls=2, readers=2),
    phases={"start": 5.0, "segment": 100.0},
    seconds={"compute": 190.0},
    images=100,
)
FORECAST = Forecast(
    source=Found("folder", 10_000_000, 0, 0, 1_500_000_000_000, {}),
    model="maskrcnn_resnet50_fpn",
    sampled=100,
    sampled_failed=1,
    measured_machines=1,
    images_per_s=2.0,
    images_per_s_range=(1.6, 2.5),
    machines=4,
    seconds=1_250_000.0,
    seconds_range=(1_000_000.0, 1_562_500.0),
    price_per_hour=1.2,
    times=TIMES,
)


@pytest.mark.parametrize("error", [OutputError("cannot read s3://key:secret@bucket/a"), KeyboardInterrupt()])
def test_a_log_in_json_ends_with_what_went_wrong_and_nothing_else(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Any, report: Any) -> None:
        report.say("begins")
        raise error

    monkeypatch.setattr(pipeline, "segment", run)
    code = main(["segment", "photos", "--out", "masks", "--log-json"])
    shown = capsys.readouterr()
    begins, ends = map(json.loads, shown.err.splitlines())
    assert (begins["message"], begins["level"], ends["level"]) == ("begins", "info", "error")
    assert begins["run_id"] == ends["run_id"]
    assert ends["message"] == (
        "cannot read s3://***@bucket/a" if code == 1 else "interrupted; the same command goes on from what is done"
    )
    assert (code, shown.out) == (1 if isinstance(error, OutputError) else 130, "")


def test_a_wrong_option_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "photos", "--out", "masks", "--log-json", "--nms", "2"]) == 1
    assert capsys.readouterr().err == "raymask: --nms is 2.0; it lies between 0 and 1\n"


def test_a_plan_says_hours_and_money() -> None:
    assert forecast_text("photos/", FORECAST).splitlines() == [
        "source   photos/ (folder): 10,000,000 images, 1,500,000.0 MB",
        "model    maskrcnn_resnet50_fpn",
        "measured 100 images on 1 machine like this, 1 failed: 2.0 images/s (1.6 to 2.5)",
        "         predict-bound: 1.9 of 2 cores predict; add cores, machines or a GPU",
        "takes    347.2 hours (277.8 hours to 434.0 hours) on 4 machines like this",
        "costs    1,666.67 (1,333.33 to 2,083.33) at 1.20 a machine and hour",
    ]
    facts = json.loads(json.dumps(FORECAST.facts()))
    assert (facts["source"]["new"], facts["cost"]) == (10_000_000, pytest.approx(1666.67, abs=0.01))


def test_the_spread_of_calls_is_that_of_their_mean() -> None:
    # Seconds an image: 1 in half of the calls, 3 in the others, whatever their size.
    calls = [(size, 0, size * (1.0 if number % 2 else 3.0)) for number, size in enumerate([8] * 100)]
    mean_s, error_s = _call_s(calls)
    assert mean_s == 2.0
    assert error_s == pytest.approx(1.0 / 99**0.5)
    assert _call_s([(4, 0, 8.0)]) == (2.0, 2.0)
