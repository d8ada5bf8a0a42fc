"""`raymask segment`: what it prints."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

from raymask.cli.codes import DONE, TOO_MANY_FAILED
from raymask.config import SegmentConfig
from raymask.reporting.config import REPORT_FILE

if TYPE_CHECKING:  # Ray and torch take seconds to import; --help should not
    from raymask.pipeline import Plan, Summary


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
        if config.report:
            print(f"report   {summary.out.rstrip('/')}/{REPORT_FILE}")
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
    query = "SELECT category, count(*) AS objects FROM instances GROUP BY 1 ORDER BY 2 DESC"
    code = f"import raymask; print(raymask.open({json.dumps(out)}).instances.to_pandas())"
    lines = [
        f"{summary.images:,} images: {summary.ok:,} ok with {summary.instances:,} instances, "
        f"{summary.failed:,} failed. {summary.processed:,} of them now, in {duration_text(summary.elapsed_s)}{rate}.",
        *(f"  {count:>8,} {kind}" for kind, count in summary.errors.items()),
        f"tables   {out}/images/*.parquet and {out}/instances/*.parquet",
        f'next     raymask query {shlex.quote(out)} "{query}"',
        f"         raymask shell {shlex.quote(out)}",
        f"         python -c {shlex.quote(code)}",
    ]
    if summary.failed:
        lines.append(f"         the same command with --retry-failed tries the {summary.failed:,} failed again")
    return "\n".join(lines)
