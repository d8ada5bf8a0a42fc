"""The table of figures in README.md, made of the results: `python benchmarks/readme.py`. A test compares the two."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- figures by benchmarks/readme.py -->\n", "<!-- end of figures -->\n"
PEERS = {
    "torchvision_tuned": "torchvision tuned (bf16, channels last)",
    "torchvision_first": "torchvision, first attempt",
    "ray_data": "Ray Data as documented",
    "daft": "Daft as documented",
    "ray_data_null without a model": "Ray Data as documented, a model that does nothing",
    "pillow_only without a model": "Pillow decoding alone",
}


def main() -> None:
    README.write_text(with_table(README.read_text()))


def with_table(readme: str) -> str:
    """`readme` with the table of these results."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def table() -> str:
    header = ("what", "raymask", "beside it", "", "`python benchmarks/…`")
    parts = (
        masks,
        model,
        whole_runs,
        without_model,
        decoding,
        start_up,
        precision,
        training,
        fine_tuning,
        columns,
        asking,
    )
    lines = [header, ("---",) * len(header), *(line for part in parts for line in part())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def times(ratio: float) -> str:
    return f"{ratio:.0f} x" if ratio >= 50 else f"{ratio:.1f} x"


def masks() -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for row in record("masks")["rows"]:
        ours, paste, crop = (row[name]["median_s"] for name in ("raymask", "paste", "crop"))
        what = f"{row['masks']} soft masks to RLE, {row['size_hw'][0]} x {row['size_hw'][1]}, one thread"
        beside = f"torchvision paste + pycocotools {1000 * paste:,.0f} ms"
        lines.append((what, f"{1000 * ours:.1f} ms", beside, times(paste / ours), "`masks.py`"))
        lines.append(("", "", f"cut to the box before pycocotools {1000 * crop:,.0f} ms", times(crop / ours), ""))
    worst = max(row["growth_mb"] for row in record("masks")["rows"])
    return [*lines, ("memory for that, beyond input and output", f"{worst:.0f} MB", "", "", "`masks.py`")]


def model() -> list[tuple[str, ...]]:
    first, *_, last = record("model")["rows"]
    ours, theirs = (row["an_image"]["median_s"] for row in (last, first))
    beside = f"torchvision in fp32, pasted: {1 / theirs:.2f}"
    return [
        (
            "model alone, 640 x 480, 20 detections",
            f"{1 / ours:.2f} images/s",
            beside,
            times(theirs / ours),
            "`model.py`",
        ),
        ("share of the processor's bf16 peak in that", f"{last['share_of_peak']:.0%}", "", "", "`model.py`"),
    ]


def whole_runs() -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for row in record("pipeline")["rows"]:
        rate = row["images_per_s"]
        if row["run"] == "raymask":
            ours, count = rate, row["images"]
            what = f"{count} photos of {row['size']}, {row['detections']} detections, whole run"
            head = (what, f"{ours:.2f} images/s", "`pipeline.py`")
            continue
        fewer = f" ({row['images']} photos)" if row["images"] != count else ""
        lines.append((head[0], head[1], f"{PEERS[row['run']]} {rate:.2f}{fewer}", times(ours / rate), head[2]))
        head = ("", "", "")
    return lines


def without_model() -> list[tuple[str, ...]]:
    rows = record("null")["rows"]
    most = max(row["images"] for row in rows)
    ours, *others = [row for row in rows if row["images"] == most]
    lines: list[tuple[str, ...]] = []
    for row in others:
        what = f"{most:,} photos of 640 x 480, a model that costs nothing" if not lines else ""
        rate = f"{ours['images_per_s']:,.0f} images/s" if not lines else ""
        beside = f"{PEERS[row['run']]} {row['images_per_s']:,.0f}"
        ratio = f"{ours['images_per_s'] / row['images_per_s']:.2f} x"
        lines.append((what, rate, beside, ratio, "`pipeline.py`" if not lines else ""))
    return lines


def decoding() -> list[tuple[str, ...]]:
    rows = record("sandbox")["rows"]
    all_cores = max(row["cores"] for row in rows)
    return [
        (
            f"photos of {row['size']} decoded in a process of its own, {all_cores} cores",
            f"{row['sandbox_images_per_s']:.0f} images/s",
            f"in the same process: {row['alone_images_per_s']:.0f}",
            f"{row['ratio']:.2f} x",
            "`sandbox.py`",
        )
        for row in rows
        if row["cores"] == all_cores
    ]


def start_up() -> list[tuple[str, ...]]:
    steps = {row["step"]: row["median_s"] for row in record("startup")["rows"] if not row["step"].startswith(" ")}
    end = steps["Ray stopped, process ended"]
    first = sum(steps.values()) - end - steps["the rest of the images"] - steps["tables published"]
    return [("from the command to the first image", f"{first:.1f} s", f"at the end: {end:.1f} s", "", "`startup.py`")]


def training() -> list[tuple[str, ...]]:
    loop, *ways = [(row["way"], statistics.median(row["images_per_s"])) for row in record("training")["rows"]]
    return [
        (
            f"training, {way} on two cores",
            f"{rate:.2f} images/s",
            f"a loop over torchvision's network, fed from memory: {loop[1]:.2f}",
            f"{rate / loop[1]:.2f} x",
            "`training.py`",
        )
        for way, rate in ways
    ]


def fine_tuning() -> list[tuple[str, ...]]:
    found = record("finetune")
    what = f"fine-tuning on 61 photos, {found['rows'][-1]['images']:,} images seen, two workers"
    given_out = max(found["rows"], key=lambda row: float(row["segm_AP"]))  # the model that is the result
    return [
        (
            what,
            f"{found['seconds'] / 60:.1f} min",
            f"mask AP50 on 13 others: {given_out['segm_AP50']:.3f}",
            "",
            "`finetune.py`",
        )
    ]


def precision() -> list[tuple[str, ...]]:
    fp32, bf16 = (row["segm"]["AP"] for row in record("precision")["rows"])
    pictures = record("precision")["rows"][0]["pictures"]
    what = f"mask AP in bf16, {pictures:,} of the demo's pictures"
    change = f"{100 * (bf16 - fp32):+.2f} points"
    return [(what, f"{100 * bf16:.2f}", f"in fp32: {100 * fp32:.2f}", change, "`precision.py`")]


def columns() -> list[tuple[str, ...]]:
    found = record("mask_functions")
    height, width = found["size_hw"]
    return [
        (
            f"`{row['function']}` of {found['masks']:,} masks of {height} x {width}",
            f"{row['all_cores']['median_s']:.2f} s",
            f"pycocotools, called for each: {row['pycocotools_s']:.1f} s",
            times(row["pycocotools_s"] / row["all_cores"]["median_s"]),
            "`mask_functions.py`",
        )
        for row in found["rows"]
        if row["function"] in ("mask_area", "mask_iou", "mask_from_polygon", "mask_resize")
    ]


def asking() -> list[tuple[str, ...]]:
    query, report, gallery = record("query"), record("report"), record("gallery")
    counted, slowest = query["rows"][0], max(gallery["rows"], key=lambda row: float(row["first_masks_s"]))
    output = f"{query['images']:,} images with {query['instances']:,} objects"
    return [
        (
            f"{output}: categories counted with SQL",
            f"{counted['statement']['median_s']:.2f} s",
            f"DuckDB on the files: {counted['duckdb']['median_s']:.2f} s; the whole command: "
            f"{counted['command']['median_s']:.1f} s",
            "",
            "`query.py`",
        ),
        ("of the same: the report", f"{report['rows'][0]['median_s']:.1f} s", "", "", "`report.py`"),
        (
            "of the same: the gallery's first page in Chromium",
            f"{gallery['browser_s']['page']:.1f} s",
            f"twelve images with masks, by the slowest of {len(gallery['rows'])} filters: "
            f"{slowest['first_masks_s']:.1f} s",
            "",
            "`gallery.py`",
        ),
    ]


if __name__ == "__main__":
    main()
