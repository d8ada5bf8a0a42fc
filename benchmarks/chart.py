"""One picture of the results: whole runs of raymask beside the others. `python benchmarks/chart.py` draws it anew."""

from __future__ import annotations

import json

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from measure import RESULTS

NAMES = {
    "raymask": "raymask",
    "torchvision_tuned": "torchvision, tuned",
    "torchvision_first": "torchvision, first attempt",
    "ray_data": "Ray Data, as documented",
    "daft": "Daft, as documented",
}


def main() -> None:
    record = json.loads((RESULTS / "pipeline.json").read_text())
    runs = [row for row in record["rows"] if row.get("detections") == 20]
    names, rates = [NAMES[row["run"]] for row in runs], [row["images_per_s"] for row in runs]
    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "raymask"})
    figure, axes = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
    bars = axes.barh(names, rates, color=["#2563eb", *["#94a3b8"] * (len(runs) - 1)])
    axes.bar_label(bars, [f"{rate:.2f}" for rate in rates], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(rates) * 1.12)
    axes.set_xlabel("images a second, whole runs on two cores")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "pipeline.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
