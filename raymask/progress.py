"""How a run says how far it is, and the words for it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """Where a run says how far it is. run_id: what names the run in logs, metrics and timelines."""

    run_id: str

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def images(self, done: int, failed: int, total: int) -> None:
        """Images done by now, those that failed among them, and all there are; what was done before counts as done."""
        ...

    def live(self, text: str, done: int, total: int) -> None:
        """How far the run is, in the caller's own words; replaces what was said so before."""
        ...

    def done(self, facts: Mapping[str, Any]) -> None:
        """The run has ended well; facts about it by name, for programs."""
        ...


def new_run_id() -> str:
    """`20261121-081500-5f3a`: the time (UTC), and four digits by chance."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


class Silent:
    """Says nothing."""

    def __init__(self) -> None:
        self.run_id = new_run_id()

    def say(self, line: str) -> None:
        pass

    def images(self, done: int, failed: int, total: int) -> None:
        pass

    def live(self, text: str, done: int, total: int) -> None:
        pass

    def done(self, facts: Mapping[str, Any]) -> None:
        pass


def progress_text(done: int, failed: int, total: int, done_now: int, elapsed_s: float) -> str:
    """`1,234 of 10,000 images, 5 failed, 12.3 images/s, 11:52 left`; rate and time once there are any."""
    parts = [f"{done:,} of {total:,} images", f"{failed:,} failed"]
    if done_now and elapsed_s > 0:
        rate = done_now / elapsed_s
        parts.append(f"{rate:,.1f} images/s")
        parts.append(f"{duration_text((total - done) / rate)} left")
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """`0:07`, `11:52`, `3:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def harmless(line: str) -> str:
    """A line without characters that would command a terminal, as names and errors may hold them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
