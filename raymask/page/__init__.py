"""HTML pages that are one file: they open without network, without script, in light and dark, on a phone.

`charts` draws what stands in them. Whatever comes from images, tables or options passes through `text`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from raymask.progress import harmless

# Nothing is fetched and nothing runs, whatever should get into a page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ground: #f7f7f5; --surface: #fff; --ink: #1d1f21; --quiet: #62676d;
  --rule: #e3e3df; --accent: #0072b2; --soft: #eef4f8; }
@media (prefers-color-scheme: dark) { :root { --ground: #121416; --surface: #1a1d20; --ink: #e9e9e6;
  --quiet: #9ba1a8; --rule: #2e3338; --accent: #56b4e9; --soft: #1f2a32; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .25rem; letter-spacing: -.01em; }
h3 { font-size: .95rem; margin: 0 0 .15rem; }
section > h3 { margin-top: 1.6rem; }
section > h3 + p { margin-bottom: 0; }
p { margin: .2rem 0 .8rem; max-width: 46rem; }
.quiet, figcaption, caption { color: var(--quiet); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; }
a { color: var(--accent); text-underline-offset: .2em; }
.tiles, .charts, .samples { display: grid; gap: 1rem; margin: 1rem 0 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.samples { grid-template-columns: repeat(3, minmax(0, 1fr)); align-items: start; }
.card { background: var(--surface); border: 1px solid var(--rule); border-radius: 10px; padding: 1rem 1.1rem; }
.tile b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.25; letter-spacing: -.02em; }
figure { margin: 0; min-width: 0; }
figure.sample { padding: 0; overflow: hidden; }
.sample img, .sample .gone { display: block; width: 100%; height: 15rem; object-fit: contain;
  background: var(--soft); }
.sample .gone { display: grid; place-items: center; padding: 1rem; text-align: center; color: var(--quiet);
  overflow: auto; }
.sample figcaption { padding: .6rem .8rem .7rem; font-size: .85rem; overflow-wrap: anywhere; }
.sample figcaption b { display: block; color: var(--ink); font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .8rem .38rem 0; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; font-size: .85rem; white-space: normal; vertical-align: bottom; }
tr:last-child > td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .4rem 1.5rem; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
ul { list-style: none; margin: .6rem 0 0; padding: 0; }
li { padding: .5rem 0; border-top: 1px solid var(--rule); overflow-wrap: anywhere; }
td.bar { width: 32%; min-width: 6rem; vertical-align: middle; }
.bar i { display: block; height: .6rem; min-width: 2px; border-radius: 3px; background: var(--accent); }
.key { margin-right: 1rem; font-size: .85rem; white-space: nowrap; }
.swatch { display: inline-block; width: .72em; height: .72em; border-radius: 3px; margin-right: .5em;
  border: 1px solid rgb(128 128 128 / .5); }
svg { display: block; width: 100%; height: auto; margin-top: .5rem; font: 11px system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
svg text { fill: var(--quiet); }
svg .value { fill: var(--accent); }
svg .hover { fill: transparent; }
svg g:hover > .value { fill: var(--ink); }
svg .rule { stroke: var(--rule); }
svg .mark { stroke: var(--quiet); stroke-dasharray: 3 3; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
details { margin-top: .6rem; }
summary { cursor: pointer; color: var(--accent); }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
footer { margin-top: 3.5rem; font-size: .85rem; color: var(--quiet); }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; } .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .card { padding: .8rem .9rem; } .tile b { font-size: 1.3rem; } .bar { display: none; }
  th, td { padding-right: .6rem; font-size: .82rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  .samples { grid-template-columns: none; grid-auto-flow: column; grid-auto-columns: 82%; overflow-x: auto;
    scroll-snap-type: x mandatory; margin-inline: -1rem; padding-inline: 1rem; }
  .sample { scroll-snap-align: center; }
}
@media print { body { background: none; } .card { break-inside: avoid; } }
"""


def text(value: object) -> str:
    """A value as it may stand in a page, in elements and in quoted attributes: no markup and no control characters."""
    return html.escape(harmless(str(value)))


def page(title: str, body: str) -> str:
    """A whole page. title: plain text; body: HTML that stands in its `main`."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title><style>{STYLE}</style></head>",
            f"<body><main>{body}</main></body></html>\n",
        ]
    )


def tiles_row(tiles: Sequence[tuple[str, object, str]]) -> str:
    """Numbers that come first: name, number, and what else is to be said of each."""
    cards = (
        f'<div class="card tile"><span class="quiet">{text(name)}</span><b>{text(number)}</b>'
        f'<span class="quiet">{text(about)}</span></div>'
        for name, number, about in tiles
    )
    return f'<div class="tiles">{"".join(cards)}</div>'


def table(rows: Sequence[Sequence[object]]) -> str:
    """The first row as head, the first column to the left; it scrolls by itself where the page is narrow."""
    head, *body = rows
    return raw_table([str(cell) for cell in head], [[f"<td>{text(cell)}</td>" for cell in row] for row in body])


def raw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same of whole `td` elements. head: plain text; an empty one is that of a column of bars."""
    cells = "".join(f"<th>{text(name)}</th>" if name else '<th class="bar"></th>' for name in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def facts_list(facts: Sequence[tuple[str, object]]) -> str:
    """Names with what they are, one below the other."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts) + "</dl>"


def bar_cell(share: float) -> str:
    """A cell with a bar as long as `share`, 0 to 1."""
    return f'<td class="bar"><i style="width: {100 * share:.2f}%"></i></td>'


def chart_card(title: str, says: str, chart: str) -> str:
    """A chart with its title, and what one sees in it as a sentence."""
    return f'<figure class="card"><h3>{text(title)}</h3><figcaption>{text(says)}</figcaption>{chart}</figure>'
