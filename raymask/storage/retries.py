"""Another attempt at what a store may well do the next time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from raymask.faults import is_transient

T = TypeVar("T")

# The waits add up to some 6 s. A store that is down or says "slow down" takes longer to say so, since botocore and s3fs
# try again on their own each time; PATIENCE_S bounds the whole.
ATTEMPTS = 6
FIRST_WAIT_S = 0.2
PATIENCE_S = 60.0


def retried(call: Callable[[], T]) -> T:
    """`call()`, repeated while it fails with something worth a retry; waits double and are jittered."""
    started_s = time.monotonic()
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            patient = attempt + 1 < ATTEMPTS and time.monotonic() - started_s < PATIENCE_S
            if not patient or not is_transient(error):
                raise
        time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")
