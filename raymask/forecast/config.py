"""Options of `raymask plan`."""

from __future__ import annotations

from dataclasses import dataclass

from raymask.config import OPEN_CLUSTER, Workload, check_positive, option, require


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Workload):
    """Say how long a run over SOURCE would take, and what it would cost.

    SOURCE is listed to its end, and images from all over it are segmented for a minute on the cluster that
    `raymask segment` would use with the same options: this machine, or the cluster at RAY_ADDRESS. For a cluster of
    more such machines the same is said by --machines.
    """

    seconds: float = option("how long to segment images of the sample", default=60.0, metavar="S", group="plan")
    machines: int | None = option(
        "plan for so many machines, each like those measured here; default: as many as there are",
        default=None,
        metavar="N",
        group="plan",
    )
    price_per_hour: float | None = option(
        "what one machine costs an hour, in any currency", default=None, metavar="PRICE", group="plan"
    )
    scratch: str | None = option(
        "folder that every machine of the cluster reaches, for the rows of the sample, which are removed again; "
        "default: a temporary one on this machine",
        default=None,
        metavar="URL",
        group="plan",
    )
    json: bool = option("print JSON", default=False, group="plan")
    quiet: bool = option("say nothing meanwhile", default=False, group="plan")
    allow_open_cluster: bool = option(OPEN_CLUSTER, default=False, group="plan")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seconds > 0, f"--seconds is {self.seconds}; it must be above 0")
        check_positive(self, "machines")
        price = self.price_per_hour
        require(price is None or 0 <= price < float("inf"), f"--price-per-hour is {price}; a price is meant")
