"""`raymask train`: what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymask.cli.codes import DONE
from raymask.training.config import TrainConfig

if TYPE_CHECKING:  # Ray and torch take seconds to import; --help should not
    from raymask.training.trainer import TrainSummary


def train(config: TrainConfig) -> int:
    from raymask.console import reporter
    from raymask.training.trainer import train as run

    with reporter(config.quiet) as report:
        summary = run(config, report)
    if not config.quiet:
        print(training_text(summary))
    return DONE


def training_text(summary: TrainSummary) -> str:
    """What came out, where it lies, and what to type next."""
    from raymask.progress import duration_text
    from raymask.training.trainer import SHOWN_SCORES

    out = summary.out.rstrip("/")
    scores = [f"{name} {summary.metrics[key]:.3f}" for name, key in SHOWN_SCORES if key in summary.metrics]
    lines = [
        f"{summary.images_seen:,} images seen in {duration_text(summary.elapsed_s)}, last loss {summary.loss:.3f}",
        *([f"scores   {', '.join(scores)}"] if scores else []),
        f"model    {out}" + (f", the last one {summary.last}" if summary.last else ""),
        f"curves   {out}/curves.png, {out}/log.jsonl, tensorboard --logdir {out}/tensorboard",
        f"next     raymask segment IMAGES --out MASKS --weights {out}",
    ]
    return "\n".join(lines)
