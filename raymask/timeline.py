"""What every process of a run did when, as a timeline for https://ui.perfetto.dev or chrome://tracing.

The format is Chrome's Trace Event Format: complete events ("ph": "X") with times in microseconds, and metadata events
("ph": "M") that name processes and threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from raymask.timing import Span, Taken

MAX_SPANS = 100_000  # some 10 MB


class Timeline:
    """Keeps spans of a run, all of them or an even sample: where they grow too many, every second group is let go."""

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self._max_spans = max_spans
        self._kept: list[Taken] = []
        self._spans = 0
        self._every = 1
        self._seen = 0

    def add(self, taken: Taken) -> None:
        self._seen += 1
        if self._seen % self._every or not taken.spans:
            return
        self._kept.append(taken)
        self._spans += len(taken.spans)
        while self._spans > self._max_spans and len(self._kept) > 1:
            self._kept = self._kept[1::2]
            self._every *= 2
            self._spans = sum(len(kept.spans) for kept in self._kept)

    def to_json(self, run_id: str, phases: Iterable[Span]) -> bytes:
        """The file. phases: what the driver was at; times in it are from the first of them on."""
        phases = list(phases)
        zero_s = min((span.start_s for span in phases), default=0.0)
        events = [_name("process", 1, 0, "driver"), *(_event(span, 1, 0, zero_s) for span in phases)]
        numbers: dict[str, int] = {}
        threads: set[tuple[int, int]] = set()
        for taken in self._kept:
            process = f"{taken.role} {taken.process}"
            if process not in numbers:
                numbers[process] = len(numbers) + 2
                events.append(_name("process", numbers[process], 0, process))
            number = numbers[process]
            if (number, taken.thread) not in threads:
                threads.add((number, taken.thread))
                events.append(_name("thread", number, taken.thread, taken.role))
            events += [_event(span, number, taken.thread, zero_s) for span in taken.spans]
        about = {"run_id": run_id, "shown": f"1 of {self._every} tasks and calls", "began_unix_s": zero_s}
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}).encode()


def _event(span: Span, process: int, thread: int, zero_s: float) -> dict[str, Any]:
    return {
        "name": span.stage,
        "cat": "stage",
        "ph": "X",
        "ts": round(1e6 * (span.start_s - zero_s), 1),
        "dur": round(1e6 * span.seconds, 1),
        "pid": process,
        "tid": thread,
    }


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": f"{what}_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
