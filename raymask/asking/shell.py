"""What `raymask shell` does with what is typed: statements of SQL, and commands that begin with a dot."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import duckdb

from raymask.asking.answers import table_text
from raymask.asking.config import ShellConfig
from raymask.asking.running import interruptible, said_plainly
from raymask.errors import ConfigError

if TYPE_CHECKING:
    from raymask.output import Masks

COMMANDS = {
    ".help": "this list",
    ".tables": "the tables and views",
    ".schema": "the columns of TABLE, or of images and instances",
    ".functions": "the functions on masks",
    ".refresh": "see what a run has committed since; tables of your own are gone",
    ".quit": "leave, as .exit and Ctrl-D do",
}

# What may hold a semicolon or a quote that means nothing: texts, names in quotes, comments.
_OPAQUE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)


class Shell:
    """One output, open. open_masks: how to open it, with what there is to say about it."""

    def __init__(self, config: ShellConfig, open_masks: Callable[[str], Masks]) -> None:
        self._config, self._open_masks = config, open_masks
        self.refresh()

    def refresh(self) -> None:
        """Open the output, as it is by now."""
        self.masks = self._open_masks(self._config.masks)
        self.connection: duckdb.DuckDBPyConnection = self.masks.connect(self._config.allow_external)

    @property
    def greeting(self) -> str:
        return f"{self.masks!r}\nSQL over images and instances; end a statement with ; or type .help"

    def run(self, text: str) -> bool:
        """Run what was typed, and print what comes of it; False to leave. ConfigError if something is wrong with it."""
        text = text.strip()
        if text.startswith("."):
            return self._command(*text.rstrip(";").split())
        with said_plainly(self._config.masks):
            for statement in self.connection.extract_statements(text):
                self._answer(statement.query)
        return True

    def split(self, lines: Iterable[str]) -> Iterator[str]:
        """What was typed, each time as much as `run` takes."""
        typed = ""
        for line in lines:
            typed += line
            if is_complete(typed):
                yield typed
                typed = ""
        if typed.strip():
            yield typed

    def _answer(self, sql: str) -> None:
        start_s = time.perf_counter()
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None

        def draw() -> str:
            answer = self.connection.sql(sql)
            return "" if answer is None else table_text(answer, width)

        text = interruptible(self.connection, draw)
        if text:
            print(text)
        if sys.stdout.isatty():
            print(f"  {time.perf_counter() - start_s:.2f} s")

    def _command(self, name: str, *arguments: str) -> bool:
        if name in (".quit", ".exit"):
            return False
        if name not in COMMANDS:
            raise ConfigError(f"there is no command {name}; .help lists all")
        if len(arguments) > (name == ".schema"):
            raise ConfigError(f"{name} does not take {' '.join(arguments)}; .help says what it is for")
        getattr(self, f"_{name[1:]}")(*arguments)
        return True

    def _help(self) -> None:
        for name, about in COMMANDS.items():
            print(f"{name:<12}{about}")

    def _tables(self) -> None:
        self._answer("SHOW TABLES")

    def _refresh(self) -> None:
        self.connection.close()
        self.refresh()

    def _schema(self, table: str | None = None) -> None:
        for name in (table,) if table else ("images", "instances"):
            with said_plainly(self._config.masks):
                quoted = name.replace('"', '""')
                self._answer(f'SELECT column_name AS "{quoted}", column_type AS type FROM (DESCRIBE "{quoted}")')

    def _functions(self) -> None:
        from raymask.masks.functions import FUNCTIONS

        for function in FUNCTIONS.values():
            print(f"{function.name}({', '.join(function.arguments)})  {function.doc.splitlines()[0]}")


def is_complete(text: str) -> bool:
    """Whether to run what is typed so far: nothing, a command with a dot, or statements up to a semicolon."""
    stripped = text.strip()
    if not stripped or stripped.startswith("."):
        return True
    bare = _OPAQUE.sub("", stripped)
    return bare.rstrip().endswith(";") and not {"'", '"'} & set(bare) and "/*" not in bare
