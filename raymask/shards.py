"""The rows of one shard: from the journal to the two tables, and to the bytes of a file.

Publishing writes them down; a reader of an output that is still being written makes those that are not written yet.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymask.errors import OutputError
from raymask.journal import Manifest, Run, read_parts
from raymask.protocol import ShardPlan, rows_that_count
from raymask.schema import images_schema, with_footer
from raymask.storage import Folder
from raymask.tables import published_tables

ROW_GROUP_ROWS = 65_536


def tables_of_shard(run: Run, manifest: Manifest, plan: ShardPlan) -> dict[str, pa.Table]:
    """`images` and `instances` of the shard as far as its images are done, by ordinal, each with its footer.

    OutputError if the journal is of other images than the manifest. There has to be a part.
    """
    rows = resolve_overlaps(manifest.folder, plan)
    user_fields = manifest.user_fields()
    listed = manifest.read_rows(plan.first, plan.stop, ["uri", *(f.name for f in user_fields)])
    listed = listed.take(pc.subtract(rows.column("ordinal"), plan.first))
    if listed.column("uri") != rows.column("uri"):
        raise OutputError(
            f"shard {plan.number} of {manifest.folder.url}: the journal's uris are not the manifest's; choose another "
            f"--out"
        )
    images, instances = published_tables(rows, listed)
    return {
        "images": images.cast(with_footer(images_schema(user_fields), run.footer("images"))),
        "instances": instances.cast(with_footer(instances.schema, run.footer("instances"))),
    }


def resolve_overlaps(folder: Folder, plan: ShardPlan) -> pa.Table:
    """One journal row for each ordinal of the shard, by ordinal: the one that counts, see `by_precedence`."""
    tables = list(read_parts(folder, plan.parts))
    columns = ((t.column("ordinal").to_numpy(), t.column("error").is_null().to_numpy()) for t in tables)
    table_of, row_of = rows_that_count(plan.first, plan.stop, columns)
    found = np.flatnonzero(table_of >= 0)
    # Part by part, for the masks of all rows may be more text than one Arrow array can hold.
    runs = np.split(found, np.flatnonzero(np.diff(table_of[found])) + 1) if len(found) else []
    taken = [tables[table_of[run[0]]].take(pa.array(row_of[run])) for run in runs]
    return pa.concat_tables([tables[0].slice(0, 0), *taken])


def parquet_bytes(table: pa.Table) -> bytes:
    """A published file: compressed, and with statistics of all but the masks."""
    sink = io.BytesIO()
    # Statistics serve to skip row groups; of an RLE they would only cost.
    columns = [p for p in _leaf_paths(table.schema) if not p.startswith("mask.")]
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        use_dictionary=[c for c in columns if c in ("uri", "status", "error", "format", "category")],
        write_statistics=columns,
        write_page_index=True,
    )
    return sink.getvalue()


def _leaf_paths(schema: pa.Schema) -> list[str]:
    empty = schema.empty_table()
    sink = io.BytesIO()
    pq.write_table(empty, sink)
    parquet = pq.ParquetFile(sink).schema
    return [parquet.column(i).path for i in range(len(parquet))]
