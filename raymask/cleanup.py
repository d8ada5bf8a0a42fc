"""Delete what killed runs and retries left behind. The only place in raymask that deletes anything of an output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raymask.errors import OutputError
from raymask.journal import Lease, Manifest, journal_folder, read_outcomes, read_run, scan_parts
from raymask.journal import manifest as manifests
from raymask.journal import parts as journal_parts
from raymask.protocol import PartName
from raymask.published import ASIDE, plain_path, read_published
from raymask.storage import TEMPORARY_PREFIX, Folder


@dataclass(frozen=True)
class Stray:
    """A file that no table and no resume needs. name: relative to the output."""

    name: str
    bytes: int
    reason: str


def clean(out: str, dry_run: bool = False) -> list[Stray]:
    """Delete the stray files of an output and say which they were; with `dry_run` only say so.

    OutputError if there is no output, or another run is writing to it.
    """
    if read_run(out) is None:
        raise OutputError(f"{out!r} holds no output of raymask")
    with Lease(journal_folder(out)):
        strays = list(find_strays(out))
        if not dry_run:
            for stray in strays:
                Folder(out).delete(stray.name)
    return strays


def find_strays(out: str) -> Iterator[Stray]:
    """Temporary files, files of listings never committed, parts wholly overtaken, table files not in the index."""
    folder = Folder(out)
    manifest = Manifest.read(journal_folder(out))
    committed = {f.name for f in manifest.files} | {listing.name for listing in manifest.listings}
    overtaken = {f"{journal_parts.FOLDER}/{name}" for name in _overtaken(manifest)}
    published = read_published(out)
    tables = ("images", "instances")
    in_tables = {f.path for t in tables for f in published.files(t)} if published else set()
    in_tables |= {plain_path(t, number) for t in tables for number in range(len(published.shards) if published else 0)}
    for place in ("", *tables, "_raymask", "_raymask/manifest", "_raymask/parts", ASIDE):
        for name, size in folder.list(place):
            inner = name.removeprefix("_raymask/")
            if name.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX):
                yield Stray(name, size, "left by a write that was cut off")
            elif place == f"_raymask/{manifests.FOLDER}" and inner not in committed:
                yield Stray(name, size, "of a listing that was never committed")
            elif inner in overtaken:
                yield Stray(name, size, "every image in it has a better row elsewhere")
            elif published and place in (*tables, ASIDE) and name not in in_tables:
                yield Stray(name, size, "not in raymask.json")


def _overtaken(manifest: Manifest) -> list[PartName]:
    """Parts of which no row counts."""
    index = scan_parts(manifest.folder, manifest.rows)
    if sum(name.rows for name, _ in index.parts) == int(index.done.sum()):
        return []  # no image is in two parts
    outcomes = read_outcomes(manifest.folder, index)
    needed = set(np.unique(outcomes.part))
    return [name for place, name in enumerate(outcomes.names) if place not in needed]
