"""Names of files in an export, made of the names of images, which are anybody's data."""

from __future__ import annotations

import os.path
import posixpath
from collections.abc import Collection

from raymask.schema import image_id

ILLEGAL = frozenset('%\\<>:"|?*')  # on one file system or another, and what escapes begin with
MAX_PART_BYTES = 200  # file systems take 255, endings included


def common_folder(first: str, last: str) -> str:
    """The deepest folder, with "/" at its end, that holds all images; of the first and the last uri in byte order."""
    same = os.path.commonprefix([first, last])  # noqa: RUF071 - by characters: these are no paths of this machine
    return same[: same.rfind("/") + 1]


class FileNames:
    """A file name below the folder of an export for each image, and for no other: `a/0001.jpg` -> `a/0001.json`.

    Where `a/0001.png` comes later, it gets `a/0001.png.json`. Names depend on the images before, so they stay when
    images are added to an output. They do not rely on case, and no name leads out of the folder.
    """

    def __init__(self, ending: str, others: Collection[str] = ()) -> None:
        """others: names in the folder that are no image's."""
        self.renamed = 0  # images that are not called by their stem, since another was
        self._ending = ending
        self._taken = {image_id(name.casefold()) for name in others}

    def name_of(self, relative: str) -> str:
        """A name with the ending. relative: the image's name below the common folder, and different for each image."""
        safe = safe_path(relative)
        name = f"{posixpath.splitext(safe)[0]}{self._ending}"
        number = 1
        while (key := image_id(name.casefold())) in self._taken:  # a hash, since millions of names would fill memory
            name = f"{safe}{self._ending}" if number == 1 else f"{safe}.{number}{self._ending}"
            number += 1
        self._taken.add(key)
        self.renamed += number > 1
        return name


def safe_path(name: str) -> str:
    """A relative path that every file system takes: other characters become %41, "", "." and ".." are escaped too."""
    return "/".join(_safe_part(part) for part in name.split("/"))


def _safe_part(part: str) -> str:
    safe = "".join(c if c.isprintable() and c not in ILLEGAL else _escaped(c) for c in part)
    if safe.strip(".") == "":
        safe = safe.replace(".", "%2E") or "%"
    if len(safe.encode()) <= MAX_PART_BYTES:
        return safe
    stem, ending = posixpath.splitext(safe)
    kept = stem.encode()[: MAX_PART_BYTES // 2].decode(errors="ignore")
    return f"{kept}%{image_id(part):016x}{ending if len(ending.encode()) < MAX_PART_BYTES // 4 else ''}"


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
