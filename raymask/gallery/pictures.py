"""The images behind the tables, as a browser shows them: fetched from any store, decoded in the sandbox, scaled.

Only images that the tables name are ever fetched. Files are untrusted, so what goes to the browser are JPEGs made of
their upright pixels, never the files themselves.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import PIL.Image
import pyarrow.dataset
from numpy.typing import NDArray

from raymask.config import SegmentConfig
from raymask.errors import ErrorKind, Failure, RaymaskError
from raymask.fetch import Place, fetch_one
from raymask.gallery.collection import ImageRow
from raymask.journal import Manifest, journal_folder
from raymask.sandbox import DECODER, borrowed_sandbox
from raymask.storage import resolve
from raymask.urls import is_web

CACHE_BYTES = 96 * 1024 * 1024
PLACES_KEPT = 4096
THUMBNAIL_SIDE = 512  # pixels of the longer side, enough for a row of the grid on a sharp screen
PICTURE_PIXELS = 24_000_000  # of a whole picture; beyond, it is scaled
LONGEST_SIDE = 16_000  # pixels; no JPEG has more than 65,535


class Pictures:
    """JPEGs of the images of an output, those made last kept in memory. For any number of threads."""

    def __init__(self, out: str, allow_http: bool = False) -> None:
        self.places = Places(out)
        self._allow_http = allow_http
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, bool], bytes | Failure] = OrderedDict()
        self._kept_bytes = 0

    def thumbnail(self, image: ImageRow) -> bytes | Failure:
        """The image scaled down to `THUMBNAIL_SIDE`, or why it cannot be shown."""
        return self._picture(image, small=True)

    def whole(self, image: ImageRow) -> bytes | Failure:
        """The image in its own size up to `PICTURE_PIXELS`, or why it cannot be shown."""
        return self._picture(image, small=False)

    def _picture(self, image: ImageRow, small: bool) -> bytes | Failure:
        key = (image.image_id, small)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._make(image, small)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._kept_bytes += _size(made)
            while self._kept_bytes > CACHE_BYTES:
                self._kept_bytes -= _size(self._kept.popitem(last=False)[1])
        return made

    def _make(self, image: ImageRow, small: bool) -> bytes | Failure:
        if image.size_hw is None:
            return Failure(ErrorKind(image.error or ErrorKind.CORRUPT), image.error_detail or "")
        place = self.places.of(image)
        if is_web(place.container or place.uri) and not self._allow_http:
            return Failure(ErrorKind.FORBIDDEN, "it lies on a web server; `raymask view --allow-http` fetches it")
        limits = {"max_bytes": SegmentConfig.max_bytes, "max_pixels": SegmentConfig.max_pixels}
        try:
            fetched = fetch_one(place, max_bytes=limits["max_bytes"])
        except RaymaskError as error:
            return Failure(ErrorKind.FORBIDDEN, str(error))
        if isinstance(fetched, Failure):
            return fetched
        with borrowed_sandbox(**limits, decoder=DECODER) as sandbox:
            decoded = sandbox.decode(fetched.data)
            if isinstance(decoded, Failure):
                return decoded
            height, width, _ = decoded.pixels.shape
            if (height, width) != image.size_hw:
                was = f"{image.size_hw[1]} x {image.size_hw[0]}"
                detail = f"{width} x {height} pixels; it had {was} when it was segmented"
                return Failure(ErrorKind.CHANGED, detail)
            return _jpeg(decoded.pixels, small)


class Places:
    """Where the images of an output lie, by its manifest: of those inside tar shards and tables more than a uri."""

    def __init__(self, out: str) -> None:
        self._folder = journal_folder(out)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Place] = OrderedDict()

    def of(self, image: ImageRow) -> Place:
        if self._containers is None:
            return Place(image.uri)
        self.look_up([image.image_id])
        with self._lock:
            return self._kept.get(image.image_id) or Place(image.uri)

    def look_up(self, ids: Sequence[int]) -> None:
        """Learn the places of these images, as those of a page, at once."""
        with self._lock:
            unknown = [number for number in ids if number not in self._kept]
        if self._containers is None or not unknown:
            return
        names = ["image_id", "uri", "size", "etag", "container", "container_column", "position"]
        rows = self._containers.to_table(names, filter=pyarrow.dataset.field("image_id").isin(unknown)).to_pylist()
        with self._lock:
            for row in rows:
                number = row.pop("image_id")
                # An object that was replaced is still the one that the table names; a position may be another image's.
                self._kept[number] = Place(**row) if row["container"] else Place(row["uri"])
            while len(self._kept) > PLACES_KEPT:
                self._kept.popitem(last=False)

    @cached_property
    def _containers(self) -> pyarrow.dataset.Dataset | None:
        """The manifest, where any image lies inside something else; None where a uri says it all."""
        files = [self._folder.url_of(f.name) for f in Manifest.read(self._folder).files]
        if not files:
            return None
        fs, _ = resolve(self._folder.url)
        manifest = pyarrow.dataset.dataset([resolve(f)[1] for f in files], format="parquet", filesystem=fs)
        inside = pyarrow.dataset.field("container").is_valid()
        return manifest if manifest.head(1, filter=inside).num_rows else None


def _jpeg(pixels: NDArray[Any], small: bool) -> bytes:
    image = PIL.Image.fromarray(pixels)
    if small:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), PIL.Image.Resampling.LANCZOS)
    else:
        scale = min((PICTURE_PIXELS / (image.width * image.height)) ** 0.5, LONGEST_SIDE / max(image.size), 1)
        if scale < 1:
            image = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    file = io.BytesIO()
    # Whole pictures are looked at pixel by pixel: no colour is shared between neighbours.
    image.save(file, "JPEG", quality=82 if small else 92, subsampling=-1 if small else 0)
    return file.getvalue()


def _size(made: bytes | Failure) -> int:
    return len(made) if isinstance(made, bytes) else 200
