"""The `raymask` program: every command with its options and its function, and what is said when one fails.

The modules beside this one hold a command each, or a few small ones: what it prints, and with which code it exits.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from raymask import __version__
from raymask.asking.config import QueryConfig, ShellConfig
from raymask.cli import evaluate, interchange, plan, publish, query, report, segment, train, upkeep, view
from raymask.cli.codes import FAILED, INTERRUPTED
from raymask.cli.options import Parser, add_options
from raymask.config import CleanConfig, EvaluateConfig, SegmentConfig, StatusConfig
from raymask.errors import known_cause
from raymask.forecast.config import PlanConfig
from raymask.gallery.config import ViewConfig
from raymask.interop.config import ExportConfig, ImportConfig
from raymask.lakes.config import PublishConfig
from raymask.progress import harmless
from raymask.reporting.config import DrawConfig, ReportConfig
from raymask.training.config import TrainConfig
from raymask.urls import without_credentials

COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "segment": (SegmentConfig, segment.segment),
    "plan": (PlanConfig, plan.plan),
    "train": (TrainConfig, train.train),
    "evaluate": (EvaluateConfig, evaluate.evaluate),
    "query": (QueryConfig, query.query),
    "shell": (ShellConfig, query.shell),
    "view": (ViewConfig, view.view),
    "report": (ReportConfig, report.report),
    "draw": (DrawConfig, report.draw),
    "export": (ExportConfig, interchange.export),
    "import": (ImportConfig, interchange.import_),
    "publish": (PublishConfig, publish.publish),
    "status": (StatusConfig, upkeep.status),
    "clean": (CleanConfig, upkeep.clean),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    return run_command(options.pop("command"), options, options.pop("debug"))


def run_command(command: str, options: dict[str, Any], debug: bool = False) -> int:
    """Run a command with options by field name; says what goes wrong, and returns the exit code."""
    config_class, function = COMMANDS[command]
    # Of nodes that die and tasks that are tried again Ray prints pages to standard output, unless it is imported so.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
    # `ray job stop` and spot notices send SIGTERM: leave the same way as on Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    is_logged = False
    try:
        config = config_class(**options)
        is_logged = getattr(config, "log_json", False)
        return function(config)
    except KeyboardInterrupt:
        out = options.get("out")
        if is_logged:
            return INTERRUPTED
        print("\nraymask: interrupted", file=sys.stderr)
        if command in ("segment", "train"):
            print(f"What is done is kept in {out}; the same command goes on from there.", file=sys.stderr)
        if command == "segment":
            print(f"`raymask status {out}` tells how far it is.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            print(without_credentials(traceback.format_exc()), file=sys.stderr)
        return FAILED if is_logged else _say_error(error, debug)


def error_text(text: str) -> str:
    """An error as a terminal may have it, with no credentials in it."""
    return "\n".join(map(harmless, without_credentials(text).split("\n")))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _say_error(error: BaseException, debug: bool) -> int:
    known = known_cause(error)
    if known is not None:
        print(f"raymask: {error_text(str(known))}", file=sys.stderr)
    else:
        last = str(error).strip().splitlines()[-1:] or [""]
        print(f"raymask: unexpected {type(error).__name__}: {error_text(last[0])}", file=sys.stderr)
        if not debug:
            print("This is not an error of yours that raymask knows; --debug shows where it happened.", file=sys.stderr)
    return FAILED


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="raymask", description="Tables of masks from buckets of images.")
    parser.add_argument("--version", action="version", version=f"raymask {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (config_class, _) in COMMANDS.items():
        text = config_class.__doc__ or ""
        sub = commands.add_parser(name, help=text.strip().splitlines()[0], description=text)
        add_options(sub, config_class)
        sub.add_argument("--debug", action="store_true", help="show a traceback when something goes wrong")
    return parser


def entry() -> None:
    """The console script."""
    sys.exit(main())
