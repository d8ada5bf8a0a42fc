"""How far an output is, read from its journal; nothing is changed and no Ray is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymask.errors import OutputError
from raymask.journal import Manifest, journal_folder, read_outcomes, read_run, scan_parts
from raymask.journal.lease import read_holder
from raymask.published import read_published


@dataclass(frozen=True)
class Status:
    """images: listed; ok and failed: done in the journal; published: whether the tables show all of that.

    writer: who writes now, None if nobody does.
    """

    out: str
    model: str
    model_sha256: str
    images: int
    ok: int
    failed: int
    errors: Mapping[str, int]
    published: bool
    published_images: int
    instances: int
    writer: str | None

    @property
    def pending(self) -> int:
        return self.images - self.ok - self.failed


def status(out: str) -> Status:
    """The state of an output; OutputError if there is none."""
    run = read_run(out)
    folder = journal_folder(out)
    holder = read_holder(folder)
    writer = None if holder is None or holder.expired or holder.is_dead else str(holder)
    if run is None:
        busy = f"; {writer} is listing the input" if writer else ""
        raise OutputError(f"{out!r} holds no output of raymask{busy}")
    manifest = Manifest.read(folder)
    index = scan_parts(folder, manifest.rows)
    tables = read_published(out)
    current = (
        tables is not None
        and tables.journal == index.fingerprint()
        and tables.images == manifest.rows
        and tables.is_settled
    )
    if tables is not None and current:
        ok, errors = tables.ok, tables.errors
    else:
        outcomes = read_outcomes(folder, index)
        ok, errors = outcomes.ok, outcomes.errors
    return Status(
        out=out,
        model=run.model,
        model_sha256=run.model_sha256,
        images=manifest.rows,
        ok=ok,
        failed=sum(errors.values()),
        errors=errors,
        published=current,
        published_images=tables.images if tables else 0,
        instances=tables.instances if tables else 0,
        writer=writer,
    )
