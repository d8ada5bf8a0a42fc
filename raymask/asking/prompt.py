"""The prompt of `raymask shell`: history, completion, colours, and lines until a semicolon."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer

from raymask.asking.shell import COMMANDS, Shell, is_complete
from raymask.masks.functions import FUNCTIONS

_WORD = re.compile(r"\.?[A-Za-z_][A-Za-z0-9_]*$")


def statements(shell: Shell) -> Iterator[str]:
    """What a person types at the terminal, until Ctrl-D."""
    session: PromptSession[str] = PromptSession(
        message="raymask> ",
        prompt_continuation=lambda width, line, wrapped: "     ...> ",
        history=history(),
        completer=Words(shell),
        complete_while_typing=False,
        lexer=PygmentsLexer.from_filename("statement.sql"),
        multiline=True,
        key_bindings=_keys(),
    )
    while True:
        try:
            text = session.prompt()
        except KeyboardInterrupt:
            continue  # what was typed is thrown away
        except EOFError:
            return
        if text.strip():
            yield text


def history() -> History:
    """In the user's folder for state, readable for nobody else, since statements may tell of what is in the tables."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = state / "raymask" / "shell_history"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        file.chmod(0o600)
    except OSError:  # nowhere to keep it, as in a read-only container
        return InMemoryHistory()
    return FileHistory(str(file))


class Words(Completer):
    """Completes names of columns and tables, then functions and keywords; in the case that was typed."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._known: dict[str, str] = {}
        self._connection: duckdb.DuckDBPyConnection | None = None

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Words that begin as the one before the cursor does."""
        found = _WORD.search(document.text_before_cursor)
        if found is None:
            return
        typed = found[0]
        for word, kind in self._words().items():
            if word.lower().startswith(typed.lower()):
                shown = word.upper() if kind == "keyword" and typed.isupper() else word
                yield Completion(shown, start_position=-len(typed), display_meta=kind)

    def _words(self) -> dict[str, str]:
        """Every word with its kind. A table that was made since the connection was opened is not among them."""
        if self._connection is not self._shell.connection:
            self._connection = self._shell.connection
            self._known = dict.fromkeys(COMMANDS, "command") | words_of(self._connection.cursor())
        return self._known


def words_of(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What can be completed, with its kind, the most telling first."""

    def named(query: str, kind: str) -> dict[str, str]:
        return dict.fromkeys((word for (word,) in connection.execute(query).fetchall()), kind)

    columns = "SELECT DISTINCT column_name FROM duckdb_columns() WHERE NOT internal ORDER BY 1"
    tables = "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1"
    keywords = "SELECT keyword_name FROM duckdb_keywords() ORDER BY 1"
    functions = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_name SIMILAR TO '[a-z][a-z0-9_]*'"
    first = named(columns, "column") | named(tables, "table") | dict.fromkeys(FUNCTIONS, "function")
    others = named(keywords, "keyword") | named(f"{functions} ORDER BY 1", "function")
    return first | {word: kind for word, kind in others.items() if word not in first}


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return keys
