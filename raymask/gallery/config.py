"""Options of `raymask view`."""

from __future__ import annotations

from dataclasses import dataclass

from raymask.config import check_urls, option, require


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Look through an output in the browser: images with their masks, filters, failures, comparisons.

    The gallery is served on this machine alone, to whoever has the link that is printed, until Ctrl-C. From another
    machine: `ssh -L 8765:127.0.0.1:8765 HOST raymask view OUT --port 8765 --no-browser`, then open the printed link.
    """

    out: str = option("output folder or URL", positional=True)
    beside: str | None = option("another output of the same images, shown beside this one", default=None, metavar="URL")
    annotations: str | None = option(
        "the truth about the same images, shown beside them with matches, misses and false alarms: a COCO annotation "
        "file, or an output",
        default=None,
        metavar="URL",
    )
    port: int = option("port on 127.0.0.1; default: one that is free", default=0, metavar="N")
    no_browser: bool = option("do not open a browser, only print the link", default=False)
    allow_http: bool = option("fetch images from http:// and https:// too, at public addresses", default=False)

    def __post_init__(self) -> None:
        check_urls(self)
        require(0 <= self.port <= 65535, f"--port is {self.port}; it lies between 0 and 65535")
        require(
            self.beside is None or self.annotations is None,
            "--beside and --annotations are both given; one thing can be shown beside an output",
        )
