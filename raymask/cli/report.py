"""`raymask report` and `raymask draw`: what they write and print."""

from __future__ import annotations

import io

from raymask.cli.codes import DONE
from raymask.reporting.config import DrawConfig, ReportConfig


def report(config: ReportConfig) -> int:
    from raymask.reporting.document import write_report

    size = write_report(config)
    if not config.quiet:
        print(f"{config.out}: {size / 1e6:.1f} MB, to be opened in a browser")
    return DONE


def draw(config: DrawConfig) -> int:
    from raymask.output import Masks
    from raymask.storage import write_file

    picture = Masks(config.masks).draw(
        config.uri,
        min_score=config.min_score,
        layers=config.layers,
        longest_side=config.longest_side,
        allow_http=config.allow_http,
    )
    sink = io.BytesIO()
    picture.save(sink, config.format)
    write_file(config.out, sink.getvalue())
    if not config.quiet:
        print(f"{config.out}: {picture.width} x {picture.height} pixels")
    return DONE
