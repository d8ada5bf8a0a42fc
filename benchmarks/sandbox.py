"""What it costs to decode in a process of its own: photos to Arrow tables, as `reading.read_images` does it.

    python benchmarks/sandbox.py

alone: `decode` in the process that makes the tables; sandbox: through `raymask.sandbox`. In turns, so that both see the
same machine, and with as many of these processes as there are cores, as in a run: then the children of the sandboxes
have no core but those that decoding alone would have as well. Once more with everything on one core, which shows the
work without its overlapping anything.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

from measure import print_table, save
from workload import photo_folder

from raymask.decode import Image, decode, keep_freed_memory
from raymask.errors import Failure
from raymask.reading import decoded_row
from raymask.sandbox import ROOM_BYTES, Sandbox
from raymask.tables import decoded_table

MAX_BYTES, MAX_PIXELS = 256 * 1024 * 1024, 100_000_000
IMAGES_PER_PART = 32
ROUNDS = 15
SIZES_HW = {(480, 640): 160, (1080, 1920): 32}

File = tuple[tuple[int, int], bytes | Failure]  # number, size and content
Block = list[tuple[tuple[int, int], Image | Failure]]
Blocks = Callable[[Iterable[File], int], Iterator[Block]]


def blocks_alone(files: Iterable[File], rows: int) -> Iterator[Block]:
    """As `Sandbox.blocks`, in this process."""
    block: Block = []
    used = 0
    for of, data in files:
        assert isinstance(data, bytes)
        image = decode(data, max_pixels=MAX_PIXELS)
        assert isinstance(image, Image)
        block.append((of, image))
        used += image.pixels.nbytes
        if len(block) == rows or used >= ROOM_BYTES:
            yield block
            block.clear()  # the reader's as well, so that the memory is there for the next
            used = 0
    if block:
        yield block


def seconds(files: list[bytes], blocks: Blocks) -> float:
    start = time.perf_counter()
    for first in range(0, len(files), IMAGES_PER_PART):
        part: Iterator[File] = (((n, len(data)), data) for n, data in enumerate(files[first : first + IMAGES_PER_PART]))
        for block in blocks(part, IMAGES_PER_PART):
            decoded_table([decoded_row(n, str(n), image, size, None) for (n, size), image in block])
    return time.perf_counter() - start


def measure(folder: Path, together: Barrier, cores: set[int], results: Queue[dict[str, list[float]]]) -> None:
    """Seconds of both ways, round by round, while others do the same."""
    os.sched_setaffinity(0, cores)
    keep_freed_memory()
    files = [file.read_bytes() for file in sorted(folder.glob("*.jpg"))]
    with Sandbox(max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS) as sandbox:
        ways: dict[str, Blocks] = {"alone": blocks_alone, "sandbox": sandbox.blocks}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for name in (*ways, *list(ways) * ROUNDS):  # the first round fills caches
            together.wait()
            spent[name].append(seconds(files, ways[name]))
        results.put({name: times[1:] for name, times in spent.items()})


def rates(size_hw: tuple[int, int], count: int, cores: set[int]) -> dict[str, Any]:
    """Images a second of all processes together, the middle of all rounds; one process a core."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(len(cores)), context.Queue()
    arguments = (photo_folder(count, size_hw), together, cores, results)
    processes = [context.Process(target=measure, args=arguments) for _ in cores]
    for process in processes:
        process.start()
    spent = [results.get() for _ in processes]
    for process in processes:
        process.join()
    of_rounds = {
        way: [sum(count / s for s in times) for times in zip(*(each[way] for each in spent), strict=True)]
        for way in spent[0]
    }
    return {
        "size": f"{size_hw[1]} x {size_hw[0]}",
        "cores": len(cores),
        "images": count,
        "alone_images_per_s": median(of_rounds["alone"]),
        "sandbox_images_per_s": median(of_rounds["sandbox"]),
        "ratio": median(s / a for s, a in zip(of_rounds["sandbox"], of_rounds["alone"], strict=True)),
    }


def main() -> None:
    all_cores = os.sched_getaffinity(0)
    results = [
        rates(size_hw, count, cores) for cores in (all_cores, {min(all_cores)}) for size_hw, count in SIZES_HW.items()
    ]
    print_table(
        ["photos", "processes = cores", "alone", "in a sandbox", "ratio"],
        [
            [
                r["size"],
                r["cores"],
                f"{r['alone_images_per_s']:.0f}/s",
                f"{r['sandbox_images_per_s']:.0f}/s",
                f"{r['ratio']:.3f}",
            ]
            for r in results
        ],
    )
    save("sandbox", results)


if __name__ == "__main__":
    main()
