"""What it costs to decode in a process of its own: photos to Arrow tables, as `pipeline.read_images` does it.

    python benchmarks/sandbox.py

alone: `decode` in this process; sandbox: through `raymask.sandbox`. In turns, so that both see the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from measure import print_table, save
from workload import photo_folder

from raymask.decode import Image, decode, keep_freed_memory
from raymask.errors import Failure
from raymask.fetch import Fetched
from raymask.pipeline import BLOCK_BYTES, decode_row
from raymask.sandbox import Sandbox
from raymask.tables import decoded_table

MAX_BYTES, MAX_PIXELS = 256 * 1024 * 1024, 100_000_000
IMAGES_PER_PART = 32
ROUNDS = 7
SIZES_HW = {(480, 640): 320, (1080, 1920): 64}

Decode = Callable[[bytes], Image | Failure]


def seconds(files: list[bytes], decode_one: Decode, clear: Callable[[], None]) -> float:
    start = time.perf_counter()
    for first in range(0, len(files), IMAGES_PER_PART):
        ready = []
        for number, data in enumerate(files[first : first + IMAGES_PER_PART], first):
            ready.append(decode_row(number, str(number), Fetched(data, None), decode_one))
            if sum(row.result.nbytes for row in ready if not isinstance(row.result, Failure)) >= BLOCK_BYTES:
                decoded_table(ready)
                ready = []
                clear()
        if ready:
            decoded_table(ready)
        clear()
    return time.perf_counter() - start


def main() -> None:
    keep_freed_memory()
    results: list[dict[str, Any]] = []
    with Sandbox(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, room_bytes=BLOCK_BYTES) as sandbox:
        for size_hw, count in SIZES_HW.items():
            files = [file.read_bytes() for file in sorted(photo_folder(count, size_hw).glob("*.jpg"))]
            alone: partial[Image | Failure] = partial(decode, max_pixels=MAX_PIXELS)
            ways: dict[str, tuple[Decode, Callable[[], None]]] = {
                "alone": (alone, lambda: None),
                "sandbox": (sandbox.decode, sandbox.clear),
            }
            spent: dict[str, list[float]] = {name: [] for name in ways}
            for name in (*ways, *list(ways) * ROUNDS):  # the first round fills caches
                spent[name].append(seconds(files, *ways[name]))
            rates = {name: len(files) / median(times[1:]) for name, times in spent.items()}
            results.append(
                {
                    "size": f"{size_hw[1]} x {size_hw[0]}",
                    "images": len(files),
                    "alone_images_per_s": rates["alone"],
                    "sandbox_images_per_s": rates["sandbox"],
                    "ratio": median(a / b for a, b in zip(spent["alone"][1:], spent["sandbox"][1:], strict=True)),
                }
            )
    print_table(
        ["photos", "alone", "in a sandbox", "ratio"],
        [
            [r["size"], f"{r['alone_images_per_s']:.0f}/s", f"{r['sandbox_images_per_s']:.0f}/s", f"{r['ratio']:.3f}"]
            for r in results
        ],
    )
    save("sandbox", results)


if __name__ == "__main__":
    main()
