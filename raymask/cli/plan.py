"""`raymask plan`: what it prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from raymask.cli.codes import DONE
from raymask.forecast.config import PlanConfig

if TYPE_CHECKING:  # Ray and torch take seconds to import; --help should not
    from raymask.forecast.forecast import Forecast


def plan(config: PlanConfig) -> int:
    from raymask.console import reporter
    from raymask.forecast.forecast import forecast

    with reporter(config.quiet) as report:
        found = forecast(config, report)
    print(json.dumps(found.facts(), indent=2) if config.json else forecast_text(config.source, found))
    return DONE


def forecast_text(source: str, found: Forecast) -> str:
    from raymask.stages import bottleneck

    low, high = found.images_per_s_range
    shortest, longest = map(time_text, found.seconds_range)
    failed = f", {found.sampled_failed:,} failed" if found.sampled_failed else ""
    lines = [
        f"source   {found.source.text(source)}",
        f"model    {found.model}",
        f"measured {found.sampled:,} images on {machines_text(found.measured_machines)}{failed}: "
        f"{found.images_per_s:,.1f} images/s ({low:,.1f} to {high:,.1f})",
        f"         {bottleneck(found.times).text}",
        f"takes    {time_text(found.seconds)} ({shortest} to {longest}) on {machines_text(found.machines)}",
    ]
    if found.cost is not None and found.cost_range is not None:
        cheapest, dearest = found.cost_range
        lines.append(
            f"costs    {found.cost:,.2f} ({cheapest:,.2f} to {dearest:,.2f}) "
            f"at {found.price_per_hour:,.2f} a machine and hour"
        )
    return "\n".join(lines)


def time_text(seconds: float) -> str:
    """`5:12` minutes, and from two hours on `12.3 hours`."""
    from raymask.progress import duration_text

    return duration_text(seconds) if seconds < 2 * 3600 else f"{seconds / 3600:,.1f} hours"


def machines_text(count: int) -> str:
    return f"{count:,} machine{'' if count == 1 else 's'} like this"
