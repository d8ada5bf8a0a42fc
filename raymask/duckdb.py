"""The functions on masks in DuckDB's SQL.

connection = duckdb.connect()
raymask.duckdb.register(connection)
connection.sql("SELECT category, avg(mask_area(mask)) FROM 'masks/instances/*.parquet' GROUP BY 1")
"""

from __future__ import annotations

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from raymask.masks.functions import FUNCTIONS


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Add every function of `raymask.masks.functions.FUNCTIONS` to a connection; it holds for its cursors too."""
    for function in FUNCTIONS.values():
        connection.create_function(
            function.name,
            function,
            [_type_name(kind) for kind in function.arguments.values()],
            _type_name(function.result),
            type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,  # the functions see to nulls, those inside of structs included
        )


NAMES = {
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
}


def _type_name(kind: pa.DataType) -> str:
    """The name of an Arrow type in DuckDB's SQL."""
    if pa.types.is_list(kind):
        return f"{_type_name(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        fields = ", ".join(f"{field.name} {_type_name(field.type)}" for field in kind)
        return f"STRUCT({fields})"
    return NAMES[kind]
