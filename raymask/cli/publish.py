"""`raymask publish`: what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymask.cli.codes import DONE
from raymask.lakes.config import PublishConfig

if TYPE_CHECKING:  # pyarrow takes time to import; --help should not
    from raymask.lakes.publisher import TableChange


def publish(config: PublishConfig) -> int:
    from raymask.console import reporter
    from raymask.lakes.publisher import publish as run

    with reporter(config.quiet) as report:
        changes = run(config, report)
    if not config.quiet:
        for change in changes:
            print(change_text(change))
    return DONE


def change_text(change: TableChange) -> str:
    """`images     lab.photos.images: 60,000 rows, 20,000 of them new, in place of those of 1 file`."""
    text = f"{change.table:<10} {change.location}: {change.rows:,} rows"
    if not change.added and not change.replaced:
        return f"{text}, all there before"
    text += f", {change.added:,} of them new"
    if change.replaced:
        text += f", in place of those of {change.replaced:,} file{'s' if change.replaced > 1 else ''}"
    return text
