"""The images of annotated rows: their pixels, or in words why there are none. Without torch, as few need it here."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from raymask.decode import Image
from raymask.errors import Failure
from raymask.fetch import Place, fetch
from raymask.pools import TASK_CPUS
from raymask.sandbox import borrowed_sandbox

CHECK_ROWS = 32


def pixels_of(row: dict[str, Any], image: Image | Failure) -> NDArray[np.uint8] | str:
    """H x W x 3 uint8 of the size that was annotated, or in words why not."""
    if isinstance(image, Failure):
        return str(image.kind)
    same = image.pixels.shape[:2] == (row["height"], row["width"])
    return image.pixels if same else "size is not the annotated one"


def find_unreadable(rows: pa.Table, max_pixels: int, max_bytes: int, decoder: str) -> dict[str, str]:
    """The images that cannot be read or have another size than annotated: uri -> why, in words."""
    chunks = [
        rows.select(["uri", "height", "width"]).slice(start, CHECK_ROWS)
        for start in range(0, rows.num_rows, CHECK_ROWS)
    ]
    checked = ray.data.from_arrow(chunks).map_batches(
        partial(_check, max_pixels=max_pixels, max_bytes=max_bytes, decoder=decoder),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=TASK_CPUS,
    )
    failed: dict[str, str] = {}
    batch: Any
    for batch in checked.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        failed |= dict(zip(batch.column("uri").to_pylist(), batch.column("why").to_pylist(), strict=True))
    return failed


def _check(rows: pa.Table, *, max_pixels: int, max_bytes: int, decoder: str) -> pa.Table:
    listed = rows.to_pylist()
    files = fetch([Place(row["uri"]) for row in listed], max_bytes=max_bytes)
    pairs = ((row, f if isinstance(f, Failure) else f.data) for row, f in zip(listed, files, strict=True))
    failed = {}
    with borrowed_sandbox(max_bytes=max_bytes, max_pixels=max_pixels, decoder=decoder) as sandbox:
        for row, image in chain.from_iterable(sandbox.blocks(pairs, CHECK_ROWS)):
            pixels = pixels_of(row, image)
            if isinstance(pixels, str):
                failed[row["uri"]] = f"images that cannot be read ({pixels}), left out"
    return pa.table({"uri": pa.array(failed.keys(), pa.string()), "why": pa.array(failed.values(), pa.string())})
