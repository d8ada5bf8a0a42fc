"""`raymask evaluate`: what it prints, and the files it writes."""

from __future__ import annotations

import json

from raymask.cli.codes import DONE
from raymask.config import EvaluateConfig


def evaluate(config: EvaluateConfig) -> int:
    from raymask.evaluation import evaluate_fully
    from raymask.evaluation.report import report_html, report_text
    from raymask.storage import write_file

    evaluation = evaluate_fully(config)
    if config.json is not None:
        write_file(config.json, (json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
    if config.html is not None:
        write_file(config.html, report_html(evaluation).encode())
    if not config.quiet:
        print(report_text(evaluation))
    return DONE
