"""S3 through s3fs, with keys to the letter and bytes that come with their version."""

from __future__ import annotations

import s3fs
from fsspec.asyn import sync_wrapper


class S3(s3fs.S3FileSystem):  # type: ignore[misc]
    """S3 with keys to the letter. s3fs takes slashes off the front of a key, and all from `?versionId=` off its end."""

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
