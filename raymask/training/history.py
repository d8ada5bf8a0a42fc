"""What training has done so far: JSON Lines, TensorBoard files and a picture of the curves, beside the model.

A run that goes on from a checkpoint forgets what an earlier one did after it, so that every image is counted once.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from raymask.storage import Folder
from raymask.training.validation import SCORE

LOG_FILE, CURVES_FILE, TENSORBOARD_FOLDER = "log.jsonl", "curves.png", "tensorboard"
SAVE_EVERY_S = 30.0

Record = dict[str, Any]
"""`kind` is "start", "step", "checkpoint" or "validation"; `images` says after how many images."""

Tracker = Callable[[Record], None]


class History:
    """The records of a training, by images seen; kept in a folder on any storage."""

    def __init__(self, folder: Folder, trackers: Sequence[Tracker] = ()) -> None:
        self._folder = folder
        self._trackers = trackers
        text = (folder.read_or_none(LOG_FILE) or b"").decode()
        self.records: list[Record] = [json.loads(line) for line in text.splitlines()]
        self._saved_s = time.monotonic()

    def add(self, record: Record) -> None:
        """Take up one record, as workers send it.

        "start" forgets what lies beyond it, and brings the steps before its checkpoint, should they be missing here.
        """
        record = {"time": time.time(), **record}
        if record["kind"] == "start":
            known = {r["images"] for r in self.steps()}
            missing = [r for r in record.pop("recent", []) if r["images"] not in known]
            kept = [r for r in self.records if r["images"] <= record["images"]]
            self.records = sorted([*kept, *missing], key=lambda r: int(r["images"]))
        if record["kind"] == "validation":
            self.records = [r for r in self.records if (r["kind"], r["images"]) != ("validation", record["images"])]
        self.records.append(record)
        for track in self._trackers:
            track(record)
        if record["kind"] == "checkpoint" or time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self.save()

    def steps(self) -> list[Record]:
        return [r for r in self.records if r["kind"] == "step"]

    def validations(self) -> list[Record]:
        return sorted((r for r in self.records if r["kind"] == "validation"), key=lambda r: int(r["images"]))

    def save(self) -> None:
        self._folder.put(LOG_FILE, "".join(json.dumps(r) + "\n" for r in self.records).encode())
        self._saved_s = time.monotonic()

    def save_all(self, rows: int) -> None:
        """The log, the curves and the TensorBoard files; rows: images of an epoch."""
        self.save()
        if self.steps():
            self._folder.put(CURVES_FILE, draw_curves(self.steps(), self.validations(), rows))
            save_tensorboard(self._folder.sub(TENSORBOARD_FOLDER), self.records)


def save_tensorboard(folder: Folder, records: Iterable[Record]) -> None:
    """One event file of all records; x is the number of images seen."""
    from torch.utils.tensorboard import SummaryWriter

    place = tempfile.mkdtemp()
    try:
        with SummaryWriter(place) as writer:
            for record in records:
                for name, value in scalars(record).items():
                    writer.add_scalar(name, value, record["images"], record["time"])
        [file] = Path(place).iterdir()
        folder.put("events.out.tfevents.raymask", file.read_bytes())
    finally:
        shutil.rmtree(place)


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record by the names that trackers show: `training/loss_mask`, `validation/segm_AP`."""
    if record["kind"] not in ("step", "validation"):
        return {}
    group = "training" if record["kind"] == "step" else "validation"
    left_out = ("images", "time", "step")
    return {f"{group}/{k}": v for k, v in record.items() if isinstance(v, int | float) and k not in left_out}


def draw_curves(steps: Sequence[Record], validations: Sequence[Record], rows: int) -> bytes:
    """Losses above, validation below if there was any, over epochs; a PNG file. rows: images of an epoch."""
    from matplotlib.figure import Figure  # takes half a second, and only the driver draws

    figure = Figure(figsize=(9, 7), layout="constrained")
    losses, *below = figure.subplots(2 if validations else 1, 1, sharex=True, squeeze=False)[:, 0]
    epochs = [r["images"] / rows for r in steps]
    names = [name for name in steps[0] if name.startswith("loss_")]
    losses.plot(epochs, smoothed([r["loss"] for r in steps]), color="black", label="all")
    for name in names:
        losses.plot(epochs, smoothed([r[name] for r in steps]), label=name.removeprefix("loss_"), linewidth=1)
    losses.set_ylabel("loss, smoothed")
    losses.set_yscale("log")
    figure.legend(loc="outside upper center", ncols=len(names) + 1)
    for scores in below:
        for name, style in ((SCORE, "-o"), ("segm_AP50", "--o"), ("bbox_AP", "-s"), ("bbox_AP50", "--s")):
            scores.plot([r["images"] / rows for r in validations], [r[name] for r in validations], style, label=name)
        scores.set_ylabel("validation")
        scores.set_ylim(0, 1)
        scores.legend()
    figure.supxlabel("epoch")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()


def smoothed(values: Sequence[float]) -> list[float]:
    """A moving average over the last twentieth of what there is in all."""
    weight = min(1.0, 20 / max(1, len(values)))
    smooth, kept = [], values[0] if values else 0.0
    for value in values:
        kept += weight * (value - kept)
        smooth.append(kept)
    return smooth
