"""WebDataset tar shards: the members are listed once and later read by their byte ranges."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.fetch import ahead
from raymask.sources.stream import Entry, Source, accepted_endings, batched, ending_of, printable, said_plainly
from raymask.storage import resolve

READERS_AT_ONCE = 8
TAR_BLOCK_BYTES = 4 * 1024 * 1024


def tar_source(shards: list[Entry], config: SegmentConfig) -> Source:
    source = Source("tar shards", [])
    accepted = accepted_endings(config)

    def batches() -> Iterator[pa.RecordBatch]:
        with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
            for _, listed in ahead(pool, lambda shard: _list_shard(shard, accepted), shards, READERS_AT_ONCE):
                for ending, count in listed.skipped.items():
                    source.skip(ending, count)
                yield from listed.batches

    source.batches = batches()
    return source


def _list_shard(shard: Entry, accepted: frozenset[str] | None) -> Source:
    source = Source("tar shard", [])

    def rows() -> Iterator[tuple[Any, ...]]:
        for member in _tar_members(shard.url):
            name = printable(member.name)
            ending = ending_of(name)
            if not member.isfile():
                source.skip("link")
            elif accepted is None or ending in accepted:
                yield f"{shard.url}#{name}", member.size, shard.etag, shard.url, None, member.offset_data
            else:
                source.skip(ending or "no ending")

    with said_plainly(shard.url, "a tar shard"):
        source.batches = iter(list(batched(rows())))
    return source


def _tar_members(url: str) -> Iterator[tarfile.TarInfo]:
    """The files and links of a tar; tarfile.TarError unless it is whole."""
    fs, path = resolve(url)
    with fs.open(path, "rb", block_size=TAR_BLOCK_BYTES) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            if member.size < 0 or member.issparse():
                raise tarfile.ReadError(f"member {member.name!r} is sparse or damaged")
            if member.isfile() or member.islnk() or member.issym():
                yield member
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        # tarfile takes any block that is no header for the end; a tar that is whole says where its end is.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no valid header at byte {tar.offset} and no end mark; it is cut off or damaged")


def packed_tar_source(shards: list[Entry], config: SegmentConfig) -> Source:
    raise ConfigError(f"{shards[0].url} is a compressed tar, which cannot be read in the middle; unpack it to .tar")
