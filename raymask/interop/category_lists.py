"""Lists of categories for annotations that name them, or number them, and say nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from raymask.errors import ConfigError
from raymask.interop.annotated import MAX_CATEGORY_ID
from raymask.sources.stream import said_plainly
from raymask.storage import Folder, join, resolve, retried

LIST_NAME = "categories.json"


@dataclass(frozen=True)
class ListedCategory:
    """value: of its pixels in label maps."""

    id: int
    name: str
    value: int


def read_categories(file: str | None, folder: str) -> list[ListedCategory] | None:
    """The categories in `file`, or in `categories.json` in `folder`; None where there is neither.

    JSON is a list of objects with `id`, `name` and maybe `value` (else the id, or the number of a `color` [r, g, b]),
    or a COCO file with such a list `categories`. Other text has a name a line, for ids from 1 on. ConfigError if it is
    something else.
    """
    url = file or join(folder, LIST_NAME)
    if file is None:
        data = Folder(folder).read_or_none(LIST_NAME)
        if data is None:
            return None
    else:
        fs, path = resolve(url)
        with said_plainly(url):
            data = retried(lambda: fs.cat_file(path))
    with said_plainly(url, "a list of categories"):
        text = data.decode("utf-8-sig")
        if url.endswith(".json"):
            record = json.loads(text)
            found = [_category(e) for e in (record["categories"] if isinstance(record, dict) else record)]
        else:
            names = [line.strip() for line in text.splitlines()]
            found = [ListedCategory(id, name, id) for id, name in enumerate(names, 1) if name]
    if len({c.id for c in found}) < len(found) or not found:
        raise ConfigError(f"{url} has {'an id twice' if found else 'no categories'}; give each category an id")
    return found


def _category(entry: Any) -> ListedCategory:
    id, name, color = entry["id"], entry["name"], entry.get("color")
    if type(id) is not int or abs(id) > MAX_CATEGORY_ID or not isinstance(name, str):
        raise ValueError(f"{str(entry)[:100]} has no id (an integer of 32 bits) or no name (a text)")
    value = entry.get("value", id if color is None else colour_number(*color))
    if type(value) is not int:
        raise ValueError(f"{str(entry)[:100]} has a value that is no integer")
    return ListedCategory(id, name, value)


def colour_number(red: int, green: int, blue: int) -> int:
    """The value of a pixel in a label map of colours: 0xRRGGBB."""
    return (red << 16) + (green << 8) + blue
