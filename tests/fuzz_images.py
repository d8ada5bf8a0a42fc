"""Damaged images through the sandbox: every outcome a picture or a kind of failure, none slow, none that takes more
memory than it may.

The seeds are good files of every format that Pillow writes, drawn here, and where they are there those in
`../shared/data`. Mutation number n is a function of n alone.

    python tests/fuzz_images.py --count 100000
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
from conftest import SHARED, draw_picture

from raymask.decode import FORMATS, Image, decode
from raymask.errors import ErrorKind, Failure
from raymask.sandbox import Limits, Sandbox

MAX_PIXELS = 4_000_000
MAX_BYTES = 4 * 2**20
LARGEST_SEED = 60_000  # bytes; small files are decoded, and so tried, more often
SEEDS_PER_FORMAT = 40
LIMIT_S = 10.0
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

# ------------------------------------------------------------------------------------------------------------- seeds


def drawn_seeds() -> Iterator[bytes]:
    """A small picture in every format, mode and compression that Pillow writes and raymask reads."""
    rgb = draw_picture(1, 30, 40)
    depths = {
        "RGB": rgb,
        **{mode: rgb.convert(mode) for mode in ("L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr", "F", "I")},
    }
    depths["I;16"] = PIL.Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    options: dict[str, list[dict[str, object]]] = {
        "JPEG": [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}],
        "TIFF": [{"compression": c} for c in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4")],
        "WEBP": [{}, {"lossless": True}],
        "GIF": [{}, {"save_all": True, "append_images": [rgb.rotate(90)]}],
        "ICO": [{"sizes": [(16, 16), (32, 32)]}],
    }
    for name in FORMATS:
        for image in depths.values():
            for option in options.get(name, [{}]):
                file = io.BytesIO()
                try:
                    with warnings.catch_warnings(action="ignore"):
                        image.save(file, name, **option)
                except (OSError, ValueError, KeyError, SystemError, AttributeError, struct.error):
                    continue  # a mode that the format cannot have, or a format that Pillow only reads
                yield file.getvalue()


def shared_seeds() -> Iterator[bytes]:
    for folder in ("balloon", "coco_val2014_54", "odd_images", "photos_mixed"):
        for path in sorted((SHARED / folder).rglob("*")):
            if path.is_file() and 0 < path.stat().st_size <= LARGEST_SEED:
                yield path.read_bytes()


def seeds() -> dict[str, list[bytes]]:
    """Good files by format, the smallest ones."""
    found: dict[str, set[bytes]] = {}
    for data in (*drawn_seeds(), *shared_seeds()):
        image = decode(data, max_pixels=MAX_PIXELS)
        if isinstance(image, Image):
            found.setdefault(image.format, set()).add(data)
    return {name: sorted(files, key=lambda f: (len(f), f))[:SEEDS_PER_FORMAT] for name, files in sorted(found.items())}


# --------------------------------------------------------------------------------------------------------- mutations


def truncate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def flip(data: bytes, other: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def splice(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A piece of another file, or of the same one, over or between what is there."""
    start, length = chance.randrange(len(other)), chance.randint(1, max(1, len(other) // 2))
    place, gone = chance.randrange(len(data)), chance.choice((0, length))
    return data[:place] + other[start : start + length] + data[place + gone :]


def oversize(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Extreme numbers, of one to four bytes in either order, mostly where headers are."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        number, size = chance.choice(EXTREMES), chance.choice((1, 2, 4))
        place = chance.randrange(min(len(data), chance.choice((32, 256, len(data)))))
        order = chance.choice(("big", "little"))
        changed[place : place + size] = (number % 256**size).to_bytes(size, order)
    return bytes(changed)


def drop(data: bytes, other: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randint(1, 64) :]


def bomb(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A PNG file of few bytes that promises and holds a great many pixels, or holds more than it promises."""
    width, height = chance.choice(((1, 1), (2000, 2000), (65_000, 60), (100_000, 100_000), (2**31 - 1, 1)))
    rows = zlib.compress(bytes(chance.choice((10, 10**6, 2 * 10**7))), 9)
    text = chance.choice((b"", zlib.compress(bytes(2 * 10**7), 9)))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, chance.choice((1, 8, 16)), chance.choice((0, 2, 6)), 0, 0, 0)),
        *([(b"zTXt", b"k\0\0" + text), (b"iCCP", b"p\0\0" + text)] if text else []),
        (b"IDAT", rows),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4) for name, body in chunks
    )


MUTATIONS: dict[Callable[[bytes, bytes, random.Random], bytes], int] = {
    truncate: 15,
    flip: 30,
    splice: 20,
    oversize: 25,
    drop: 9,
    bomb: 1,
}


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have right checksums again, so that what they hold is looked at."""
    mended, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        body = data[place + 4 : end]
        mended += data[place : place + 4] + body + zlib.crc32(body).to_bytes(4)
        place = end + 4
    return bytes(mended)


def mutation(number: int, files: dict[str, list[bytes]]) -> tuple[str, str, bytes]:
    """(format of the seed, what was done to it, the damaged file)."""
    chance = random.Random(number)
    name = chance.choice(list(files))
    data = chance.choice(files[name])
    other = data if chance.random() < 0.5 else chance.choice(files[chance.choice(list(files))])
    done = []
    for change in chance.choices(list(MUTATIONS), list(MUTATIONS.values()), k=chance.choice((1, 1, 1, 2, 4))):
        if data:
            data = change(data, other, chance)[:MAX_BYTES]
            done.append(change.__name__)
    if data[:4] == b"\x89PNG" and chance.random() < 0.7:
        data = with_checksums(data)
    return name, "+".join(done), data


# --------------------------------------------------------------------------------------------------------------- run


@dataclass
class Outcomes:
    """What became of the damaged files. problems: what must not be, such as a slow one; crashed: what was contained."""

    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def run(numbers: range, files: dict[str, list[bytes]], save_to: Path | None = None) -> Outcomes:
    """Decode each mutation in a sandbox of `LIMIT_S` and look at what comes out."""
    outcomes = Outcomes()
    limits = Limits(cpu_s=int(LIMIT_S), wall_s=6 * LIMIT_S)
    with Sandbox(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, room_bytes=3 * MAX_PIXELS, limits=limits) as sandbox:
        for number in numbers:
            name, done, data = mutation(number, files)
            start_s = time.perf_counter()
            result = sandbox.decode(data)
            spent_s = time.perf_counter() - start_s
            outcomes.slowest_s = max(outcomes.slowest_s, spent_s)
            where = f"{number} ({name}, {done}, {len(data)} bytes)"
            if spent_s > LIMIT_S and not is_crash(result):
                outcomes.problems.append(f"{where}: {spent_s:.1f} s")
            if isinstance(result, Failure):
                outcomes.kinds[result.kind] += 1
                if is_crash(result):
                    outcomes.crashed.append(f"{where}: {result.detail}")
                    if save_to is not None:
                        (save_to / str(number)).write_bytes(data)
                continue
            outcomes.kinds["ok"] += 1
            height, width, channels = result.pixels.shape
            if not (0 < height * width <= MAX_PIXELS and channels == 3):
                outcomes.problems.append(f"{where}: pixels of {result.pixels.shape}")
    return outcomes


def is_crash(result: Image | Failure) -> bool:
    return isinstance(result, Failure) and result.kind is ErrorKind.CRASHED_WORKER


def main() -> int:
    parser = argparse.ArgumentParser(description="Decode damaged images and say what became of them.")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation; the others count up")
    parser.add_argument("--save-to", type=Path, help="folder for the files that took a decoder down")
    options = parser.parse_args()
    files = seeds()
    print(f"{sum(map(len, files.values()))} good files of {len(files)} formats: {', '.join(files)}")
    started_s = time.monotonic()
    outcomes = run(range(options.first, options.first + options.count), files, options.save_to)
    elapsed_s = time.monotonic() - started_s
    print(f"{options.count:,} damaged files in {elapsed_s:.0f} s, the slowest {outcomes.slowest_s:.2f} s")
    print(", ".join(f"{count:,} {kind}" for kind, count in outcomes.kinds.most_common()))
    print(f"decoders that died, and cost their image only: {len(outcomes.crashed)}")
    for line in outcomes.crashed[:20]:
        print(f"  {line}")
    print(f"violations: {len(outcomes.problems)}")
    for line in outcomes.problems[:20]:
        print(f"  {line}")
    return 1 if outcomes.problems else 0


if __name__ == "__main__":
    sys.exit(main())
