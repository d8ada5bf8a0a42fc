"""What must not stand in a URL, since URLs go into tables, logs and pages: credentials."""

from __future__ import annotations

import re
from urllib.parse import unquote

# Names of query parameters that carry a secret: of presigned requests, shared access signatures, tokens.
_SECRET = re.compile(
    r"token|secret|passw|credential|signature|api[-_]?key|access[-_]?key|^(sig|auth|key|sas|pwd)$", re.IGNORECASE
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
# Stores in which the name of an object may hold a question mark, and never means a query.
_NAMES_TO_THE_LETTER = frozenset({"s3", "s3a", "gs", "gcs"})
_ON_THIS_MACHINE = frozenset({"file", "memory"})
# Where a name before an "@" is a part of the address: a container, or a user who proves who he is elsewhere.
_NAMES_BEFORE_AT = frozenset({"abfs", "abfss", "wasb", "wasbs", "sftp", "ssh"})

_IN_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"]+@")
_PARAMETER = re.compile(r"([?&;])([^=&;\s'\"]+)=([^&;\s'\"]+)")

HIDDEN = "***"


def has_credentials(url: str) -> bool:
    """Whether a password, a key or a signature stands in `url`. The keys of stores such as S3 are names, whatever
    they look like.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return False
    name = scheme[1].lower()
    if name in _ON_THIS_MACHINE:
        return False
    before_path, _, rest = url[scheme.end() :].partition("/")
    user, at, _ = before_path.rpartition("@")
    if at and (":" in user or name not in _NAMES_BEFORE_AT):
        return True
    query = f"{before_path}/{rest}".partition("?")[2]
    return name not in _NAMES_TO_THE_LETTER and any(
        value and _SECRET.search(unquote(parameter))
        for parameter, _, value in (part.partition("=") for part in re.split("[&;]", query))
    )


def is_web(url: str) -> bool:
    """Whether `url` is of a web server, which may be anybody's."""
    return url[:8].lower().startswith(("http://", "https://"))


def without_credentials(text: str) -> str:
    """`text` with whatever looks like credentials in the URLs in it replaced."""
    text = _IN_TEXT.sub(rf"\1{HIDDEN}@", text)
    return _PARAMETER.sub(lambda m: f"{m[1]}{m[2]}={HIDDEN}" if _SECRET.search(unquote(m[2])) else m[0], text)
