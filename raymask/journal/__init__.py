"""The journal of an output: what was asked (run), what goes in (manifest), what is done (parts), who writes (lease).

    OUT/_raymask/run.json                 created once: model, thresholds, what a published file holds
    OUT/_raymask/manifest/0000.json       commits a listing: its files, rows and source; 0001.json adds to it, ...
    OUT/_raymask/manifest/*.parquet       the listed images, each with its ordinal
    OUT/_raymask/parts/*.parquet          finished images; a part's existence is its commit
    OUT/_raymask/lease.json               who writes now

Every object is put whole and never changed (the lease apart), so a kill at any point leaves a journal that is valid
and a little shorter. Nothing here deletes.
"""

from raymask.journal.lease import Lease
from raymask.journal.manifest import Listing, Manifest, NewRows, read_chunk
from raymask.journal.parts import (
    PartIndex,
    fingerprint_of,
    part_names,
    read_outcomes,
    read_parts,
    scan_parts,
    write_part,
)
from raymask.journal.run import Run, create_run, journal_folder, read_run

__all__ = [
    "Lease",
    "Listing",
    "Manifest",
    "NewRows",
    "PartIndex",
    "Run",
    "create_run",
    "fingerprint_of",
    "journal_folder",
    "part_names",
    "read_chunk",
    "read_outcomes",
    "read_parts",
    "read_run",
    "scan_parts",
    "write_part",
]
