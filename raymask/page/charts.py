"""Charts as inline SVG in the colours of the page: numbers show on hover, and everything is in one `viewBox`.

A chart is as wide as its card, on a phone about as many pixels as units, so that its text stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymask.page import text

WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 38, 14, 8, 34  # of the area that is drawn on, from the edges
TICKS = 4


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram; `says` is shown on hover."""

    value: float
    says: str


def histogram(
    bars: Sequence[Bar],
    *,
    ticks: Mapping[float, str],
    axis: str,
    marks: Mapping[float, str] | None = None,
    label: str,
) -> str:
    """Bars side by side. ticks, marks: by place, where bar n lies between n and n + 1; marks are lines across.

    axis: below the bars. label: for those who do not see it.
    """
    top = max([bar.value for bar in bars], default=0) or 1
    step = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    parts = [*_value_axis(top), *_place_axis({LEFT + p * step: t for p, t in ticks.items()}, axis)]
    for number, bar in enumerate(bars):
        x, height = LEFT + number * step, _height(bar.value / _ceiling(top))
        parts.append(
            f'<g><rect class="value" x="{x + step * 0.06:.2f}" y="{HEIGHT - BOTTOM - height:.2f}" '
            f'width="{step * 0.88:.2f}" height="{height:.2f}"/>'
            f'<rect class="hover" x="{x:.2f}" y="{TOP}" width="{step:.2f}" height="{HEIGHT - TOP - BOTTOM}">'
            f"<title>{text(bar.says)}</title></rect></g>"
        )
    for place, name in (marks or {}).items():
        x = LEFT + place * step
        parts.append(f'<path class="mark" d="M{x:.2f} {TOP}V{HEIGHT - BOTTOM}"/>')
        if name:
            parts.append(f'<text x="{x - 4:.2f}" y="{TOP + 9}" text-anchor="end">{text(name)}</text>')
    return _svg(parts, label)


def heat_map(counts: Sequence[Sequence[int]], *, label: str) -> str:
    """Counts as shades of one colour, the first row at the top; the shade grows with the count."""
    cell = (HEIGHT + BOTTOM) / len(counts)
    left = (WIDTH - cell * len(counts[0])) / 2
    most = max(max(row) for row in counts) or 1
    frame = f'x="{left:.2f}" y=".5" width="{cell * len(counts[0]):.2f}" height="{cell * len(counts):.2f}" rx="3"'
    parts = [f'<rect class="rule" {frame} fill="none"/>']
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                parts.append(
                    f'<rect class="value" x="{left + x * cell:.2f}" y="{0.5 + y * cell:.2f}" width="{cell:.2f}" '
                    f'height="{cell:.2f}" opacity="{count / most:.3f}"><title>{count:,} objects</title></rect>'
                )
    return _svg(parts, label, HEIGHT + BOTTOM + 1)


def curves(lines: Mapping[str, Sequence[float]], *, colours: Sequence[str], axis: str, label: str) -> str:
    """Values 0 to 1 over 0 to 1, each line at equal distances; its name is shown on hover."""
    ticks = {LEFT + (WIDTH - LEFT - RIGHT) * n / 5: f"{n / 5:g}" for n in range(6)}
    parts = [*_value_axis(1), *_place_axis(ticks, axis)]
    for (name, values), colour in zip(lines.items(), colours, strict=False):
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT - RIGHT) * n / (len(values) - 1):.1f},{HEIGHT - BOTTOM - _height(value):.1f}"
            for n, value in enumerate(values)
        )
        parts.append(
            f'<polyline class="line" stroke="{colour}" points="{points}"><title>{text(name)}</title></polyline>'
        )
    return _svg(parts, label)


def compact(value: float) -> str:
    """`950`, `1.2k`, `3M`: a number in the room beside an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _height(share: float) -> float:
    return share * (HEIGHT - TOP - BOTTOM)


def _tick_step(top: float) -> float:
    """The distance of round numbers of which no more than `TICKS` are needed up to `top`."""
    least = top / TICKS
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-9))


def _ceiling(top: float) -> float:
    step = _tick_step(top)
    return step * math.ceil(top / step * (1 - 1e-9))


def _value_axis(top: float) -> list[str]:
    step, ceiling = _tick_step(top), _ceiling(top)
    parts = []
    for number in range(round(ceiling / step) + 1):
        y = HEIGHT - BOTTOM - _height(number * step / ceiling)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.2f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.2f}" text-anchor="end">{compact(number * step)}</text>')
    return parts


def _place_axis(ticks: Mapping[float, str], axis: str) -> list[str]:
    y = HEIGHT - BOTTOM
    return [
        *(f'<text x="{x:.2f}" y="{y + 14}" text-anchor="middle">{text(name)}</text>' for x, name in ticks.items()),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{text(axis)}</text>',
    ]


def _svg(parts: Sequence[str], label: str, height: float = HEIGHT) -> str:
    start = f'<svg role="img" aria-label="{text(label)}" viewBox="0 0 {WIDTH} {height:.2f}">'
    return start + "".join(parts) + "</svg>"
