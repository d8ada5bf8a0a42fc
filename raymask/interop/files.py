"""The files of a folder that an import reads, small ones and many."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from raymask.errors import ConfigError
from raymask.sources.listings import walk
from raymask.sources.stream import ending_of, said_plainly
from raymask.storage import absolute, is_local, resolve, retried, stat

MAX_FILE_BYTES = 256 * 1024 * 1024


class File(NamedTuple):
    """name: below the folder, with "/" between its parts."""

    url: str
    name: str


def files_below(url: str, ending: str) -> tuple[str, list[File]]:
    """The folder that `url` names, and its files with this ending by name; of a file its folder and itself.

    ConfigError if there is nothing of that name.
    """
    with said_plainly(url):
        if stat(url).kind != "directory" and not url.endswith("/"):
            folder, _, name = absolute(url).rpartition("/")
            return folder, [File(absolute(url), name)]
        fs, path = resolve(url)
        path = path.rstrip("/")
        found = [
            File(entry.url, (resolve(entry.url)[1] if not is_local(fs) else entry.url).removeprefix(f"{path}/"))
            for entry in walk(fs, path)
            if ending_of(entry.url) == ending
        ]
    return absolute(url.rstrip("/")), sorted(found, key=lambda file: file.name)


def read_file(file: File) -> tuple[bytes, str]:
    """The bytes of a file and their SHA-256; ConfigError if it cannot be read or is larger than any such file."""
    fs, path = resolve(file.url)
    with said_plainly(file.url):
        data: bytes = retried(lambda: fs.cat_file(path, start=0, end=MAX_FILE_BYTES + 1))
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file.url} is larger than {MAX_FILE_BYTES:,} bytes; leave it out")
    return data, hashlib.sha256(data).hexdigest()
