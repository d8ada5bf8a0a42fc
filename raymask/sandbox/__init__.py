"""Decoding in a process of its own, which may crash, hang or run out of memory without anybody else.

    parent: files -> shared memory -> "go"         child: `decode`, one after the other, under limits of the kernel's
    parent: pixels, where they lie <- "done"  <-   child: pixels -> shared memory

The child is begun once and decodes group after group; only where it dies, another is begun. It inherits no
environment, so no credentials, and no file but the shared memory and its end of a channel. What it says is data and
checked as such: a decoder that a file has taken over must not take over its parent.

`sandbox.py` is the parent's side, `child.py` the other; `memory.py` is what lies between them.
"""

from raymask.sandbox.limits import Limits
from raymask.sandbox.sandbox import DECODER, ROOM_BYTES, Sandbox, borrowed_sandbox

__all__ = ["DECODER", "ROOM_BYTES", "Limits", "Sandbox", "borrowed_sandbox"]
