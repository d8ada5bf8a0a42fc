"""Validation beside training: a checkpoint goes through the same segment pipeline and evaluation as any output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray.train

from raymask.config import SegmentConfig
from raymask.evaluation import evaluate
from raymask.pipeline import segment
from raymask.pools import Pool
from raymask.storage import Folder, join, resolve
from raymask.training.config import TrainConfig
from raymask.training.storage import RUNS_FOLDER, Storage, images_of, name_of

SCORE = "segm_AP"  # by which the best checkpoint is chosen


@dataclass(frozen=True)
class Validate:
    """Ray Train calls this in a task of its own for every checkpoint that ends an epoch; training does not wait.

    pool: the workers that segment, in the room that training leaves; records: takes what is logged.
    """

    config: TrainConfig
    pool: Pool
    records: Any

    def __call__(self, checkpoint: ray.train.Checkpoint, **_: Any) -> dict[str, float]:
        """COCO's numbers of the checkpoint on --val: `segm_AP`, `bbox_AP50`, ..."""
        config = self.config
        assert config.val is not None
        name = name_of(checkpoint)
        out = join(join(config.out, RUNS_FOLDER), f"validation/{name}")
        options = SegmentConfig(
            source=config.val,
            out=out,
            weights=join(Storage(config.out).url, name),
            images=config.val_images or config.images,
            precision=config.precision,
        )
        segment(options, pool=self.pool)
        scores = evaluate(out, config.val)
        _remove(out)
        metrics = {f"{kind}_{metric}": value for kind, values in scores.items() for metric, value in values.items()}
        self.records.add.remote({"kind": "validation", "images": images_of(checkpoint), **metrics})
        return metrics


def _remove(out: str) -> None:
    fs, path = resolve(Folder(out).url)
    fs.rm(path, recursive=True)
