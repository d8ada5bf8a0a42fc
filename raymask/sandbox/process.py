"""The parent's handle on the child: begins it, waits for it no longer than it may take, says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

from raymask.sandbox.child import DONE, GO, UP
from raymask.sandbox.limits import End, Limits, end_of
from raymask.sandbox.memory import Sizes

START_S = 120.0  # for Python to come up on a busy machine
GRACE_S = 5.0  # beyond the child's own alarm
LIED = End("an answer that cannot be")

_CODE = """
import json, sys
options, sys.path[:] = map(json.loads, sys.argv[1:])
from raymask.sandbox.child import serve
serve(**options)
"""


class Child:
    """The process, and the parent's end of the channel to it."""

    def __init__(self, file: int, sizes: Sizes, limits: Limits, decoder: str) -> None:
        """file: descriptor of the shared memory. The child comes up while the caller goes on."""
        self._limits = limits
        self._channel, theirs = socket.socketpair()
        options = {
            "channel": theirs.fileno(),
            "file": file,
            "sizes": asdict(sizes),
            "limits": asdict(limits),
            "decoder": decoder,
        }
        # Isolated (-I) from environment and user; only the places of modules are the parent's.
        paths = [os.path.abspath(path) for path in sys.path]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CODE, json.dumps(options), json.dumps(paths)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), file),
                env=_bare_environment(),
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._is_up = False

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def work(self, done: Callable[[], int]) -> End | None:
        """Let it decode what is laid out; None if it is done, or how it ended.

        done: how many files are. Where that does not change for too long, or the child says what it never would, it is
        ended. RuntimeError if it does not start.
        """
        if not self._is_up:
            self._wait_until_up()
        self._channel.settimeout(self._limits.wall_s + GRACE_S)
        try:
            self._channel.sendall(GO)
            said = self._said(done)
        except TimeoutError:
            self.kill()
            return end_of(signal.SIGALRM, self._limits)
        except ConnectionError:
            said = b""
        if said == DONE:
            return None
        if said:
            self.kill()
            return LIED
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its end and lives on
            self._process.wait(GRACE_S)
        self.kill()
        return end_of(-self._process.returncode, self._limits)

    def _said(self, done: Callable[[], int]) -> bytes:
        """What it says next, b"" if it is gone; TimeoutError if it says nothing and gets nothing done either."""
        before = 0
        while True:
            try:
                return self._channel.recv(1)
            except TimeoutError:
                now = done()
                if now <= before:
                    raise
                before = now

    def _wait_until_up(self) -> None:
        self._channel.settimeout(START_S)
        try:
            if self._channel.recv(1) != UP:
                raise EOFError("it has ended")
        except (OSError, EOFError) as error:
            self.kill()
            raise RuntimeError(f"the process that decodes does not start ({error}); see its standard error") from error
        self._is_up = True

    def kill(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _bare_environment() -> dict[str, str]:
    """Nothing but what the C libraries need to load and to stay on one thread."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
