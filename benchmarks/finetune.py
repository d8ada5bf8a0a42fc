"""Fine-tuning on 61 photos of balloons from ImageNet weights of a MobileNetV2, two workers on two cores.

    python benchmarks/finetune.py [--epochs 26]

`raymask train` as a user would run it: how long it takes, mask AP on the 13 photos of `val` as it rises, and whether
the same command repeats the losses of its first 20 steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import print_table, save

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REPEATED_STEPS = 20


def command_of(out: Path, epochs: int) -> list[str]:
    data = SHARED / "balloon"
    options = {
        **{"data": data / "train_coco.json", "images": data / "train", "out": out},
        **{"val": data / "val_coco.json", "val-images": data / "val", "val-interval": 8},
        **{"model": "maskrcnn_mobilenet_v2_fpn", "weights": next((SHARED / "weights").glob("mobilenet_v2_*.pth"))},
        **{"image-mean": "0.5,0.5,0.5", "image-std": "0.5,0.5,0.5", "min-size": 384, "max-size": 576},
        **{"workers": 2, "batch-size": 2, "epochs": epochs, "checkpoint-images": 61 * 8, "seed": 1},
        **{"optimizer": "adamw", "lr": 4e-4, "clip": 5, "precision": "bf16"},
        **{"proposals": 300, "rpn-samples": 128, "box-samples": 64},
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "raymask.cli", "train", *flags, "--fixed-lr"]


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def first_losses(out: Path, epochs: int) -> list[float]:
    """Losses of the first steps of a run that is stopped after them."""
    process = subprocess.Popen(command_of(out, epochs), stderr=subprocess.DEVNULL)
    while len(records(out, "step")) < REPEATED_STEPS and process.poll() is None:
        time.sleep(1)
    process.terminate()
    process.wait()
    return [step["loss"] for step in records(out, "step")[:REPEATED_STEPS]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=26, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, again = Path(folder) / "model", Path(folder) / "again"
        start = time.perf_counter()
        subprocess.run(command_of(out, args.epochs), check=True)
        seconds = time.perf_counter() - start
        steps, validations = records(out, "step"), records(out, "validation")
        losses = [step["loss"] for step in steps[:REPEATED_STEPS]]
        difference = max(abs(a - b) for a, b in zip(losses, first_losses(again, args.epochs), strict=True))
    shown = ("images", "segm_AP", "segm_AP50", "bbox_AP", "bbox_AP50")
    curve = [{name: record[name] for name in shown} for record in validations]
    rate = (steps[-1]["images"] - steps[0]["images"]) / (steps[-1]["time"] - steps[0]["time"])
    waited = sum(step["waited_s"] for step in steps[1:]) / (steps[-1]["time"] - steps[0]["time"])
    save("finetune", curve, seconds=seconds, images_per_s=rate, waited=waited, repeated_losses_differ_by=difference)
    print(f"{seconds:.0f} s, {rate:.1f} images/s, {waited:.1%} of it waited for data")
    print(f"the first {REPEATED_STEPS} losses of a second run differ by {difference:.1e} at the most")
    lines = [[row["images"], *(f"{row[name]:.3f}" for name in shown[1:])] for row in curve]
    print_table(["images seen", "mask AP", "AP50", "box AP", "AP50"], lines)


if __name__ == "__main__":
    main()
