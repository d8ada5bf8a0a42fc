"""The images behind the tables, as a browser shows them: fetched from any store, decoded in the sandbox, scaled.

Only images that the tables name are ever fetched. Files are untrusted, so what goes to the browser are JPEGs made of
their upright pixels, never the files themselves.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import PIL.Image
from numpy.typing import NDArray

from raymask.errors import ErrorKind, Failure, RaymaskError
from raymask.fetch import Place
from raymask.gallery.collection import ImageRow
from raymask.journal import Manifest, journal_folder
from raymask.pictures import pictures_at, places_of

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
        self.kept_bytes = 0

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
                self.kept_bytes += _size(made)
            while self.kept_bytes > CACHE_BYTES:
                self.kept_bytes -= _size(self._kept.popitem(last=False)[1])
        return made

    def _make(self, image: ImageRow, small: bool) -> bytes | Failure:
        if image.size_hw is None:
            return Failure(ErrorKind(image.error or ErrorKind.CORRUPT), image.error_detail or "")
        pictures = pictures_at(self.places.of([image]), [_row(image)], allow_http=self._allow_http)
        try:
            _, pixels = next(pictures)  # good as long as nothing more is asked of `pictures`
        except RaymaskError as error:
            return Failure(ErrorKind.FORBIDDEN, str(error))
        return pixels if isinstance(pixels, Failure) else _jpeg(pixels, small)


class Places:
    """Where the images of an output lie, as its manifest says; those asked for last are kept."""

    def __init__(self, out: str) -> None:
        self._manifest = Manifest.read(journal_folder(out))
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Place] = OrderedDict()

    def of(self, images: Sequence[ImageRow]) -> list[Place]:
        """Their places; those of a page are looked up together."""
        with self._lock:
            known = {i.image_id: self._kept[i.image_id] for i in images if i.image_id in self._kept}
        unknown = [i for i in images if i.image_id not in known]
        if unknown:
            found = places_of(self._manifest, [_row(i) for i in unknown])
            known |= {i.image_id: place for i, place in zip(unknown, found, strict=True)}
            with self._lock:
                self._kept |= known
                while len(self._kept) > PLACES_KEPT:
                    self._kept.popitem(last=False)
        return [known[i.image_id] for i in images]


def _row(image: ImageRow) -> dict[str, Any]:
    """An image that is ok as `pictures_at` takes it."""
    height, width = image.size_hw or (None, None)
    return {"image_id": image.image_id, "uri": image.uri, "height": height, "width": width, "bytes": image.bytes}


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
