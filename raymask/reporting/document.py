"""The page about an output: all of its sections, written."""

from __future__ import annotations

import time

from raymask.journal import Manifest, journal_folder
from raymask.output import Masks
from raymask.page import page, text
from raymask.reporting import contents
from raymask.reporting.config import ReportConfig
from raymask.reporting.facts import read_facts
from raymask.reporting.pace import read_pace
from raymask.reporting.samples import choose, read_samples
from raymask.schema import footer_of
from raymask.storage import used_plainly, write_file


def write_report(config: ReportConfig) -> int:
    """Write the page about an output; returns its bytes. OutputError if there is no output, or no writing to `out`."""
    data = report_html(config.masks, allow_http=config.allow_http).encode()
    with used_plainly(config.out):
        write_file(config.out, data)
    return len(data)


def report_html(out: str, *, allow_http: bool = False) -> str:
    """The page about what is committed in an output. Images that cannot be read any more leave gaps, no error."""
    masks = Masks(out)
    with masks.connect() as con:
        facts = read_facts(con)
        samples = read_samples(con, out, choose(con, facts.images), allow_http=allow_http)
    pace = read_pace(out)
    sources = [listing.source for listing in Manifest.read(journal_folder(out)).listings]
    footer = footer_of(masks.instances.schema)
    sections = {
        "Pictures": contents.sample_pictures(samples),
        "Failures": contents.failures(facts),
        "Categories": contents.categories(facts),
        "Objects": contents.distributions(facts),
        "Pace": contents.pace_of_work(pace),
        "Settings": contents.settings(footer, sources, facts),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    model = footer.get("model", {})
    about = f"Objects that {model.get('name', 'a model')} {model.get('sha256', '')[:8]} found"
    if facts.images < masks.listed:
        about += f" so far, in {facts.images:,} of {masks.listed:,} images"
    parts = [
        f'<header><h1>{text(out)}</h1><p class="quiet">{text(about)}</p><nav>{links}</nav></header>',
        contents.overview(facts, pace),
        *(f'<section id="{name.lower()}"><h2>{name}</h2>{body}</section>' for name, body in sections.items()),
        f"<footer>Written {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC by raymask report.</footer>",
    ]
    return page(f"{out}: masks", "\n".join(parts))
