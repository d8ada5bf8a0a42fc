"""Runs in which one stage is slow on purpose, a forecast and the run it is of, with a model that costs nothing.

    python tests/slow_stages.py FOLDER PORT

FOLDER has `pictures` for the former and `more` for the latter. All in one Ray session, whose metrics are at PORT of
this machine. What is found of them is printed as JSON in the end.
`install` makes stages slow in Ray's workers: by as many seconds an image as the file SLOW_STAGE says.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymask.decode import decode

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SLOW_S = 0.1


def slowly(stage: str, images: int = 1) -> None:
    slow, _, seconds = Path(os.environ["SLOW_STAGE"]).read_text().partition(" ")
    if slow == stage:
        time.sleep(float(seconds) * images)


def install() -> None:
    """Put the model that costs nothing in place of `raymask.model`, and something slow before each stage."""
    sys.path.append(str(BENCHMARKS))
    import null_model

    null_model.install()
    from raymask import reading as reading_module
    from raymask import worker as worker_module

    reading: Any = reading_module
    worker: Any = worker_module
    predict, fetch = null_model.Predictor.__call__, reading.fetch
    part_table, write_part = worker.part_table, worker.write_part

    def slow_fetch(*args: Any, **options: Any) -> Iterator[Any]:
        for found in fetch(*args, **options):
            slowly("fetch")
            yield found

    def slow_predict(self: Any, images: Any) -> Any:
        slowly("predict", len(images))
        return predict(self, images)

    def slow_encode(decoded: Any, *args: Any) -> Any:
        slowly("encode", decoded.num_rows)
        return part_table(decoded, *args)

    def slow_write(folder: Any, rows: Any, attempt: int) -> Any:
        slowly("write", rows.num_rows)
        return write_part(folder, rows, attempt)

    null_model.Predictor.__call__ = slow_predict  # type: ignore[method-assign]
    reading.fetch, worker.part_table, worker.write_part = slow_fetch, slow_encode, slow_write


def slow_decode(data: memoryview, **options: Any) -> Any:
    """Called in the sandbox, which has no environment."""
    time.sleep(SLOW_S)
    return decode(data, **options)


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    os.environ["SLOW_STAGE"] = str(folder / "slow")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    install()
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": "slow_stages.install"},
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 500},
    )
    slow_run("none", folder)  # in which Ray begins its processes, which is what takes its time
    runs = {stage: slow_run(stage, folder) for stage in ("fetch", "decode", "predict", "encode", "write")}
    # At once: gauges that nobody sets any more are not told for long.
    metrics = scraped(port, runs["write"]["run_id"])
    print(json.dumps({"runs": runs, "metrics": metrics, "forecast": forecast(folder)}))


def slow_run(stage: str, folder: Path) -> dict[str, Any]:
    from raymask import pipeline as module
    from raymask.config import SegmentConfig
    from raymask.logs import LogReporter
    from raymask.stages import bottleneck, stage_table

    pipeline: Any = module
    (folder / "slow").write_text(f"{stage} {SLOW_S}")
    pipeline.DECODER = "slow_stages:slow_decode" if stage == "decode" else "raymask.decode:decode"
    log = io.StringIO()
    config = SegmentConfig(
        source=str(folder / "pictures"),
        out=str(folder / stage),
        images_per_part=4,
        profile=str(folder / f"{stage}.json"),
    )
    with LogReporter(log) as report:
        summary = pipeline.segment(config, report)
    return {
        "run_id": summary.run_id,
        "bottleneck": dataclasses.asdict(bottleneck(summary.times)),
        "times": dataclasses.asdict(summary.times),
        "table": stage_table(summary.times),
        "log": log.getvalue(),
        "profile": (folder / f"{stage}.json").read_text(),
    }


def forecast(folder: Path) -> dict[str, Any]:
    """What `raymask plan` says of a folder, and what the run takes that it is about."""
    import raymask

    (folder / "slow").write_text(f"predict {SLOW_S}")
    pictures = str(folder / "more")
    plan = raymask.plan(pictures, seconds=4.0, machines=1, price_per_hour=3600.0, quiet=True)
    summary = raymask.segment(pictures, out=str(folder / "planned"), quiet=True)
    return {"plan": plan.facts(), "elapsed_s": summary.elapsed_s}


def scraped(port: int, last_run: str) -> str:
    """What Prometheus would be told, once the last run is in it to its end."""
    deadline_s = time.monotonic() + 20
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        lines = [line for line in text.splitlines() if "raymask_" in line]
        of_run = [line for line in lines if last_run in line]
        is_at_its_end = any("pending_images" in line and line.endswith(" 0.0") for line in of_run)
        if is_at_its_end or time.monotonic() > deadline_s:
            return "\n".join(lines)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
