"""JPEG photos of one exact size for the benchmarks, cut from the shared photos: real content, files that all differ.

    python benchmarks/photos.py FOLDER --count 100 --height 480 --width 640

`make_photos` does the same for other benchmarks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDERS = ("balloon", "coco_val2014_54", "photos_mixed")
QUALITY = 90
ROOM = 1.1  # area of a source photo at least, in those of the crop: less leaves no choice of crops


def make_photos(folder: str | Path, count: int, size_hw: tuple[int, int]) -> list[Path]:
    """Write `count` JPEGs of height, width `size_hw` into `folder`, made if need be; the same ones on every call.

    Photo i is a crop of the source photo at position i modulo their number, placed and sized by chance that i seeds,
    scaled down to `size_hw`. Only larger photos are used: enlarged ones would be unlike any camera's.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = source_photos(size_hw)
    tasks = [(source, range(first, count, len(sources))) for first, source in enumerate(sources) if first < count]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(partial(_cut, folder=folder, size_hw=size_hw), tasks)
        return sorted(path for paths in written for path in paths)


def source_photos(size_hw: tuple[int, int]) -> list[Path]:
    """The shared photos larger than that, in a fixed order; FileNotFoundError where there are none."""
    if missing := [name for name in FOLDERS if not (SHARED / name).is_dir()]:
        raise FileNotFoundError(
            f"benchmark photos are cut from the data sets {', '.join(FOLDERS)} in ../shared/data beside the checkout; "
            f"not there: {', '.join(missing)}"
        )
    found = [path for name in FOLDERS for path in sorted((SHARED / name).rglob("*.jpg")) if _fits(path, size_hw)]
    if not found:
        raise FileNotFoundError(f"no shared photo is larger than {size_hw[0]} x {size_hw[1]} pixels (height x width)")
    return found


def _fits(path: Path, size_hw: tuple[int, int]) -> bool:
    with Image.open(path) as photo:
        (height, width), (photo_width, photo_height) = size_hw, photo.size
    inside = photo_height >= height and photo_width >= width
    return inside and photo_height * photo_width >= ROOM * height * width


def _cut(task: tuple[Path, range], folder: Path, size_hw: tuple[int, int]) -> list[Path]:
    source, numbers = task
    with Image.open(source) as photo:
        pixels = photo.convert("RGB")
    return list(_cuts(pixels, numbers, folder, size_hw))


def _cuts(photo: Image.Image, numbers: range, folder: Path, size_hw: tuple[int, int]) -> Iterator[Path]:
    height, width = size_hw
    for number in numbers:
        chance = np.random.default_rng(number)
        scale = chance.uniform(1, min(photo.height / height, photo.width / width))
        top, left = chance.uniform(0, 1, 2) * (photo.height - scale * height, photo.width - scale * width)
        box = (left, top, left + scale * width, top + scale * height)
        path = folder / f"photo_{number:06d}.jpg"
        photo.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=2).save(path, quality=QUALITY)
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    args = parser.parse_args()
    paths = make_photos(args.folder, args.count, (args.height, args.width))
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{len(paths)} photos of {args.height} x {args.width} in {args.folder}, {megabytes:.1f} MB")


if __name__ == "__main__":
    main()
