"""A run as JSON lines on standard error, for whoever collects the logs of jobs: `ray job logs`, Fluent Bit, Loki, ...

Every line has time (ISO 8601, UTC), level (info or error), run_id and message; what else there is to say stands in
fields of its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from raymask.config import SegmentConfig
from raymask.console import reporter
from raymask.errors import known_cause
from raymask.progress import Reporter, new_run_id
from raymask.urls import without_credentials

PROGRESS_EVERY_S = 10.0


class LogReporter:
    """Says it in JSON, what ends its `with` block too."""

    def __init__(self, stream: TextIO | None = None, *, only_errors: bool = False) -> None:
        self.run_id = new_run_id()
        self._stream = stream or sys.stderr
        self._only_errors = only_errors
        self._last_progress_s = 0.0

    def __enter__(self) -> LogReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.log("interrupted; the same command goes on from what is done", level="error")
        elif error is not None:
            known = known_cause(error)
            self.log(str(known or error), level="error", error=type(known or error).__name__)

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        """One line, with no credentials in it."""
        if self._only_errors and level != "error":
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "level": level, "run_id": self.run_id, "message": without_credentials(message), **fields}
        print(json.dumps(line), file=self._stream, flush=True)

    def say(self, line: str) -> None:
        self.log(line)

    def images(self, done: int, failed: int, total: int) -> None:
        if self._is_time(done, total):
            self.log("images", done=done, failed=failed, total=total)

    def live(self, text: str, done: int, total: int) -> None:
        if self._is_time(done, total):
            self.log(text, done=done, total=total)

    def done(self, facts: Mapping[str, Any]) -> None:
        self.log("done", **facts)

    def _is_time(self, done: int, total: int) -> bool:
        now_s = time.monotonic()
        if done < total and now_s - self._last_progress_s < PROGRESS_EVERY_S:
            return False
        self._last_progress_s = now_s
        return True


def reporter_of(config: SegmentConfig) -> contextlib.AbstractContextManager[Reporter]:
    """Lines for a person, JSON lines for `log_json`, and nothing for `quiet`, though `log_json` still says errors."""
    if config.log_json:
        return LogReporter(only_errors=config.quiet)
    return reporter(config.quiet)
