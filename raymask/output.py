"""Open an output and read its tables: Arrow datasets over exactly the files that are published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from raymask.errors import OutputError
from raymask.masks import decode
from raymask.published import Published, read_published
from raymask.storage import resolve


@dataclass(frozen=True)
class Table:
    """One published table. `dataset` is a `pyarrow.dataset.Dataset`, for all that Arrow can do with one."""

    dataset: pyarrow.dataset.Dataset

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    def __len__(self) -> int:
        return int(self.dataset.count_rows())

    def to_arrow(
        self, columns: Sequence[str] | None = None, where: pyarrow.dataset.Expression | None = None
    ) -> pa.Table:
        """The rows that `where` (a `pyarrow.dataset.field(...)` expression) selects; all of them without one."""
        return self.dataset.to_table(columns=None if columns is None else list(columns), filter=where)

    def to_pandas(
        self, columns: Sequence[str] | None = None, where: pyarrow.dataset.Expression | None = None
    ) -> pd.DataFrame:
        """The same as a data frame; a mask is a dict that `pycocotools.mask.decode` takes."""
        frame: pd.DataFrame = self.to_arrow(columns, where).to_pandas()
        return frame


class Masks:
    """The tables of an output: `images`, one row an image, and `instances`, one row an object."""

    def __init__(self, out: str) -> None:
        published = read_published(out)
        if published is None:
            raise OutputError(f"{out!r} has no published tables; run `raymask status {out}` to see how far it is")
        self.out = out
        self.published: Published = published

    @cached_property
    def images(self) -> Table:
        return self._table("images")

    @cached_property
    def instances(self) -> Table:
        return self._table("instances")

    def mask(self, uri: str, instance: int) -> NDArray[np.bool_]:
        """The mask of one object, H x W bool; KeyError if the image has no such instance."""
        field = pyarrow.dataset.field
        # Tables are near input order, so the statistics of `uri` rule out most row groups.
        where = (field("uri") == uri) & (field("instance") == instance)
        rows = self.instances.to_arrow(["mask"], where)
        if not rows.num_rows:
            raise KeyError(f"no instance {instance} of image {uri!r} in {self.out}")
        return decode(rows.column("mask")[0].as_py())

    def __repr__(self) -> str:
        p = self.published
        return f"Masks({self.out!r}: {p.images:,} images, {p.failed:,} of them failed, {p.instances:,} instances)"

    def _table(self, name: str) -> Table:
        fs, root = resolve(self.out)
        files = [f"{root}/{file.path}" for file in self.published.files(name)]
        return Table(pyarrow.dataset.dataset(files, format="parquet", filesystem=fs))
