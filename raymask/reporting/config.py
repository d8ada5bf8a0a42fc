"""Options of `raymask report` and `raymask draw`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from raymask.config import check_urls, option, require

REPORT_FILE = "report.html"  # in an output that was made with --report
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
ALLOW_HTTP = "read pictures from http:// and https:// too"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one page about an output: counts, failures, distributions, pace and sample pictures, for any browser."""

    masks: str = option("output folder or URL", positional=True)
    out: str = option("the page, a file or URL", default="report.html", metavar="FILE", short="-o")
    allow_http: bool = option(ALLOW_HTTP, default=False)
    quiet: bool = option("print nothing but errors", default=False)

    def __post_init__(self) -> None:
        check_urls(self)
        require(bool(self.out), "--out is empty; name a file for the page")


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Draw what was found in one image over it."""

    masks: str = option("output folder or URL", positional=True)
    uri: str = option("the image, as the tables name it", positional=True)
    out: str = option("the picture: PNG, JPEG or WebP by its name", metavar="FILE", short="-o")
    min_score: float = option("draw objects that score at least this", default=0.5, metavar="P")
    layers: tuple[str, ...] = option(
        "what to draw of them, comma-separated", default=("masks", "boxes", "labels"), metavar="LIST"
    )
    longest_side: int | None = option(
        "scale the picture to this many pixels; default: the image's own", default=None, metavar="PX"
    )
    allow_http: bool = option(ALLOW_HTTP, default=False)
    quiet: bool = option("print nothing but errors", default=False)

    def __post_init__(self) -> None:
        check_urls(self)
        require(0 <= self.min_score <= 1, f"--min-score is {self.min_score}; it lies between 0 and 1")
        unknown = sorted({*self.layers} - {"masks", "boxes", "labels"})
        require(not unknown, f"--layers has {', '.join(unknown)}; masks, boxes and labels are meant")
        require(self.format is not None, f"--out is {self.out!r}; a name that ends in {', '.join(FORMATS)} is meant")
        require(
            self.longest_side is None or self.longest_side >= 1,
            f"--longest-side is {self.longest_side}; it must be at least 1",
        )

    @property
    def format(self) -> str | None:
        """Of the picture, as Pillow calls it; None for a name that says none."""
        return FORMATS.get(PurePosixPath(self.out).suffix.lower())
