"""One image file in memory to upright 8-bit RGB pixels, or to the reason why there are none.

    bytes -> size in the header -> Pillow -> turned upright -> H x W x 3 uint8

Colour, by what Pillow finds in the file:

- 8-bit and less (1-bit, grey, palette, YCbCr, CMYK, LAB): as `PIL.Image.convert("RGB")`; ICC profiles are not applied.
- Alpha and transparent colours: dropped, the colour beneath stays as stored. So do `convert("RGB")`, torchvision's
  `ImageReadMode.RGB` and OpenCV's `IMREAD_COLOR`, hence what models are trained on.
- 16-bit grey: round(value / 257), whatever the values, so that equal values give equal pixels in every image.
- 16-bit colour: the high byte, which is all that Pillow loads.
- 32-bit integer and float grey, which have no common full scale: see `_full_scale`.

Animations and multi-page files give their first frame.
"""

from __future__ import annotations

import ctypes
import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.TiffImagePlugin
from numpy.typing import NDArray

from raymask.errors import ErrorKind, Failure

# In Pillow's own order: first what it always knows, `init` then adds the rest.
PIL.Image.preinit()
PIL.Image.init()

# Named one by one, so that neither a new Pillow nor a plugin of the host program widens what is read.
# The last line has no magic number: those readers try anything, so they come after all that do.
# Left out: EPS (runs Ghostscript), IPTC (opens any format inside it, EPS too), FPX and MIC (want another package),
# BUFR, GRIB, HDF5, MPEG and WMF (know the header only).
FORMATS = tuple(
    name
    for name in (
        *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM"),
        *("BLP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "ICNS", "ICO", "MCIDAS", "MSP", "PCX"),
        *("PIXAR", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "XVTHUMB"),
        *("IM", "IMT", "PCD", "SPIDER", "TGA"),
    )
    if name in PIL.Image.OPEN
)


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels as a viewer would show them.

    pixels: H x W x 3 uint8, RGB, C-contiguous, writable; H and W are at least 1.
    format: Pillow's name of the file format in lower case: "jpeg", "png", "mpo", ...
    """

    pixels: NDArray[np.uint8]
    format: str


def decode(data: bytes | memoryview, *, max_pixels: int, out: NDArray[np.uint8] | None = None) -> Image | Failure:
    """Decode the first frame of one image file, whose format is told from its content alone.

    out: uint8 of one dimension, at least 3 x `max_pixels` long, in whose first places the pixels are put; the image is
    a view of it. Otherwise they get memory of their own.

    The EXIF orientation is applied, or without one that in XMP; EXIF that cannot be read is ignored. May be called by
    several threads at once. Bad data never raise. They give a `Failure`, the same for the same bytes:

    EMPTY            no bytes at all
    NOT_AN_IMAGE     none of `FORMATS`
    TOO_MANY_PIXELS  H x W above `max_pixels`, judged by the header, before memory is taken for pixels. Beyond twice
                     `PIL.Image.MAX_IMAGE_PIXELS` Pillow itself refuses; that is the host program's to set
    TRUNCATED        the data end before the image does
    OUT_OF_MEMORY    more memory is wanted than the process may have
    CORRUPT          anything else that makes Pillow give up, also features it lacks, such as 12-bit JPEG
    """
    if not len(data):
        return Failure(ErrorKind.EMPTY, "0 bytes")
    if (inner_pixels := _inner_pixels(data)) > max_pixels:
        return _too_many(f"an image of {inner_pixels} pixels inside", max_pixels)
    with _pillow_muted():
        try:
            image: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception as error:  # on bad data Pillow raises nearly every built-in exception
            return _failure(error, data)
        if image.width * image.height > max_pixels:
            return _too_many(f"{image.width} x {image.height} pixels", max_pixels)
        if (tile_pixels := _tile_pixels(image)) > max_pixels:
            return _too_many(f"tiles of {tile_pixels} pixels", max_pixels)
        assert image.format is not None  # every reader names its format
        file_format = image.format.lower()
        try:
            image = _load_upright(image, data)  # the same name, which frees the pixels as stored
        except Exception as error:  # as above
            return _failure(error, data)
        try:
            return Image(_pixels(image, out), file_format)
        except MemoryError as error:
            return _failure(error, data)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 256 * 1024 * 1024
_LARGEST_KEPT_BYTES = 32 * 1024 * 1024  # the most that mallopt takes


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB of what it frees, in blocks of up to 32 MiB, for the next image.

    Otherwise glibc gives the memory of each image back to the kernel, which clears every page of it again for the
    next: as much work as decoding it. Nothing happens on systems with another C library.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


# Three kinds of file hold whole PNG, JPEG 2000 or JPEG files, and Pillow learns their size only while loading. The
# other kind of icon, a bitmap, is no bomb: Pillow wants a mask of one bit a pixel in the file before it loads it.
_INNER_SIZES = {
    b"\0\0\1\0": re.compile(rb"IHDR(.{4})(.{4})", re.DOTALL),
    b"icns": re.compile(rb"(?:IHDR|ihdr|\xff\x4f\xff\x51.{4})(.{4})(.{4})", re.DOTALL),
    b"BLP1": re.compile(rb"\xff[\xc0-\xcf]\0[\x0b\x11\x14]\x08(..)(..)[\x01\x03\x04]", re.DOTALL),
}


def _inner_pixels(data: bytes | memoryview) -> int:
    """Height x width of the largest image inside an icon or BLP file; 0 for every other file."""
    sizes = _INNER_SIZES.get(bytes(data[:4]))
    if sizes is None:
        return 0
    return max((int.from_bytes(a) * int.from_bytes(b) for a, b in sizes.findall(data)), default=0)


def _tile_pixels(image: PIL.Image.Image) -> int:
    """Height x width of the tiles of a TIFF file, which libtiff allocates whole however small the image is."""
    if not isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
        return 0
    width = image.tag_v2.get(PIL.TiffImagePlugin.TILEWIDTH)
    length = image.tag_v2.get(PIL.TiffImagePlugin.TILELENGTH)
    return width * length if isinstance(width, int) and isinstance(length, int) else 0


_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _mended_png(data: bytes | memoryview) -> bytes | None:
    """A PNG file with the rows of `data`, if all of them are there undamaged and only what follows them is not: an end
    chunk cut off, or a wrong checksum over all rows although each chunk passes its own. None if not so, or interlaced.
    """
    rows, place, header, start = bytearray(), 8, b"", 0
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        name, body = bytes(data[place + 4 : place + 8]), data[place + 8 : end - 4]
        if rows and name != b"IDAT":
            break  # the rows lie in consecutive chunks
        if name in (b"IHDR", b"IDAT") and zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end]):
            if name == b"IHDR":
                header = bytes(body)
            else:
                start = start or place
                rows += body
        place = end
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    stride = 1 + (width * bits * _PNG_CHANNELS.get(colour, 0) + 7) // 8
    try:
        # Behind the two bytes of zlib's header, and as raw deflate, which has no checksum at its end.
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(rows[2:], height * stride)
    except zlib.error:
        return None
    if interlaced or len(inflated) < height * stride:
        return None
    return bytes(data[:start]) + b"".join(_png_chunk(*c) for c in ((b"IDAT", zlib.compress(inflated)), (b"IEND", b"")))


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def _load_upright(image: PIL.Image.Image, data: bytes | memoryview) -> PIL.Image.Image:
    """Only calls into Pillow. The result is RGB, or grey of more than 8 bits, which `convert` would clip."""
    try:
        image.load()
    except OSError:
        mended = _mended_png(data) if image.format == "PNG" else None
        if mended is None:
            raise
        image = PIL.Image.open(io.BytesIO(mended), formats=("PNG",))
        image.load()
    turn = _turn(image)
    upright = image if turn is None else image.transpose(turn)
    return upright if upright.mode == "RGB" or _is_deep_grey(upright) else upright.convert("RGB")


def _turn(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """What the EXIF orientation of a loaded image asks for. Pillow turns TIFF while loading, then forgets the tag."""
    try:
        return _TURNS.get(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    except Exception:  # as above, and good pixels with broken EXIF are a good image
        return None


def _is_deep_grey(image: PIL.Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _pixels(image: PIL.Image.Image, out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if _is_deep_grey(image):
        values = np.asarray(image)
        grey = _grey_from_16_bit(values) if values.dtype.itemsize == 2 else _grey_from_32_bit(values)
        colour = np.broadcast_to(grey[:, :, None], (*grey.shape, 3))
    else:
        colour = np.asarray(image)
    pixels = np.empty(colour.shape, np.uint8) if out is None else out[: colour.size].reshape(colour.shape)
    pixels[...] = colour
    return pixels


def _grey_from_16_bit(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 is odd: never halfway


def _grey_from_32_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """`_full_scale` to 0..255; NaN is taken as its low end. All black where the scale has no extent."""
    low, high = _full_scale(values)
    finite = np.nan_to_num(values, nan=low, posinf=high, neginf=low)  # first, for numpy warns when it casts some NaNs
    scaled: NDArray[np.float64] = finite.astype(np.float64)
    scaled -= low
    scaled *= 255 / (high - low) if high > low else 0
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _full_scale(values: NDArray[Any]) -> tuple[float, float]:
    """The values that become 0 and 255: the first customary range that holds all finite values, else their own range.

    Customary are 0..1 for floats only, 0..255 and 0..65535.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    low, high = float(finite.min()), float(finite.max())
    for full in (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0):
        if low >= 0 and high <= full:
            return 0.0, full
    return low, high


# BytesIO puts its address into messages; a failure must read the same whenever it is repeated.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# "Truncated sRGB chunk" is a chunk that is too short in a file that may be whole.
_SAYS_TRUNCATED = re.compile(
    r"truncated(?! \w{4} chunk)|not enough image data|reached EOF|unexpected EOF", re.IGNORECASE
)
_KNOWN_START = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|....ftypavi[fs]", re.DOTALL)
_DETAIL_CHARS = 200


def _failure(error: Exception, data: bytes | memoryview) -> Failure:
    text = " ".join(_ADDRESS.sub("", str(error)).split())
    kind = ErrorKind.CORRUPT
    if isinstance(error, PIL.UnidentifiedImageError):
        text = f"no image format fits data that start with {bytes(data[:16])!r}"
        kind = ErrorKind.CORRUPT if _KNOWN_START.match(data) else ErrorKind.NOT_AN_IMAGE
    if isinstance(error, MemoryError):
        kind = ErrorKind.OUT_OF_MEMORY
    elif isinstance(error, PIL.Image.DecompressionBombError):
        kind = ErrorKind.TOO_MANY_PIXELS
    elif _SAYS_TRUNCATED.search(str(error)) or _ends_early(data):
        kind = ErrorKind.TRUNCATED
    ascii_text = text.encode("ascii", "backslashreplace").decode()  # which every table takes
    return Failure(kind, f"{type(error).__name__}: {ascii_text}"[:_DETAIL_CHARS])


def _too_many(found: str, max_pixels: int) -> Failure:
    return Failure(ErrorKind.TOO_MANY_PIXELS, f"{found}, at most {max_pixels} are allowed")


def _ends_early(data: bytes | memoryview) -> bool:
    """Whether a file by its own account is longer than `data`, for formats whose readers do not say so."""
    head = bytes(data[:8])
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:], "little") > len(data)
    if head.startswith((b"II*\0", b"MM\0*")):  # the offset of the directory, often the last thing in a TIFF file
        return int.from_bytes(head[4:], "little" if head.startswith(b"I") else "big") >= len(data)
    if head[4:] in (b"ftyp", b"jP  "):  # AVIF and JPEG 2000 are a row of boxes, each with its length first
        end = 0
        while end < len(data):
            box_bytes = int.from_bytes(data[end : end + 4])
            if box_bytes < 8:  # up to the end of the file, or not four bytes
                return False
            end += box_bytes
        return end > len(data)
    return False


class _ThisThread(threading.local):
    decodes = False


_this_thread = _ThisThread()


class _OfDecodingThread(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _this_thread.decodes


class _WarningWhileDecoding(Warning, metaclass=_OfDecodingThread):
    """The base class of every warning, as seen by a thread that is inside `decode`, and of none as seen by others."""


_filters_lock = threading.Lock()


@contextmanager
def _pillow_muted() -> Iterator[None]:
    """Ignore what Pillow warns of in this thread alone; where warnings are errors they would fail a good image.

    `warnings.catch_warnings` swaps the filters of the whole process, so threads undo one another's. Instead one
    filter stays in place, and its category matches by thread. It must come first, and other code may put its own
    before it or restore a list without it.
    """
    with _filters_lock:
        if not warnings.filters or warnings.filters[0][2] is not _WarningWhileDecoding:
            warnings.filterwarnings("ignore", category=_WarningWhileDecoding, module=r"PIL\.")
    _this_thread.decodes = True
    try:
        yield
    finally:
        _this_thread.decodes = False
