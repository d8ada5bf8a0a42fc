"""The `raymask` program: flags from the config classes, one function a command, exit codes.

Exit codes: 0 done; 1 wrong usage or environment; 2 done, but more images failed than --max-failed allows;
130 interrupted, resumable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from raymask import __version__
from raymask.config import CleanConfig, EvaluateConfig, SegmentConfig, StatusConfig, flag
from raymask.errors import RaymaskError
from raymask.progress import harmless
from raymask.training.config import TrainConfig
from raymask.urls import without_credentials

if TYPE_CHECKING:  # Ray and torch take seconds to import; --help should not
    from raymask.pipeline import Plan, Summary
    from raymask.training.trainer import TrainSummary

DONE, FAILED, TOO_MANY_FAILED, INTERRUPTED = 0, 1, 2, 130


def segment(config: SegmentConfig) -> int:
    from raymask.console import ConsoleReporter
    from raymask.pipeline import plan
    from raymask.pipeline import segment as run
    from raymask.progress import Silent

    if config.dry_run:
        print(plan_text(config.source, plan(config)))
        return DONE
    if config.quiet:
        summary = run(config, Silent())
    else:
        with ConsoleReporter() as report:
            summary = run(config, report)
        print(summary_text(summary))
    if config.max_failed is not None and summary.failed > config.max_failed:
        print(f"raymask: {summary.failed:,} images failed, --max-failed is {config.max_failed:,}", file=sys.stderr)
        return TOO_MANY_FAILED
    return DONE


def plan_text(source: str, plan: Plan) -> str:
    found = plan.source
    listed = "listed before, and gone on with" if found is None else found.text(source).removeprefix(source).strip()
    to_do = plan.pending + (found.new if found is not None else 0)
    return "\n".join(
        [
            f"source   {source} {listed}",
            f"output   {plan.out}: {plan.done:,} images done",
            f"model    {plan.model} {plan.model_sha256[:8]}",
            f"to do    {to_do:,} images; nothing has been written",
        ]
    )


def summary_text(summary: Summary) -> str:
    """What came out, where it lies, and what to type next."""
    from raymask.progress import duration_text

    out = summary.out.rstrip("/")
    rate = f", {summary.processed / summary.segment_s:,.1f} images/s" if summary.processed else ""
    files = f"{out}/instances/*.parquet".replace("'", "''")
    query = f"SELECT category, count(*) FROM '{files}' GROUP BY 1 ORDER BY 2 DESC"
    code = f"import raymask; print(raymask.open({json.dumps(out)}).instances.to_pandas())"
    lines = [
        f"{summary.images:,} images: {summary.ok:,} ok with {summary.instances:,} instances, "
        f"{summary.failed:,} failed. {summary.processed:,} of them now, in {duration_text(summary.elapsed_s)}{rate}.",
        *(f"  {count:>8,} {kind}" for kind, count in summary.errors.items()),
        f"tables   {out}/images/*.parquet and {out}/instances/*.parquet",
        f"next     python -c {shlex.quote(code)}",
        f"         or, in DuckDB: {query}",
    ]
    if summary.failed:
        lines.append(f"         the same command with --retry-failed tries the {summary.failed:,} failed again")
    return "\n".join(lines)


def train(config: TrainConfig) -> int:
    from raymask.console import ConsoleReporter
    from raymask.progress import Silent
    from raymask.training.trainer import train as run

    if config.quiet:
        run(config, Silent())
        return DONE
    with ConsoleReporter() as report:
        summary = run(config, report)
    print(training_text(summary))
    return DONE


def training_text(summary: TrainSummary) -> str:
    """What came out, where it lies, and what to type next."""
    from raymask.progress import duration_text
    from raymask.training.trainer import SHOWN_SCORES

    out = summary.out.rstrip("/")
    scores = [f"{name} {summary.metrics[key]:.3f}" for name, key in SHOWN_SCORES if key in summary.metrics]
    lines = [
        f"{summary.images_seen:,} images seen in {duration_text(summary.elapsed_s)}, last loss {summary.loss:.3f}",
        *([f"scores   {', '.join(scores)}"] if scores else []),
        f"model    {out}" + (f", the last one {summary.last}" if summary.last else ""),
        f"curves   {out}/curves.png, {out}/log.jsonl, tensorboard --logdir {out}/tensorboard",
        f"next     raymask segment IMAGES --out MASKS --weights {out}",
    ]
    return "\n".join(lines)


def evaluate(config: EvaluateConfig) -> int:
    from raymask.evaluation import evaluate_fully
    from raymask.evaluation.report import report_html, report_text
    from raymask.storage import write_file

    evaluation = evaluate_fully(config)
    if config.json is not None:
        write_file(config.json, (json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
    if config.html is not None:
        write_file(config.html, report_html(evaluation).encode())
    if not config.quiet:
        print(report_text(evaluation))
    return DONE


def status(config: StatusConfig) -> int:
    from raymask.state import status as read

    s = read(config.out)
    if config.json:
        print(json.dumps({**dataclasses.asdict(s), "pending": s.pending}, indent=2))
        return DONE
    share = f" ({(s.ok + s.failed) / s.images:.1%})" if s.images else ""
    print(f"images   {s.images:,} listed, {s.ok + s.failed:,} done{share}, {s.pending:,} to do")
    print(f"done     {s.ok:,} ok, {s.failed:,} failed")
    for kind, count in s.errors.items():
        print(f"         {count:>8,} {kind}")
    if s.published:
        print(f"tables   published: {s.published_images:,} images, {s.instances:,} instances")
    else:
        shown = f"they show {s.published_images:,} images" if s.published_images else "none yet"
        print(f"tables   not up to date ({shown}); the segment command, run again, finishes and publishes")
    print(f"model    {s.model} {s.model_sha256[:8]}")
    print(f"writer   {s.writer or 'none'}")
    return DONE


def clean(config: CleanConfig) -> int:
    from raymask.cleanup import clean as delete

    strays = delete(config.out, config.dry_run)
    for stray in strays:
        print(f"{stray.name}  {stray.bytes:,} bytes, {stray.reason}")
    verb = "would be deleted" if config.dry_run else "deleted"
    print(f"{len(strays):,} files, {sum(s.bytes for s in strays) / 1e6:,.1f} MB {verb}")
    return DONE


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "segment": (SegmentConfig, segment),
    "train": (TrainConfig, train),
    "evaluate": (EvaluateConfig, evaluate),
    "status": (StatusConfig, status),
    "clean": (CleanConfig, clean),
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
    try:
        return function(config_class(**options))
    except KeyboardInterrupt:
        out = options.get("out")
        print("\nraymask: interrupted", file=sys.stderr)
        if command in ("segment", "train"):
            print(f"What is done is kept in {out}; the same command goes on from there.", file=sys.stderr)
        if command == "segment":
            print(f"`raymask status {out}` tells how far it is.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            print(without_credentials(traceback.format_exc()), file=sys.stderr)
        return _say_error(error, debug)


def error_text(text: str) -> str:
    """An error as a terminal may have it, with no credentials in it."""
    return "\n".join(map(harmless, without_credentials(text).split("\n")))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _say_error(error: BaseException, debug: bool) -> int:
    known = next((e for e in _chain(error) if isinstance(e, RaymaskError)), None)
    if known is not None:
        print(f"raymask: {error_text(str(known))}", file=sys.stderr)
    else:
        last = str(error).strip().splitlines()[-1:] or [""]
        print(f"raymask: unexpected {type(error).__name__}: {error_text(last[0])}", file=sys.stderr)
        if not debug:
            print("This is not an error of yours that raymask knows; --debug shows where it happened.", file=sys.stderr)
    return FAILED


def _chain(error: BaseException | None) -> typing.Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="raymask", description="Tables of masks from buckets of images.")
    parser.add_argument("--version", action="version", version=f"raymask {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (config_class, _) in COMMANDS.items():
        text = config_class.__doc__ or ""
        sub = commands.add_parser(name, help=text.strip().splitlines()[0], description=text)
        add_options(sub, config_class)
        sub.add_argument("--debug", action="store_true", help="show a traceback when something goes wrong")
    return parser


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
        elif typing.get_origin(kind) is tuple:
            settings["type"] = partial(parse_list, typing.get_args(kind)[0])
            settings["metavar"] = about["metavar"]
        else:
            settings["type"] = kind
            settings["metavar"] = about["metavar"] or kind.__name__.upper()
        if field.default not in (dataclasses.MISSING, None, False) and "default" not in help:
            shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            settings["help"] += f"; default: {shown}"
        group.add_argument(flag(field.name), **settings)


def parse_list(kind: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    """`0.5,0.25` -> (0.5, 0.25)."""
    return tuple(kind(part) for part in text.split(",") if part)


def plain_type(hint: Any) -> Any:
    """`int | None` -> int: None is what an option is when it is not given."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"raymask: {message}; see {self.prog} --help\n")


def entry() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
