"""Label maps: PNG files whose pixels are numbers, in the folders that PASCAL VOC has for them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from raymask.errors import ConfigError
from raymask.interop.selection import Picture
from raymask.masks import decode

CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
MAX_VALUE = 65_535  # of a pixel


def values_of(categories: Sequence[tuple[int, str]]) -> dict[int, int]:
    """The pixel value of each category id: itself, or its place from 1 on where one is no value or means nothing."""
    ids = [id for id, _ in categories]
    if len(ids) > MAX_VALUE:
        raise ConfigError(f"a label map tells {MAX_VALUE:,} categories apart, and there are {len(ids):,}")
    if all(1 <= id <= MAX_VALUE for id in ids):
        return {id: id for id in ids}
    return {id: place for place, id in enumerate(ids, 1)}


def draw_maps(picture: Picture, values: Mapping[int, int]) -> dict[str, bytes]:
    """The two maps of an image as PNG, by folder: pixel values of categories, and places of instances from 1 on.

    0 is what no mask covers. Where masks overlap, the best score is seen, which is why the worst is drawn first.
    """
    classes, objects = np.zeros(picture.size_hw, np.uint16), np.zeros(picture.size_hw, np.uint16)
    for instance in reversed(picture.instances):
        if instance.place >= MAX_VALUE:
            raise ConfigError(f"{picture.uri!r} has more instances than a label map tells apart; raise --min-score")
        inside = decode(picture.rle(instance))
        classes[inside] = values[instance.category_id]
        objects[inside] = instance.place + 1
    return {CLASSES: _png(classes, max(values.values(), default=0)), OBJECTS: _png(objects, int(objects.max()))}


def _png(pixels: NDArray[np.uint16], largest: int) -> bytes:
    """With VOC's colours where 8 bits are enough, so that it can be looked at; else 16 bits of grey."""
    if largest <= 255:
        image = PIL.Image.fromarray(pixels.astype(np.uint8))
        image.putpalette(voc_palette())
    else:
        image = PIL.Image.fromarray(pixels)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def voc_palette() -> bytes:
    """256 colours: the bits of a number, the lowest first, go to red, green and blue in turn, as their highest bits."""
    colours = np.zeros((256, 3), np.uint8)
    numbers = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()
