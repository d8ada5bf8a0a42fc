"""`raymask.json`: which files make up the tables of an output, with the rows and the checksum of each."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from raymask.errors import OutputError
from raymask.journal.run import Run
from raymask.storage import Folder

INDEX_FILE = "raymask.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published table; `path` is relative to the output."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One range of ordinals, published. `source` is a hash of the journal's parts that it was made from."""

    source: str
    images: PublishedFile
    instances: PublishedFile
    ok: int
    errors: dict[str, int]


@dataclass(frozen=True)
class Published:
    """What `raymask.json` says: the files of both tables and the counts of their rows."""

    journal: str
    shards: tuple[Shard, ...]

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
            "shards": [{"source": s.source, "ok": s.ok, "errors": s.errors} for s in self.shards],
        }
        return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def read_published(out: str) -> Published | None:
    """What an output has published; None before the first time. OutputError if `raymask.json` is damaged."""
    data = Folder(out).read_or_none(INDEX_FILE)
    if data is None:
        return None
    try:
        record = json.loads(data)
        files = [[PublishedFile(**f) for f in record["tables"][t]["files"]] for t in ("images", "instances")]
        shards = tuple(
            Shard(s["source"], images, instances, s["ok"], s["errors"])
            for s, images, instances in zip(record["shards"], *files, strict=True)
        )
        return Published(record["journal"], shards)
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{out}/{INDEX_FILE} is damaged ({error}); run the segment command again") from error
