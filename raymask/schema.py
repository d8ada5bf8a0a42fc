"""The tables raymask writes: Arrow schemas, the footer of every file, and the identity of an image.

`schemas/` at the top of the project holds the same in other languages (specification, JSON, DDL); a test keeps them
equal to this file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = "1.0"
FOOTER_KEY = b"raymask"

MASK = pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])

# What an instance has of its own; the published table puts the image's columns in front.
INSTANCE_FIELDS = [
    pa.field("instance", pa.int32(), nullable=False),
    pa.field("category_id", pa.int32(), nullable=False),
    pa.field("category", pa.string(), nullable=False),
    pa.field("score", pa.float32(), nullable=False),
    pa.field("x_min", pa.float32(), nullable=False),
    pa.field("y_min", pa.float32(), nullable=False),
    pa.field("x_max", pa.float32(), nullable=False),
    pa.field("y_max", pa.float32(), nullable=False),
    pa.field("area", pa.int64(), nullable=False),
    pa.field("mask", MASK, nullable=False),
]

# What reading an image finds out; `uri` and what the user's manifest says are known before.
OUTCOME_FIELDS = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("error_detail", pa.string()),
    pa.field("height", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("format", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("etag", pa.string()),
]

IMAGE_KEY_FIELDS = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
]

IMAGES = pa.schema([*IMAGE_KEY_FIELDS, *OUTCOME_FIELDS, pa.field("instance_count", pa.int32(), nullable=False)])

INSTANCES = pa.schema([*IMAGE_KEY_FIELDS, *INSTANCE_FIELDS])

# The frozen input. `container` and `position` locate an image inside a tar shard (byte offset) or a Parquet table
# (row number, in column `container_column`); all three are null for an object of its own.
MANIFEST_FIELDS = [
    pa.field("ordinal", pa.int64(), nullable=False),
    *IMAGE_KEY_FIELDS,
    pa.field("size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("container", pa.string()),
    pa.field("container_column", pa.string()),
    pa.field("position", pa.int64()),
]
MANIFEST = pa.schema(MANIFEST_FIELDS)

# The journal: one row an image, its instances nested, so that one object holds an image whole or not at all.
PART = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        *OUTCOME_FIELDS,
        pa.field("instances", pa.list_(pa.struct(INSTANCE_FIELDS)), nullable=False),
    ]
)

USER_COLUMN_PREFIX = "source_"
RESERVED_COLUMNS = frozenset({*IMAGES.names, *MANIFEST.names})


def image_id(uri: str) -> int:
    """First 63 bits of BLAKE2b of the UTF-8 bytes of `uri`: the same in every run, 0 <= id < 2**63."""
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "big") >> 1


def user_column_name(name: str) -> str:
    """The name under which a column of the user's manifest is carried: its own, unless raymask has a column so named.

    Case does not tell names apart, as it does not in SQL: Spark and Athena cannot read a table with `uri` and `URI`.
    """
    return USER_COLUMN_PREFIX + name if name.lower() in RESERVED_COLUMNS else name


def images_schema(user_fields: list[pa.Field]) -> pa.Schema:
    """Schema of the published `images` table with the columns of the user's manifest behind raymask's own."""
    return pa.schema([*IMAGES, *user_fields])


def with_footer(schema: pa.Schema, footer: Mapping[str, Any]) -> pa.Schema:
    """The schema with raymask's footer in its metadata, as canonical JSON, so that equal tables are equal bytes."""
    text = json.dumps(footer, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return schema.with_metadata({FOOTER_KEY: text.encode()})


def footer_of(schema: pa.Schema) -> dict[str, Any]:
    """Raymask's footer of a file; {} when it has none."""
    text = (schema.metadata or {}).get(FOOTER_KEY)
    return json.loads(text) if text else {}
