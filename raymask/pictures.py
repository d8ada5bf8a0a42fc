"""The pictures of an output, from where they lie now: fetched by the manifest, decoded in the sandbox."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymask.config import SegmentConfig
from raymask.decode import Image
from raymask.errors import ErrorKind, Failure
from raymask.fetch import Fetched, Place, fetch
from raymask.journal import Manifest, journal_folder
from raymask.sandbox import DECODER, borrowed_sandbox
from raymask.urls import is_web

Row = Mapping[str, Any]
Pixels = NDArray[np.uint8]

TOGETHER = 8  # pictures decoded before the first of them is handed out


def read_pictures(
    out: str, images: Sequence[Row], *, allow_http: bool = False
) -> Iterator[tuple[Row, Pixels | Failure]]:
    """Each image with its pixels, H x W x 3 uint8 RGB and upright, or with the reason why it cannot be had any more.

    images: rows of the table `images` that are ok, with image_id, uri, height, width and bytes. An image of another
    size than its row says has CHANGED: its masks would not fit. Pixels are good until the next ones are asked for.
    allow_http: whether to read from web servers. ConfigError where a store does not take the credentials at all.
    """
    return pictures_at(places_of(Manifest.read(journal_folder(out)), images), images, allow_http=allow_http)


def pictures_at(
    places: Sequence[Place], images: Sequence[Row], *, allow_http: bool = False
) -> Iterator[tuple[Row, Pixels | Failure]]:
    """What `read_pictures` gives, of images whose places are known."""
    if not images:
        return
    allowed = [p for p in places if allow_http or not is_web(p.container or p.uri)]
    max_bytes = max(SegmentConfig.max_bytes, *(i["bytes"] or 0 for i in images))
    max_pixels = max(SegmentConfig.max_pixels, *(i["height"] * i["width"] for i in images))
    fetched = fetch(allowed, max_bytes=max_bytes)
    files = ((image, _data(next(fetched)) if p in allowed else WEB) for image, p in zip(images, places, strict=True))
    with borrowed_sandbox(max_bytes=max_bytes, max_pixels=max_pixels, decoder=DECODER) as sandbox:
        for block in sandbox.blocks(files, TOGETHER):
            for image, decoded in block:
                yield image, _checked(image, decoded)


WEB = Failure(ErrorKind.FORBIDDEN, "it is on a web server; --allow-http reads it")


def places_of(manifest: Manifest, images: Sequence[Row]) -> list[Place]:
    """Where the images lie. Of those that are objects of their own, `uri` says it."""
    ids = np.array([image["image_id"] for image in images], np.int64)
    contained = {
        row["image_id"]: Place(
            row["uri"], row["size"], None, row["container"], row["container_column"], row["position"]
        )
        for row in manifest.contained(ids).to_pylist()
    }
    return [contained.get(image["image_id"], Place(image["uri"])) for image in images]


def _data(fetched: Fetched | Failure) -> bytes | Failure:
    return fetched if isinstance(fetched, Failure) else fetched.data


def _checked(image: Row, decoded: Image | Failure) -> Pixels | Failure:
    if isinstance(decoded, Failure):
        return decoded
    size_hw = (image["height"], image["width"])
    if decoded.pixels.shape[:2] != size_hw:
        height, width, _ = decoded.pixels.shape
        return Failure(
            ErrorKind.CHANGED, f"it has {height} x {width} pixels; it had {size_hw[0]} x {size_hw[1]} (height x width)"
        )
    return decoded.pixels
