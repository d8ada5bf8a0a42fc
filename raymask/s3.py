"""S3 through s3fs, with one thing mended."""

from __future__ import annotations

import s3fs


class S3(s3fs.S3FileSystem):  # type: ignore[misc]
    """S3 with keys to the letter. s3fs takes slashes off the front of a key, and all from `?versionId=` off its end."""

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, key = self._find_bucket_key(self._strip_protocol(path) + path[len(path.rstrip("/")) :])
        return bucket, key, None
