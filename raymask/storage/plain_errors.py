"""What stores and disks raise, in words for who runs the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from raymask.errors import OutputError, RaymaskError
from raymask.faults import is_about_credentials, is_full, is_refusal, is_transient
from raymask.urls import without_credentials


def said(error: BaseException) -> str:
    """An error of somebody else's in a line, without credentials that may be in it."""
    return without_credentials(f"{type(error).__name__}: {error}")[:300].replace("\n", " ")


@contextlib.contextmanager
def used_plainly(out: str) -> Iterator[None]:
    """Turn what a store or a disk raises inside into an OutputError that says what to do about the output."""
    try:
        yield
    except RaymaskError:
        raise
    except Exception as error:  # whatever a store's library raises
        if type(error).__module__.startswith("ray."):
            raise  # of a task, which is an OSError too where the task raised one
        if is_full(error):
            what_to_do = "make room there, then run the same command again, which goes on from what is done"
        elif is_about_credentials(error):
            what_to_do = "renew the credentials, then run the same command again, which goes on from what is done"
        elif is_refusal(error):
            what_to_do = "check its permissions and your keys, or choose another --out"
        elif is_transient(error):
            what_to_do = "check endpoint and network, then run the same command again, which goes on from what is done"
        elif isinstance(error, OSError):
            what_to_do = "check the name, or choose another --out"
        else:
            raise  # no word of a store's
        raise OutputError(f"cannot use {out!r} ({said(error)}); {what_to_do}") from error
