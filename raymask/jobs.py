"""Commands as jobs: their options from a YAML file instead of flags. The scripts in `jobs/` at the top call this."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raymask.cli import COMMANDS, run_command
from raymask.cli.codes import FAILED
from raymask.cli.options import plain_type
from raymask.errors import ConfigError


def run_job(command: str, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Run a command with the options of `--config FILE` and `--set KEY=VALUE`; returns its exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file of options")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="an option over the file's, YAML too"
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback when something goes wrong")
    given = parser.parse_args(arguments)
    try:
        options = read_options(command, given.config, given.set)
    except ConfigError as error:
        print(f"raymask: {error}", file=sys.stderr)
        return FAILED
    return run_command(command, options, given.debug)


def read_options(command: str, config: Path | None, settings: Sequence[str]) -> dict[str, Any]:
    """Options by field name. ConfigError if the file is not a mapping, or names what the command does not have."""
    texts: dict[str, Any] = {}
    if config is not None:
        try:
            texts = _mapping(_parse(config.read_text()), str(config))
        except (OSError, OverflowError, RecursionError, ValueError, yaml.YAMLError) as error:  # of a parser on any text
            raise ConfigError(f"cannot read {config}: {_reason(error)}") from error
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} is not KEY=VALUE")
        try:
            texts[key] = _parse(text)
        except (OverflowError, RecursionError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"--set {key} is not YAML: {_reason(error)}") from error
    config_class, _ = COMMANDS[command]
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    unknown = sorted(texts.keys() - fields.keys())
    if unknown:
        raise ConfigError(f"{command} has no option {', '.join(unknown)}; it has: {', '.join(fields)}")
    types = typing.get_type_hints(config_class)
    options = {name: _value(name, plain_type(types[name]), text) for name, text in texts.items() if text}
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in options]
    if missing:
        raise ConfigError(f"{command} needs {', '.join(missing)}; put it into the file or give --set {missing[0]}=…")
    return options


def _reason(error: Exception) -> str:
    """What is wrong and where, without the text itself, which may be anything."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return str(error) if isinstance(error, OSError) else f"it is no text or no YAML ({type(error).__name__})"


def _parse(text: str) -> Any:
    # All scalars as text, as flags are: YAML would read the workers 2:4 as 124, in base 60.
    return yaml.load(text, Loader=yaml.BaseLoader)


def _value(name: str, kind: Any, text: Any) -> Any:
    """What a text of the file means for an option of type `kind`."""
    if typing.get_origin(kind) is tuple:
        try:
            return tuple(
                typing.get_args(kind)[0](part) for part in (text if isinstance(text, list) else text.split(","))
            )
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(
                f"{name} is {text!r}; a list is meant, of what can be a number where it holds numbers"
            ) from None
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            raise ConfigError(f"{name} is {text!r}; a number is meant") from None
    if kind is bool or not isinstance(text, str):
        raise ConfigError(f"{name} is {text!r}; {'true or false' if kind is bool else 'one text'} is meant")
    return text


def job_file(command: str) -> str:
    """The commented YAML file of a command: every option with its help text and default."""
    config_class, _ = COMMANDS[command]
    lines = [
        f"# Options of `raymask {command}`; the same names as its flags. A line without a value is left to raymask."
    ]
    for field in dataclasses.fields(config_class):
        default = None if field.default is dataclasses.MISSING else field.default
        value = yaml.safe_dump(list(default) if isinstance(default, tuple) else default, default_flow_style=True)
        shown = "" if default is None else " " + value.removesuffix("...\n").strip()
        lines += ["", f"# {field.metadata['help']}", f"{field.name}:{shown}"]
    return "\n".join(lines) + "\n"


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not content:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} holds a {type(content).__name__}; a mapping of option names to values is meant")
    return {str(key): value for key, value in content.items()}
