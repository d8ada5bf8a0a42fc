"""What a run says of itself is right: where its time went, metrics, timelines, logs, and what a run will take."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_folder
from slow_stages import SLOW_S

from raymask.metrics import COUNTERS, GAUGES
from raymask.stages import READING, STAGES, WORKER

HERE = Path(__file__).parent
PICTURES, MORE = 47, 240
STAGE_WORDS = ("fetch", "decode", "predict", "encode", "write")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `slow_stages.py` prints."""
    folder = tmp_path_factory.mktemp("inside")
    draw_folder(folder / "pictures", PICTURES, broken=1)
    draw_folder(folder / "more", MORE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "slow_stages.py"), str(folder), str(port)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ})
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    result: dict[str, Any] = json.loads(outcome.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("slow", STAGE_WORDS)
def test_a_stage_that_is_slow_on_purpose_is_named(found: dict[str, Any], slow: str) -> None:
    run = found["runs"][slow]
    named = re.findall(r"(\w+(?:-\w+)?)-bound", run["bottleneck"]["text"])
    assert named == [slow], (run["bottleneck"]["text"], run["table"])
    seconds = run["times"]["seconds"]
    # 48 images, or 47 that can be decoded, at 100 ms each; of other stages none takes nearly as long.
    assert SLOW_S * PICTURES <= seconds[slow] < SLOW_S * (PICTURES + 1) * 2
    assert set(seconds) <= set(STAGES)
    assert slow in run["table"]


def test_seconds_and_bytes_are_those_of_the_images(found: dict[str, Any]) -> None:
    for run in found["runs"].values():
        times = run["times"]
        assert times["images"] == PICTURES + 1
        assert times["bytes"] > 1000 * PICTURES
        # No process is at two stages at once, so all of them fit into the time of the run.
        room, seconds = times["room"], times["seconds"]
        # Until workers take their share of the two cores there are eight tasks at once.
        assert sum(seconds.get(name, 0) for name in READING) < 8 * times["reading_s"] + 0.1
        working_s = sum(seconds.get(name, 0) for name in WORKER) + times["wait_s"]
        assert working_s < room["calls"] * times["phases"]["segment"] + 0.1


def test_metrics_are_at_the_endpoint_for_prometheus(found: dict[str, Any]) -> None:
    samples = dict(parsed(line) for line in found["metrics"].splitlines() if not line.startswith("#"))
    run_id = found["runs"]["write"]["run_id"]

    def value(name: str, **labels: str) -> float:
        wanted = {"run_id": run_id, **labels}
        [only] = [v for (n, of), v in samples.items() if n == name and wanted.items() <= dict(of).items()]
        return only

    assert value("ray_raymask_images_total", status="ok") == PICTURES
    assert value("ray_raymask_images_total", status="failed") == 1
    assert value("ray_raymask_bytes_total") == found["runs"]["write"]["times"]["bytes"]
    for stage, seconds in found["runs"]["write"]["times"]["seconds"].items():
        assert value("ray_raymask_stage_seconds_total", stage=stage) == pytest.approx(seconds)
    for name in GAUGES:
        assert value(f"ray_{name}") >= 0
    assert value("ray_raymask_pending_images") == 0


def parsed(line: str) -> tuple[tuple[str, frozenset[tuple[str, str]]], float]:
    """A line of Prometheus' text format: (name, labels), value."""
    match = re.fullmatch(r"([a-zA-Z_:][\w:]*)\{(.*)\} (\S+)", line)
    assert match is not None, line
    return (match[1], frozenset(re.findall(r'(\w+)="([^"]*)"', match[2]))), float(match[3])


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((HERE.parent / "grafana" / "raymask.json").read_text())
    assert dashboard["uid"] == "raymask"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    exported = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}
    used: set[str] = set()
    for panel in dashboard["panels"]:
        assert {"title", "type", "gridPos", "datasource", "targets"} <= set(panel)
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel["targets"]:
            names = set(re.findall(r"ray_\w+", target["expr"]))
            assert names and names <= exported, target["expr"]
            assert 'run_id=~"$run"' in target["expr"]
            used |= names
    assert used == exported
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert set(variables) == {"datasource", "run"}
    assert "ray_raymask_images_total" in variables["run"]["query"]["query"]


def test_the_timeline_is_in_the_trace_event_format(found: dict[str, Any]) -> None:
    for slow in STAGE_WORDS:
        run = found["runs"][slow]
        trace = json.loads(run["profile"])
        assert trace["otherData"]["run_id"] == run["run_id"]
        events = trace["traceEvents"]
        names = {(e["pid"], e["args"]["name"]) for e in events if e["ph"] == "M" and e["name"] == "process_name"}
        spans = [e for e in events if e["ph"] == "X"]
        assert len(names) + sum(e["name"] == "thread_name" for e in events) + len(spans) == len(events)
        assert {span["pid"] for span in spans} == {pid for pid, _ in names}
        assert {name.split()[0] for _, name in names} == {"driver", "read", "model"}
        rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for span in spans:
            assert span["dur"] > 0 and span["ts"] >= 0 and isinstance(span["tid"], int)
            rows.setdefault((span["pid"], span["tid"]), []).append((span["ts"], span["ts"] + span["dur"]))
        for row in rows.values():
            # Of one thread none begins before the one before it ends, but for what rounding does.
            assert all(end <= start + 1 for (_, end), (start, _) in zip(sorted(row), sorted(row)[1:], strict=False))
        shown_s = sum(span["dur"] for span in spans if span["name"] == slow and span["pid"] != 1) / 1e6
        assert shown_s == pytest.approx(run["times"]["seconds"][slow], rel=0.05, abs=0.05)


def test_logs_are_json_lines_with_the_id_of_the_run(found: dict[str, Any]) -> None:
    for run in found["runs"].values():
        lines = [json.loads(line) for line in run["log"].splitlines()]
        assert {line["run_id"] for line in lines} == {run["run_id"]}
        assert all({"time", "level", "message"} <= set(line) for line in lines)
        assert "48 images" in lines[0]["message"]
        assert (lines[-1]["message"], lines[-1]["images"], lines[-1]["failed"]) == ("done", PICTURES + 1, 1)
        assert lines[-1]["bottleneck"] == run["bottleneck"]["text"]
    assert len({run["run_id"] for run in found["runs"].values()}) == len(found["runs"])


def test_a_forecast_comes_true(found: dict[str, Any]) -> None:
    plan, elapsed_s = found["forecast"]["plan"], found["forecast"]["elapsed_s"]
    assert (plan["source"]["new"], plan["model"]) == (MORE, "null")
    assert plan["sampled"] < MORE
    assert plan["seconds"] == pytest.approx(elapsed_s, rel=0.25), plan
    assert plan["cost"] == pytest.approx(plan["seconds"])
    low, high = plan["seconds_range"]
    assert low <= plan["seconds"] <= high
    assert plan["bottleneck"].startswith(("predict-bound", "short run"))
