"""What bfloat16 costs in mask AP, on a trained model: the same pictures segmented in both precisions and evaluated.

    make demo && python benchmarks/precision.py [--weights demo-output/model] [--pictures 1000]

The pictures are drawn as the demo draws them, from another seed, so that the model has not seen them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import print_table, save

import raymask
from raymask.demo.drawing import write_data_set
from raymask.evaluation import evaluate

SEED = 1_000
SHOWN = (("segm", "AP"), ("segm", "AP50"), ("segm", "AP75"), ("bbox", "AP"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="demo-output/model", help="model folder; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=1_000, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_data_set(data, args.pictures, 1, SEED)
        scores = {}
        for precision in ("fp32", "bf16"):
            out = str(data / precision)
            raymask.segment(str(data / "train"), out=out, weights=args.weights, precision=precision, quiet=True)
            scores[precision] = evaluate(out, str(data / "train.json"))
    rows = [{"precision": precision, "pictures": args.pictures, **found} for precision, found in scores.items()]
    save("precision", rows)
    lines = [
        [f"{kind} {name}", f"{100 * before:.2f}", f"{100 * after:.2f}", f"{100 * (after - before):+.2f}"]
        for kind, name in SHOWN
        for before, after in [(scores["fp32"][kind][name], scores["bf16"][kind][name])]
    ]
    print_table([f"{args.pictures} pictures", "fp32", "bf16", "points"], lines)


if __name__ == "__main__":
    main()
