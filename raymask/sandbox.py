"""Decoding in a process of its own, which may crash, hang or run out of memory without anybody else.

    parent: bytes -> shared memory -> request      child: `decode`, under limits that the kernel holds
    parent: pixels, where they lie <- reply  <-    child: pixels -> shared memory

The child is begun once and decodes one image after the other; only where it dies, another is begun. It inherits no
environment, so no credentials, and no file but its ends of two channels. What it says is data and checked as such: a
decoder that a file has taken over must not take over its parent.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from raymask.decode import Image, keep_freed_memory
from raymask.errors import ErrorKind, Failure

DECODER = "raymask.decode:decode"
# A crash may be another's doing, such as the kernel's who was short of memory: then a second child finds out.
CHILDREN_PER_IMAGE = 2
START_S = 120.0  # for Python to come up on a busy machine
GRACE_S = 5.0  # beyond the child's own alarm

_REQUEST = struct.Struct("<QQ")  # bytes of input, offset of the pixels in the shared memory
_LENGTH = struct.Struct("<I")
_LARGEST_REPLY = 65_536
_CHILD_CODE = """
import json, sys
options, sys.path[:] = map(json.loads, sys.argv[1:])
from raymask.sandbox import serve
serve(**options)
"""
_OVER_TIME = {signal.SIGXCPU: "CPU time", signal.SIGALRM: "time"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the decoding of one image may take. wall_s is longer, for a process that has to share its core.

    bytes_per_pixel: of memory, for an image of the most pixels allowed; 32-bit grey takes most.
    """

    cpu_s: int = 10
    wall_s: float = 60.0
    bytes_per_pixel: int = 32
    spare_bytes: int = 256 * 1024 * 1024


