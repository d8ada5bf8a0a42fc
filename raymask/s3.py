"""S3 through s3fs, with keys to the letter, bytes that come with their version, and times that are read fast."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import s3fs
from aiobotocore.session import AioSession
from botocore.utils import parse_timestamp
from fsspec.asyn import sync_wrapper


class S3(s3fs.S3FileSystem):  # type: ignore[misc]
    """S3 with keys to the letter. s3fs takes slashes off the front of a key, and all from `?versionId=` off its end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.session = AioSession(**self.kwargs)  # what s3fs would make for its first request
        self.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, key = self._find_bucket_key(self._strip_protocol(path) + path[len(path.rstrip("/")) :])
        return bucket, key, None

    async def _read_version(self, path: str, start: int | None, stop: int | None) -> tuple[bytes, str | None]:
        """Bytes start .. stop - 1, or all, with the ETag of the same answer. Nothing is tried again but by botocore."""
        bucket, key, _ = self.split_path(path)
        which = {} if stop is None else {"Range": f"bytes={start or 0}-{stop - 1}"}
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **which)
        try:
            return await answer["Body"].read(), answer.get("ETag")
        finally:
            answer["Body"].close()

    read_version = sync_wrapper(_read_version)


def parse_time(text: Any) -> datetime:
    """A time as botocore reads it, which takes as long for it as for all the rest of an object in a listing."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        parsed: datetime = parse_timestamp(text)
        return parsed
