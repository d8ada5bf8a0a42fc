"""The predictor on one GPU, from uint8 images in host memory to boxes, scores and COCO RLE in host memory.

    PYTHONPATH=. python benchmarks/gpu.py [--seconds 15] [--images 32]

`maskrcnn_resnet50_fpn`, images of 480 x 640 and 1080 x 1920 at the standard 800/1333, 20 and 100 detections each. It
needs torch, torchvision, NumPy and Numba, and pycocotools for torchvision's side; neither Ray nor photos: the images
are made here. Several threads call one predictor, as the calls of a model worker in `segment` do, so that the masks of
one batch are encoded while the device works on the next. The share of the peak is that of a large matrix product.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from measure import print_table, save, timed
from models import calibrated_model
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from raymask.model import Model, Predictor, build

THREADS = 3
SIZES_HW = ((480, 640), (1080, 1920))
SETTINGS = (("bf16", 8, 20), ("bf16", 8, 100), ("bf16", 16, 100), ("bf16", 1, 100), ("fp32", 8, 100))

Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="how long each setting runs")
    parser.add_argument("--images", type=int, default=32, help="that a call is given; default: %(default)s")
    parser.add_argument("--device", default="cuda", help="cpu tries it out; default: %(default)s")
    args = parser.parse_args()
    device = torch.device(args.device)
    model = calibrated_model([as_floats(image) for image in pictures(6, SIZES_HW[0])])
    results: list[dict[str, Any]] = []
    for size_hw in SIZES_HW:
        images = pictures(args.images, size_hw)
        for precision, batch_size, detections in SETTINGS:
            found = {"run": "raymask", "size_hw": size_hw, "precision": precision, "batch_size": batch_size}
            found |= by_raymask(model, images, device, precision, batch_size, detections, args.seconds)
            results.append(found | {"multiply_adds": operations(model, detections, images[0])})
            print(results[-1], flush=True)
        for precision, batch_size in (("fp32", 8), ("fp16 autocast", 8)):
            found = {"run": "torchvision", "size_hw": size_hw, "precision": precision, "batch_size": batch_size}
            results.append(found | by_torchvision(model, images, device, precision, batch_size, args.seconds))
            print(results[-1], flush=True)
    report(results, args.images, peak(device))


def pictures(count: int, size_hw: tuple[int, int]) -> list[Pixels]:
    """Images with contrast at every scale, as photos have it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 3, *size_hw)
    for side in (4, 8, 16, 32, 64, 128, 256):
        noise = torch.rand(count, 3, side, side, generator=generator) - 0.5
        images += functional.interpolate(noise, size=size_hw, mode="bicubic") * (40 / side) ** 0.5
    values = ((images * 0.25 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return list(values)


def as_floats(image: Pixels) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1) / 255


def by_raymask(
    model: Model, images: list[Pixels], device: torch.device, precision: Any, batch_size: int, detections: int, s: float
) -> dict[str, Any]:
    predictor = Predictor(model, device=device, precision=precision, batch_size=batch_size, max_detections=detections)
    counts = {len(found.scores) for found in predictor(images)}  # type: ignore[union-attr]  # no Failure: all fit
    return {"detections": sorted(counts), **rate(lambda: predictor(images), len(images), device, THREADS, s)}


def by_torchvision(
    model: Model, images: list[Pixels], device: torch.device, precision: str, batch_size: int, s: float
) -> dict[str, Any]:
    """As its users run it: images to the device as floats, masks pasted there, one by one through pycocotools."""
    from pycocotools import mask as coco_mask

    network = build(model.spec)
    network.load_state_dict(dict(model.weights), strict=False)
    network.to(device)
    counts = set()

    def run() -> None:
        for first in range(0, len(images), batch_size):
            with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled="fp16" in precision):
                outputs = network([as_floats(image).to(device) for image in images[first : first + batch_size]])
            for output in outputs:
                for mask in (output["masks"][:, 0] > 0.5).cpu().numpy():
                    coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                counts.add(len(output["scores"]))

    return {**rate(run, len(images), device, 1, s), "detections": sorted(counts)}


def rate(call: Callable[[], object], images: int, device: torch.device, threads: int, seconds: float) -> dict[str, Any]:
    """Images a second of `call`, which does so many, from several threads, and how busy the device was."""
    for _ in range(2):  # kernels are chosen and compiled
        call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    busy: list[float] = []
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop, busy))
    watcher.start()
    start = time.perf_counter()

    def repeat() -> int:
        calls = 0
        while not calls or time.perf_counter() - start < seconds:
            call()
            calls += 1
        return calls

    with ThreadPoolExecutor(threads) as pool:
        calls = sum(future.result() for future in [pool.submit(repeat) for _ in range(threads)])
    elapsed = time.perf_counter() - start
    stop.set()
    watcher.join()
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "images_per_s": calls * images / elapsed,
        "busy": float(np.mean(busy)) / 100 if busy else None,
        "memory_gib": memory,
        "threads": threads,
    }


def watch(stop: threading.Event, busy: list[float]) -> None:
    """What nvidia-smi says five times a second of the share of time in which a kernel ran."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0"]
    while not stop.wait(0.2):
        with suppress(OSError, ValueError):
            busy.append(float(subprocess.run(query, capture_output=True, text=True).stdout))


def operations(model: Model, detections: int, image: Pixels) -> float:
    """Multiply-adds of one image, counted."""
    network = build(model.spec.with_options(max_detections=detections))
    network.load_state_dict(dict(model.weights), strict=False)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network([as_floats(image)])
    return float(counter.get_total_flops()) / 2


def peak(device: torch.device) -> float:
    """Multiply-adds a second of a product of matrices of 8,192 x 8,192 in bfloat16."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.rand(side, side, device=device).bfloat16() for _ in range(2))

    def product() -> None:
        for _ in range(20):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()

    return float(20 * side**3 / min(timed({"product": product}, 5)["product"]))


def report(results: list[dict[str, Any]], images: int, peak_rate: float) -> None:
    save("gpu", results, peak_multiply_adds=peak_rate, images_per_call=images)
    lines = []
    for found in results:
        height, width = found["size_hw"]
        share = found.get("multiply_adds", 0) * found["images_per_s"] / peak_rate
        busy, memory = found["busy"], found["memory_gib"]
        lines.append(
            [
                f"{found['run']}, {height} x {width}, {found['precision']}, batches of {found['batch_size']}",
                "/".join(map(str, found["detections"])),
                f"{found['images_per_s']:.1f}",
                f"{busy:.0%}" if busy is not None else "",
                f"{share:.0%}" if share else "",
                f"{memory:.1f} GiB" if memory is not None else "",
            ]
        )
    print_table(["", "detections", "images/s", "device busy", "share of peak", "memory"], lines)


if __name__ == "__main__":
    main()
