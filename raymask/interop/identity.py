"""What tells one import from another: a hash of its files, and of the options that decide what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from raymask.sources.stream import said_plainly
from raymask.storage import resolve

BLOCK_BYTES = 1 << 20


def content_of(url: str) -> str:
    """SHA-256 of a file of any size, in hexadecimal. ConfigError if it cannot be read."""
    fs, path = resolve(url)
    digest = hashlib.sha256()
    with said_plainly(url), fs.open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def identity_of(options: Sequence[Any], contents: Sequence[Any]) -> str:
    """SHA-256, in hexadecimal, of options and of what `contents` says of each file: its SHA-256, its name."""
    return hashlib.sha256(json.dumps([options, contents]).encode()).hexdigest()
