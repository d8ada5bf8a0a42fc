"""Flags of a command from its config class: names, types, defaults, groups and help texts stand there alone."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from raymask.cli.codes import FAILED
from raymask.config import flag


def add_options(parser: argparse.ArgumentParser, config_class: type[Any]) -> None:
    """A flag for every field of a config class, in its groups, with its help text and default."""
    types_of = typing.get_type_hints(config_class)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        about = field.metadata
        group = groups.setdefault(
            about["group"], parser.add_argument_group(about["group"]) if about["group"] != "options" else parser
        )
        kind = plain_type(types_of[field.name])
        help = about["help"].replace("%", "%%")
        if about["positional"]:
            group.add_argument(field.name, metavar=field.name.upper(), help=help)
            continue
        settings: dict[str, Any] = {"dest": field.name, "help": help}
        if field.default is dataclasses.MISSING:
            settings["required"] = True
        else:
            settings["default"] = field.default
        if kind is bool:
            settings["action"] = "store_true"
        elif typing.get_origin(kind) is typing.Literal:
            settings["choices"] = typing.get_args(kind)
        elif about["repeated"]:
            settings |= {"action": _Add, "metavar": about["metavar"]}
        elif typing.get_origin(kind) is tuple:
            settings["type"] = partial(parse_list, typing.get_args(kind)[0])
            settings["metavar"] = about["metavar"]
        else:
            settings["type"] = kind
            settings["metavar"] = about["metavar"] or kind.__name__.upper()
        if field.default not in (dataclasses.MISSING, None, False, ()) and "default" not in help:
            shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            settings["help"] += f"; default: {shown}"
        flags = [about["short"], flag(field.name)] if about["short"] else [flag(field.name)]
        group.add_argument(*flags, **settings)


class _Add(argparse.Action):
    """One more member of a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


def parse_list(kind: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    """`0.5,0.25` -> (0.5, 0.25)."""
    return tuple(kind(part) for part in text.split(",") if part)


def plain_type(hint: Any) -> Any:
    """`int | None` -> int: None is what an option is when it is not given."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"raymask: {message}; see {self.prog} --help\n")
