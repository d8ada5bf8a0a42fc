"""Open an output and read its tables, as Arrow datasets and in SQL: what is published, and what is committed beyond."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from raymask.errors import ConfigError, Failure
from raymask.published import Published
from raymask.snapshot import TABLES, take_snapshot
from raymask.storage import join, resolve

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pandas as pd
    import PIL.Image
    import pyarrow as pa
    import pyarrow.dataset
    from numpy.typing import NDArray
# Some of this takes as long to import as most questions take to answer, so it is left to those who need it.

MIN_SCORE = 0.5  # of objects that are drawn
BOX = ("x_min", "y_min", "x_max", "y_max")
DRAWN_COLUMNS = ("instance", "category_id", "category", "score", *BOX, "mask")


@dataclass(frozen=True)
class Table:
    """One of the tables. `dataset` is a `pyarrow.dataset.Dataset`, for all that Arrow can do with one."""

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
    """The tables of an output: `images`, one row an image, and `instances`, one row an object.

    They show what was committed when the output was opened. listed: images of the input, more than there are in
    `images` while a run is still at work. published: the files and the counts of the rows.
    """

    def __init__(self, out: str, on_progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        self._snapshot = take_snapshot(out, on_progress)
        self._files = self._snapshot.files()
        self.out = out
        self.listed = self._snapshot.listed
        self.published: Published = self._snapshot.tables

    @cached_property
    def images(self) -> Table:
        return self._table("images")

    @cached_property
    def instances(self) -> Table:
        return self._table("instances")

    def mask(self, uri: str, instance: int) -> NDArray[np.bool_]:
        """The mask of one object, H x W bool; KeyError if the image has no such instance."""
        import pyarrow.dataset

        from raymask.masks import decode

        field = pyarrow.dataset.field
        # Tables are near input order, so the statistics of `uri` rule out most row groups.
        where = (field("uri") == uri) & (field("instance") == instance)
        rows = self.instances.to_arrow(["mask"], where)
        if not rows.num_rows:
            raise KeyError(f"no instance {instance} of image {uri!r} in {self.out}")
        return decode(rows.column("mask")[0].as_py())

    @property
    def is_whole(self) -> bool:
        """Whether every listed image is done."""
        return self.published.images >= self.listed

    def sql(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> duckdb.DuckDBPyRelation:
        """The answer to a statement over the views `images` and `instances`; of several, to the last.

        It is DuckDB's: `.df()`, `.to_arrow_table()`, `.fetchall()` and the like run the statement. parameters: values
        of `$name` (a mapping) or `?` (a sequence). What a statement can reach is said in `raymask.database.connect`;
        what is wrong with one raises `duckdb.Error`.
        """
        answer: duckdb.DuckDBPyRelation | None = self._connection.sql(query, params=parameters)
        if answer is None:
            raise ConfigError(
                f"there is no statement in {query!r}; one is meant, such as 'SELECT count(*) FROM images'"
            )
        return answer

    def connect(self, allow_external: bool = False, memory: str | None = None) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with the same views, for all that one can do; see `raymask.database.connect`."""
        from raymask.database import connect

        tables = {table: [file.path for file in self.published.files(table)] for table in TABLES}
        return connect(self._files, tables, allow_external, memory)

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        return self.connect()

    def draw(
        self,
        uri: str,
        *,
        min_score: float = MIN_SCORE,
        layers: Collection[str] = ("masks", "boxes", "labels"),
        longest_side: int | None = None,
        allow_http: bool = False,
    ) -> PIL.Image.Image:
        """The picture of an image with the objects that score at least `min_score` over it.

        layers: which of masks, boxes and labels to draw. longest_side: of the result in pixels; None for the image's
        own. ConfigError if there is no such image, or it failed, or cannot be read where it lies any more.
        allow_http: whether to read it from a web server.
        """
        import pyarrow.dataset

        from raymask.drawing import draw_instances
        from raymask.pictures import read_pictures

        where = pyarrow.dataset.field("uri") == uri
        rows = self.images.to_arrow(["image_id", "uri", "status", "error", "height", "width", "bytes"], where)
        if not rows.num_rows:
            raise ConfigError(f"no image {uri!r} in {self.out}; it is named as in column `uri` of the table `images`")
        [image] = rows.to_pylist()
        if image["status"] != "ok":
            raise ConfigError(f"{uri!r} failed ({image['error']}), so there is no picture to draw on")
        [(_, pixels)] = read_pictures(self.out, [image], allow_http=allow_http)
        if isinstance(pixels, Failure):
            raise ConfigError(f"{uri!r} cannot be read any more: {pixels.kind}, {pixels.detail}")
        found = self.instances.to_arrow(DRAWN_COLUMNS, where & (pyarrow.dataset.field("score") >= min_score))
        instances = found.sort_by("instance").to_pylist()
        return draw_instances(pixels, instances, layers=layers, longest_side=longest_side)

    def __repr__(self) -> str:
        p = self.published
        images = f"{p.images:,} images" if self.is_whole else f"{p.images:,} of {self.listed:,} images so far"
        return f"Masks({self.out!r}: {images}, {p.failed:,} of them failed, {p.instances:,} instances)"

    def _repr_html_(self) -> str:
        """What notebooks show: how many images and instances there are, and why images failed."""
        p = self.published
        images = f"{p.images:,}" if p.images >= self.listed else f"{p.images:,} of {self.listed:,} so far"
        counts = {"instances": p.instances, "failed": p.failed, **p.errors}
        rows = {"images": images, **{name: f"{count:,}" for name, count in counts.items()}}
        cells = "".join(f"<tr><td>{html.escape(name)}</td><td>{count}</td></tr>" for name, count in rows.items())
        return f"<table><caption>{html.escape(self.out)}</caption>{cells}</table>"

    def open_file(self, path: str) -> BinaryIO:
        """One of the files that `published` names, to read; also one that is not published yet."""
        if path in self._snapshot.unpublished:
            fs, name = self._files, path
        else:
            fs, name = resolve(join(self.out, path))
        file: BinaryIO = fs.open(name, "rb")
        return file

    def _table(self, name: str) -> Table:
        import pyarrow.dataset

        paths = [file.path for file in self.published.files(name)]
        if self._snapshot.unpublished:
            return Table(pyarrow.dataset.dataset(paths, format="parquet", filesystem=self._files))
        fs, root = resolve(self.out)
        return Table(pyarrow.dataset.dataset([f"{root}/{path}" for path in paths], format="parquet", filesystem=fs))
