"""Where the time of a thread goes: seconds by stage, and the stretches of time that make a timeline.

    with stopwatch("read") as watch:
        for block in each("decode", blocks):
            with stage("pack"):
                ...
        watch.take()

Code at any depth says at which stage it is; where no stopwatch runs on its thread, that does nothing. A stage within a
stage is taken off the outer one, so that seconds add up to the time of the thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")

# Stretches of a stage this close to each other are shown as one, and shorter ones not at all: files are fetched one by
# one and decoded in groups.
GAP_S = 1e-3
SHORTEST_S = 0.5e-3


class Span(NamedTuple):
    """A stretch of time at one stage; start_s is Unix time."""

    stage: str
    start_s: float
    seconds: float


@dataclass(frozen=True)
class Taken:
    """What a stopwatch has seen on one thread of one process.

    role: what the thread is for; began_s, ended_s: Unix time when the stopwatch began, or was last taken, and when it
    was; seconds: by stage; amounts: whatever was counted.
    """

    role: str
    process: str
    thread: int
    began_s: float
    ended_s: float
    seconds: dict[str, float]
    amounts: dict[str, float]
    spans: list[Span]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> Taken:
        record = json.loads(text)
        record["spans"] = [Span(*span) for span in record["spans"]]
        return Taken(**record)


class Stopwatch:
    """Adds up what happens on one thread, until it is taken."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._stages: list[str] = []
        self._since_s = 0.0
        self._unix_s = time.time() - time.perf_counter()
        self._began_s = time.time()
        self._clear()

    def enter(self, name: str) -> None:
        self._book()
        self._stages.append(name)

    def leave(self) -> None:
        self._book()
        self._stages.pop()

    def count(self, name: str, amount: float) -> None:
        self._amounts[name] = self._amounts.get(name, 0.0) + amount

    def take(self) -> Taken:
        """All since the last time it was taken."""
        self._book()
        taken = Taken(
            role=self._role,
            process=f"{socket.gethostname()}:{os.getpid()}",
            thread=threading.get_native_id(),
            began_s=self._began_s,
            ended_s=time.time(),
            seconds=self._seconds,
            amounts=self._amounts,
            spans=[Span(s[0], s[1], _seconds(s)) for s in self._spans if _seconds(s) >= SHORTEST_S],
        )
        self._began_s = taken.ended_s
        self._clear()
        return taken

    def _clear(self) -> None:
        self._seconds: dict[str, float] = {}
        self._amounts: dict[str, float] = {}
        self._spans: list[tuple[str, float, float]] = []

    def _book(self) -> None:
        """What has passed since the last time belongs to the innermost stage."""
        now_s = time.perf_counter()
        if self._stages:
            name = self._stages[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now_s - self._since_s
            self._draw(name, self._unix_s + self._since_s, self._unix_s + now_s)
        self._since_s = now_s

    def _draw(self, name: str, start_s: float, end_s: float) -> None:
        if len(self._spans) > 1 and self._spans[-2][0] == name and _seconds(self._spans[-1]) < SHORTEST_S:
            self._spans.pop()
        if self._spans and self._spans[-1][0] == name and start_s - self._spans[-1][2] < GAP_S:
            self._spans[-1] = (name, self._spans[-1][1], end_s)
        else:
            self._spans.append((name, start_s, end_s))


def _seconds(span: tuple[str, float, float]) -> float:
    return span[2] - span[1]


_of_thread = threading.local()


def _running() -> Stopwatch | None:
    return getattr(_of_thread, "stopwatch", None)


@contextlib.contextmanager
def stopwatch(role: str) -> Iterator[Stopwatch]:
    """A stopwatch on this thread for as long as the `with` block."""
    before, _of_thread.stopwatch = _running(), Stopwatch(role)
    try:
        yield _of_thread.stopwatch
    finally:
        _of_thread.stopwatch = before


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """What happens in the `with` block is of this stage."""
    watch = _running()
    if watch is None:
        yield
        return
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()


def each(name: str, items: Iterable[T]) -> Iterator[T]:
    """The same items; what it takes to get the next one is of this stage, what is done with it is not."""
    coming = iter(items)
    while True:
        with stage(name):
            try:
                item = next(coming)
            except StopIteration:
                return
        yield item


def count(name: str, amount: float = 1.0) -> None:
    """Add to what the stopwatch of this thread counts."""
    watch = _running()
    if watch is not None:
        watch.count(name, amount)


class Idleness:
    """Since when each of the calls that a worker can handle at once has had nothing to do. For several threads.

    The time before the first call of each is start-up and told apart: `fill` instead of `wait`.
    """

    def __init__(self, calls: int) -> None:
        self._since = deque([("fill", time.perf_counter())] * calls)

    @contextlib.contextmanager
    def interrupted(self) -> Iterator[None]:
        """One of them, that has waited longest, is at work for as long as the `with` block."""
        with contextlib.suppress(IndexError):  # more calls at once than were announced have not waited
            name, since_s = self._since.popleft()
            count(f"{name}_s", time.perf_counter() - since_s)
        try:
            yield
        finally:
            self._since.append(("wait", time.perf_counter()))
