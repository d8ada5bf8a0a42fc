"""What stands in the page of a report, section by section, as HTML."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from raymask.drawing import colour_of, css
from raymask.errors import Failure
from raymask.output import MIN_SCORE
from raymask.page import bar_cell, chart_card, facts_list, raw_table, table, text, tiles_row
from raymask.page.charts import Bar, heat_map, histogram
from raymask.progress import duration_text
from raymask.reporting.facts import GRID_COLUMNS, GRID_ROWS, SCORE_BINS, SIDES_PER_DOUBLING, Facts
from raymask.reporting.pace import Pace, Stretch
from raymask.reporting.samples import Sample

SHOWN_CATEGORIES = 20
FEW_EXAMPLES = 6
SHOWN_STRETCHES = 8
SHORT_S = 20.0  # time at work that is shown with tenths
MOST_PER_IMAGE_BARS = 40
COCO_MEDIUM, COCO_LARGE = 32, 96  # pixels: sides of squares from which COCO calls objects medium and large

GROUPS_SAY = {
    "surest": "The highest mean score of what is drawn.",
    "typical": "Around the median of that.",
    "least sure": "The lowest score of their best object.",
    "most objects": "The most rows in the table of instances.",
    "nothing found": "Read and looked at, without an object.",
}


def overview(facts: Facts, pace: Pace | None) -> str:
    """The counts, large."""
    failed = facts.images - facts.ok
    tiles = [
        ("images", f"{facts.images:,}", f"{facts.bytes / 1e9:,.1f} GB" if facts.bytes >= 1e8 else ""),
        ("failed", f"{failed:,}", _percent(failed, facts.images) if failed else "none"),
        ("objects", f"{facts.instances:,}", f"{len(facts.categories):,} categories"),
        ("objects an image", f"{facts.instances / facts.ok:.1f}" if facts.ok else "-", "on average"),
    ]
    if pace is not None:
        tiles.append(("images a second", f"{pace.rate:,.1f}", f"in {_span_text(pace.working_s)} of work"))
    return tiles_row(tiles)


def sample_pictures(groups: Mapping[str, Sequence[Sample]]) -> str:
    """Pictures with what was found in them; where none can be had any more, a sentence."""
    samples = [sample for group in groups.values() for sample in group]
    if not samples:
        return "<p>No image could be read.</p>"
    gone = [s.picture for s in samples if isinstance(s.picture, Failure)]
    said = f"<p>Objects that score {MIN_SCORE} or more; where none does, the best one.</p>"
    if len(gone) == len(samples):
        why = text(f"{gone[0].kind}: {gone[0].detail}")
        return f"<p>The images cannot be read any more where they were: {why}. The rest of this page needs none.</p>"
    return said + "".join(
        f'<h3>{text(name.capitalize())}</h3><p class="quiet">{GROUPS_SAY[name]}</p>'
        f'<div class="samples">{"".join(map(_sample_card, group))}</div>'
        for name, group in groups.items()
    )


def _sample_card(sample: Sample) -> str:
    name = sample.uri.rstrip("/").rsplit("/", 1)[-1]
    best = "" if sample.top_score is None else f", best {sample.top_score:.2f}"
    objects = f"{sample.objects:,} object{'' if sample.objects == 1 else 's'}{best}"
    if isinstance(sample.picture, Failure):
        picture = f'<div class="gone">{text(f"{sample.picture.kind}: {sample.picture.detail}")}</div>'
    else:
        alt = text(f"{name}: {sample.shown} of {sample.objects} objects drawn")
        picture = f'<img src="{sample.picture}" alt="{alt}">'
    height, width = sample.size_hw
    return (
        f'<figure class="card sample">{picture}<figcaption title="{text(sample.uri)}"><b>{text(name)}</b>'
        f"{objects} · {width} x {height}</figcaption></figure>"
    )


def failures(facts: Facts) -> str:
    """Kinds of failure with how many there are, and a few of each with what was said."""
    if not facts.failures:
        return "<p>None: every image was read.</p>"
    most = facts.failures[0].images
    rows = [
        [
            f"<td><code>{text(f.kind)}</code></td>",
            f"<td>{f.images:,}</td>",
            f"<td>{_percent(f.images, facts.images)}</td>",
            bar_cell(f.images / most),
        ]
        for f in facts.failures
    ]
    examples = [
        f'<li><code>{text(f.kind)}</code> {text(e.uri)}<br><span class="quiet">{text(e.detail)}</span></li>'
        for f in facts.failures
        for e in f.examples
    ]
    is_open = " open" if len(examples) <= FEW_EXAMPLES else ""
    return (
        raw_table(["reason", "images", "of all", ""], rows)
        + f"<details{is_open}><summary>Examples</summary><ul>{''.join(examples)}</ul></details>"
    )


def categories(facts: Facts) -> str:
    """Categories by their number of objects, each in the colour that its masks have in pictures."""
    if not facts.categories:
        return "<p>No object was found.</p>"
    most = facts.categories[0].objects
    rows = [
        [
            f'<td><i class="swatch" style="background:{css(colour_of(c.id))}"></i>{text(c.name)}</td>',
            f"<td>{c.objects:,}</td>",
            f"<td>{_percent(c.objects, facts.instances)}</td>",
            bar_cell(c.objects / most),
            f"<td>{c.score:.2f}</td>",
            f"<td>{c.area:,.0f}</td>",
        ]
        for c in facts.categories
    ]
    head = ["category", "objects", "of all", "", "mean score", "mean area, px"]
    first, more = rows[:SHOWN_CATEGORIES], rows[SHOWN_CATEGORIES:]
    rest = f"<details><summary>{len(more):,} more</summary>{raw_table(head, more)}</details>" if more else ""
    return raw_table(head, first) + rest


def distributions(facts: Facts) -> str:
    """Scores, sizes, numbers and places of objects."""
    if not facts.instances:
        return "<p>No object was found.</p>"
    cards = [_score_card(facts), _side_card(facts), _per_image_card(facts), _centre_card(facts)]
    return f'<div class="charts">{"".join(cards)}</div>'


def _score_card(facts: Facts) -> str:
    bars = [
        Bar(count, f"score {n / SCORE_BINS:.2f} to {(n + 1) / SCORE_BINS:.2f}: {count:,} objects")
        for n, count in enumerate(facts.scores)
    ]
    sure = sum(facts.scores[round(MIN_SCORE * SCORE_BINS) :])
    says = f"{_percent(sure, facts.instances)} of the objects score {MIN_SCORE} or more; half of them less than "
    says += f"{_median(facts.scores) / SCORE_BINS:.2f}."
    ticks = {SCORE_BINS * n / 5: f"{n / 5:g}" for n in range(6)}
    return chart_card("Scores", says, histogram(bars, ticks=ticks, axis="score", label=says))


def _side_card(facts: Facts) -> str:
    first, last = min(facts.sides), max(facts.sides)
    counts = [facts.sides.get(n, 0) for n in range(first, last + 1)]

    def side(bin: float) -> float:
        return float(2 ** (bin / SIDES_PER_DOUBLING))

    bars = [
        Bar(count, f"side {side(first + n):,.0f} to {side(first + n + 1):,.0f} px: {count:,} objects")
        for n, count in enumerate(counts)
    ]
    doublings = range(-(-first // SIDES_PER_DOUBLING), (last + 1) // SIDES_PER_DOUBLING + 1)
    every = -(-len(doublings) // 8)
    ticks: dict[float, str] = {n * SIDES_PER_DOUBLING - first: f"{2**n:,}" for n in doublings if n % every == 0}
    limits = ((COCO_MEDIUM, "small"), (COCO_LARGE, "medium"))
    marks = {SIDES_PER_DOUBLING * math.log2(px) - first: name for px, name in limits}
    marks = {place: name for place, name in marks.items() if 0 < place < len(bars)}
    says = f"Half of the masks are smaller than a square of {side(first + _median(counts)):,.0f} pixels a side. "
    says += f"Lines: COCO's limits of small, medium and large, {COCO_MEDIUM} and {COCO_LARGE}."
    chart = histogram(bars, ticks=ticks, axis="side of a square as large, px", marks=marks, label=says)
    return chart_card("Sizes", says, chart)


def _per_image_card(facts: Facts) -> str:
    most = max(facts.per_image)
    width = -(-(most + 1) // MOST_PER_IMAGE_BARS)
    counts = [0] * (most // width + 1)
    for objects, images in facts.per_image.items():
        counts[objects // width] += images
    bars = [
        Bar(images, f"{_span(n * width, (n + 1) * width - 1)} objects: {images:,} images")
        for n, images in enumerate(counts)
    ]
    every = max(1, -(-len(bars) // 8))
    ticks: dict[float, str] = {n + (0.5 if width == 1 else 0): f"{n * width:,}" for n in range(0, len(bars), every)}
    empty = facts.per_image.get(0, 0)
    says = f"From {min(facts.per_image):,} to {most:,}; nothing was found in {empty:,} images."
    return chart_card("Objects an image", says, histogram(bars, ticks=ticks, axis="objects", label=says))


def _centre_card(facts: Facts) -> str:
    rows, columns = range(GRID_ROWS), range(GRID_COLUMNS)
    middle = sum(
        facts.centres[y][x]
        for y in rows[GRID_ROWS // 4 : -(GRID_ROWS // 4)]
        for x in columns[GRID_COLUMNS // 4 : -(GRID_COLUMNS // 4)]
    )
    says = f"Where in their image the centres of boxes are: {_percent(middle, facts.instances)} in its middle quarter. "
    says += f"The fullest cell holds {max(map(max, facts.centres)):,} objects."
    return chart_card("Places", says, heat_map(facts.centres, label=says))


def pace_of_work(pace: Pace | None) -> str:
    """Images a second over the time at work, with the pauses between runs."""
    if pace is None:
        return "<p>Not known: the journal does not say when images were done, or says one moment for all.</p>"
    said = "By the times at which the parts of the journal were put; the first one after a pause only starts the clock."
    if len(pace.stretches) > 1:
        pauses = [(a.stop_s, b.start_s) for a, b in pairwise(pace.stretches)]
        said += f" Lines across are pauses, {duration_text(sum(b - a for a, b in pauses))} in all, which are left out."
    bars = [
        Bar(rate, f"from {_span_text(n * pace.bin_s)} on: {rate:,.2f} images a second")
        for n, rate in enumerate(pace.rates)
    ]
    marks, worked = dict[float, str](), 0.0
    for stretch in pace.stretches[:-1]:
        worked += stretch.stop_s - stretch.start_s
        marks[worked / pace.bin_s] = ""
    ticks = {len(bars) * n / 4: _span_text(pace.working_s * n / 4, pace.working_s) for n in range(5)}
    says = f"{pace.rate:,.2f} on average, {max(pace.rates):,.2f} at best, in {_span_text(pace.working_s)} of work."
    chart = histogram(bars, ticks=ticks, axis="time at work", marks=marks, label=says)
    rows = [
        ["begun, UTC", "time at work", "images", "a second"],
        *([_utc(s.start_s), _span_text(s.stop_s - s.start_s), f"{s.images:,}", _rate(s)] for s in pace.stretches),
    ]
    return (
        f'<p class="quiet">{said}</p><div class="charts">{chart_card("Images a second", says, chart)}'
        f'<div class="card"><h3>Without a pause</h3>{table(rows[: SHOWN_STRETCHES + 1])}</div></div>'
    )


def _rate(stretch: Stretch) -> str:
    seconds = stretch.stop_s - stretch.start_s
    return f"{stretch.images / seconds:,.2f}" if seconds else "-"


def settings(footer: Mapping[str, Any], sources: Sequence[Mapping[str, Any]], facts: Facts) -> str:
    """What the tables were made with, from what, and of which sizes and formats the images are."""
    model = footer.get("model", {})
    rows: list[tuple[str, object]] = [
        ("model", model.get("name", "not known")),
        ("its weights, SHA-256", model.get("sha256", "not known")),
        ("categories it knows", f"{len(footer.get('categories', ())):,}"),
        *((name.replace("_", " "), value) for name, value in sorted(footer.get("thresholds", {}).items())),
        *(("source", _source_text(s)) for s in sources),
        ("raymask", footer.get("raymask_version", "not known")),
        ("schema of the tables", footer.get("schema_version", "not known")),
    ]
    formats = [["format", "images"], *([name, f"{count:,}"] for name, count in facts.formats.items())]
    sizes = [
        ["width x height", "images"],
        *([f"{width} x {height}", f"{count:,}"] for (height, width), count in facts.sizes_hw.items()),
    ]
    return (
        f'<div class="card">{facts_list(rows)}</div><div class="charts">'
        f'<div class="card"><h3>Formats</h3>{table(formats)}</div>'
        f'<div class="card"><h3>Most frequent sizes</h3>{table(sizes)}</div></div>'
    )


def _source_text(source: Mapping[str, Any]) -> str:
    """`s3://bucket/photos, extensions jpg png`: the listing's options but those that were not given."""
    given = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in source.items() if v is not None}
    return ", ".join([str(given.pop("source", "")), *(f"{name} {value}" for name, value in given.items())])


def _percent(part: float, whole: float) -> str:
    """`12 %`; never 0 or 100 where there are some or not all."""
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %" if share != round(share) else f"{share:.0f} %"


def _median(counts: Sequence[int]) -> float:
    """The median of values in equal bins, in bins from the first one's start."""
    half, before = sum(counts) / 2, 0
    for place, count in enumerate(counts):
        if count and before + count >= half:
            return place + (half - before) / count
        before += count
    return 0.0


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _span_text(seconds: float, longest: float | None = None) -> str:
    """A time at work, in the way that suits the longest beside it."""
    return f"{seconds:.1f} s" if (longest or seconds) < SHORT_S else duration_text(seconds)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
