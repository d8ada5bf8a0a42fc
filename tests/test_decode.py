"""`decode` against Pillow, against the originals of images made here, and against data made to break it."""

from __future__ import annotations

import contextlib
import csv
import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import raymask.decode
from raymask.decode import FORMATS, Image, decode
from raymask.errors import ErrorKind, Failure

pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
MAX_PIXELS = 100_000_000

Array = NDArray[np.uint8]


def shared(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"needs the data set {folder} in {SHARED}")
    return path


def pixels(data: bytes) -> Array:
    image = decode(data, max_pixels=MAX_PIXELS)
    assert isinstance(image, Image), image
    assert image.pixels.dtype == np.uint8
    assert image.pixels.ndim == 3
    assert image.pixels.shape[2] == 3
    assert image.pixels.flags.c_contiguous
    assert image.pixels.flags.writeable
    return image.pixels


def failure(data: bytes, max_pixels: int = MAX_PIXELS) -> Failure:
    result = decode(data, max_pixels=max_pixels)
    assert isinstance(result, Failure)
    assert result.detail.isascii()
    assert 0 < len(result.detail) <= 200
    assert " at 0x" not in result.detail
    return result


def encoded(image: PIL.Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Pillow's, when it writes IM
        image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(mode: str = "RGB", width: int = 48, height: int = 32) -> PIL.Image.Image:
    """Smooth, and alike under no turn or mirror."""
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    rgb = np.stack([x * 150, y * 250, 255 - x * 60 - y * 120], axis=2).astype(np.uint8)
    grey = np.round((x + 2 * y) / (x + 2 * y).max() * 65535)
    if mode == "I;16":
        return PIL.Image.fromarray(grey.astype(np.uint16))
    if mode == "I":
        return PIL.Image.fromarray(grey.astype(np.int32))
    if mode == "F":
        return PIL.Image.fromarray((grey / 65535).astype(np.float32))
    image = PIL.Image.fromarray(rgb)
    if mode == "LAB":
        srgb, cie_lab = PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB")
        lab = PIL.ImageCms.profileToProfile(image, srgb, cie_lab, outputMode="LAB")
        assert lab is not None
        return lab
    if mode in ("RGBA", "LA"):
        image.putalpha(PIL.Image.fromarray((x * 170).astype(np.uint8)))
    return image.convert(mode)


def expected(image: PIL.Image.Image) -> Array:
    """The colour rules in the words of this test."""
    if image.mode == "I;16" or image.mode == "I":
        grey = np.round(np.asarray(image) / 257)
    elif image.mode == "F":
        grey = np.round(np.asarray(image, dtype=np.float64) * 255)
    else:
        return np.asarray(image.convert("RGB"))
    return np.stack([grey.astype(np.uint8)] * 3, axis=2)


# --- EXIF orientation -------------------------------------------------------------------------------------------------

# Stored to shown. The value names the side of the picture on which row 0 and column 0 of the stored image lie
# (EXIF 2.3, tag 274): 6 is "right, top", so that the first row is shown as the right column.
SHOWN: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
INVERSE = {6: 8, 8: 6}

LOSSLESS: list[tuple[str, str, dict[str, Any]]] = [
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F")),
    *(("TIFF", mode, {"compression": "tiff_lzw"}) for mode in ("RGB", "L", "I;16")),
    *(("WEBP", mode, {"lossless": True, "exact": True}) for mode in ("RGB", "RGBA")),
]
LOSSY: list[tuple[str, str, dict[str, Any]]] = [
    *(("JPEG", mode, {"quality": 95}) for mode in ("L", "RGB", "CMYK", "YCbCr")),
    ("JPEG", "RGB", {"progressive": True, "quality": 95}),
    *(("AVIF", mode, {"quality": 90}) for mode in ("RGB", "RGBA")),
    ("WEBP", "RGB", {"quality": 95}),
]


def turned(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """`image` as a camera would store it under `orientation`, turned without Pillow."""
    stored = np.ascontiguousarray(SHOWN[INVERSE.get(orientation, orientation)](np.asarray(image)))
    raw = np.packbits(stored, axis=1) if image.mode == "1" else stored
    result = PIL.Image.frombytes(image.mode, (stored.shape[1], stored.shape[0]), raw.tobytes())
    if palette := image.getpalette():
        result.putpalette(palette)
    return result


def exif_of(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize(("file_format", "mode", "options"), LOSSLESS)
def test_shows_the_upright_original(file_format: str, mode: str, options: dict[str, Any], orientation: int) -> None:
    upright = photo(mode)
    data = encoded(turned(upright, orientation), file_format, exif=exif_of(orientation), **options)
    np.testing.assert_array_equal(pixels(data), expected(upright))


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize(("file_format", "mode", "options"), LOSSY)
def test_shows_nearly_the_upright_original(
    file_format: str, mode: str, options: dict[str, Any], orientation: int
) -> None:
    upright = photo(mode)
    stored = turned(upright, orientation)
    shown = pixels(encoded(stored, file_format, exif=exif_of(orientation), **options))
    assert shown.shape == (32, 48, 3)
    assert np.abs(shown.astype(int) - expected(upright)).mean() < 4
    # The same compressed pixels without the tag, turned here: equal to the last bit.
    np.testing.assert_array_equal(shown, SHOWN[orientation](pixels(encoded(stored, file_format, **options))))


def test_orientation_from_xmp_where_exif_has_none() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = photo()
    shown = pixels(encoded(stored, "WEBP", lossless=True, xmp=xmp))
    np.testing.assert_array_equal(shown, SHOWN[6](np.asarray(stored)))


BROKEN_EXIF = {
    "not TIFF": b"Exif\0\0nonsense nonsense",
    "nothing": b"Exif\0\0",
    "directory past the end": b"Exif\0\0II*\0\xff\xff\0\0",
    "orientation 9": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    "two orientations": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x02\0\x09\0\x08\0\0\0\0",
    "orientation as text": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
    "orientation 1/0": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\x01\0\0\0\0",
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_broken_exif_is_ignored(file_format: str, exif: bytes) -> None:
    plain = encoded(photo(), file_format)
    np.testing.assert_array_equal(pixels(encoded(photo(), file_format, exif=exif)), pixels(plain))


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "colour", "file_format"),
    [
        ("RGBA", (200, 100, 50, 0), "PNG"),
        ("RGBA", (200, 100, 50, 128), "TIFF"),
        ("LA", (77, 0), "PNG"),
    ],
)
def test_alpha_is_dropped(mode: str, colour: tuple[int, ...], file_format: str) -> None:
    rgb = colour[:3] if len(colour) == 4 else colour[:1] * 3
    data = encoded(PIL.Image.new(mode, (3, 2), colour), file_format)
    assert (pixels(data) == rgb).all()


@pytest.mark.parametrize(("file_format", "transparency"), [("GIF", 1), ("PNG", 1), ("PNG", b"\x40\x00\xff")])
def test_palette_with_transparency_keeps_its_colours(file_format: str, transparency: int | bytes) -> None:
    image = PIL.Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0])
    image.putdata([0, 1, 2])
    data = encoded(image, file_format, transparency=transparency)
    assert pixels(data).tolist() == [[[10, 20, 30], [200, 100, 50], [0, 255, 0]]]


