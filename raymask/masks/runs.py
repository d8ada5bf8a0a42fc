"""The text of an RLE to toggles and back: compiled, one mask at a time.

Toggles are the numbers of the pixels that differ from the one before, in column-major order: int64, rising, of even
number. The mask's pixels are those from toggles[0] up to but not including toggles[1], from toggles[2] up to
toggles[3], and so on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymask.masks.compiling import compiled

MAX_CHUNKS = 7  # of five bits, enough for the difference of two runs

FINE, ILLEGAL, CUT_SHORT, TOO_LONG, NEGATIVE, TOO_MANY, TOO_FEW = range(7)
PROBLEMS = {
    ILLEGAL: "an illegal character",
    CUT_SHORT: "a number cut short",
    TOO_LONG: "a number longer than need be",
    NEGATIVE: "a run below 0",
    TOO_MANY: "more pixels than the mask",
    TOO_FEW: "fewer pixels than the mask",
}


@compiled
def _parse_number(text: NDArray[np.uint8], read: int, stop: int) -> tuple[Any, int, int]:
    """The number that begins at `read`, of one chunk or more; the first problem, or FINE; how far it has read."""
    number, shift, more = np.int64(0), 0, True
    while more:
        if read == stop:
            return number, CUT_SHORT, read
        chunk = np.int64(text[read]) - 48
        if chunk < 0 or chunk > 63:
            return number, ILLEGAL, read
        if shift == 5 * MAX_CHUNKS:
            return number, TOO_LONG, read
        number |= (chunk & 31) << shift
        shift += 5
        read += 1
        more = bool(chunk >= 32)
    if chunk & 16:
        number -= np.int64(1) << shift
    # Without its last chunk it would be the same number: the sign shows in the chunk before.
    if shift > 5 and -(1 << (shift - 6)) <= number < 1 << (shift - 6):
        return number, TOO_LONG, read
    return number, FINE, read


@compiled
def parse_runs(text: NDArray[np.uint8], start: int, stop: int, pixels: int, ends: NDArray[np.int64]) -> Any:
    """Read the text from `start` to `stop`: where each run ends goes into `ends`, which has room for stop - start.

    Returns the number of runs; the first problem, or FINE; how far it has read by then.
    """
    used, read, end, run, previous = 0, start, np.int64(0), np.int64(0), np.int64(0)
    while read < stop:
        # Indices are unsigned where time is spent, or each would be looked at for being negative.
        number = np.int64(text[np.uint64(read)]) - 48
        if 0 <= number < 32:  # one chunk, as most are
            read += 1
            number -= (number & 16) << 1
        else:
            second = np.int64(text[np.uint64(read + 1)]) - 48 if read + 1 < stop else np.int64(64)
            both = (number & 31) | ((second - ((second & 16) << 1)) << 5)
            if 32 <= number < 64 and 0 <= second < 32 and not -16 <= both < 16:  # two, as most others are
                number, read = both, read + 2
            else:
                number, problem, read = _parse_number(text, read, stop)
                if problem != FINE:
                    return used, problem, read
        before_previous, previous = previous, run
        run = number + before_previous if used > 2 else number
        if run < 0:
            return used, NEGATIVE, read
        if run > pixels - end:
            return used, TOO_MANY, read
        end += run
        ends[np.uint64(used)] = end
        used += 1
    return used, TOO_FEW if end < pixels else FINE, read


@compiled
def parse_toggles(text: NDArray[np.uint8], start: int, stop: int, pixels: int, toggles: NDArray[np.int64]) -> int:
    """Read the text from `start` to `stop` into `toggles`, which has room for stop - start + 1; how many they are.

    -1 if the text is malformed.
    """
    runs, problem, _ = parse_runs(text, start, stop, pixels, toggles)
    if problem != FINE:
        return -1
    has_empty = False
    for i in range(1, runs):
        has_empty |= toggles[i] == toggles[i - 1]
    used = _without_empty(toggles, runs) if has_empty else runs
    if used % 2 == 1:
        if toggles[used - 1] == pixels:  # the end of a last run outside
            return used - 1
        toggles[used] = pixels  # the end of a last run inside, which a run of no pixels behind it had taken back
        return used + 1
    return used


@compiled
def _without_empty(toggles: NDArray[np.int64], used: int) -> int:
    """Join runs that have one of no pixels between them; how many toggles are left."""
    kept = 0
    for i in range(used):
        kept = toggle(toggles, kept, toggles[i])
    return kept


@compiled
def toggle(toggles: NDArray[np.int64], used: int, pixel: int) -> int:
    """Change sides at a pixel. Twice at the same one is not at all: so a run goes on from one column to the next."""
    if used > 0 and toggles[used - 1] == pixel:
        return used - 1
    toggles[used] = pixel
    return used + 1


@compiled
def append_runs(
    text: NDArray[np.uint8], length: int, toggles: NDArray[np.int64], pixels: int
) -> tuple[NDArray[np.uint8], int, int]:
    """Write one mask behind the first `length` characters of `text` or a larger copy; the new length; its area.

    The last toggle may be missing if it is `pixels`.
    """
    # The last run ends with the image, whether or not the mask changes sides there.
    last = len(toggles) - 1 if len(toggles) > 0 and toggles[-1] == pixels else len(toggles)
    text = with_room(text, length + MAX_CHUNKS * (last + 1))
    area, end, run, previous = 0, 0, 0, 0
    for i in range(last + 1):
        start, end = end, (toggles[i] if i < last else pixels)
        before_previous, previous, run = previous, run, end - start
        if i % 2 == 1:
            area += run
        number = run - before_previous if i > 2 else run
        more = True
        while more:
            chunk = number & 31
            number >>= 5
            more = number != (-1 if chunk & 16 else 0)
            text[length] = 48 + chunk + (32 if more else 0)
            length += 1
    return text, length, area


@compiled
def with_room(array: NDArray[Any], needed: int) -> NDArray[Any]:
    """The array, or a copy that is at least twice as long, so that growing costs no more than filling."""
    if needed <= len(array):
        return array
    larger = np.empty(max(needed, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger
