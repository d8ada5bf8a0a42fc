"""Files behind any fsspec URL: resolve, read, put whole objects atomically, list, and decide what is worth a retry."""

from raymask.storage.folder import Folder, whole_file, write_file
from raymask.storage.local import TEMPORARY_PREFIX, WholeFile
from raymask.storage.objects import Stat, etag_of, local_stat, read_version, s3_pages, stat
from raymask.storage.plain_errors import said, used_plainly
from raymask.storage.resolving import absolute, check_no_credentials, is_local, is_s3, join, local_path, resolve
from raymask.storage.retries import retried

__all__ = [
    "TEMPORARY_PREFIX",
    "Folder",
    "Stat",
    "WholeFile",
    "absolute",
    "check_no_credentials",
    "etag_of",
    "is_local",
    "is_s3",
    "join",
    "local_path",
    "local_stat",
    "read_version",
    "resolve",
    "retried",
    "s3_pages",
    "said",
    "stat",
    "used_plainly",
    "whole_file",
    "write_file",
]
