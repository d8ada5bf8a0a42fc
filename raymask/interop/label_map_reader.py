"""PNG label maps, one an image: of 8 or 16 bits, with a palette or without, or of colours."""

from __future__ import annotations

import io
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from raymask.config import IMAGE_EXTENSIONS
from raymask.errors import ConfigError
from raymask.fetch import ahead
from raymask.interop.annotated import Annotated, Instances, Problems
from raymask.interop.category_lists import read_categories
from raymask.interop.config import ImportConfig
from raymask.interop.files import File, files_below, read_file
from raymask.interop.identity import identity_of
from raymask.interop.label_maps import CLASSES, OBJECTS
from raymask.interop.names import safe_path
from raymask.segmentations import to_rle
from raymask.storage import absolute

READS_AT_ONCE = 8
MAX_PIXELS = 100_000_000  # of a map, as of an image
NOTHING = 0  # the value of pixels that belong to no object

Labelled = tuple[int, dict[str, Any]]  # value of a category, mask


def read_label_maps(config: ImportConfig) -> Annotated:
    """A folder of maps, each of the image with the same name below `config.images`.

    A value is a category, and all its pixels in an image are one instance. With `config.category` a value is an object
    of that category. In folders `SegmentationClass` and `SegmentationObject`, as PASCAL VOC has them, the second tells
    objects apart, and the first says their categories. Scores are 1.
    """
    root, files = files_below(config.file, ".png")
    classes, objects = _below(files, CLASSES), _below(files, OBJECTS)
    is_voc = bool(classes and objects) and config.category is None
    maps = classes if is_voc else {file.name: file for file in files}
    listed = read_categories(config.categories, root) if config.category is None else None
    problems, instances = Problems(), Instances()
    assert config.images is not None  # the config class asks for it
    image_of = _match(maps, config.images, problems)
    value_ids = {c.value: c.id for c in listed or []}
    names = {c.id: c.name for c in listed or []}
    if config.category is not None:
        names[1] = config.category
    uris: list[str] = []
    sizes_hw: list[tuple[int, int]] = []
    contents: list[tuple[str, ...]] = []
    pairs = [(file, objects.get(key) if is_voc else None) for key, file in maps.items() if key in image_of]
    for (file, _), (found, content) in _read(pairs):
        contents.append((file.name, *content))
        if isinstance(found, str):
            problems.add(found, file.name)
            continue
        labelled, size_hw, is_colour = found
        row = len(uris)
        uris.append(image_of[_key(file, is_voc)])
        sizes_hw.append(size_hw)
        for value, rle in labelled:
            if config.category is not None:
                id = 1
            elif listed is None:
                id = value
                names.setdefault(value, f"#{value:06x}" if is_colour else str(value))
            elif value in value_ids:
                id = value_ids[value]
            else:
                problems.add("objects with a value that is no listed category, left out", f"{value} in {file.name}")
                continue
            x, y, width, height = coco_mask.toBbox(rle).tolist()
            instances.add(row, id, 1.0, (x, y, x + width, y + height), rle)
    if not uris or not names:
        first = "; ".join(problems.lines()).strip() or "no file ends in .png"
        raise ConfigError(f"no label maps of images in {config.file} ({first}); a folder of PNG files is meant")
    rows, table = instances.by_image()
    options = [config.format, absolute(config.images), sorted(names.items()), sorted(value_ids.items())]
    return Annotated(
        sha256=identity_of(options, contents),
        categories=tuple(sorted(names.items())),
        uris=uris,
        sizes_hw=np.array(sizes_hw, np.int32).reshape(-1, 2),
        carried=pa.table({}),
        rows=rows,
        instances=table,
        problems=problems,
    )


def _below(files: Sequence[File], folder: str) -> dict[str, File]:
    """The files in one of VOC's folders, by their names there."""
    return {file.name.removeprefix(f"{folder}/"): file for file in files if file.name.startswith(f"{folder}/")}


def _key(file: File, is_voc: bool) -> str:
    return file.name.removeprefix(f"{CLASSES}/") if is_voc else file.name


