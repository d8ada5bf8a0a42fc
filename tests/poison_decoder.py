"""The decoder of raymask with a weak spot for each way to die; runs in the child of a sandbox."""

from __future__ import annotations

import ctypes
import os
import time
from types import SimpleNamespace
from typing import Any

from raymask.decode import Image
from raymask.decode import decode as good_decode
from raymask.errors import ErrorKind, Failure
from raymask.sandbox.child import DONE


def decode(data: memoryview, *, max_pixels: int, out: Any) -> Image | Failure:
    """As the good one, unless the file says what to do instead."""
    match bytes(data[:7]):
        case b"ABORT!!":
            os.abort()
        case b"SEGV!!!":
            ctypes.string_at(1)
        case b"SLEEP!!":
            time.sleep(3600)
        case b"SPIN!!!":
            while True:
                pass
        case b"GROW!!!":
            hoard = []
            while True:
                hoard.append(bytearray(2**24))
        case b"EXIT!!!":
            os._exit(3)
        case b"NO-JSON":
            for descriptor in range(3, 1024):  # what a decoder might write that a file has taken over
                try:
                    os.write(descriptor, b"\x08\0\0\0 no json")
                except OSError:
                    continue
            time.sleep(3600)
        case b"EARLY!!":
            for descriptor in range(3, 1024):
                try:
                    os.write(descriptor, DONE)
                except OSError:
                    continue
            time.sleep(3600)
        case b"PAUSE!!":
            time.sleep(0.4)
        case b"LIES!!!":
            return Image(out[:0].reshape(0, 5, 3), "png")
        case b"NO-KIND":
            return Failure(SimpleNamespace(value="bad luck"), "")  # type: ignore[arg-type]
        case b"ENVIRON":
            return Failure(ErrorKind.CORRUPT, repr(dict(os.environ)))
        case b"PROCESS":
            return Failure(ErrorKind.CORRUPT, str(os.getpid()))
    return good_decode(data, max_pixels=max_pixels, out=out)
