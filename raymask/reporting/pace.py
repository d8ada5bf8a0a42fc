"""How fast an output came into being, over restarts: by the times at which the parts of its journal were put.

A part is written once and never changed, so the time that its store gives for it is that of its commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymask.journal import journal_folder
from raymask.journal.parts import FOLDER
from raymask.protocol import PartName

PAUSE_S = 60.0  # without a part, at the least, and
PAUSE_OF_MEDIAN = 20.0  # times as long as between two parts usually
MOST_BINS = 60
PARTS_OF_BIN = 3


@dataclass(frozen=True)
class Stretch:
    """Work without a pause. Times are Unix times in s; images: put after `start_s`, the time of the first part."""

    start_s: float
    stop_s: float
    images: int


@dataclass(frozen=True)
class Pace:
    """images: put in all, those done twice twice. stretches: in order, with pauses between.

    rates: images a second in equal bins of the time of all stretches, laid end to end.
    """

    images: int
    stretches: Sequence[Stretch]
    rates: Sequence[float]

    @property
    def first_s(self) -> float:
        return self.stretches[0].start_s

    @property
    def last_s(self) -> float:
        return self.stretches[-1].stop_s

    @property
    def working_s(self) -> float:
        return sum(s.stop_s - s.start_s for s in self.stretches)

    @property
    def bin_s(self) -> float:
        return self.working_s / len(self.rates)

    @property
    def rate(self) -> float:
        """Images a second, on average, without pauses."""
        return sum(s.images for s in self.stretches) / self.working_s


def read_pace(out: str) -> Pace | None:
    """The pace of an output; None where its journal says too little, such as of one that was imported."""
    names = ((PartName.parse(name.rsplit("/", 1)[-1]), put_s) for name, put_s in journal_folder(out).times(FOLDER))
    return pace_of([(put_s, name.rows) for name, put_s in names if name is not None])


def pace_of(parts: Sequence[tuple[float, int]]) -> Pace | None:
    """The pace of parts, each the time at which it was put and its images; None where all were put at one time."""
    if not parts:
        return None
    times, at = np.unique(np.array([put_s for put_s, _ in parts]), return_inverse=True)
    images = np.bincount(at, [rows for _, rows in parts])
    gaps = np.diff(times)
    if not len(gaps):
        return None
    pauses = gaps > max(PAUSE_S, PAUSE_OF_MEDIAN * float(np.median(gaps)))
    starts = np.flatnonzero(np.concatenate([[True], pauses]))
    stops = np.concatenate([starts[1:], [len(times)]])
    stretches = [
        Stretch(float(times[a]), float(times[b - 1]), int(images[a + 1 : b].sum()))
        for a, b in zip(starts, stops, strict=True)
    ]
    # Time at work and images done in it: across a pause neither grows, nor by the part that ends it.
    worked = np.concatenate([[0], np.cumsum(np.where(pauses, 0, gaps))])
    done = np.concatenate([[0], np.cumsum(np.where(pauses, 0, images[1:]))])
    if worked[-1] <= 0:
        return None
    edges = np.linspace(0, worked[-1], min(MOST_BINS, max(1, len(times) // PARTS_OF_BIN)) + 1)
    rates = np.diff(np.interp(edges, worked, done)) / np.diff(edges)
    return Pace(int(images.sum()), stretches, [float(rate) for rate in rates])
