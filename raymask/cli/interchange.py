"""`raymask export` and `raymask import`: what they print."""

from __future__ import annotations

from raymask.cli.codes import DONE
from raymask.interop.config import ExportConfig, ImportConfig


def export(config: ExportConfig) -> int:
    from raymask.console import reporter
    from raymask.interop.exporting import export as run
    from raymask.progress import harmless

    with reporter(config.quiet) as report:
        summary = run(config, report)
    if config.quiet:
        return DONE
    print(f"{summary.out}: {summary.images:,} images, {summary.instances:,} instances")
    if summary.failed:
        print(f"left out: {summary.failed:,} images that could not be read when they were segmented")
    if config.format != "csv":
        print(f"names of images begin below {harmless(summary.folder)}")
    if summary.renamed:
        print(f"{summary.renamed:,} files have a longer name than their image, since another image has that one")
    return DONE


def import_(config: ImportConfig) -> int:
    from raymask.console import reporter
    from raymask.interop.importing import import_masks
    from raymask.progress import harmless

    with reporter(config.quiet) as report:
        summary = import_masks(config, report)
    if not config.quiet:
        print(
            f"{harmless(summary.out)}: {summary.images:,} images, {summary.instances:,} instances, "
            f"{summary.categories:,} categories"
        )
    return DONE
