"""`raymask status` and `raymask clean`: what they print."""

from __future__ import annotations

import dataclasses
import json

from raymask.cli.codes import DONE
from raymask.config import CleanConfig, StatusConfig


def status(config: StatusConfig) -> int:
    from raymask.state import status as read

    s = read(config.out)
    if config.json:
        print(json.dumps({**dataclasses.asdict(s), "pending": s.pending}, indent=2))
        return DONE
    share = f" ({(s.ok + s.failed) / s.images:.1%})" if s.images else ""
    print(f"images   {s.images:,} listed, {s.ok + s.failed:,} done{share}, {s.pending:,} to do")
    print(f"done     {s.ok:,} ok, {s.failed:,} failed")
    for kind, count in s.errors.items():
        print(f"         {count:>8,} {kind}")
    if s.published:
        print(f"tables   published: {s.published_images:,} images, {s.instances:,} instances")
    else:
        shown = f"they show {s.published_images:,} images" if s.published_images else "none yet"
        print(f"tables   not up to date ({shown}); the command that made it, run again, finishes and publishes")
    print(f"model    {s.model} {s.model_sha256[:8]}")
    print(f"writer   {s.writer or 'none'}")
    return DONE


def clean(config: CleanConfig) -> int:
    from raymask.cleanup import clean as delete

    strays = delete(config.out, config.dry_run)
    for stray in strays:
        print(f"{stray.name}  {stray.bytes:,} bytes, {stray.reason}")
    verb = "would be deleted" if config.dry_run else "deleted"
    print(f"{len(strays):,} files, {sum(s.bytes for s in strays) / 1e6:,.1f} MB {verb}")
    return DONE
