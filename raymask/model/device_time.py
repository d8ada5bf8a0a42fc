"""How long a GPU was at the work of this process, by its own clock."""

from __future__ import annotations

import threading
from typing import Any

import torch


class DeviceTime:
    """Seconds between marks in the work that a device is given; 0 on a CPU. Threads share one stream and one of these.

    What lies between the marks of two threads counts once. A device that waits for the host in between counts as at
    work, so that of small batches the seconds are too many rather than too few.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: Any = None
        self._lock = threading.Lock()

    def mark(self) -> Any:
        """A mark behind all that the device has been given so far; None on a CPU."""
        if self._device.type != "cuda":
            return None
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch gives no types for it
            event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark to the other, without what an earlier call has counted."""
        if start is None:
            return 0.0
        end.synchronize()
        with self._lock:
            passed_ms: float = start.elapsed_time(end)
            counted_ms = 0.0 if self._last is None else max(0.0, start.elapsed_time(self._last))
            if passed_ms > counted_ms:
                self._last = end
            return max(0.0, passed_ms - counted_ms) / 1000
