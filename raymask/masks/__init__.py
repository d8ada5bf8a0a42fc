"""Masks as COCO run-length encodings (RLE): from soft masks, to pixels and back, and functions on columns of them.

An RLE is `{"size": [height, width], "counts": text}`. Its runs alternate between outside and inside, outside first, in
column-major order: pixel (y, x) is number x * height + y. The text is COCO's: each run less the one two before it (from
the fourth run on), as a signed number in chunks of five bits, least first, a sixth bit set while more follow, plus 48.
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c

All of it is loaded when first asked for: Numba takes longer to import than most questions about masks to answer, and
the functions on columns (`mask_area` and the others of `raymask.masks.functions.FUNCTIONS`) need pyarrow, which a
predictor can do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymask.masks.compiling import compiled
    from raymask.masks.encoder import EncodedMasks, encode_soft_masks
    from raymask.masks.rle import area, checked_size, decode, encode, validate_rle

__all__ = [
    "EncodedMasks",
    "area",
    "checked_size",
    "compiled",
    "decode",
    "encode",
    "encode_soft_masks",
    "validate_rle",
]

_HOMES = {
    "compiling": ("compiled",),
    "encoder": ("EncodedMasks", "encode_soft_masks"),
    "rle": ("area", "checked_size", "decode", "encode", "validate_rle"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"raymask.masks.{home}"), name)
    if name.startswith(("mask_", "box_")):
        from raymask.masks.functions import FUNCTIONS

        if name in FUNCTIONS:
            return FUNCTIONS[name]
    raise AttributeError(f"module 'raymask.masks' has no attribute {name!r}")
