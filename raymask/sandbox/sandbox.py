"""The parent's side of the sandbox: groups of files to the child, and what to do about those at which it dies."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

from raymask.decode import Image
from raymask.errors import ErrorKind, Failure
from raymask.sandbox.limits import End, Limits
from raymask.sandbox.memory import GROUP, GROUP_BYTES, ParentMemory, Sizes, shared_file
from raymask.sandbox.process import LIED, Child

DECODER = "raymask.decode:decode"
ROOM_BYTES = 64 * 1024 * 1024  # decoded pixels that travel together, at the most and an image more
# A crash may be another's doing, such as the kernel's who was short of memory: then a second child finds out.
CHILDREN_PER_IMAGE = 2

T = TypeVar("T")


@dataclass
class _Waiting(Generic[T]):
    """A file that is to be decoded, or why there is none; ends: how the children ended that died at it."""

    of: T
    data: bytes | Failure
    ends: list[str] = field(default_factory=list)


class Sandbox:
    """A child process that decodes. Not for several threads at once, nor for two runs of `blocks` at once.

    max_bytes, max_pixels: the largest file and image. room_bytes: pixels that make a block, see `blocks`. decoder:
    "module:function" of the signature of `decode`.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_pixels: int,
        room_bytes: int = ROOM_BYTES,
        limits: Limits | None = None,
        decoder: str = DECODER,
    ) -> None:
        self._child: Child | None = None
        self._limits = limits or Limits()
        self._sizes = Sizes(max_bytes, max_pixels, room_bytes)
        self._decoder = decoder
        self._file = shared_file(self._sizes.total)
        self._memory = ParentMemory(self._file.fileno(), self._sizes)

    def start(self) -> None:
        """Begin the child, unless there is one; it comes up while the caller goes on."""
        if self._child is None or self._child.has_ended():
            self._end_child()
            self._child = Child(self._file.fileno(), self._sizes, self._limits, self._decoder)

    def blocks(
        self, files: Iterable[tuple[T, bytes | Failure]], rows: int
    ) -> Iterator[list[tuple[T, Image | Failure]]]:
        """Files decoded, in their order and each with what it came with; a Failure instead of a file stays one.

        A block has `rows` of them, or fewer where their pixels come to `room_bytes`; its pixels are good until the next
        block is asked for. Failures are those of `decode` and two more:

        CRASHED_WORKER   the decoder took its process down twice, or took longer than `Limits` allow
        OUT_OF_MEMORY    the decoder wanted more memory than they allow
        """
        coming = iter(files)
        waiting: deque[_Waiting[T]] = deque()
        block: list[tuple[T, Image | Failure]] = []
        self._memory.clear()
        while _await_group(waiting, coming, min(GROUP, rows - len(block))):
            outcomes = iter(self._attempt([w for w in waiting if isinstance(w.data, bytes)]))
            while waiting:
                outcome = waiting[0].data if isinstance(waiting[0].data, Failure) else next(outcomes, None)
                if outcome is None:
                    break
                block.append((waiting.popleft().of, outcome))
            if len(block) == rows or self._memory.is_full:
                yield block
                block = []
                self._memory.clear()
        if block:
            yield block

    def decode(self, data: bytes) -> Image | Failure:
        """One file decoded, as `blocks` does; the pixels are good until either of them is called."""
        [[(_, outcome)]] = self.blocks([(None, data)], rows=1)
        return outcome

    def _attempt(self, group: Sequence[_Waiting[Any]]) -> list[Image | Failure]:
        """What became of the first files of a group; not of all where the memory is full or the child has died."""
        if not group:
            return []
        self.start()
        self._memory.order([w.data for w in group if isinstance(w.data, bytes)])
        outcomes: list[Image | Failure] = []
        try:
            end = self._work_of_child(len(group), outcomes)
        except BaseException:
            self._end_child()  # or it would go on with these when others are laid out
            raise
        if end is not None and len(outcomes) < len(group):
            ends = group[len(outcomes)].ends  # those behind it were not begun, hence not tried
            ends.append(end.said)
            if end.is_over_time or len(ends) == CHILDREN_PER_IMAGE:
                said = "decoding it ended its process: " + ", ".join(ends)
                outcomes.append(Failure(ErrorKind.CRASHED_WORKER, said))
        return outcomes

    def _work_of_child(self, ordered: int, outcomes: list[Image | Failure]) -> End | None:
        """Add what it makes of the files; returns how it ended, None if it may go on."""
        assert self._child is not None
        end = self._child.work(lambda: self._memory.done)
        try:
            for number in range(self._memory.done):
                outcomes.append(self._memory.outcome(number))
        except ValueError:
            self._end_child()
            return LIED
        last = outcomes[-1] if outcomes else None
        if isinstance(last, Failure) and last.kind is ErrorKind.OUT_OF_MEMORY:
            self._end_child()  # it may hold on to what it has
        elif end is None and len(outcomes) < ordered and not self._memory.is_full:
            self._end_child()
            return LIED
        return end

    def close(self) -> None:
        """End the child. Pixels stay good as long as they are held, but nothing more is decoded."""
        self._end_child()
        self._file.close()

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def _await_group(waiting: deque[_Waiting[T]], coming: Iterator[tuple[T, bytes | Failure]], most: int) -> bool:
    """Let come what makes a group, of `most` at the most; whether there is any."""
    held_bytes = sum(len(w.data) for w in waiting if isinstance(w.data, bytes))
    while len(waiting) < most and held_bytes < GROUP_BYTES:
        one = next(coming, None)
        if one is None:
            break
        waiting.append(_Waiting(*one))
        held_bytes += len(one[1]) if isinstance(one[1], bytes) else 0
    return bool(waiting)


_idle: dict[tuple[int, int, int, str], list[Sandbox]] = {}


@contextlib.contextmanager
def borrowed_sandbox(
    *, max_bytes: int, max_pixels: int, decoder: str, room_bytes: int = ROOM_BYTES
) -> Iterator[Sandbox]:
    """A sandbox for as long as the `with` block, with a child on its way; this process keeps it for the next one."""
    idle = _idle.setdefault((max_bytes, max_pixels, room_bytes, decoder), [])
    try:
        sandbox = idle.pop()
    except IndexError:
        sandbox = Sandbox(max_bytes=max_bytes, max_pixels=max_pixels, room_bytes=room_bytes, decoder=decoder)
    sandbox.start()
    try:
        yield sandbox
    finally:
        idle.append(sandbox)