def _match(keys: Collection[str], images: str, problems: Problems) -> dict[str, str]:
    """The uri of the image that each map belongs to, by the name of the map."""
    by_name: dict[str, str] = {}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for ending in IMAGE_EXTENSIONS:
        for image in files_below(images, f".{ending}")[1]:
            name = safe_path(image.name)
            by_name[name] = image.url
            by_stem[posixpath.splitext(name)[0]].append(name)
    stems = {key: posixpath.splitext(key)[0] for key in keys}
    by_own_name = {stem for stem in stems.values() if stem in by_name}
    found = {}
    for key, stem in stems.items():
        if stem in by_own_name:
            found[key] = by_name[stem]
            continue
        candidates = [name for name in by_stem[stem] if name not in by_own_name]
        if len(candidates) == 1:
            found[key] = by_name[candidates[0]]
        else:
            what = "that several images could be meant by" if candidates else "of no image"
            problems.add(f"maps {what}, left out", key)
    without = sorted(by_name.keys() - {safe_path(n) for n in by_name if by_name[n] in set(found.values())})
    for name in without:
        problems.add("images without a map, left out", name)
    return found


Found = tuple[list[Labelled], tuple[int, int], bool]


def _read(pairs: list[tuple[File, File | None]]) -> Iterator[tuple[tuple[File, File | None], tuple[Found | str, Any]]]:
    """Each map with its objects, size and whether it is of colours, or what is wrong with it; and the SHA-256 of it."""
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        yield from ahead(pool, _read_one, pairs, 2 * READS_AT_ONCE)


def _read_one(pair: tuple[File, File | None]) -> tuple[Found | str, list[str]]:
    file, objects_file = pair
    data, content = read_file(file)
    contents = [content]
    try:
        values, is_colour = _values_in(data)
        if objects_file is None:
            labelled = [(value, rle) for value, rle in _masks_of(values)]
        else:
            data, content = read_file(objects_file)
            contents.append(content)
            objects, _ = _values_in(data)
            if objects.shape != values.shape:
                return "maps of classes and of objects that differ in size, left out", contents
            labelled = [(_majority(values, rle), rle) for _, rle in _masks_of(objects)]
    except (OSError, SyntaxError, ValueError) as error:
        return f"files that are no label map ({type(error).__name__}), left out", contents
    height, width = values.shape
    return (labelled, (height, width), is_colour), contents


def _values_in(data: bytes) -> tuple[NDArray[np.int64], bool]:
    """The values of a map, H x W, and whether they are colours; ValueError where a pixel is no number."""
    with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        if image.mode not in ("1", "L", "P", "I", "I;16", "RGB", "RGBA"):
            raise ValueError(f"mode {image.mode}")
        pixels = np.asarray(image).astype(np.int64)
    if pixels.ndim == 2:
        return pixels, False
    return pixels[..., :3] @ np.array([1 << 16, 1 << 8, 1]), True


def _masks_of(values: NDArray[np.int64]) -> Iterator[Labelled]:
    """Each value but 0, the lowest first, with the pixels that have it."""
    flat = values.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts, stops = np.concatenate([[0], edges]), np.concatenate([edges, [len(flat)]])
    run_values = flat[starts]
    order = np.argsort(run_values, kind="stable")
    for runs in np.split(order, np.flatnonzero(np.diff(run_values[order])) + 1):
        value = int(run_values[runs[0]])
        if value != NOTHING:
            toggles = np.stack([starts[runs], stops[runs]], axis=1).reshape(-1)
            counts = np.diff(toggles, prepend=0, append=len(flat)).tolist()
            size_hw = (values.shape[0], values.shape[1])
            yield value, to_rle({"size": size_hw, "counts": counts if counts[-1] else counts[:-1]}, size_hw)


def _majority(values: NDArray[np.int64], rle: dict[str, Any]) -> int:
    """The value that most pixels of a mask have."""
    found, counts = np.unique(values[coco_mask.decode(rle).astype(bool)], return_counts=True)
    return int(found[np.argmax(counts)])
