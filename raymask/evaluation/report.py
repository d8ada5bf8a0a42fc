"""An evaluation for people: a few lines for the terminal, and one HTML file with everything in it."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from raymask.evaluation import Evaluation

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CATEGORY_LINES = 20
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


def report_text(evaluation: Evaluation) -> str:
    """The numbers of masks and boxes, the categories with the most objects, and the best least score."""
    e = evaluation
    most = sorted(e.categories, key=lambda c: -c["objects"])[:CATEGORY_LINES]
    best = max(e.thresholds, key=lambda row: row["f1"])
    names = {"segm": "masks", "bbox": "boxes"}
    lines = [
        f"{e.images:,} images, {e.objects:,} objects, {e.instances:,} instances found",
        "",
        *columns([["", *e.scores["segm"]], *([names[k], *map(number, s.values())] for k, s in e.scores.items())]),
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
    names = {"segm": "masks", "bbox": "boxes"}
    kinds = [["", *e.scores["segm"]], *([names[k], *map(number, s.values())] for k, s in e.scores.items())]
    categories = [
        ["category", "objects", *(f"{names[k]} {m}" for k in e.scores for m in SHOWN)],
        *([c["name"], f"{c['objects']:,}", *(number(c[k][m]) for k in e.scores for m in SHOWN)] for c in e.categories),
    ]
    scores = [
        ["least score", "precision", "recall", "F1", "found"],
        *(
            [f"{r['score']:.2f}", *(number(r[k]) for k in ("precision", "recall", "f1")), f"{r['found']:,}"]
            for r in e.thresholds
        ),
    ]
    confused = [
        ["", *e.confusion["categories"], "not found"],
        *(
            [name, *(f"{count:,}" if count else "" for count in row)]
            for name, row in zip([*e.confusion["categories"], "no object"], e.confusion["counts"], strict=True)
        ),
    ]
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f"<title>Evaluation of {html.escape(e.out)}</title><style>{STYLE}</style>",
            f"<h1>{html.escape(e.out)}</h1>",
            f"<p>against {html.escape(e.annotations)}: {e.images:,} images, {e.objects:,} objects, "
            f"{e.instances:,} instances found; at most {e.max_detections} a category and image count</p>",
            html_table(kinds),
            "<h2>Precision and recall</h2><p>The mean of the categories.</p>",
            draw_curves(e),
            "<h2>Categories</h2>",
            html_table(categories),
            "<h2>Masks by least score, at IoU 0.50</h2>",
            html_table(scores),
            f"<h2>Confusion of masks that score {e.confusion['score']} or more, at IoU 0.50</h2>",
            "<p>Rows are what is there, columns what was found.</p>",
            html_table(confused),
            "</html>\n",
        ]
    )


def html_table(rows: Sequence[Iterable[Any]]) -> str:
    """The first row as head."""
    head, *body = ["".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in row) for tag, row in _tagged(rows)]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in body) + "</table>"


def _tagged(rows: Sequence[Iterable[Any]]) -> list[tuple[str, Iterable[Any]]]:
    return [("th" if number == 0 else "td", row) for number, row in enumerate(rows)]


def draw_curves(evaluation: Evaluation) -> str:
    """Masks on the left, boxes on the right, as SVG."""
    from matplotlib.figure import Figure  # takes half a second, and only this page needs it

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (kind, curves) in zip(figure.subplots(1, 2, sharey=True), evaluation.curves.items(), strict=True):
        for name, values in curves.items():
            axes.plot([n / (len(values) - 1) for n in range(len(values))], values, label=name)
        axes.set(title={"segm": "masks", "bbox": "boxes"}[kind], xlabel="recall", ylabel="precision")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.legend()
    sink = io.StringIO()
    figure.savefig(sink, format="svg")
    return sink.getvalue()[sink.getvalue().index("<svg") :]
