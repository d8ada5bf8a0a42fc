"""Entries of the lists in a JSON file, one at a time, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson
import numpy as np

from raymask.errors import ConfigError
from raymask.sources.stream import said_plainly
from raymask.storage import resolve

MAX_JSON_DEPTH = 10_000  # ijson takes the square of it


def json_entries(url: str, key: str) -> Iterator[dict[str, Any]]:
    """The objects in the list `key` of a JSON file, one at a time; nothing where there is no such list.

    key: "" for a file that is a list itself. What is no object in the list comes as an empty one. ConfigError if the
    file cannot be read, or is no JSON.
    """
    fs, path = resolve(url)
    with said_plainly(url, "a COCO annotation file"), fs.open(path, "rb") as file:
        for entry in ijson.items(_DepthChecked(file, url), f"{key}.item" if key else "item", use_float=True):
            yield entry if isinstance(entry, dict) else {}


class _DepthChecked:
    """A JSON file that is a ConfigError where it is nested so deeply that it would take for ever to parse.

    Brackets in text count as well.
    """

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._file = file
        self._url = url
        self._depth = 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        letters = np.frombuffer(block, np.uint8) & ~np.uint8(0x20)  # [ and { become one, and ] and }
        steps = (letters == ord("[")).astype(np.int8) - (letters == ord("]"))
        depths = self._depth + np.cumsum(steps, dtype=np.int64)
        if (depths > MAX_JSON_DEPTH).any():
            raise ConfigError(
                f"{self._url} is nested more than {MAX_JSON_DEPTH} deep, so it is no COCO annotation file"
            )
        self._depth = int(depths[-1]) if block else 0
        return block
