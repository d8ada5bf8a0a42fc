"""COCO's three ways to write a mask (polygons, runs, compressed RLE), made into one: compressed RLE.

Everything is checked on its way, because pycocotools takes the process down on what is malformed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from raymask.masks import checked_size, validate_rle

MAX_POLYGON_COORDINATE = 1e6  # pycocotools allocates memory for every pixel along a polygon


def to_rle(segmentation: Any, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Polygons, runs or a compressed RLE as compressed RLE of `size_hw`; ValueError if they are malformed."""
    height, width = checked_size(size_hw)
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("segmentation is an empty list")
        for polygon in segmentation:
            xy = np.asarray(polygon, np.float64)
            if xy.ndim != 1 or len(xy) < 6 or len(xy) % 2 or not (np.abs(xy) <= MAX_POLYGON_COORDINATE).all():
                raise ValueError(f"polygon {str(polygon)[:60]} is not a list of at least three points x, y")
        return dict(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    rle = dict(segmentation)
    if tuple(rle["size"]) != size_hw:
        raise ValueError(f"segmentation has size {rle['size']}, its image is {height} x {width} (height x width)")
    if isinstance(rle["counts"], list):
        if any(not isinstance(run, int) or run < 0 for run in rle["counts"]) or sum(rle["counts"]) != height * width:
            raise ValueError(f"runs of segmentation do not add up to its {height} x {width} pixels")
        rle = dict(coco_mask.frPyObjects(rle, height, width))
    validate_rle(rle["size"], rle["counts"])
    return rle
