"""What a person sees of a running command: one live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from raymask.progress import Reporter, Silent, harmless, new_run_id, progress_text

PLAIN_EVERY_S = 10.0


def reporter(quiet: bool) -> contextlib.AbstractContextManager[Reporter]:
    """Lines for a person, or nothing."""
    return contextlib.nullcontext(Silent()) if quiet else ConsoleReporter()


class ConsoleReporter:
    """Says it on standard error, so that standard output stays free for results. A context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.run_id = new_run_id()
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
        self._console.print(harmless(line), markup=False)

    def images(self, done: int, failed: int, total: int) -> None:
        now_s = time.monotonic()
        if self._started_s is None:
            self._started_s, self._first_done = now_s, done
        self.live(progress_text(done, failed, total, done - self._first_done, now_s - self._started_s), done, total)

    def done(self, facts: Mapping[str, Any]) -> None:
        pass  # what a person reads of it is the command's to print

    def live(self, text: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if self._console.is_terminal:
            finished = done >= total
            self._progress.update(self._task, description=text, completed=done, total=total, visible=not finished)
        elif now_s - self._last_plain_s >= PLAIN_EVERY_S:
            self._last_plain_s = now_s
            self.say(text)
