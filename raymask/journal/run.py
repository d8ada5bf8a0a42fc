"""`run.json`: what every row of an output was made with. Written once; another model or threshold is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymask.errors import ConfigError, OutputError
from raymask.faults import is_transient
from raymask.schema import SCHEMA_VERSION
from raymask.storage import Folder, said

FORMAT_VERSION = 1
RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The identity of an output.

    categories: (id, name) of label 1, 2, ... thresholds: every option that changes which rows come out.
    images_per_file: ordinals a published file covers; fixed, so that publishing again writes the same names.
    """

    model: str
    model_sha256: str
    categories: tuple[tuple[int, str], ...]
    thresholds: Mapping[str, Any]
    images_per_file: int
    raymask_version: str
    schema_version: str = SCHEMA_VERSION
    format_version: int = FORMAT_VERSION

    def footer(self, table: str) -> dict[str, Any]:
        """What the footer of every published file says; see `schemas/spec.md`."""
        return {
            "schema_version": self.schema_version,
            "table": table,
            "model": {"name": self.model, "sha256": self.model_sha256},
            "categories": [{"id": id, "name": name} for id, name in self.categories],
            "thresholds": dict(self.thresholds),
            "raymask_version": self.raymask_version,
        }


def journal_folder(out: str) -> Folder:
    return Folder(out).sub("_raymask")


def read_run(out: str) -> Run | None:
    """The run an output was made with; None where there is no output yet. OutputError if it cannot be understood."""
    try:
        data = journal_folder(out).read_or_none(RUN_FILE)
    except (NotADirectoryError, IsADirectoryError) as error:
        raise OutputError(f"--out {out!r} is not a folder") from error
    except Exception as error:  # whatever a store's library raises: said plainly, with the cause behind it
        if isinstance(error, OSError | ValueError | ImportError) or is_transient(error):
            raise OutputError(f"cannot read output {out!r}: {said(error)}") from error
        raise OutputError(f"cannot reach output {out!r}: {said(error)}") from error
    return None if data is None else _parse(data, out)


def create_run(out: str, run: Run) -> Run:
    """Make `run` the run of this output, or take up the one that is there. OutputError if that one is different."""
    there = read_run(out)
    if there is None:
        text = json.dumps(dataclasses.asdict(run), indent=2, ensure_ascii=False).encode()
        there = _parse(journal_folder(out).put_if_absent(RUN_FILE, text), out)
    check_same(out, there, run)
    return there


def check_same(out: str, there: Run, run: Run) -> None:
    """OutputError, saying what differs, unless rows of `run` may stand beside those that are `there`."""
    if there.model_sha256 != run.model_sha256:
        raise OutputError(
            f"{out} holds masks of model {there.model} {there.model_sha256[:8]}…, this run uses {run.model} "
            f"{run.model_sha256[:8]}…; choose another --out"
        )
    different = [
        k for k in sorted({*there.thresholds, *run.thresholds}) if there.thresholds.get(k) != run.thresholds.get(k)
    ]
    if different:
        raise OutputError(
            f"{out} was made with "
            + ", ".join(f"{k} {there.thresholds.get(k)}" for k in different)
            + ", this run has "
            + ", ".join(f"{k} {run.thresholds.get(k)}" for k in different)
            + "; use the same options, or choose another --out"
        )


def _parse(data: bytes, out: str) -> Run:
    try:
        record = json.loads(data)
        version = record["format_version"]
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{out} has journal format {version}, this raymask writes {FORMAT_VERSION}; use its version"
            )
        record["categories"] = tuple((int(id), str(name)) for id, name in record["categories"])
        record["thresholds"] = dict(record["thresholds"])
        return Run(**record)
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise OutputError(f"{out}/_raymask/{RUN_FILE} is damaged ({error}); choose another --out") from error
