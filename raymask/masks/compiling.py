"""How the inner loops of this package become machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Numba's `njit` without fastmath, which would change the very roundings that have to be kept.

    The machine code is kept beside the function's file, or in the user's cache where that folder is read-only, until
    that file changes. It is not thrown away when another file changes, from which the function calls something.
    """
    try:
        return njit(cache=True, nogil=True)(function)  # type: ignore[return-value]  # called like the function it wraps
    except RuntimeError:  # nowhere to keep the machine code, as in a read-only container: compile it in every process
        return njit(nogil=True)(function)  # type: ignore[return-value]