def test_transparent_colour_of_grey_and_rgb_png_is_kept() -> None:
    grey = encoded(PIL.Image.new("L", (2, 2), 9), "PNG", transparency=9)
    rgb = encoded(PIL.Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert (pixels(grey) == 9).all()
    assert (pixels(rgb) == (1, 2, 3)).all()


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((255, 0, 0, 0), (0, 255, 255))],
)
def test_cmyk(file_format: str, cmyk: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    data = encoded(PIL.Image.new("CMYK", (16, 16), cmyk), file_format)
    assert np.abs(pixels(data).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize(
    ("file_format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I;16")]
)
def test_16_bit_grey_is_monotone_over_the_full_range(file_format: str, mode: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = PIL.Image.frombytes(mode, (256, 256), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    shown = pixels(encoded(image, file_format))
    assert (shown[..., 0] == shown[..., 1]).all()
    assert (shown[..., 0] == shown[..., 2]).all()
    grey = shown[..., 0].ravel().astype(int)
    assert (grey[0], grey[-1]) == (0, 255)
    assert (np.diff(grey) >= 0).all()
    np.testing.assert_array_equal(grey, np.round(values.ravel() / 257))


def test_16_bit_grey_does_not_depend_on_the_rest_of_the_image() -> None:
    dark = PIL.Image.fromarray(np.array([[0, 1000]], dtype=np.uint16))
    mixed = PIL.Image.fromarray(np.array([[65535, 1000]], dtype=np.uint16))
    assert pixels(encoded(dark, "PNG"))[0, 1, 0] == pixels(encoded(mixed, "PNG"))[0, 1, 0] == 4


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("dtype", "values", "grey"),
    [
        (np.int32, [0, 1, 1], [0, 1, 1]),
        (np.int32, [0, 1, 255], [0, 1, 255]),
        (np.int32, [0, 257, 65535], [0, 1, 255]),
        (np.int32, [0, 256, 25700], [0, 1, 100]),
        (np.int32, [-1000, 0, 1000], [0, 128, 255]),
        (np.int32, [0, 2**30, 2**31 - 1], [0, 128, 255]),
        (np.int32, [-(2**31), 0, 2**31 - 1], [0, 128, 255]),
        (np.int32, [70000, 70000, 70000], [0, 0, 0]),
        (np.float32, [0, 0.5, 1], [0, 128, 255]),
        (np.float32, [0, 0.1, 0.2], [0, 26, 51]),
        (np.float32, [0, 2, 200.4], [0, 2, 200]),
        (np.float32, [0, 257, 300], [0, 1, 1]),
        (np.float32, [-1, 0, 1], [0, 128, 255]),
        (np.float32, [0, 1e6, 4e6], [0, 64, 255]),
        (np.float32, [-3e38, 0, 3e38], [0, 128, 255]),
        (np.float32, [-1e-45, 0, 0], [0, 255, 255]),
        (np.float32, [0, NAN, 1], [0, 0, 255]),
        (np.float32, [-INF, 0.5, INF], [0, 128, 255]),
        (np.float32, [-5, INF, 5], [0, 255, 255]),
        (np.float32, [NAN, INF, -INF], [0, 0, 0]),
    ],
)
def test_32_bit_grey(dtype: type[np.generic], values: list[float], grey: list[int]) -> None:
    data = encoded(PIL.Image.fromarray(np.array([values], dtype=dtype)), "TIFF")
    assert pixels(data)[0].tolist() == [[value] * 3 for value in grey]


def test_signalling_nan_in_float_grey() -> None:
    """Such a NaN makes numpy warn when it is cast to another float."""
    values = np.array([[0, 0x7FA00000, 0x3F800000]], dtype=np.uint32).view(np.float32)
    assert pixels(encoded(PIL.Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 255]


# --- formats ----------------------------------------------------------------------------------------------------------

WRITABLE: list[tuple[str, str]] = [
    ("BMP", "RGB"),
    ("BMP", "P"),
    ("BMP", "1"),
    ("DDS", "RGBA"),
    ("DIB", "L"),
    ("GIF", "P"),
    ("GIF", "L"),
    ("ICO", "RGB"),
    ("IM", "RGB"),
    ("IM", "YCbCr"),
    ("JPEG2000", "RGB"),
    ("JPEG2000", "I;16"),
    ("MSP", "1"),
    ("PCX", "P"),
    ("PPM", "RGB"),
    ("PPM", "1"),
    ("PPM", "F"),
    ("QOI", "RGB"),
    ("SGI", "RGB"),
    ("SPIDER", "F"),
    ("TGA", "RGBA"),
    ("XBM", "1"),
]


@pytest.mark.parametrize(("file_format", "mode"), WRITABLE)
def test_every_format_that_pillow_writes(file_format: str, mode: str) -> None:
    data = encoded(photo(mode), file_format)
    result = decode(data, max_pixels=MAX_PIXELS)
    assert isinstance(result, Image)
    assert result.format == file_format.lower()
    if file_format != "ICO":  # is rescaled
        np.testing.assert_array_equal(result.pixels, expected(photo(mode)))


def test_memoryview_is_as_good_as_bytes() -> None:
    data = encoded(photo(), "PNG")
    result = decode(memoryview(b"head" + data)[4:], max_pixels=MAX_PIXELS)
    assert isinstance(result, Image)
    np.testing.assert_array_equal(result.pixels, pixels(data))


def test_result_is_independent_of_the_input_and_of_other_results() -> None:
    data = encoded(photo(), "BMP")
    first = pixels(data)
    first[:] = 0
    assert pixels(data).any()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_first_of_several_frames(file_format: str) -> None:
    red, blue = (PIL.Image.new("RGB", (16, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    shown = pixels(encoded(red, file_format, save_all=True, append_images=[blue]))
    assert shown.shape == (8, 16, 3)
    assert np.abs(shown.astype(int) - (255, 0, 0)).max() <= 2


def test_gif_frame_beyond_the_screen_grows_the_image() -> None:
    data = bytearray(encoded(photo("L"), "GIF"))
    data[6:10] = struct.pack("<HH", 4, 4)  # the screen; the frame keeps 48 x 32
    assert pixels(bytes(data)).shape == (32, 48, 3)
    assert failure(bytes(data), max_pixels=48 * 32 - 1).kind is ErrorKind.TOO_MANY_PIXELS


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
        b"<!DOCTYPE html><html><head><title>404</title></head></html>",
        b"GRIB" + bytes(12),
        b"\x89HDF\r\n\x1a\n" + bytes(64),
        b"BUFR" + bytes(64),
        b"\0\0\1\xb3" + bytes(64),
        b"\xd7\xcd\xc6\x9a" + bytes(64),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(64),
        bytes(1),
        bytes(1000),
        b"x",
    ],
    ids=["EPS", "HTML", "GRIB", "HDF5", "BUFR", "MPEG", "WMF", "OLE", "a zero", "zeros", "x"],
)
def test_not_an_image(data: bytes) -> None:
    assert failure(data).kind is ErrorKind.NOT_AN_IMAGE


def test_formats_that_run_programs_or_know_only_headers_are_left_out() -> None:
    assert not {"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"} & set(FORMATS)
    assert {"JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"} <= set(FORMATS)


def test_empty() -> None:
    assert failure(b"").kind is ErrorKind.EMPTY
    result = decode(memoryview(b""), max_pixels=1)
    assert isinstance(result, Failure)
    assert result.kind is ErrorKind.EMPTY


# --- limits -----------------------------------------------------------------------------------------------------------


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey PNG file with a whole header and `chunks` in place of its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def black_png(width: int, height: int) -> bytes:
    return png(width, height, png_chunk(b"IDAT", zlib.compress(bytes((width + 1) * height))))


def icon(frame: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(frame), 22) + frame


def icns(kind: bytes, frame: bytes) -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(frame)) + kind + struct.pack(">I", 8 + len(frame)) + frame


def blp_of_jpeg(jpeg: bytes) -> bytes:
    head = b"BLP1" + struct.pack("<iIIIii", 0, 0, 16, 16, 4, 0)
    data_at = len(head) + 2 * 64 + 4
    return head + struct.pack("<16I", data_at, *[0] * 15) + struct.pack("<16I", len(jpeg), *[0] * 15) + bytes(4) + jpeg


def tiled_tiff(tile: int) -> bytes:
    """64 x 64 grey in one tile of `tile` x `tile`, most of which is missing."""
    body = zlib.compress(bytes(100))
    body += bytes(len(body) % 2)
    entries = [
        *((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)),
        *((322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 8), (325, 4, 1, len(body))),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory


def grey(width: int, height: int, file_format: str) -> bytes:
    return encoded(PIL.Image.new("L", (width, height)), file_format)


def bombs() -> dict[str, bytes]:
    """Small files of 25 million pixels, which would take 25 to 100 MB."""
    side = 5000
    dds = bytearray(encoded(photo("RGBA"), "DDS"))
    dds[12:20] = struct.pack("<II", side, side)
    gif = bytearray(encoded(photo("L"), "GIF"))
    frame = gif.index(b",\0\0\0\0" + struct.pack("<HH", 48, 32))
    gif[frame + 5 : frame + 9] = struct.pack("<HH", side, side)
    bitmap = struct.pack("<IiiHHIIiiII", 40, side, 2 * side, 1, 8, 0, 0, 0, 0, 2, 0) + bytes(1000)
    return {
        "PNG": black_png(side, side),
        "BMP": grey(side, side, "BMP")[:2000],
        "JPEG": grey(side, side, "JPEG"),
        "WebP": grey(side, side, "WEBP"),
        "JPEG 2000": grey(side, side, "JPEG2000"),
        "GIF": grey(side, side, "GIF"),
        "GIF frame": bytes(gif),
        "DDS": bytes(dds),
        "PNG in ICO": icon(black_png(side, side)),
        "bitmap in ICO": icon(bitmap),
        "PNG in ICNS": icns(b"ic07", black_png(side, side)),
        "JPEG 2000 in ICNS": icns(b"ic07", grey(side, side, "JPEG2000")),
        "JPEG in BLP": blp_of_jpeg(encoded(PIL.Image.new("RGB", (side, side)), "JPEG")),
        "TIFF": encoded(PIL.Image.new("L", (side, side)), "TIFF", compression="tiff_adobe_deflate"),
        "TIFF tile": tiled_tiff(side),
    }


def test_bombs_are_refused_by_their_headers_without_taking_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak memory no other test has raised."""
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    program = """
import resource, sys
from pathlib import Path
from raymask.decode import decode
peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    result = decode(path.read_bytes(), max_pixels=1_000_000)
    last_kib, peak_kib = peak_kib, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(path.name, getattr(result, "kind", "ok"), (peak_kib - last_kib) // 1024, sep="\\t")
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    assert {name: kind for name, kind, _ in rows} == {
        name: "corrupt" if name == "bitmap in ICO" else "too_many_pixels" for name in bombs()
    }
    assert {name: mib for name, _, mib in rows if int(mib) >= 12} == {}


@pytest.mark.parametrize("side", [100_000, 2**31 - 1])
def test_huge_header(side: int) -> None:
    assert failure(png(side, side, png_chunk(b"IDAT", b""))).kind is ErrorKind.TOO_MANY_PIXELS


@pytest.mark.parametrize(
    "data",
    [
        encoded(photo(), "PNG"),
        encoded(photo(), "JPEG", exif=exif_of(6)),
        icon(encoded(photo("RGBA"), "PNG")),
        icns(b"ic07", encoded(photo("RGBA", 128, 128), "PNG")),
        blp_of_jpeg(encoded(photo(), "JPEG")),
    ],
    ids=["PNG", "turned JPEG", "ICO", "ICNS", "BLP"],
)
def test_max_pixels_is_inclusive(data: bytes) -> None:
    loose = decode(data, max_pixels=MAX_PIXELS)
    assert isinstance(loose, Image)
    count = max(loose.pixels.shape[0] * loose.pixels.shape[1], 48 * 32)  # BLP: the JPEG within is the larger
    assert isinstance(decode(data, max_pixels=count), Image)
    assert failure(data, max_pixels=count - 1).kind is ErrorKind.TOO_MANY_PIXELS


def test_bitmap_in_an_icon_of_another_size() -> None:
    bitmap = struct.pack("<IiiHHIIiiII", 40, 64, 128, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(64 * 64 * 4 + 512)
    assert pixels(icon(bitmap)).shape == (64, 64, 3)
    assert failure(icon(bitmap), max_pixels=64 * 64 - 1).kind is ErrorKind.TOO_MANY_PIXELS


def test_pillows_own_limit_gives_no_warning_and_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    data = black_png(100, 100)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 6_000)
    assert pixels(data).shape == (100, 100, 3)  # Pillow warns of it
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 4_000)
    assert failure(data).kind is ErrorKind.TOO_MANY_PIXELS  # Pillow refuses it
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert failure(data, max_pixels=9_999).kind is ErrorKind.TOO_MANY_PIXELS


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("before_pixels", [True, False])
def test_text_bomb_in_png(name: bytes, before_pixels: bool) -> None:
    flags = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[name]
    bomb = png_chunk(name, flags + zlib.compress(bytes(50_000_000)))
    idat = png_chunk(b"IDAT", zlib.compress(bytes(3 * 2)))
    data = png(2, 2, bomb, idat) if before_pixels else png(2, 2, idat, bomb)
    assert failure(data).kind is ErrorKind.CORRUPT


# --- bad data ---------------------------------------------------------------------------------------------------------


def textured(mode: str = "RGB") -> PIL.Image.Image:
    """Noise on `photo`, so that every format needs some kilobytes."""
    noise = np.random.default_rng(7).integers(0, 40, (64, 96, 3))
    return PIL.Image.fromarray((np.asarray(photo(width=96, height=64)) * 0.8 + noise).astype(np.uint8)).convert(mode)


TRUNCATABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("JPEG", "RGB", {}),
    "progressive JPEG": ("JPEG", "RGB", {"progressive": True}),
    "CMYK JPEG": ("JPEG", "CMYK", {}),
    "JPEG with EXIF": ("JPEG", "RGB", {"exif": exif_of(6)}),
    "PNG": ("PNG", "RGB", {}),
    "GIF": ("GIF", "P", {}),
    "WebP": ("WEBP", "RGB", {}),
    "lossless WebP": ("WEBP", "RGB", {"lossless": True}),
    "AVIF": ("AVIF", "RGB", {}),
    "TIFF": ("TIFF", "RGB", {}),
    "LZW TIFF": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "JPEG 2000": ("JPEG2000", "RGB", {}),
    "BMP": ("BMP", "RGB", {}),
    "PPM": ("PPM", "RGB", {}),
    "QOI": ("QOI", "RGB", {}),
    "DDS": ("DDS", "RGB", {}),
    "TGA": ("TGA", "RGB", {}),
    "SGI": ("SGI", "RGB", {}),
}


@pytest.mark.parametrize("name", TRUNCATABLE)
def test_truncated_at_every_tenth(name: str) -> None:
    file_format, mode, options = TRUNCATABLE[name]
    data = encoded(textured(mode), file_format, **options)
    pixels(data)
    kinds = [failure(data[: len(data) * tenth // 10]).kind for tenth in range(10)]
    assert kinds == [ErrorKind.EMPTY] + [ErrorKind.TRUNCATED] * 9


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xd8\xff\xe0", ErrorKind.CORRUPT),
        (png(1, 1)[:20], ErrorKind.TRUNCATED),
        (png(1, 1), ErrorKind.CORRUPT),
        (png(0, 0, png_chunk(b"IDAT", b"")), ErrorKind.CORRUPT),
        (png(2, 2, png_chunk(b"IDAT", zlib.compress(b"\x07" * 6))), ErrorKind.CORRUPT),
        (png(2, 2, png_chunk(b"sRGB", b""), png_chunk(b"IDAT", zlib.compress(bytes(6)))), ErrorKind.CORRUPT),
        (b"RIFF\x04\0\0\0WEBP", ErrorKind.CORRUPT),
        (b"RIFF\x05\0\0\0WEBP", ErrorKind.TRUNCATED),
        (b"II*\0\x08\0\0\0\0\0", ErrorKind.CORRUPT),
        (b"MM\0*\0\0\0\x08", ErrorKind.TRUNCATED),
    ],
)
def test_kinds_of_failure(data: bytes, kind: ErrorKind) -> None:
    assert failure(data).kind is kind


def test_png_damaged_only_behind_its_rows_is_read() -> None:
    rows = zlib.compress(b"\0\x10\x20\0\x30\x40")
    whole = png(2, 2, png_chunk(b"IDAT", rows))
    wrong_checksum = png(2, 2, png_chunk(b"IDAT", rows[:-1] + bytes([rows[-1] ^ 1])))
    for data in (whole, whole[:-1], whole[:-8], wrong_checksum):
        assert pixels(data)[:, :, 0].tolist() == [[0x10, 0x20], [0x30, 0x40]]
    flipped = bytearray(wrong_checksum)
    flipped[flipped.index(b"IDAT") + 7] ^= 1  # now the chunk fails its own check, and nothing vouches for the rows
    assert failure(bytes(flipped)).kind is ErrorKind.CORRUPT


SEEDS = {
    "JPEG": encoded(photo(), "JPEG", exif=exif_of(6)),
    "PNG": encoded(photo("P"), "PNG", transparency=b"\x20\x40", exif=exif_of(5)),
    "GIF": encoded(photo("P"), "GIF", save_all=True, append_images=[textured("P")]),
    "TIFF": encoded(photo("I;16"), "TIFF", exif=exif_of(8)),
    "LZW TIFF": encoded(photo(), "TIFF", compression="tiff_lzw"),
    "BMP": encoded(photo(), "BMP"),
    "WebP": encoded(photo("RGBA"), "WEBP", exif=exif_of(3)),
}


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A file with some bytes overwritten, mostly near its head, and perhaps another's tail."""
    data = bytearray(draw(st.sampled_from(sorted(SEEDS.values()))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.one_of(st.integers(0, min(120, len(data) - 1)), st.integers(0, len(data) - 1)))
        data[at] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        other = draw(st.sampled_from(sorted(SEEDS.values())))
        data[draw(st.integers(0, len(data))) :] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


@settings(max_examples=1000, database=None, derandomize=True)
@given(mutations())
def test_mutated_files_give_a_result_and_always_the_same(data: bytes) -> None:
    first, second = (decode(data, max_pixels=200_000) for _ in range(2))
    if isinstance(first, Image):
        assert isinstance(second, Image)
        assert first.pixels.shape[0] * first.pixels.shape[1] <= 200_000
        assert first.format == second.format
        np.testing.assert_array_equal(first.pixels, second.pixels)
    else:
        assert first == second
        assert first.detail.isascii()
        assert len(first.detail) <= 200


def test_detail_is_short_and_the_same_on_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(f"cannot\nread {io.BytesIO()!r} \udcff " + "x" * 500)

    monkeypatch.setattr(PIL.Image, "open", fails)
    detail = failure(b"data").detail
    assert detail.startswith("OSError: cannot read <_io.BytesIO object> \\udcff xxx")
    assert detail == failure(b"data").detail


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through(monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise interrupt

    monkeypatch.setattr(PIL.Image, "open", interrupted)
    with pytest.raises(interrupt):
        decode(b"x", max_pixels=1)


@pytest.mark.parametrize("name", ["_inner_pixels", "_tile_pixels", "_pixels"])
def test_own_bugs_are_not_taken_for_bad_data(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def bug(*_: object) -> None:
        raise ValueError("bug")

    monkeypatch.setattr(raymask.decode, name, bug)
    with pytest.raises(ValueError, match="bug"):
        decode(encoded(photo(), "PNG"), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "I;16", "F"])
def test_pixels_go_where_they_are_wanted(mode: str) -> None:
    data = encoded(photo(mode) if mode != "I;16" else PIL.Image.new("I;16", (8, 6), 30_000), "TIFF")
    room = np.full(6000, 7, np.uint8)
    image, expected = decode(data, max_pixels=2000, out=room), decode(data, max_pixels=2000)
    assert isinstance(image, Image) and isinstance(expected, Image)
    np.testing.assert_array_equal(image.pixels, expected.pixels)
    assert np.shares_memory(image.pixels, room)
    assert image.pixels.flags.c_contiguous and expected.pixels.flags.writeable
    np.testing.assert_array_equal(room[: image.pixels.size], expected.pixels.reshape(-1))
    assert (room[image.pixels.size :] == 7).all()


@pytest.mark.parametrize("name", ["_load_upright", "_pixels"])
def test_too_little_memory_is_told_from_bad_data(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def give_up(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(raymask.decode, name, give_up)
    result = decode(encoded(photo(), "PNG"), max_pixels=MAX_PIXELS)
    assert isinstance(result, Failure)
    assert result.kind is ErrorKind.OUT_OF_MEMORY


# --- warnings and threads ---------------------------------------------------------------------------------------------


def files_that_make_pillow_warn() -> dict[str, bytes]:
    tag = struct.pack(">HHII", 270, 2, 10**6, 8)  # a description longer than the file
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + tag + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4)
    actl = png_chunk(b"acTL", struct.pack(">II", 0, 0))
    return {
        "EXIF": encoded(photo(), "JPEG", exif=exif),
        "transparent palette": encoded(photo("P"), "PNG", transparency=b"\x20\x40"),
        "APNG": png(2, 2, actl, png_chunk(b"IDAT", zlib.compress(bytes(6)))),
        "ICO": icon(encoded(photo("RGBA"), "PNG")),
    }


@pytest.mark.parametrize("name", files_that_make_pillow_warn())
def test_warnings_of_pillow_stay_inside(name: str) -> None:
    data = files_that_make_pillow_warn()[name]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet = pixels(data)
    assert seen == []
    np.testing.assert_array_equal(pixels(data), quiet)  # and under "error", as all of this module is
    with pytest.raises(UserWarning), PIL.Image.open(io.BytesIO(data)) as image:  # others still hear of it
        PIL.ImageOps.exif_transpose(image).convert("RGB")


def test_warnings_of_others_pass() -> None:
    pixels(encoded(photo(), "PNG"))
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_filters_do_not_pile_up() -> None:
    data = encoded(photo(), "PNG")
    pixels(data)
    before = len(warnings.filters)
    for _ in range(5):
        warnings.simplefilter("error")  # goes first, so decode has to go before it again
        pixels(data)
    assert len(warnings.filters) <= before + 1


def same(a: Image | Failure, b: Image | Failure) -> bool:
    if isinstance(a, Image) and isinstance(b, Image):
        return a.format == b.format and np.array_equal(a.pixels, b.pixels)
    return a == b


def test_threads_decode_good_and_bad_files_at_once() -> None:
    """What yet another thread does with Pillow meanwhile warns as ever."""
    warning = files_that_make_pillow_warn()
    files = [*SEEDS.values(), *warning.values(), *(data[: len(data) // 2] for data in SEEDS.values()), b"", b"?"]
    alone = [decode(data, max_pixels=MAX_PIXELS) for data in files]
    start = threading.Barrier(8)

    def work(thread: int) -> list[int]:
        order = np.random.default_rng(thread).permutation(np.tile(np.arange(len(files)), 10))
        start.wait()
        return [int(i) for i in order if not same(decode(files[i], max_pixels=MAX_PIXELS), alone[i])]

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work, thread) for thread in range(8)]
        while not all(future.done() for future in running):
            with pytest.raises(UserWarning):
                PIL.Image.open(io.BytesIO(warning["EXIF"])).getexif()
        assert [future.result() for future in running] == [[]] * 8


# --- published files --------------------------------------------------------------------------------------------------


def by_pillow(data: bytes) -> tuple[str, Array] | Exception:
    """The mode in which Pillow alone loads an image, and its upright pixels as it converts them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = PIL.Image.open(io.BytesIO(data))
            image.load()
            rgb = image.convert("RGB")
            with contextlib.suppress(Exception):  # broken EXIF
                rgb = PIL.ImageOps.exif_transpose(rgb)
            return image.mode, np.asarray(rgb)
    except Exception as error:  # whatever it is, Pillow cannot read the file
        return error


# Whole pixels, then damage: Pillow's first `load` raises over what follows them, a second one succeeds.
DAMAGED_BEHIND_THE_PIXELS = {"libpng/crashers/badadler.png", "pillow/truncated_end_chunk.png"}


def test_odd_images_as_their_manifest_and_as_pillow() -> None:
    folder = shared("odd_images")
    with (folder / "manifest.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert rows
    wrong: list[tuple[object, ...]] = []
    for row in rows:
        data = (folder / row["file"]).read_bytes()
        result = decode(data, max_pixels=MAX_PIXELS)
        by_manifest = row["pil_loads"] == row["converts_to_rgb"] == "1"
        oracle = by_pillow(data)
        readable = not isinstance(oracle, Exception) or row["file"] in DAMAGED_BEHIND_THE_PIXELS
        if not isinstance(result, Image) == by_manifest == readable:
            wrong.append((row["file"], result, oracle))
        elif isinstance(result, Image) and isinstance(oracle, tuple):
            swapped = row["exif_orientation"] in tuple("5678") and row["format"] != "TIFF"  # listed after its turn
            width, height = (int(row[side]) for side in (("height", "width") if swapped else ("width", "height")))
            if result.pixels.shape != (height, width, 3) or result.format != row["format"].lower():
                wrong.append((row["file"], result.pixels.shape, result.format))
            mode, converted = oracle
            if mode not in ("I", "F", "I;16", "I;16B") and not np.array_equal(result.pixels, converted):
                wrong.append((row["file"], "pixels"))
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pillow/decompression_bomb.gif", ErrorKind.TOO_MANY_PIXELS),
        ("pillow/bmp/b/badwidth.bmp", ErrorKind.TOO_MANY_PIXELS),
        ("pillow/bmp/b/shortfile.bmp", ErrorKind.TRUNCATED),
        ("pillow/truncated_image.png", ErrorKind.TRUNCATED),
        ("pillow/png_decompression_dos.png", ErrorKind.CORRUPT),
        ("pillow/unimplemented_pixel_format.dds", ErrorKind.CORRUPT),
        ("libpng/crashers/empty_ancillary_chunks.png", ErrorKind.CORRUPT),
        ("libjpeg-turbo/monkey12.jpg", ErrorKind.CORRUPT),
        ("pillow/test-ole-file.doc", ErrorKind.NOT_AN_IMAGE),
        ("pillow/duplicate_xref_entry.pdf", ErrorKind.NOT_AN_IMAGE),
        ("pillow/avif/hopper.heif", ErrorKind.NOT_AN_IMAGE),
    ],
)
def test_kinds_of_odd_images(name: str, kind: ErrorKind) -> None:
    assert failure((shared("odd_images") / name).read_bytes()).kind is kind


def test_one_portrait_in_all_orientations() -> None:
    files = sorted((shared("odd_images") / "exif-orientation-examples").glob("Portrait_*.jpg"))
    shown = [pixels(path.read_bytes()).astype(int) for path in files]
    assert len(shown) >= 4
    for other in shown[1:]:
        assert other.shape == shown[0].shape == (1800, 1200, 3)
        assert np.abs(other - shown[0]).mean() < 4  # each was compressed on its own


@pytest.mark.parametrize("folder", ["photos_mixed", "coco_val2014_54", "balloon"])
def test_photos_as_pillow(folder: str) -> None:
    suffixes = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
    files = sorted(path for path in shared(folder).rglob("*") if path.suffix.lower() in suffixes)
    assert files
    for path in files:
        data = path.read_bytes()
        oracle = by_pillow(data)
        assert isinstance(oracle, tuple)
        np.testing.assert_array_equal(pixels(data), oracle[1], err_msg=str(path))
