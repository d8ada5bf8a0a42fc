"""Options of `raymask query` and `raymask shell`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raymask.config import check_urls, option, require

Format = Literal["table", "csv", "json", "jsonl", "parquet"]

EXTERNAL = "let statements also read and write other files, attach databases, load extensions and change settings"


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Ask an output in SQL, by DuckDB: its tables are `images` and `instances`.

    While a run is still at work they hold what it has committed so far. `raymask query MASKS "DESCRIBE instances"`
    shows the columns. There are functions on masks, such as mask_area(mask).
    """

    masks: str = option("output folder or URL", positional=True)
    sql: str = option("statement to run, or - to read it from standard input", positional=True)
    format: Format | None = option(  # noqa: RUF009 - ruff does not see that this makes a field
        "how to write the answer; default: what the ending of --out says, or else a table, which shows the first and "
        "the last rows of a long answer",
        default=None,
    )
    out: str | None = option("write the answer to this file or URL", default=None, metavar="FILE")
    param: tuple[str, ...] = option(
        "a value for $NAME in the statement, as text that DuckDB casts where it is used; any number of times",
        default=(),
        metavar="NAME=VALUE",
        repeated=True,
    )
    allow_external: bool = option(EXTERNAL, default=False)

    def __post_init__(self) -> None:
        check_urls(self)
        require(bool(self.sql.strip()), 'SQL is empty; a statement is meant, such as "SELECT count(*) FROM images"')
        formats = typing.get_args(Format)
        require(self.format in (None, *formats), f"--format is {self.format!r}; one of {', '.join(formats)} is meant")
        require(self.out != "", "--out is empty; name a file or a URL")
        for setting in self.param:
            name, equals, _ = setting.partition("=")
            require(bool(equals) and name.isidentifier(), f"--param is {setting!r}; NAME=VALUE is meant")

    @property
    def parameters(self) -> Mapping[str, str]:
        """The values of `--param` by name."""
        return {name: value for name, _, value in (setting.partition("=") for setting in self.param)}

    @property
    def answer_format(self) -> Format:
        """`--format`, or what follows from the file's name."""
        if self.format is not None:
            return self.format
        ending = (self.out or "").rpartition(".")[2].lower()
        return next((f for f in typing.get_args(Format) if f == ending), "table")


@dataclass(frozen=True, kw_only=True)
class ShellConfig:
    """Ask an output in SQL at a prompt with history and completion; see `raymask query`.

    A statement ends with a semicolon. Ctrl-C stops one that runs, Ctrl-D leaves. `.help` says what else there is.
    """

    masks: str = option("output folder or URL", positional=True)
    allow_external: bool = option(EXTERNAL, default=False)

    def __post_init__(self) -> None:
        check_urls(self)
