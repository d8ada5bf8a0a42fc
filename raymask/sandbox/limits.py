"""What the decoding of one image may take, and how the kernel is told to end what takes more."""

from __future__ import annotations

import contextlib
import mmap
import resource
import signal
import time
from dataclasses import dataclass

_OVER_TIME = {signal.SIGXCPU: "CPU time", signal.SIGALRM: "time"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the decoding of one image may take. wall_s is longer, for a process that has to share its core.

    bytes_per_pixel: of memory, for an image of the most pixels allowed; 32-bit grey takes most.
    """

    cpu_s: int = 10
    wall_s: float = 60.0
    bytes_per_pixel: int = 32
    spare_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True)
class End:
    """How a process ended, in words; is_over_time: because it took too long, as the next one would."""

    said: str
    is_over_time: bool = False


def end_of(signal_or_code: int, limits: Limits) -> End:
    """signal_or_code: the number of the signal that ended it, or minus its exit code."""
    if signal_or_code in _OVER_TIME:
        allowed_s = limits.cpu_s if signal_or_code == signal.SIGXCPU else limits.wall_s
        what = _OVER_TIME[signal.Signals(signal_or_code)]
        return End(f"it took more than {allowed_s:g} s of {what}", is_over_time=True)
    if signal_or_code > 0:
        with contextlib.suppress(ValueError):
            return End(signal.Signals(signal_or_code).name)
    return End(f"exit code {-signal_or_code}")


# ------------------------------------------------------------------------------------------- called in the child only


def prepare(limits: Limits, max_pixels: int) -> None:
    """Let the kernel hold this process to what memory it has and that of one image, and end it when alarms ring."""
    for ends_it in _OVER_TIME:  # whatever the parent does with them
        signal.signal(ends_it, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OVER_TIME)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # systems that do not count, or would not be told
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[0])
        most = pages * mmap.PAGESIZE + limits.bytes_per_pixel * max_pixels + limits.spare_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def set_alarms(limits: Limits) -> None:
    """The kernel ends this process if the next image takes too long, also inside a C library."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + limits.cpu_s, hard))
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s)


def stop_clock() -> None:
    """No image is being decoded until `set_alarms` says so."""
    signal.setitimer(signal.ITIMER_REAL, 0)
