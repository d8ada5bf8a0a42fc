"""The child: decodes what is laid out in the shared memory until the parent is gone."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymask.decode import Image, keep_freed_memory
from raymask.errors import ErrorKind, Failure
from raymask.sandbox.limits import Limits, prepare, set_alarms, stop_clock
from raymask.sandbox.memory import ChildMemory, Sizes

UP, GO, DONE = b"u", b"g", b"d"

Decode = Callable[..., Image | Failure]


def serve(*, channel: int, file: int, sizes: dict[str, int], limits: dict[str, Any], decoder: str) -> None:
    """Called in the child only, with the descriptors of its end of the channel and of the shared memory."""
    module, _, function = decoder.partition(":")
    decode: Decode = getattr(importlib.import_module(module), function)
    keep_freed_memory()
    allowed, memory = Limits(**limits), ChildMemory(file, Sizes(**sizes))
    prepare(allowed, sizes["max_pixels"])
    with socket.socket(fileno=channel) as parent, contextlib.suppress(ConnectionError):
        parent.sendall(UP)
        _silence()
        while parent.recv(1) == GO:
            for data, place in memory.files():
                set_alarms(allowed)
                outcome = _decoded(decode, data, sizes["max_pixels"], place)
                memory.answer(outcome)
                if isinstance(outcome, Failure) and outcome.kind is ErrorKind.OUT_OF_MEMORY:
                    break  # this process may hold on to what it has, so another takes the others
            stop_clock()
            parent.sendall(DONE)


def _decoded(decode: Decode, data: memoryview, max_pixels: int, out: NDArray[np.uint8]) -> Image | Failure:
    try:
        return decode(data, max_pixels=max_pixels, out=out)
    except MemoryError as error:
        return Failure(ErrorKind.OUT_OF_MEMORY, f"MemoryError: {error}")


def _silence() -> None:
    """C libraries write warnings of bad files to standard error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
