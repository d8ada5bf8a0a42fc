"""Galleries for tests: outputs made of rectangles, and a server for as long as a test looks at it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from test_evaluation import write_output

from raymask.gallery.config import ViewConfig
from raymask.gallery.serving import open_gallery
from raymask.masks import encode

SIZE_HW = (40, 60)
CATEGORIES = {1: "kite", 2: "boat"}


def thing(uri: str, category_id: int, score: float, box_xyxy: tuple[int, int, int, int]) -> dict[str, Any]:
    """A row of `instances`: a filled rectangle."""
    x_min, y_min, x_max, y_max = box_xyxy
    pixels = np.zeros(SIZE_HW, np.bool_)
    pixels[y_min:y_max, x_min:x_max] = True
    category = {"category_id": category_id, "category": CATEGORIES[category_id]}
    return {
        **{"uri": uri, "score": score, "box_xyxy": box_xyxy, "mask": encode(pixels), "area": int(pixels.sum())},
        **category,
    }


def write_photos(folder: Path, names: list[str]) -> list[str]:
    """Photos of `SIZE_HW` pixels, each of one colour; returns their keys."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        PIL.Image.new("RGB", SIZE_HW[::-1], (40 * number % 256, 90, 160)).save(folder / name)
    return [str(folder / name) for name in names]


def write_gallery(folder: Path, things: list[dict[str, Any]], ok: list[str], failed: list[str] | None = None) -> str:
    """An output of these images and things, which are in order of images and falling scores."""
    images = [{"uri": uri, "size_hw": SIZE_HW} for uri in ok]
    reason = {"error_detail": "it ends too soon"}
    return write_output(folder, [*images, *({"uri": u, "size_hw": None, **reason} for u in failed or [])], things)


@contextlib.contextmanager
def gallery(out: str, **options: Any) -> Iterator[str]:
    """Serve it; gives the link. What stands beside it has been compared."""
    server, comparison = open_gallery(ViewConfig(out=out, **options))
    if comparison is not None:
        comparison.compare()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(30)
        yield server.link
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
