"""100 soft masks to COCO RLE, compressed text included, on one thread: raymask against pasting and against cropping.

    python benchmarks/masks.py

paste: torchvision's `paste_masks_in_image`, threshold, `pycocotools.mask.encode`, as torchvision users do it.
crop: each mask stretched over its own box only, then put into a frame of bool for pycocotools, the usual way to be
faster. All three give the same text, which is checked before anything is timed.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import print_table, save, spread, timed
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch.nn import functional
from torchvision.models.detection.roi_heads import expand_boxes, paste_masks_in_image

from raymask.masks import encode_soft_masks

MASKS = 100
SIZES_HW = ((480, 640), (1080, 1920), (2160, 3840))
REPEATS = {"raymask": 15, "crop": 5, "paste": 3}

Floats = NDArray[np.float32]


def objects(size_hw: tuple[int, int], seed: int = 0) -> tuple[Floats, Floats]:
    """Soft masks of blobs, 100 x 28 x 28, and boxes from 1/30 of the image's sides to all of them, 100 x 4."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:28, 0:28] / 27 - 0.5
    squash, tilt = chance.uniform(0.5, 2, (2, MASKS, 1, 1))
    ripple = chance.normal(0, 0.4, (MASKS, 28, 28))
    distance = np.hypot(x * squash + y * (tilt - 1), y / squash)
    soft_masks = 1 / (1 + np.exp((distance - 0.4) * 20 + ripple))
    height, width = size_hw
    sides = np.exp(chance.uniform(np.log(1 / 30), 0, (MASKS, 2))) * [width, height]
    corner = chance.uniform(0, 1, (MASKS, 2)) * ([width, height] - sides)
    return soft_masks.astype(np.float32), np.hstack([corner, corner + sides]).astype(np.float32)


def by_raymask(soft_masks: Floats, boxes_xyxy: Floats, size_hw: tuple[int, int]) -> list[str]:
    return encode_soft_masks(soft_masks, boxes_xyxy, size_hw).counts


def by_paste(soft_masks: Floats, boxes_xyxy: Floats, size_hw: tuple[int, int]) -> list[str]:
    pasted = paste_masks_in_image(torch.from_numpy(soft_masks)[:, None], torch.from_numpy(boxes_xyxy), size_hw)
    return [encoded(mask) for mask in (pasted[:, 0] > 0.5).numpy()]


def by_crop(soft_masks: Floats, boxes_xyxy: Floats, size_hw: tuple[int, int]) -> list[str]:
    height, width = size_hw
    padded = functional.pad(torch.from_numpy(soft_masks), (1, 1, 1, 1))
    boxes = expand_boxes(torch.from_numpy(boxes_xyxy), 30 / 28).to(torch.int64).tolist()
    texts = []
    for mask, (x0, y0, x1, y1) in zip(padded, boxes, strict=True):
        size = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
        stretched = functional.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        top, bottom, left, right = max(y0, 0), min(y1 + 1, height), max(x0, 0), min(x1 + 1, width)
        frame = np.zeros((height, width), bool, order="F")
        frame[top:bottom, left:right] = stretched[top - y0 : bottom - y0, left - x0 : right - x0].numpy() > 0.5
        texts.append(encoded(frame))
    return texts


def encoded(mask: NDArray[np.bool_]) -> str:
    text: bytes = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return text.decode()


WAYS = {"raymask": by_raymask, "crop": by_crop, "paste": by_paste}


def peak_memory_mb(size_hw: tuple[int, int]) -> float:
    """What a process of its own needs at most for raymask's way, beyond what it needs for one small image."""
    code = f"import masks; print(masks.growth_mb({size_hw}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0])
    return float(out.stdout)


def growth_mb(size_hw: tuple[int, int]) -> float:
    by_raymask(*objects((48, 64)), (48, 64))  # compiled, imported, allocated
    inputs = objects(size_hw)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = _status_kb("VmRSS")
    by_raymask(*inputs, size_hw)
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size_hw in SIZES_HW:
        inputs = (*objects(size_hw), size_hw)
        texts = {name: way(*inputs) for name, way in WAYS.items()}
        if len({tuple(t) for t in texts.values()}) != 1:
            raise SystemExit(f"the ways disagree at {size_hw}")
        result: dict[str, Any] = {"size_hw": size_hw, "masks": MASKS, "growth_mb": peak_memory_mb(size_hw)}
        for name, way in WAYS.items():
            seconds = timed({name: partial(way, *inputs)}, REPEATS[name])[name]
            result[name] = spread(seconds)
        rows.append(result)
    save("masks", rows)
    medians = [{name: row[name]["median_s"] for name in WAYS} for row in rows]
    print_table(
        ["image", "raymask", "crop", "paste", "crop / raymask", "paste / raymask", "memory"],
        [
            [
                "{} x {}".format(*row["size_hw"]),
                *(f"{m[name] * 1000:,.1f} ms" for name in WAYS),
                f"{m['crop'] / m['raymask']:.1f}",
                f"{m['paste'] / m['raymask']:.0f}",
                f"{row['growth_mb']:.1f} MB",
            ]
            for row, m in zip(rows, medians, strict=True)
        ],
    )


if __name__ == "__main__":
    main()
