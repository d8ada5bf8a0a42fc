"""From annotations of other programs to an output of raymask: read, then through the same journal as a segmentation.

    file -> Annotated -> run.json -> manifest -> parts -> publish

Every step is skipped where an earlier import of the same file has done it, so an import that was killed is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

import raymask
from raymask.interop.annotated import BATCH_ROWS, Annotated
from raymask.interop.coco_reader import read_coco, read_results
from raymask.interop.config import ImportConfig
from raymask.interop.label_map_reader import read_label_maps
from raymask.interop.labelme_reader import read_labelme
from raymask.journal import Lease, Manifest, NewRows, Run, create_run, journal_folder, scan_parts, write_part
from raymask.journal.manifest import SeenIds
from raymask.progress import Reporter, Silent
from raymask.publishing import publish
from raymask.sources.stream import listed_batch
from raymask.storage import absolute, used_plainly

READERS: dict[str, Callable[[ImportConfig], Annotated]] = {
    "coco": read_coco,
    "coco-results": read_results,
    "labelme": read_labelme,
    "masks": read_label_maps,
}

IMAGES_PER_PART = 2_048
IMAGES_PER_FILE = 20_000

# An import drops nothing. The tables ask for these three, see `schemas/spec.md`.
THRESHOLDS = {"min_score": 0.0, "mask_threshold": 0.5, "max_detections": 2**31 - 1}


@dataclass(frozen=True)
class ImportSummary:
    """What the output holds. problems: lines on what was left out or mended."""

    out: str
    images: int
    instances: int
    categories: int
    problems: list[str]


def import_masks(config: ImportConfig, report: Reporter | None = None) -> ImportSummary:
    """Make an output of what `config.file` says. ConfigError if nothing in it can be taken, OutputError if the output
    holds something else.
    """
    report = report or Silent()
    annotated = READERS[config.format](config)
    problems = annotated.problems.lines()
    for line in problems:
        report.say(line)
    folder = journal_folder(config.out)
    total = len(annotated.uris)
    with used_plainly(config.out), Lease(folder):
        # First of all, so that what follows belongs to this import alone, whoever is killed where.
        run = create_run(config.out, _run_of(config, annotated))
        manifest = _listed(config, annotated)
        index = scan_parts(folder, manifest.rows)
        for start in range(0, total, IMAGES_PER_PART):
            stop = min(start + IMAGES_PER_PART, total)
            if not index.done[start:stop].all():
                write_part(folder, annotated.part(start, stop), attempt=0)
            report.images(stop, 0, total)
        published = publish(config.out, run, manifest, on_cluster=False)
    return ImportSummary(config.out, published.images, published.instances, len(annotated.categories), problems)


def _run_of(config: ImportConfig, annotated: Annotated) -> Run:
    return Run(
        model=f"import:{config.format}",
        model_sha256=annotated.sha256,
        categories=annotated.categories,
        thresholds=THRESHOLDS,
        images_per_file=IMAGES_PER_FILE,
        raymask_version=raymask.__version__,
    )


def _listed(config: ImportConfig, annotated: Annotated) -> Manifest:
    """The manifest of the output, with the images in it."""
    manifest = Manifest.read(journal_folder(config.out))
    source = {"import": absolute(config.file), "format": config.format}
    if manifest.rows:  # of an import of the same content, for the run is the same
        return manifest
    return manifest.append(source, NewRows(0, SeenIds()).of(_batches(annotated)))


def _batches(annotated: Annotated) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(annotated.uris), BATCH_ROWS):
        uris = annotated.uris[start : start + BATCH_ROWS]
        listed = listed_batch([(uri, *[None] * 5) for uri in uris])
        carried = annotated.carried.slice(start, len(uris)).combine_chunks()
        columns = [*listed.columns, *(carried.column(name).combine_chunks() for name in carried.column_names)]
        yield pa.record_batch(columns, schema=pa.schema([*listed.schema, *carried.schema]))
