"""An evaluation for people: a few lines for the terminal, and one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence

from raymask.drawing import OKABE_ITO, css
from raymask.evaluation import Evaluation
from raymask.page import chart_card, page, raw_table, table, text, tiles_row
from raymask.page.charts import curves

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CATEGORY_LINES = 20
NAMES = {"segm": "masks", "bbox": "boxes"}


def report_text(evaluation: Evaluation) -> str:
    """The numbers of masks and boxes, the categories with the most objects, and the best least score."""
    e = evaluation
    most = sorted(e.categories, key=lambda c: -c["objects"])[:CATEGORY_LINES]
    best = max(e.thresholds, key=lambda row: row["f1"])
    lines = [
        f"{e.images:,} images, {e.objects:,} objects, {e.instances:,} instances found",
        "",
        *columns([["", *e.scores["segm"]], *([NAMES[k], *map(number, s.values())] for k, s in e.scores.items())]),
        "",
        *columns(
            [
                ["masks by category", "objects", *SHOWN],
                *([c["name"], f"{c['objects']:,}", *(number(c["segm"][m]) for m in SHOWN)] for c in most),
            ]
        ),
        "",
        f"best F1 {best['f1']:.3f} at --min-score {best['score']}: "
        f"precision {best['precision']:.3f}, recall {best['recall']:.3f}",
    ]
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def number(value: float) -> str:
    """Three decimals; a dash where there is nothing to measure."""
    return "-" if value < 0 else f"{value:.3f}"


def report_html(evaluation: Evaluation) -> str:
    """One page that needs nothing else: numbers, precision-recall curves, categories, scores, confusion."""
    e = evaluation
    kinds = [["of", *e.scores["segm"]], *([NAMES[k], *map(number, s.values())] for k, s in e.scores.items())]
    categories = [
        ["category", "objects", *(f"{NAMES[k]} {m}" for k in e.scores for m in SHOWN)],
        *([c["name"], f"{c['objects']:,}", *(number(c[k][m]) for k in e.scores for m in SHOWN)] for c in e.categories),
    ]
    scores = [
        ["least score", "precision", "recall", "F1", "found"],
        *(
            [f"{r['score']:.2f}", *(number(r[k]) for k in ("precision", "recall", "f1")), f"{r['found']:,}"]
            for r in e.thresholds
        ),
    ]
    segm, bbox = e.scores["segm"], e.scores["bbox"]
    tiles = [
        ("mask AP", number(segm["AP"]), "mean of IoU 0.50 to 0.95"),
        ("mask AP50", number(segm["AP50"]), "at IoU 0.50"),
        ("box AP", number(bbox["AP"]), "mean of IoU 0.50 to 0.95"),
        ("images", f"{e.images:,}", f"{e.objects:,} objects in them"),
        ("found", f"{e.instances:,}", f"at most {e.max_detections} of a category in an image count"),
    ]
    body = [
        f'<header><h1>{text(e.out)}</h1><p class="quiet">measured against {text(e.annotations)}</p></header>',
        tiles_row(tiles),
        "<h2>All numbers</h2>",
        table(kinds),
        "<h2>Precision and recall</h2><p>The mean of the categories.</p>",
        f'<div class="charts">{"".join(curve_card(e, kind) for kind in e.curves)}</div>',
        "<h2>Categories</h2>",
        table(categories),
        "<h2>Masks by least score</h2><p>At IoU 0.50, over all categories.</p>",
        table(scores),
        f"<h2>Confusion</h2><p>Of masks that score {e.confusion['score']} or more, at IoU 0.50. "
        "Rows are what is there, columns what was found.</p>",
        confusion_table(e.confusion["categories"], e.confusion["counts"]),
    ]
    return page(f"Evaluation of {e.out}", "\n".join(body))


def curve_card(evaluation: Evaluation, kind: str) -> str:
    """Precision by recall of masks ("segm") or boxes ("bbox")."""
    lines, colours = evaluation.curves[kind], [css(colour) for colour in OKABE_ITO]
    keys = "".join(
        f'<span class="key"><i class="swatch" style="background:{colour}"></i>{text(name)}</span>'
        for name, colour in zip(lines, colours, strict=False)
    )
    says = (
        f"Precision by recall; the mean of a line is its AP. Over all IoUs it is {evaluation.scores[kind]['AP']:.3f}."
    )
    return chart_card(NAMES[kind].capitalize(), says, keys + curves(lines, colours=colours, axis="recall", label=says))


def confusion_table(categories: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Counts as numbers on a ground that is the deeper the larger their share of the row is."""
    rows = []
    for name, row in zip([*categories, "no object"], counts, strict=True):
        total = sum(row) or 1
        cells = (
            f'<td style="background:color-mix(in srgb, var(--accent) {50 * count / total:.0f}%, transparent)">'
            f"{f'{count:,}' if count else ''}</td>"
            for count in row
        )
        rows.append([f"<td>{text(name)}</td>", *cells])
    return raw_table(["there", *categories, "not found"], rows)
