"""`python -m raymask.demo`: from nothing to tables of masks, in five minutes on two CPU cores and without network."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb

from raymask.demo.drawing import write_data_set
from raymask.demo.pictures import save_pictures
from raymask.demo.training import train
from raymask.errors import ConfigError, RaymaskError
from raymask.evaluation import evaluate
from raymask.output import Masks
from raymask.progress import duration_text

TRAIN_IMAGES, HELD_OUT_IMAGES, PICTURES = 360, 60, 9
PARTS = ("data", "model", "masks", "pictures")
MARK = ".raymask-demo"  # says that a folder is the demo's, and may be made anew


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m raymask.demo", description=__doc__)
    parser.add_argument(
        "--dir", type=Path, default=Path("demo-output"), help="where everything goes; default: %(default)s"
    )
    parser.add_argument("--steps", type=int, default=350, help="training steps of 8 images; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of data and training; default: %(default)s")
    options = parser.parse_args()
    try:
        run(options.dir, options.steps, options.seed)
    except RaymaskError as error:
        print(f"raymask: {error}", file=sys.stderr)
        return 1
    return 0


def run(folder: Path, steps: int, seed: int) -> None:
    start = time.monotonic()
    make_folder(folder)
    data, model, out = folder / "data", folder / "model", folder / "masks"

    title("1. Data")
    write_data_set(data, TRAIN_IMAGES, HELD_OUT_IMAGES, seed)
    print(
        f"{TRAIN_IMAGES} pictures to train on, {HELD_OUT_IMAGES} held out and some broken files with them, in {data}/"
    )

    title("2. Training")
    train(data / "train.json", data / "train", str(model), steps, seed, show_progress)
    print(f"\nmodel folder {model}/")

    title("3. Segmenting")
    command = ["segment", str(data / "val"), "--out", str(out), "--weights", str(model)]
    print("$ raymask " + " ".join(command), flush=True)
    subprocess.run([sys.executable, "-m", "raymask.cli", *command], check=True)

    title("4. Evaluation, by pycocotools")
    scores = evaluate(str(out), str(data / "val.json"))
    for kind, name in (("segm", "masks"), ("bbox", "boxes")):
        print(f"{name}  AP {scores[kind]['AP']:.3f}  AP50 {scores[kind]['AP50']:.3f}  AP75 {scores[kind]['AP75']:.3f}")

    title("5. SQL, by DuckDB")
    for query in queries(out):
        print(query)
        print(duckdb.sql(query))

    title("6. Pictures")
    sheet, *others = save_pictures(Masks(str(out)), folder / "pictures", PICTURES)
    print(f"{sheet} shows {len(others)} held-out pictures with what was found in them")

    title(f"Done in {duration_text(time.monotonic() - start)}")
    print(f"Look at {sheet}, then try the model on pictures of your own:")
    print(f"  raymask segment YOUR-PICTURES/ --out your-masks/ --weights {model}")


def queries(out: Path) -> tuple[str, str]:
    return (
        "SELECT category, count(*) AS objects, round(avg(area)) AS mean_area, round(avg(score), 2) AS mean_score\n"
        f"FROM '{out}/instances/*.parquet' WHERE score > 0.5 GROUP BY 1 ORDER BY 2 DESC",
        f"SELECT status, error, count(*) AS images FROM '{out}/images/*.parquet' GROUP BY 1, 2 ORDER BY 3 DESC",
    )


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


def show_progress(line: str) -> None:
    """One live line in a terminal; elsewhere every fiftieth."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="", flush=True)
    elif line.split()[1].endswith(("50", "00")):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
