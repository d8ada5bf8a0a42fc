"""From a source to the manifest of an output: what is there, what of it is new, and what to say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.journal import Manifest, NewRows, PartIndex, journal_folder, scan_parts
from raymask.journal.manifest import SeenIds, check_user_columns
from raymask.progress import Reporter
from raymask.protocol import goes_on
from raymask.sources import advice, open_source
from raymask.storage import absolute, join


@dataclass(frozen=True)
class Found:
    """What a source holds. new: images that the output does not have; known: those it has; repeated: named twice.

    bytes: of the new ones, None where the source does not say. skipped: other files, by ending.
    """

    kind: str
    new: int
    known: int
    repeated: int
    bytes: int | None
    skipped: Mapping[str, int]

    def text(self, spec: str) -> str:
        """All of it in a line."""
        parts = [f"{self.new:,} images" if not self.known else f"{self.new:,} new images, {self.known:,} known"]
        if self.bytes:
            parts.append(f"{self.bytes / 1e6:,.1f} MB")
        if self.repeated:
            parts.append(f"{self.repeated:,} named twice and taken once")
        return f"{spec} ({self.kind}): {', '.join(parts)}{self.skipped_text()}"

    def skipped_text(self) -> str:
        if not self.skipped:
            return ""
        kinds = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:5])
        return f"; {sum(self.skipped.values()):,} other files left out ({shown})"


def add_listing(config: SegmentConfig, report: Reporter) -> Manifest:
    """The manifest of the output, with the images of the source in it.

    A source that an unfinished run has already listed is not listed again: its frozen list is finished first, and
    what is new in the source comes with the next run. ConfigError if there is nothing in the source or the output.
    """
    manifest = Manifest.read(journal_folder(config.out))
    index = scan_parts(manifest.folder, manifest.rows)
    if is_unfinished(config, manifest, index):
        report.say(f"resuming: {int(index.done.sum()):,} of {manifest.rows:,} images are done")
        return manifest
    found, grown = _read_source(config, manifest, write=True)
    report.say(found.text(config.source))
    if not grown.rows:
        what_to_do = advice(config.source, found.skipped)
        raise ConfigError(f"no images in {config.source!r}{found.skipped_text()}; {what_to_do}")
    return grown


def look_at_source(config: SegmentConfig, manifest: Manifest, index: PartIndex) -> Found | None:
    """What `add_listing` would find, with nothing written; None where it would not list at all."""
    if is_unfinished(config, manifest, index):
        return None
    found, _ = _read_source(config, manifest, write=False)
    return found


def is_unfinished(config: SegmentConfig, manifest: Manifest, index: PartIndex) -> bool:
    """Whether a run over this source was cut off before it was done with all that it had listed."""
    return goes_on(manifest.has(_source_key(config)), index.done)


def _read_source(config: SegmentConfig, manifest: Manifest, write: bool) -> tuple[Found, Manifest]:
    """List the source to its end; with `write` what is new in it becomes a listing of the manifest."""
    source = open_source(config)
    check_user_columns(manifest, source.user_fields)
    rows = NewRows(manifest.rows, manifest.seen_ids() if manifest.listings else SeenIds())
    stream = rows.of(_outside(config.out, source.batches))
    if write:
        manifest = manifest.append(_source_key(config), stream)
    else:
        for _ in stream:
            pass
    return Found(source.kind, rows.new, rows.known, rows.duplicates, rows.bytes, source.skipped), manifest


def _source_key(config: SegmentConfig) -> dict[str, Any]:
    """What tells one source from another, as it is kept with its listing."""
    return {
        "source": absolute(config.source),
        "images": config.images and absolute(config.images),
        "image_column": config.image_column,
        "extensions": list(config.extensions),
    }


def _outside(out: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The listing without what lies in the output itself, which may be below the source."""
    for batch in batches:
        yield batch.filter(pc.invert(pc.starts_with(batch.column("uri"), join(absolute(out), ""))))
