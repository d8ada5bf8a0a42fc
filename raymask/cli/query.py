"""`raymask query` and `raymask shell`: where answers go."""

from __future__ import annotations

import os
import shutil
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from raymask.asking.config import QueryConfig, ShellConfig
from raymask.cli.codes import DONE
from raymask.config import require
from raymask.errors import RaymaskError
from raymask.progress import harmless

if TYPE_CHECKING:  # DuckDB and Numba take a moment to import; --help should not
    from raymask.asking.answers import Answer
    from raymask.asking.shell import Shell
    from raymask.output import Masks

PATIENCE_S = 2  # of a person, before it is said what takes so long


def query(config: QueryConfig) -> int:
    from raymask.asking.running import interruptible, said_plainly
    from raymask.storage import used_plainly, whole_file

    is_binary = config.answer_format == "parquet"
    require(
        not (is_binary and config.out is None and sys.stdout.isatty()),
        "Parquet is nothing for a terminal; give --out FILE, or send it into a file",
    )
    sql = sys.stdin.read() if config.sql == "-" else config.sql
    masks = open_masks(config.masks)
    with masks.connect(config.allow_external) as connection, said_plainly(config.masks):
        answer = interruptible(connection, partial(connection.sql, sql, params=dict(config.parameters) or None))
        if answer is None:
            return DONE
        if config.out is not None:
            with used_plainly(config.out), whole_file(config.out) as file:
                interruptible(connection, partial(_write, answer, config, file))
            return DONE
        sink: BinaryIO = _Terminal() if sys.stdout.isatty() else sys.stdout.buffer  # type: ignore[assignment]
        try:
            interruptible(connection, partial(_write, answer, config, sink))
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _write(answer: Answer, config: QueryConfig, sink: BinaryIO) -> None:
    from raymask.asking.answers import WRITERS, check_names, table_text

    if config.answer_format == "table":
        width = shutil.get_terminal_size().columns if config.out is None and sys.stdout.isatty() else None
        text = table_text(answer, width)
        sink.write(f"{text}\n".encode() if text else b"")
    else:
        check_names(answer)
        WRITERS[config.answer_format](answer, sink)


class _Terminal:
    """Standard output as a terminal may have it."""

    def write(self, data: bytes) -> None:
        sys.stdout.write("\n".join(map(harmless, data.decode().split("\n"))))


def open_masks(out: str) -> Masks:
    """The tables of an output; how far it is, where it is not done, goes to standard error."""
    from raymask.console import ConsoleReporter
    from raymask.output import Masks
    from raymask.storage import used_plainly

    start_s = time.monotonic()
    with ConsoleReporter() as report, used_plainly(out):

        def tell(done: int, of: int) -> None:
            if time.monotonic() - start_s > PATIENCE_S:
                report.live(f"reading what is not published: {done:,} of {of:,} files", done, of)

        masks = Masks(out, tell)
        if not masks.is_whole:
            report.say(f"{out} is not done: {masks.published.images:,} of {masks.listed:,} images so far")
    return masks


def shell(config: ShellConfig) -> int:
    from raymask.asking.shell import Shell

    shell = Shell(config, open_masks)
    return _talk(shell) if sys.stdin.isatty() and sys.stdout.isatty() else _read_along(shell)


def _talk(shell: Shell) -> int:
    """At a terminal: an error is said, and the next statement is asked for."""
    from raymask.asking.prompt import statements

    print(shell.greeting)
    for text in statements(shell):
        try:
            if not shell.run(text):
                break
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
        except RaymaskError as error:
            print("\n".join(map(harmless, str(error).split("\n"))), file=sys.stderr)
    return DONE


def _read_along(shell: Shell) -> int:
    """From a file or a pipe: the first error is the end."""
    for text in shell.split(sys.stdin):
        if not shell.run(text):
            break
    return DONE
