"""`raymask.json`: which files make up the tables of an output, with the rows and the checksum of each."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace

from raymask.errors import OutputError
from raymask.journal.run import Run
from raymask.storage import Folder

INDEX_FILE = "raymask.json"
FORMAT_VERSION = 1
ASIDE = "_raymask/tables"  # where files lie that have replaced others


def plain_path(table: str, number: int) -> str:
    """Where readers that go by names find a shard."""
    return f"{table}/part-{number:05d}.parquet"


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published table; `path` is relative to the output."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One range of ordinals, published. source: a hash of the journal's parts that it was made from.

    is_copied: of files that lie aside, whether those under the plain names are the same, as they are in the end.
    """

    source: str
    images: PublishedFile
    instances: PublishedFile
    ok: int
    errors: dict[str, int]
    is_copied: bool = False

    @property
    def rows(self) -> int:
        return self.images.rows

    @property
    def is_aside(self) -> bool:
        return self.images.path.startswith(f"{ASIDE}/")

    def copied(self) -> Shard:
        return replace(self, is_copied=True)


@dataclass(frozen=True)
class Published:
    """What `raymask.json` says: the files of both tables and the counts of their rows."""

    journal: str
    shards: tuple[Shard, ...]

    @property
    def is_settled(self) -> bool:
        """Whether readers that go by names find the same tables."""
        return all(s.is_copied for s in self.shards if s.is_aside)

    @property
    def images(self) -> int:
        return sum(s.images.rows for s in self.shards)

    @property
    def instances(self) -> int:
        return sum(s.instances.rows for s in self.shards)

    @property
    def ok(self) -> int:
        return sum(s.ok for s in self.shards)

    @property
    def failed(self) -> int:
        return self.images - self.ok

    @property
    def errors(self) -> dict[str, int]:
        """Failed images by kind, the most frequent first."""
        total: Counter[str] = Counter()
        for shard in self.shards:
            total.update(shard.errors)
        return dict(total.most_common())

    def files(self, table: str) -> list[PublishedFile]:
        return [s.images if table == "images" else s.instances for s in self.shards]

    def to_json(self, run: Run) -> bytes:
        record = {
            "format_version": FORMAT_VERSION,
            **{k: v for k, v in run.footer("").items() if k != "table"},
            "counts": {"images": self.images, "ok": self.ok, "failed": self.failed, "instances": self.instances},
            "errors": self.errors,
            "tables": {
                name: {"rows": sum(f.rows for f in self.files(name)), "files": [asdict(f) for f in self.files(name)]}
                for name in ("images", "instances")
            },
            "journal": self.journal,
            "shards": [
                {"source": s.source, "ok": s.ok, "errors": s.errors, "is_copied": s.is_copied} for s in self.shards
            ],
        }
        return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def read_published(out: str) -> Published | None:
    """What an output has published; None before the first time. OutputError if `raymask.json` is damaged."""
    data = Folder(out).read_or_none(INDEX_FILE)
    return None if data is None else parse_published(data, out)


def parse_published(data: bytes, out: str) -> Published:
    """What the `raymask.json` of an output says; OutputError if it is damaged."""
    try:
        record = json.loads(data)
        files = [[PublishedFile(**f) for f in record["tables"][t]["files"]] for t in ("images", "instances")]
        shards = tuple(
            Shard(s["source"], images, instances, s["ok"], s["errors"], s.get("is_copied", False))
            for s, images, instances in zip(record["shards"], *files, strict=True)
        )
        return Published(record["journal"], shards)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise OutputError(f"{out}/{INDEX_FILE} is damaged ({error}); run the segment command again") from error
