"""LabelMe's JSON files, one an image."""

from __future__ import annotations

import base64
import binascii
import io
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from raymask.errors import ConfigError
from raymask.fetch import ahead
from raymask.interop.annotated import Annotated, Instances, Problems, score_of
from raymask.interop.category_lists import LIST_NAME, read_categories
from raymask.interop.config import ImportConfig
from raymask.interop.files import File, files_below, read_file
from raymask.interop.identity import identity_of
from raymask.masks import checked_size, encode
from raymask.segmentations import to_rle
from raymask.sources.stream import anchor
from raymask.storage import absolute, join

READS_AT_ONCE = 16
WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})

Points = list[tuple[float, float]]


def read_labelme(config: ImportConfig) -> Annotated:
    """A file, or all below a folder. Shapes of one label and one group are one object; score 1, or a shape's own.

    Polygons cover what pycocotools gives them, circles the pixels whose centres lie in them.
    """
    root, files = files_below(config.file, ".json")
    listed = read_categories(config.categories, root)
    problems, instances = Problems(), Instances()
    anchored = anchor(absolute(config.images or root))
    row_of: dict[str, int] = {}
    sizes_hw: list[tuple[int, int]] = []
    contents: list[tuple[str, str]] = []
    ids: dict[str, int] = {c.name: c.id for c in listed or []}
    for file, record, content in _records(files):
        contents.append((file.name, content))
        try:
            size_hw, name = _image(record, file, config.images is not None)
            uri = anchored(name)
        except (KeyError, OverflowError, TypeError, ValueError):
            problems.add("files that are no LabelMe file of an image with its size, left out", file.name)
            continue
        if uri in row_of:
            problems.add("files of an image that another file is of, left out", file.name)
            continue
        row = row_of[uri] = len(row_of)
        sizes_hw.append(size_hw)
        for label, score, rle in _objects(record["shapes"], size_hw, problems, file.name):
            if listed is not None and label not in ids:
                problems.add("objects with a label that is no listed category, left out", f"{label!r} in {file.name}")
            else:
                # Without a list by first occurrence, until all names are known.
                box = _box_xyxy(rle)
                instances.add(row, ids.setdefault(label, len(ids) + 1), score, box, rle)
    if not row_of:
        first = "; ".join(problems.lines()) or "no file ends in .json"
        raise ConfigError(f"no LabelMe file in {config.file} ({first.strip()}); name a file or a folder of them")
    rows, table = instances.by_image()
    if listed is None:
        table, ids = _sorted_by_name(table, ids)
    return Annotated(
        sha256=identity_of([config.format, anchored("."), sorted(ids.items())], contents),
        categories=tuple((id, name) for name, id in ids.items()),
        uris=list(row_of),
        sizes_hw=np.array(sizes_hw, np.int32).reshape(-1, 2),
        carried=pa.table({}),
        rows=rows,
        instances=table,
        problems=problems,
    )


def _records(files: list[File]) -> Iterator[tuple[File, Any, str]]:
    """Each file with what is in it (None where that is no JSON) and its SHA-256, in the order of their names."""
    wanted = [file for file in files if file.name != LIST_NAME]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for file, (data, content) in ahead(pool, read_file, wanted, 2 * READS_AT_ONCE):
            try:
                yield file, json.loads(data), content
            except (RecursionError, ValueError):
                yield file, None, content


def _image(record: Any, file: File, images_elsewhere: bool) -> tuple[tuple[int, int], str]:
    """Height and width of the image, and its name from the folder of the images."""
    size_hw = checked_size((record["imageHeight"], record["imageWidth"]))
    path = record["imagePath"].replace("\\", "/")  # LabelMe on Windows
    if not path or not isinstance(record["shapes"], list):
        raise ValueError("no image, or no shapes")
    folder = posixpath.dirname(file.name)
    if images_elsewhere:
        return size_hw, join(folder, posixpath.basename(path)) if folder else posixpath.basename(path)
    if path.startswith("/") or "://" in path:
        return size_hw, path
    return size_hw, posixpath.normpath(f"{folder}/{path}" if folder else path)


def _objects(
    shapes: list[Any], size_hw: tuple[int, int], problems: Problems, name: str
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Label, score and mask of each object, in the order of its first shape."""
    groups: dict[Any, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        where = f"{name}: shapes[{number}]"
        kind = shape.get("shape_type") or "polygon" if isinstance(shape, dict) else None
        if kind in WITHOUT_AREA:
            problems.add("points and lines, which have no area, left out", where)
            continue
        try:
            label, group = str(shape["label"]), shape.get("group_id")
            rle = _rle(kind, shape, size_hw)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, OSError):
            problems.add("malformed shapes, left out", where)
            continue
        score = score_of(1.0 if shape.get("score") is None else shape["score"], problems, where)
        if score is not None:
            groups[(label, number, None) if group is None else (label, None, str(group))].append((score, rle))
    for (label, _, _), parts in groups.items():
        rle = dict(coco_mask.merge([rle for _, rle in parts])) if len(parts) > 1 else parts[0][1]
        yield label, max(score for score, _ in parts), rle


def _rle(kind: Any, shape: Mapping[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    points: Points = [(float(x), float(y)) for x, y in shape["points"]]
    match kind:
        case "polygon":
            return to_rle([[value for point in points for value in point]], size_hw)
        case "rectangle":
            (x1, y1), (x2, y2) = points
            return to_rle([[x1, y1, x2, y1, x2, y2, x1, y2]], size_hw)
        case "circle":
            return encode(_circle(points, size_hw))
        case "mask":
            return encode(_pasted(points, shape["mask"], size_hw))
    raise ValueError(f"shape_type {kind!r}")


def _circle(points: Points, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """points: the centre, and one on the circle."""
    (x, y), (x_on, y_on) = points
    ys, xs = np.ogrid[: size_hw[0], : size_hw[1]]
    inside: NDArray[np.bool_] = (xs + 0.5 - x) ** 2 + (ys + 0.5 - y) ** 2 <= (x_on - x) ** 2 + (y_on - y) ** 2
    return inside


def _pasted(points: Points, png: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A PNG in base64, pasted where the first point is, its top left pixel."""
    try:
        data = base64.b64decode(png, validate=True)
    except binascii.Error as error:
        raise ValueError("mask is no base64") from error
    left, top = (round(value) for value in points[0])
    height, width = size_hw
    with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if left < 0 or top < 0 or left + image.width > width or top + image.height > height:
            raise ValueError("mask reaches out of the image")
        pixels = np.asarray(image) > 0
    whole = np.zeros(size_hw, np.bool_)
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return whole


def _box_xyxy(rle: Mapping[str, Any]) -> list[float]:
    x, y, width, height = coco_mask.toBbox(dict(rle)).tolist()
    return [x, y, x + width, y + height]


def _sorted_by_name(table: pa.Table, ids: Mapping[str, int]) -> tuple[pa.Table, dict[str, int]]:
    """The same with ids 1, 2, ... by name, whatever the order in which they came."""
    new = {name: id for id, name in enumerate(sorted(ids), 1)}
    lookup = np.zeros(len(ids) + 1, np.int32)
    for name, id in ids.items():
        lookup[id] = new[name]
    column = pa.array(lookup[table.column("category_id").to_numpy()], pa.int32())
    return table.set_column(table.schema.get_field_index("category_id"), table.schema.field("category_id"), column), new
