"""Published tables, brought into tables of a lake (Delta, Iceberg), exactly once.

`publisher.py` is where a reader sees this whole. `delta.py` and `iceberg.py` open a table each, `rows.py` says what its
rows are. docs/lakes.md says what is promised, and why it holds.
"""
