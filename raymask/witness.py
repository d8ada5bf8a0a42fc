"""Who remembers, when a process dies, at which images it was: so that a poisonous one is found and left out.

Work goes on in groups, quickly, until a process dies at one. Whoever is given images of that group next takes them one
at a time and alone. An image at which three processes have died fails, and the others come out as ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from raymask.errors import ErrorKind, Failure
from raymask.turns import Turns

MAX_DEATHS = 3

T = TypeVar("T")
R = TypeVar("R")


class Witness:
    """Images by number, how often each was begun and not ended since. It lives where the work does not."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, numbers: Sequence[int]) -> dict[int, int]:
        """Note that work on these begins; where anybody has died at one of them note nothing, but say how often."""
        deaths = {number: self._begun[number] for number in numbers if self._begun[number]}
        if not deaths:
            self._begun.update(numbers)
        return deaths

    def begin_alone(self, number: int) -> None:
        """Note that work on this one begins, whatever happened before."""
        self._begun[number] += 1

    def end(self, numbers: Sequence[int]) -> None:
        """Note that work on these has come to its end, so that whatever killed others was not they."""
        for number in numbers:
            del self._begun[number]


class Told(Protocol):
    """A `Witness` as it is reached from elsewhere."""

    def begin(self, numbers: Sequence[int]) -> dict[int, int]: ...
    def begin_alone(self, number: int) -> None: ...
    def end(self, numbers: Sequence[int]) -> None: ...


class Watched(Generic[T, R]):
    """`work`, from several inputs to as many results, before the eyes of a witness. Threads may share it."""

    def __init__(self, work: Callable[[list[T]], Sequence[R]], witness: Told) -> None:
        self._work = work
        self._witness = witness
        self._turns = Turns()

    def __call__(self, inputs: Mapping[int, T]) -> dict[int, R | Failure]:
        """Results by number; CRASHED_WORKER for an input at which `MAX_DEATHS` processes have died."""
        numbers = list(inputs)
        deaths = self._witness.begin(numbers)
        if not deaths:
            with self._turns.together():
                results: dict[int, R | Failure] = dict(zip(numbers, self._work(list(inputs.values())), strict=True))
            self._witness.end(numbers)
            return results
        return {n: self._alone(n, inputs[n], deaths.get(n, 0)) for n in numbers}

    def _alone(self, number: int, item: T, deaths: int) -> R | Failure:
        if deaths >= MAX_DEATHS:
            return Failure(ErrorKind.CRASHED_WORKER, f"{deaths} model workers have died at it")
        with self._turns.alone():  # or it would be blamed for what another thread works on
            self._witness.begin_alone(number)
            [result] = self._work([item])
            self._witness.end([number])
        return result
