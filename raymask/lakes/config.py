"""Options of `raymask publish`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from raymask.config import OPEN_CLUSTER, check_urls, option, require
from raymask.urls import is_web

Format = Literal["parquet", "delta", "iceberg"]

_NAMESPACE = re.compile(r"[^\s./:]+(\.[^\s./:]+)*")


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Publish the tables of an output, as Parquet files or into tables of a lake.

    With --format parquet a run is finished that was cut off after its last image. With delta or iceberg the rows of the
    published tables go into two tables, `images` and `instances`, which are made where they are not there: one commit a
    table. Run the same command again after anything: rows that are there are not appended again, new ones are, and
    those of images that were tried again replace the older ones.
    """

    out: str = option("output folder or URL", positional=True)
    format: Format = option(  # noqa: RUF009 - ruff does not see that this makes a field
        "finish the output's own Parquet tables, or append to Delta or Iceberg tables", default="parquet"
    )
    to: str | None = option(
        "with delta: the folder or URL of the two tables; with iceberg: their namespace, such as lab.photos",
        default=None,
        metavar="URL",
    )
    catalog: str | None = option(
        "with iceberg: a catalog that pyiceberg's configuration names, or the URL of an SQL one, such as "
        "sqlite:////data/lake.db; default: pyiceberg's default catalog",
        default=None,
        metavar="NAME",
    )
    warehouse: str | None = option(
        "with the URL of an SQL catalog: the folder or URL that new tables lie in", default=None, metavar="URL"
    )
    quiet: bool = option("print nothing but errors", default=False)
    allow_open_cluster: bool = option(OPEN_CLUSTER, default=False)

    def __post_init__(self) -> None:
        require(
            self.format in ("parquet", "delta", "iceberg"),
            f"--format is {self.format!r}; parquet, delta or iceberg is meant",
        )
        require(
            self.catalog is None or not is_web(self.catalog),
            f"--catalog is {self.catalog}; put the URI of a REST catalog into pyiceberg's configuration "
            f"(PYICEBERG_CATALOG__NAME__URI), and give its name",
        )
        check_urls(self)
        if self.format == "parquet":
            require(self.to is None, "--to needs --format delta or --format iceberg")
        else:
            require(bool(self.to), f"--format {self.format} needs --to, which says where the tables are")
        if self.format != "iceberg":
            require(self.catalog is None and self.warehouse is None, "--catalog and --warehouse need --format iceberg")
        elif self.to is not None:
            require(
                _NAMESPACE.fullmatch(self.to) is not None,
                f"--to is {self.to!r}; an Iceberg namespace is meant, such as lab.photos",
            )
        require(
            self.is_sql_catalog == (self.warehouse is not None),
            "--warehouse and the URL of an SQL catalog (--catalog sqlite:////data/lake.db) need each other",
        )

    @property
    def is_sql_catalog(self) -> bool:
        """Whether `--catalog` is the URL of an SQL catalog, not a name."""
        return self.catalog is not None and "://" in self.catalog
