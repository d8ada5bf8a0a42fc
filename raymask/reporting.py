"""Which reporter a command asks for."""

from __future__ import annotations

import contextlib

from raymask.config import SegmentConfig
from raymask.console import ConsoleReporter
from raymask.logs import LogReporter
from raymask.progress import Reporter, Silent


def reporter_of(config: SegmentConfig) -> contextlib.AbstractContextManager[Reporter]:
    """Lines for a person, JSON lines for `log_json`, and nothing for `quiet`, though `log_json` still says errors."""
    if config.log_json:
        return LogReporter(only_errors=config.quiet)
    return contextlib.nullcontext(Silent()) if config.quiet else ConsoleReporter()
