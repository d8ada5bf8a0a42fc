"""`python -m raymask.demo`: from nothing to tables of masks, in five minutes on two CPU cores and without network."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from raymask.demo.drawing import SIDE, write_data_set
from raymask.demo.pictures import save_pictures
from raymask.errors import ConfigError, RaymaskError
from raymask.output import Masks
from raymask.progress import duration_text
from raymask.reporting.config import REPORT_FILE

TRAIN_IMAGES, HELD_OUT_IMAGES, PICTURES = 360, 60, 9
PARTS = ("data", "model", "masks", "pictures")
MOST_BOXES = 200  # that the network looks at in a picture; its defaults are meant for photos of 800 pixels
QUERIES = (
    "SELECT category, count(*) AS objects, round(avg(area)) AS mean_area, round(avg(score), 2) AS mean_score "
    "FROM instances WHERE score > 0.5 GROUP BY 1 ORDER BY 2 DESC",
    "SELECT status, error, count(*) AS images FROM images GROUP BY 1, 2 ORDER BY 3 DESC",
)
MARK = ".raymask-demo"  # says that a folder is the demo's, and may be made anew


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m raymask.demo", description=__doc__)
    parser.add_argument(
        "--dir", type=Path, default=Path("demo-output"), help="where everything goes; default: %(default)s"
    )
    parser.add_argument("--epochs", type=int, default=8, help="times that training sees an image; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of data and training; default: %(default)s")
    options = parser.parse_args()
    try:
        run(options.dir, options.epochs, options.seed)
    except RaymaskError as error:
        print(f"raymask: {error}", file=sys.stderr)
        return 1
    return 0


def run(folder: Path, epochs: int, seed: int) -> None:
    start = time.monotonic()
    make_folder(folder)
    data, model, out = folder / "data", folder / "model", folder / "masks"

    title("1. Data")
    write_data_set(data, TRAIN_IMAGES, HELD_OUT_IMAGES, seed)
    print(
        f"{TRAIN_IMAGES} pictures to train on, {HELD_OUT_IMAGES} held out and some broken files with them, in {data}/"
    )

    title("2. Training")
    raymask(training_command(data, model, epochs, seed))

    title("3. Segmenting")
    options = ["--weights", str(model), "--max-detections", "20", "--report"]
    raymask(["segment", str(data / "val"), "--out", str(out), *options])

    title("4. Evaluation")
    page = folder / "evaluation.html"
    raymask(["evaluate", str(out), "--annotations", str(data / "val.json"), "--html", str(page)])

    title("5. SQL")
    for query in QUERIES:
        raymask(["query", str(out), query])

    title("6. Pictures")
    sheet, *others = save_pictures(Masks(str(out)), folder / "pictures", PICTURES)
    print(f"{sheet} shows {len(others)} held-out pictures with what was found in them")

    title(f"Done in {duration_text(time.monotonic() - start)}")
    print(f"Open {out / REPORT_FILE} in a browser: it shows what was found, and how sure of it the model is.")
    print(f"{page} says how right that is, {sheet} shows some of it. Then try the model on pictures of your own:")
    print(f"  raymask segment YOUR-PICTURES/ --out your-masks/ --weights {model}")


def raymask(command: list[str]) -> None:
    """Show a command and run it."""
    print(f"$ raymask {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "raymask.cli", *command], check=True)


def training_command(data: Path, model: Path, epochs: int, seed: int) -> list[str]:
    """A small network for small pictures, that learns on two CPU cores in minutes."""
    options = {
        **{"data": data / "train.json", "images": data / "train", "out": model, "model": "maskrcnn_resnet10_fpn"},
        **{"min-size": SIDE, "max-size": SIDE, "epochs": epochs, "seed": seed, "batch-size": 8},
        **{"optimizer": "adamw", "lr": 2e-3, "weight-decay": 0.01, "warmup-images": 160, "clip": 10},
        **{"proposals": MOST_BOXES, "rpn-samples": 64, "box-samples": 64},
        **{"min-scale": 1, "max-scale": 1, "photometric": 0},
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["train", *flags, "--fixed-lr"]


def make_folder(folder: Path) -> None:
    """A folder without what an earlier demo put there; ConfigError if there is one that no demo made."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ConfigError(f"{folder} exists and is not of an earlier demo; choose another --dir")
    for name in PARTS:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
