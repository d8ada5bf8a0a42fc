"""`lease.json`: a courtesy between runs, so that two do not do the same work. Correctness does not rest on it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from raymask.errors import OutputError
from raymask.storage import Folder

LEASE_FILE = "lease.json"
TTL_S = 60.0
RENEW_S = 15.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and until when (Unix time, s)."""

    owner: str
    host: str
    pid: int
    expires_at: float

    @property
    def expired(self) -> bool:
        return time.time() > self.expires_at

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be gone: a process of this host that is no more."""
        if self.host != _host():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _has_ended(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.split('/')[0]}"


class Lease:
    """Held while in its `with` block, renewed in the background. Another run's lease is waited for until it either
    ends, and is taken, or is renewed, which shows its holder alive: then OutputError.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._owner = uuid.uuid4().hex
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._wait_for_other()
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # of a store that is gone, which must not hide what went wrong before
            holder = read_holder(self._folder)
            if holder is not None and holder.owner == self._owner:
                self._folder.delete(LEASE_FILE)

    def _wait_for_other(self) -> None:
        first = holder = read_holder(self._folder)
        while holder is not None and not holder.expired and not holder.is_dead:
            if first is None or holder.expires_at != first.expires_at or holder.host == _host():
                raise OutputError(
                    f"{holder} is writing to {self._folder.url} now; wait until it is done, or stop it first"
                )
            time.sleep(1.0)
            holder = read_holder(self._folder)

    def _keep(self) -> None:
        while not self._released.wait(RENEW_S):
            try:
                self._write()
            except Exception:  # a store that is down now takes the lease, not the work; the next round tries again
                continue

    def _write(self) -> None:
        record = {"owner": self._owner, "host": _host(), "pid": os.getpid(), "expires_at": time.time() + TTL_S}
        self._folder.put(LEASE_FILE, json.dumps(record).encode())


def read_holder(folder: Folder) -> Holder | None:
    """Who holds the lease of an output; None if nobody does."""
    data = folder.read_or_none(LEASE_FILE)
    if data is None:
        return None
    try:
        record: dict[str, Any] = json.loads(data)
        return Holder(str(record["owner"]), str(record["host"]), int(record["pid"]), float(record["expires_at"]))
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return None  # half a lease is no lease


def _has_ended(pid: int) -> bool:
    """Whether a process is no more but for its exit code, which nobody asks for where a container has no init."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state == "Z"


def _host() -> str:
    """Name of this host and of its boot: a process id means the same only within both."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()}/{boot}"
