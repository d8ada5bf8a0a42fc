"""Images a second of the predictor alone, each thing that makes it fast switched on in turn.

    python benchmarks/model.py

From uint8 pixels in memory to boxes and COCO RLE, `maskrcnn_resnet50_fpn`, 640 x 480 photos at the standard 800/1333,
20 detections each, on all cores of the CPU. The first line is torchvision's model as it comes, its masks pasted and
encoded by pycocotools. The share of the peak is that of what a large matrix product reaches in the same precision.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import print_table, save, spread, timed
from numpy.typing import NDArray
from peers import load_network, rows
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import MaskRCNN
from torchvision.ops import roi_align
from workload import model_folder, photo_folder

from raymask.model import Predictor, detector
from raymask.model.roi_align import roi_align_bf16

SIZE_HW = (480, 640)
DETECTIONS = 20
PHOTOS = 4
REPEATS = 3
CORES = os.cpu_count() or 1

Pixels = NDArray[np.uint8]


def main() -> None:
    weights = str(model_folder())
    photos = [np.array(Image.open(p)) for p in sorted(photo_folder(PHOTOS, SIZE_HW).glob("*.jpg"))]
    steps: dict[str, Callable[[], object]] = {
        "torchvision, fp32, masks pasted": pasted(load_network(weights, DETECTIONS), photos),
        "masks encoded from their boxes": predicted(predictor(weights, "fp32"), photos),
        "weights in bfloat16": predicted(plain_bf16(weights), photos, torchvision_roi_align),
        "channels beside each other": predicted(unfolded(weights), photos, torchvision_roi_align),
        "BatchNorm folded": predicted(predictor(weights, "bf16"), photos, torchvision_roi_align),
        "RoIAlign over such channels": predicted(predictor(weights, "bf16"), photos),
    }
    for step in steps.values():  # memory, machine code and kernels are there before anything is timed
        step()
    torch.set_num_threads(CORES)
    seconds = timed(steps, REPEATS)
    alone = in_threads(predictor(weights, "auto"), photos)
    alone()
    seconds["a thread a core"] = [s / CORES for s in timed({"": alone}, REPEATS)[""]]
    torch.set_num_threads(CORES)
    report(seconds, operations(load_network(weights, DETECTIONS), photos[0]))


def predictor(weights: str, precision: Any) -> Predictor:
    return Predictor(weights, device="cpu", precision=precision, max_detections=DETECTIONS)


def unfolded(weights: str) -> Predictor:
    """In bfloat16 with each BatchNorm as a layer of its own."""
    with patch.object(detector, "fold_batch_norms", lambda _network: None):
        return predictor(weights, "bf16")


def plain_bf16(weights: str) -> Predictor:
    """The same, with each channel as a plane of its own."""
    made = unfolded(weights)
    made._detector._network.to(memory_format=torch.contiguous_format)
    made._detector.memory_format = torch.contiguous_format
    return made


def torchvision_roi_align(features: Tensor, boxes: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """torchvision's operator, which on a CPU computes in float32."""
    pooled: Tensor = roi_align(features.float(), boxes, size, scale, samples)
    return pooled.bfloat16()


def pasted(network: MaskRCNN, photos: list[Pixels]) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            for photo in photos:
                [output] = network([torch.from_numpy(photo).permute(2, 0, 1) / 255])
                assert len(rows("", output)) == DETECTIONS

    return run


def predicted(made: Predictor, photos: list[Pixels], align: Any = roi_align_bf16) -> Callable[[], object]:
    def run() -> None:
        with patch.object(detector, "roi_align_bf16", align):
            for found in made(photos):
                assert len(found.scores) == DETECTIONS  # type: ignore[union-attr]  # none of them is a Failure

    return run


def in_threads(made: Predictor, photos: list[Pixels]) -> Callable[[], object]:
    """Every core predicts the photos with one thread, as a model worker in `segment` has it."""

    def run() -> None:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(made, [photos] * CORES))

    return run


def operations(network: MaskRCNN, photo: Pixels) -> float:
    """Multiply-adds of one image, counted."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network([torch.from_numpy(photo).permute(2, 0, 1) / 255])
    return float(counter.get_total_flops()) / 2


def peak(dtype: torch.dtype) -> float:
    """Multiply-adds a second of a matrix product of 2,048 x 4,096 x 4,096."""
    left, right = torch.rand(2048, 4096).to(dtype), torch.rand(4096, 4096).to(dtype)
    best: float = min(timed({"product": lambda: left @ right}, 12)["product"])
    return float(2048 * 4096 * 4096 / best)


def report(seconds: dict[str, list[float]], multiply_adds: float) -> None:
    peaks = {"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16)}
    results, lines, before, first = [], [], 0.0, 0.0
    for number, (name, times) in enumerate(seconds.items()):
        rate = PHOTOS / statistics.median(times)
        precision = "fp32" if number < 2 else "bf16"
        share = rate * multiply_adds / peaks[precision]
        first = first or rate
        times_s = [t / PHOTOS for t in times]
        results.append({"step": name, "precision": precision, "share_of_peak": share, "an_image": spread(times_s)})
        gain = f"{rate / before:.2f}" if before else ""
        lines.append([name, f"{rate:.2f}", gain, f"{rate / first:.1f}", f"{share:.0%} of {precision}"])
        before = rate
    save("model", results, multiply_adds=multiply_adds, peak_multiply_adds=peaks, batch_size=1)
    print(f"{multiply_adds / 1e9:.0f} G multiply-adds an image, {CORES} cores")
    print_table(["switched on in turn", "images/s", "times the line above", "the first", "share of peak"], lines)


if __name__ == "__main__":
    main()
