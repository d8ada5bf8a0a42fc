"""From a URL to the fsspec file system that serves it, and the path there."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raymask.errors import ConfigError
from raymask.storage.plain_errors import said
from raymask.urls import has_credentials, is_web, without_credentials

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)


def resolve(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url` and the path in it. Credentials and endpoints come from the environment.

    ConfigError if there is no such protocol, a package for it is missing, or credentials stand in the URL.
    """
    check_no_credentials(url)
    path = local_path(url)
    if path is not None:
        return _file_system("file"), path
    fs = _file_system(url.partition("://")[0])
    return fs, fsspec.core.strip_protocol(url)


def check_no_credentials(url: str) -> None:
    if has_credentials(url):
        raise ConfigError(
            f"there are credentials in {without_credentials(url)}, which would be in tables and logs; take them out, "
            f"and give them by the environment"
        )


def local_path(url: str) -> str | None:
    """The absolute path that `url` names on this machine; None if it is the URL of a store."""
    if url.startswith("file://") or not _SCHEME.match(url):
        return os.path.abspath(url.removeprefix("file://"))
    return None


@lru_cache
def _file_system(protocol: str) -> Any:
    # A directory cache would hide what other processes write, and hold a whole listing in memory.
    try:
        if protocol in ("s3", "s3a"):
            from raymask.s3 import S3  # with a client that takes long to import, for those who use it

            # One request reads an object; with more of them s3fs would ask for its size first.
            return S3(use_listings_cache=False, max_concurrency=1)
        options: dict[str, Any] = {} if protocol in ("file", "memory") else {"use_listings_cache": False}
        if is_web(f"{protocol}://"):
            from raymask.web import public_session

            options["get_client"] = public_session
        return fsspec.filesystem(protocol, **options)
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise ConfigError(f"cannot open {protocol}:// URLs ({said(error)})") from error


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def is_s3(fs: Any) -> bool:
    return "s3" in fs.protocol


def absolute(url: str) -> str:
    """`url` as it means the same in another process: local paths become absolute, other URLs stay."""
    path = local_path(url)
    return url if path is None else path


def join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"