class Sandbox:
    """A child process that decodes. Not for several threads at once.

    max_bytes, max_pixels: the largest file and image. room_bytes: pixels that are kept at the least before `clear` is
    called for. decoder: "module:function" of the signature of `decode`.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_pixels: int,
        room_bytes: int,
        limits: Limits | None = None,
        decoder: str = DECODER,
    ) -> None:
        self._child: _Child | None = None
        self._limits = limits or Limits()
        self._max_pixels = max_pixels
        self._room_bytes = room_bytes
        self._pixels_at = -(-max(max_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._largest_image = 3 * max_pixels
        self._decoder = decoder
        # Takes memory only where it is written to.
        self._file = _shared_file(self._pixels_at + room_bytes + self._largest_image)
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._used = 0

    def start(self) -> None:
        """Begin the child, unless there is one; it comes up while the caller goes on."""
        if self._child is None or self._child.has_ended():
            self._end_child()
            self._child = _Child(
                self._file.fileno(), self._pixels_at, self._largest_image, self._max_pixels, self._limits, self._decoder
            )

    @property
    def is_full(self) -> bool:
        """Whether `clear` must be called before the next image."""
        return self._used >= self._room_bytes

    def clear(self) -> None:
        """Make room: the pixels of all images so far are overwritten from here on."""
        if self._used > self._room_bytes:  # by a large image, whose memory the next ones do not need
            with contextlib.suppress(AttributeError, OSError):  # systems that cannot give it back so
                start = -(-(self._pixels_at + self._room_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
                self._memory.madvise(mmap.MADV_REMOVE, start)
        self._used = 0

    def decode(self, data: bytes) -> Image | Failure:
        """As `decode` does, but for two more kinds of failure; the pixels are good until `clear` is called.

        CRASHED_WORKER   the decoder took its process down twice, or took longer than `Limits` allow
        OUT_OF_MEMORY    the decoder wanted more memory than they allow
        """
        assert not self.is_full and len(data) <= self._pixels_at
        ends: list[str] = []
        while len(ends) < CHILDREN_PER_IMAGE:
            self.start()
            assert self._child is not None
            self._bytes[: len(data)] = np.frombuffer(data, np.uint8)  # anew: who knows what the last child did to it
            try:
                reply = self._child.ask(len(data), self._pixels_at + self._used)
                if isinstance(reply, dict):
                    return self._result(reply)
            except (KeyError, TypeError, ValueError):
                self._child.kill()
                ends.append("an answer that cannot be")
                continue
            except BaseException:
                self._child.kill()  # or it would answer the next request with this one's reply
                raise
            ends.append(_end_text(reply, self._limits))
            if reply in _OVER_TIME:
                break
        return Failure(ErrorKind.CRASHED_WORKER, "decoding it ended its process: " + ", ".join(ends))

    def _result(self, reply: dict[str, Any]) -> Image | Failure:
        if "kind" in reply:
            failure = Failure(ErrorKind(reply["kind"]), _plain(reply["detail"], 200))
            if failure.kind is ErrorKind.OUT_OF_MEMORY and self._child is not None:
                self._child.kill()  # it may hold on to what it has
            return failure
        height, width = int(reply["height"]), int(reply["width"])
        if height < 1 or width < 1 or height * width > self._max_pixels:
            raise ValueError(f"{height} x {width} pixels")
        start = self._pixels_at + self._used
        pixels = self._bytes[start : start + 3 * height * width].reshape(height, width, 3)
        self._used += pixels.nbytes
        return Image(pixels, _plain(reply["format"], 32))

    def close(self) -> None:
        """End the child. Pixels stay good as long as they are held, but nothing more is decoded."""
        self._end_child()
        self._file.close()

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


_idle: dict[tuple[Any, ...], list[Sandbox]] = {}


@contextlib.contextmanager
def borrowed_sandbox(*, max_bytes: int, max_pixels: int, room_bytes: int, decoder: str) -> Iterator[Sandbox]:
    """A sandbox for as long as the `with` block, with a child on its way; this process keeps it for the next one."""
    idle = _idle.setdefault((max_bytes, max_pixels, room_bytes, decoder), [])
    try:
        sandbox = idle.pop()
    except IndexError:
        sandbox = Sandbox(max_bytes=max_bytes, max_pixels=max_pixels, room_bytes=room_bytes, decoder=decoder)
    sandbox.start()
    try:
        yield sandbox
    finally:
        sandbox.clear()
        idle.append(sandbox)


def _shared_file(size: int) -> BinaryIO:
    if hasattr(os, "memfd_create"):
        file: BinaryIO = os.fdopen(os.memfd_create("raymask-pixels"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  closed with the sandbox
    file.truncate(size)
    return file


def _plain(text: object, most: int) -> str:
    """Text that every table takes."""
    return str(text)[:most].encode("ascii", "backslashreplace").decode()


def _end_text(signal_or_code: int, limits: Limits) -> str:
    if signal_or_code in _OVER_TIME:
        allowed_s = limits.cpu_s if signal_or_code == signal.SIGXCPU else limits.wall_s
        return f"it took more than {allowed_s:g} s of {_OVER_TIME[signal.Signals(signal_or_code)]}"
    if signal_or_code > 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(signal_or_code).name
    return f"exit code {-signal_or_code}"


# ------------------------------------------------------------------------------------------------- the parent's end


class _Child:
    """The process, and the parent's end of the channel to it."""

    def __init__(
        self, file: int, pixels_at: int, largest_image: int, max_pixels: int, limits: Limits, decoder: str
    ) -> None:
        self._limits = limits
        self._channel, theirs = socket.socketpair()
        options = {
            "channel": theirs.fileno(),
            "file": file,
            "pixels_at": pixels_at,
            "largest_image": largest_image,
            "max_pixels": max_pixels,
            "limits": asdict(limits),
            "decoder": decoder,
        }
        # Isolated (-I) from environment and user; only the places of modules are the parent's.
        paths = [os.path.abspath(path) for path in sys.path]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD_CODE, json.dumps(options), json.dumps(paths)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), file),
                env=_bare_environment(),
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._is_up = False

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, input_bytes: int, pixels_at: int) -> dict[str, Any] | int:
        """What the child answers; or how it ended: by which signal, or minus its exit code.

        ValueError if it answers something that is no JSON object.
        """
        if not self._is_up:
            self._wait_until_up()
        self._channel.settimeout(self._limits.wall_s + GRACE_S)
        try:
            self._channel.sendall(_REQUEST.pack(input_bytes, pixels_at))
            return self._receive()
        except TimeoutError:
            self.kill()
            return int(signal.SIGALRM)
        except (ConnectionError, EOFError):
            self._channel.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its end and lives on
                self._process.wait(GRACE_S)
            self.kill()
            return -self._process.returncode

    def _wait_until_up(self) -> None:
        self._channel.settimeout(START_S)
        try:
            self._receive()
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            raise RuntimeError(f"the process that decodes does not start ({error}); see its standard error") from error
        self._is_up = True

    def _receive(self) -> dict[str, Any]:
        (length,) = _LENGTH.unpack(_receive_exactly(self._channel, _LENGTH.size))
        if length > _LARGEST_REPLY:
            raise ValueError("a reply that is too long")
        reply = json.loads(_receive_exactly(self._channel, length))
        if not isinstance(reply, dict):
            raise ValueError("a reply of another kind")
        return reply

    def kill(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _bare_environment() -> dict[str, str]:
    """Nothing but what the C libraries need to load and to stay on one thread."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        some = channel.recv(size - len(received))
        if not some:
            raise EOFError("the other end is gone")
        received += some
    return received


# --------------------------------------------------------------------------------------------------- the child's end


def serve(
    *,
    channel: int,
    file: int,
    pixels_at: int,
    largest_image: int,
    max_pixels: int,
    limits: dict[str, Any],
    decoder: str,
) -> None:
    """Decode what is asked for until the parent is gone. Called in the child only."""
    module, _, function = decoder.partition(":")
    decode = getattr(importlib.import_module(module), function)
    keep_freed_memory()
    for ends_it in _OVER_TIME:  # whatever the parent does with them
        signal.signal(ends_it, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OVER_TIME)
    memory = np.frombuffer(mmap.mmap(file, 0), np.uint8)
    allowed = Limits(**limits)
    _limit_memory(allowed.bytes_per_pixel * max_pixels + allowed.spare_bytes)
    with socket.socket(fileno=channel) as parent:
        _reply(parent, {})
        _silence()
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                size, place = _REQUEST.unpack(_receive_exactly(parent, _REQUEST.size))
                _set_alarms(allowed)
                out = memory[place : place + largest_image]
                reply = _decoded(decode, memory[:size].data, max_pixels, out)
                signal.setitimer(signal.ITIMER_REAL, 0)
                _reply(parent, reply)


def _decoded(
    decode: Callable[..., Image | Failure], data: memoryview, max_pixels: int, out: NDArray[np.uint8]
) -> dict[str, Any]:
    try:
        image = decode(data, max_pixels=max_pixels, out=out)
    except MemoryError as error:
        image = Failure(ErrorKind.OUT_OF_MEMORY, f"MemoryError: {error}")
    if isinstance(image, Failure):
        return {"kind": image.kind.value, "detail": image.detail}
    return {"height": image.pixels.shape[0], "width": image.pixels.shape[1], "format": image.format}


def _reply(parent: socket.socket, reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode()
    parent.sendall(_LENGTH.pack(len(data)) + data)


def _silence() -> None:
    """C libraries write warnings of bad files to standard error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _limit_memory(more_bytes: int) -> None:
    """Let this process take `more_bytes` beyond what it has, and leave no core file where it crashes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # systems that do not count, or would not be told
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[0])
        most = pages * mmap.PAGESIZE + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _set_alarms(limits: Limits) -> None:
    """The kernel ends this process if the next image takes too long, also inside a C library."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + limits.cpu_s, hard))
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s)
