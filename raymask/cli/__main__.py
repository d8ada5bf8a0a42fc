"""`python -m raymask.cli`: the same as `raymask`."""

from raymask.cli import entry

entry()
