"""What a run of any size costs, from what was measured of smaller ones: the two tables in docs/scaling.md.

python benchmarks/scaling.py     # from results/scale.json and null.json; a test compares the page with them
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from readme import record

from raymask.config import SegmentConfig
from raymask.journal.manifest import CHUNK_ROWS
from raymask.pools import GPU_IMAGES_PER_PART
from raymask.reading import MAX_TASKS, TASK_ROWS

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- {} by benchmarks/scaling.py -->\n", "<!-- end of {} -->\n"
COUNTS = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)

# What is assumed, since it was not measured here.
GPU_IMAGES_PER_S = 10
PUBLISHING_CORES = 100
STORE_ANSWER_S = 0.1
KEYS_PER_PAGE = 1_000  # of S3
SCANS = 3  # of the journal: whether there is something to go on with, what, and what to publish
TASK_S = 0.004  # of Ray Data, for each read task before the first begins


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text()))


def with_tables(page: str) -> str:
    """`page` with the tables of these results."""
    for name, table in {"measured": measured, "computed": computed}.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = page.partition(begin)
        lines = "".join(f"| {' | '.join(line)} |\n" for line in table())
        page = before + begin + lines + end + rest.partition(end)[2]
    return page


# ----------------------------------------------------------------------------------------------------------- measured


def measured() -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [
        ("images", "", "whole", "listing", "segmenting", "an image", "publishing", "driver", "largest worker"),
        ("---:", "---", *("---:",) * 7),
    ]
    for row in record("scale")["rows"]:
        steps = row.get("steps_s", {"add_listing": row.get("seconds_within")})
        cells = [f"{steps[s]:,.1f} s" if s in steps else "" for s in ("add_listing", "process", "publish")]
        an_image = f"{1e6 * steps['process'] / row['images']:,.0f} us" if row["case"] == "new" else ""
        memory = [f"{row[key]:,.0f} MB" for key in ("driver_mb", "worker_mb")]
        whole = f"{row['seconds']:,.1f} s"
        lines.append((f"{row['images']:,}", row["case"], whole, *cells[:2], an_image, cells[2], *memory))
    return lines


# ----------------------------------------------------------------------------------------------------------- computed


def growth(key: Callable[[dict[str, Any]], float], case: str = "new") -> tuple[float, float]:
    """What two runs of the most images say of `key`: what an image adds, and what is there without any."""
    rows = sorted((r for r in record("scale")["rows"] if r["case"] == case), key=lambda r: int(r["images"]))
    fewer, more = rows[-2:]
    an_image = (key(more) - key(fewer)) / (more["images"] - fewer["images"])
    return an_image, key(fewer) - an_image * fewer["images"]


def computed() -> list[tuple[str, ...]]:
    header = ("", *(f"{count / 1e6:,.0f} M images" for count in COUNTS))
    return [header, ("---", *("---:",) * len(COUNTS)), *((what, *map(of, COUNTS)) for what, of in LINES.items())]


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:,.0f} s"


def size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def number(count: float) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,.0f}"


def parts(images: int) -> float:
    return images / GPU_IMAGES_PER_PART


def tasks(images: int) -> float:
    return max(images / CHUNK_ROWS, min(images / TASK_ROWS, MAX_TASKS))


def files(images: int) -> float:
    return images / SegmentConfig(source="in", out="out").images_per_file


def listing(case: str, images: int, answer_s: float) -> str:
    [row] = [row for row in record("scale")["rows"] if row["case"] == case]
    return hours(images * (row["seconds_within"] / row["images"] + answer_s))


def cores_a_gpu(_images: int) -> str:
    fewer, more = (row for row in record("null")["rows"] if row["run"] == "raymask without a model")
    an_image_s = (more["cpu_s"] - fewer["cpu_s"]) / (more["images"] - fewer["images"])
    return f"{GPU_IMAGES_PER_S * an_image_s:.2f}"


def driver_s(images: int) -> str:
    an_image_s, _ = growth(lambda row: float(row["driver_cpu_s"]))
    return hours(images * an_image_s)


def publishing(images: int) -> str:
    an_image_s, _ = growth(lambda row: float(row["steps_s"]["publish"]))
    return hours(images * an_image_s * record("scale")["machine"]["cores"] / PUBLISHING_CORES)


def driver_memory(images: int) -> str:
    an_image_mb, least_mb = growth(lambda row: float(row["driver_mb"]))
    return size(1e6 * (least_mb + an_image_mb * images))


def finding_out(images: int) -> str:
    an_image_s, least_s = growth(lambda row: float(row["seconds"]) - row["steps_s"]["add_listing"], "finished")
    return hours(least_s + images * an_image_s + SCANS * parts(images) / KEYS_PER_PAGE * STORE_ANSWER_S)


LINES: dict[str, Callable[[int], str]] = {
    "listing the bucket": lambda images: listing("a bucket listed", images, STORE_ANSWER_S / KEYS_PER_PAGE),
    "listing a table of its URLs instead": lambda images: listing("a table of URLs listed", images, 0),
    "GPU hours": lambda images: f"{images / GPU_IMAGES_PER_S / 3600:,.0f}",
    "cores for fetching and decoding, a GPU": cores_a_gpu,
    "LIST requests, source": lambda images: number(images / KEYS_PER_PAGE),
    "GET requests, source": number,
    "PUT requests: parts of the journal": lambda images: number(parts(images)),
    "PUT requests: files of the tables": lambda images: number(2 * files(images)),
    "GET requests: those parts, to publish": lambda images: number(parts(images)),
    "LIST requests: the journal, each start": lambda images: number(SCANS * parts(images) / KEYS_PER_PAGE),
    "read tasks": lambda images: number(tasks(images)),
    "until the first of them begins": lambda images: hours(TASK_S * tasks(images)),
    "of the driver's one core, all along": driver_s,
    "the driver's memory": driver_memory,
    "what is done, as bits in each object store": lambda images: size(images / 8),
    "publishing, no objects, on 100 cores": publishing,
    "finding out that all is done, beside listing": finding_out,
}

if __name__ == "__main__":
    main()
