"""Whether an error says that there is not enough memory, which torch and the libraries under it say in many ways."""

from __future__ import annotations

import re

import torch

_SAYS_SO = re.compile(
    "error: out of memory"  # of a device, outside of torch's own allocator
    "|_STATUS_ALLOC_FAILED"  # cuBLAS, cuDNN and others, for their workspaces
    "|DefaultCPUAllocator"
    "|std::bad_alloc"
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the lack of memory of a device or of this machine, after which a smaller batch may still fit."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)) is not None
