"""`raymask view`: what it prints."""

from __future__ import annotations

from raymask.cli.codes import DONE
from raymask.gallery.config import ViewConfig


def view(config: ViewConfig) -> int:
    from raymask.gallery.serving import view as serve

    serve(config, lambda line: print(line, flush=True))
    return DONE
