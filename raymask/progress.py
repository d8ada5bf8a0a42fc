"""What a person sees of a running command: one live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

PLAIN_EVERY_S = 10.0


class Reporter(Protocol):
    """Where a run says how far it is."""

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def images(self, done: int, failed: int, total: int) -> None:
        """Images done by now, those that failed among them, and all there are; what was done before counts as done."""
        ...

    def live(self, text: str, done: int, total: int) -> None:
        """How far the run is, in the caller's own words; replaces what was said so before."""
        ...


class Silent:
    """Says nothing."""

    def say(self, line: str) -> None:
        pass

    def images(self, done: int, failed: int, total: int) -> None:
        pass

    def live(self, text: str, done: int, total: int) -> None:
        pass


class ConsoleReporter:
    """Says it on standard error, so that standard output stays free for results. A context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn())
        self._progress = Progress(*columns, console=self._console, transient=True, refresh_per_second=2)
        self._task = self._progress.add_task("", total=None, visible=False)
        self._started_s: float | None = None
        self._first_done = 0
        self._last_plain_s = 0.0

    def __enter__(self) -> ConsoleReporter:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    def images(self, done: int, failed: int, total: int) -> None:
        now_s = time.monotonic()
        if self._started_s is None:
            self._started_s, self._first_done = now_s, done
        self.live(progress_text(done, failed, total, done - self._first_done, now_s - self._started_s), done, total)

    def live(self, text: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if self._console.is_terminal:
            finished = done >= total
            self._progress.update(self._task, description=text, completed=done, total=total, visible=not finished)
        elif now_s - self._last_plain_s >= PLAIN_EVERY_S:
            self._last_plain_s = now_s
            self.say(text)


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
