"""
Rows as messy datasets have them, and what becomes of each.

    python tests/bad_rows.py > docs/bad_rows.md

writes the table that `test_bad_rows.py` compares with what it observes.
"""

from __future__ import annotations

import functools
import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.transforms import training_transform
from testing_utils import make_rows


SIZE = 48
NUM_CLASSES = 5
ROW = 2
TRANSFORM = training_transform((32, 32))


@functools.cache
def photograph(width: int = SIZE, height: int = SIZE) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def map_of(ids: np.ndarray) -> bytes:
    return encoded(Image.fromarray(ids))


def of_size(width: int, height: int) -> dict[str, Any]:
    """A photograph and empty maps of its size."""
    empty = map_of(np.zeros((height, width), np.uint8))
    return {"image": encoded(photograph(width, height)), "semantic": empty, "instance": empty}


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says that it is as large as that."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(SIZE, 40), "JPEG", exif=exif)


def with_exif(content: bytes, format: str = "JPEG") -> bytes:
    return encoded(photograph(), format, exif=content)


def exif_of(tag: int, kind: int, value: int) -> bytes:
    """EXIF that says to turn the photograph by 180 degrees, and one thing more."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0) + struct.pack("<HHII", tag, kind, 1, value)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


def animated(format: str) -> bytes:
    others = [photograph().rotate(90 * turn) for turn in (1, 2)]
    return encoded(photograph(), format, save_all=True, append_images=others)


def damaged(content: bytes, at: float) -> bytes:
    changed = bytearray(content)
    for index in range(int(len(changed) * at), int(len(changed) * at) + 8):
        changed[index] ^= 0x5A
    return bytes(changed)


def many_instances() -> dict[str, Any]:
    rows = of_size(SIZE * 2, SIZE * 2)
    ids = np.arange((SIZE * 2) ** 2, dtype=np.uint16).reshape(SIZE * 2, SIZE * 2) % 5000
    return {**rows, "instance": map_of(ids + 1)}


def grey(value: int) -> bytes:
    return map_of(np.full((SIZE, SIZE), value, np.uint8))


def one_class(format: str, **options: Any) -> bytes:
    return encoded(Image.new("L", (SIZE, SIZE), 1), format, **options)


Make = Callable[[], dict[str, Any]]
FLOATS = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
KINDS: dict[str, Make] = {
    # Files that are no image
    "image: null": lambda: {"image": None},
    "image: zero bytes": lambda: {"image": b""},
    "image: text": lambda: {"image": b"not an image"},
    "image: a web page in its place": lambda: {"image": b"<!DOCTYPE html><html><body>404</body></html>"},
    "image: SVG": lambda: {"image": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'},
    "image: PDF": lambda: {"image": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"},
    "image: PostScript": lambda: {"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"},
    "image: video": lambda: {"image": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64)},
    "image: NumPy file": lambda: {"image": b"\x93NUMPY\x01\0v\0" + bytes(64)},
    "image: numbers": lambda: {"image": [[0, 1], [2, 3]]},
    "image: path of no file": lambda: {"image": {"bytes": None, "path": "/no/such/photograph.jpg"}},
    "image: path of a folder": lambda: {"image": {"bytes": None, "path": "/"}},
    "image: path of 5000 characters": lambda: {"image": {"bytes": None, "path": "/" + "a" * 5000}},
    "image: path with a null byte": lambda: {"image": {"bytes": None, "path": "a\0b.jpg"}},
    # Damage
    "image: JPEG, truncated": lambda: {"image": encoded(photograph(), "JPEG")[:400]},
    "image: JPEG, header alone": lambda: {"image": encoded(photograph(), "JPEG")[:20]},
    "image: JPEG, bytes changed in the middle": lambda: {"image": damaged(encoded(photograph(), "JPEG"), 0.8)},
    "image: JPEG, more bytes at the end": lambda: {"image": encoded(photograph(), "JPEG") + bytes(100)},
    "image: PNG, truncated": lambda: {"image": encoded(photograph())[:1000]},
    "image: PNG, checksum wrong": lambda: {"image": damaged(encoded(photograph()), 0.5)},
    "image: WebP, truncated": lambda: {"image": encoded(photograph(), "WEBP")[:100]},
    "image: GIF, truncated": lambda: {"image": encoded(photograph(), "GIF")[:600]},
    "image: TIFF, truncated": lambda: {"image": encoded(photograph(), "TIFF")[:1000]},
    "image: colour profile broken": lambda: {"image": encoded(photograph(), icc_profile=b"no profile")},
    "image: JPEG, EXIF is no TIFF": lambda: {"image": with_exif(b"Exif\0\0no TIFF at all")},
    "image: JPEG, EXIF truncated": lambda: {"image": with_exif(b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")},
    "image: JPEG, EXIF with a number too large": lambda: {"image": with_exif(exif_of(0x0103, 4, 0xFFFFFF))},
    "image: JPEG, EXIF with text for a number": lambda: {"image": with_exif(exif_of(0x011A, 2, 0x41))},
    "image: JPEG, EXIF with a number for text": lambda: {"image": with_exif(exif_of(0x0131, 5, 0))},
    "image: PNG, EXIF is no TIFF": lambda: {"image": with_exif(b"no TIFF at all", "PNG")},
    "image: WebP, EXIF is no TIFF": lambda: {"image": with_exif(b"no TIFF at all", "WEBP")},
    # Sizes
    "image: 1 x 1": lambda: of_size(1, 1),
    "image: 1 pixel high": lambda: of_size(3000, 1),
    "image: panorama of 30000 x 40": lambda: of_size(30000, 40),
    "image: claims 100000 x 100000 pixels": lambda: {"image": claiming(100_000, 100_000)},
    "image: claims 2000000000 x 1 pixels": lambda: {"image": claiming(2_000_000_000, 1)},
    "image: claims 0 x 0 pixels": lambda: {"image": claiming(0, 0)},
    # Kinds of pixels
    "image: grey": lambda: {"image": encoded(photograph().convert("L"))},
    "image: grey with alpha": lambda: {"image": encoded(photograph().convert("LA"))},
    "image: alpha": lambda: {"image": encoded(photograph().convert("RGBA"))},
    "image: palette": lambda: {"image": encoded(photograph().convert("P"))},
    "image: palette with a transparent entry": lambda: {"image": encoded(photograph().convert("P"), transparency=0)},
    "image: one bit": lambda: {"image": encoded(photograph().convert("1"))},
    "image: 16 bits, grey": lambda: {"image": map_of((FLOATS * 65535).astype(np.uint16))},
    "image: 32 bits, beyond 16": lambda: {"image": encoded(Image.fromarray((FLOATS * 1e6).astype(np.int32)), "TIFF")},
    "image: CMYK": lambda: {"image": encoded(photograph().convert("CMYK"), "JPEG")},
    "image: Lab": lambda: {"image": encoded(photograph().convert("LAB"), "TIFF")},
    "image: floating point": lambda: {"image": encoded(Image.fromarray(FLOATS), "TIFF")},
    "image: floating point, NaN": lambda: {"image": encoded(Image.fromarray(FLOATS * np.nan), "TIFF")},
    "image: floating point, up to 255": lambda: {"image": encoded(Image.fromarray(FLOATS * 255), "TIFF")},
    "image: JPEG 2000": lambda: {"image": encoded(photograph(), "JPEG2000")},
    "image: bitmap": lambda: {"image": encoded(photograph(), "BMP")},
    # Several pictures, turned ones
    "image: animated GIF": lambda: {"image": animated("GIF")},
    "image: animated WebP": lambda: {"image": animated("WEBP")},
    "image: TIFF of three pages": lambda: {"image": animated("TIFF")},
    "image: turned by EXIF, maps of the turned size": lambda: {
        "image": turned(),
        "semantic": map_of(np.zeros((SIZE, 40), np.uint8)),
        "instance": map_of(np.zeros((SIZE, 40), np.uint8)),
    },
    "image: turned by EXIF, maps of the stored size": lambda: {
        "image": turned(),
        "semantic": map_of(np.zeros((40, SIZE), np.uint8)),
        "instance": map_of(np.zeros((40, SIZE), np.uint8)),
    },
    # Maps
    "semantic: null": lambda: {"semantic": None},
    "both maps: null": lambda: {"semantic": None, "instance": None},
    "semantic: zero bytes": lambda: {"semantic": b""},
    "semantic: truncated": lambda: {"semantic": grey(1)[:60]},
    "semantic: of another size": lambda: {"semantic": map_of(np.zeros((SIZE // 2, SIZE), np.uint8))},
    "semantic: a pixel wider": lambda: {"semantic": map_of(np.zeros((SIZE, SIZE + 1), np.uint8))},
    "semantic: larger than the image": lambda: {"semantic": map_of(np.zeros((2 * SIZE, 2 * SIZE), np.uint8))},
    "both maps: at a stride of 4": lambda: {
        "semantic": map_of(np.ones((SIZE // 4, SIZE // 4), np.uint8)),
        "instance": map_of(np.ones((SIZE // 4, SIZE // 4), np.uint8)),
    },
    "semantic: three channels": lambda: {"semantic": encoded(photograph())},
    "semantic: alpha": lambda: {"semantic": encoded(photograph().convert("RGBA"))},
    "semantic: floating point": lambda: {"semantic": encoded(Image.fromarray(FLOATS), "TIFF")},
    "semantic: JPEG": lambda: {"semantic": one_class("JPEG")},
    "semantic: JPEG in TIFF": lambda: {"semantic": one_class("TIFF", compression="jpeg")},
    "semantic: TIFF, compressed without losses": lambda: {"semantic": one_class("TIFF", compression="tiff_lzw")},
    "semantic: JPEG 2000": lambda: {"semantic": one_class("JPEG2000", irreversible=True)},
    "semantic: WebP": lambda: {"semantic": one_class("WEBP")},
    "semantic: AVIF": lambda: {"semantic": one_class("AVIF")},
    "semantic: GIF": lambda: {"semantic": one_class("GIF")},
    "semantic: class 5 of 5": lambda: {"semantic": grey(5)},
    "semantic: class 254": lambda: {"semantic": grey(254)},
    "semantic: 32 bits, negative": lambda: {
        "semantic": encoded(Image.fromarray(np.full((SIZE, SIZE), -1, np.int32)), "TIFF")
    },
    "semantic: palette": lambda: {"semantic": encoded(Image.fromarray(np.ones((SIZE, SIZE), np.uint8)).convert("P"))},
    "semantic: all background": lambda: {"semantic": grey(0)},
    "both maps: all ignored": lambda: {"semantic": grey(255), "instance": grey(255)},
    "instance: one on every pixel": lambda: {"instance": grey(1)},
    "instance: 5000": many_instances,
    "instance: ids with gaps, 16 bits": lambda: {
        "instance": map_of(np.where(np.eye(SIZE) > 0, 65_534, 7).astype(np.uint16))
    },
    "instance: JPEG": lambda: {"instance": one_class("JPEG")},
    "instance: web page": lambda: {"instance": b"<html>"},
    # Names
    "image_id: null, image bad": lambda: {"image_id": None, "image": b""},
    "image_id: of all scripts": lambda: {"image_id": "写真/Фото/صورة 📷"},
    "image_id: of all scripts, image bad": lambda: {"image_id": "写真/Фото 📷", "image": b""},
    "image_id: 10000 characters": lambda: {"image_id": "x" * 10_000},
    "image_id: a number": lambda: {"image_id": 17},
}


@dataclass(frozen=True)
class Observed:
    """What becomes of a row: the error that names it, or `None` where it is used."""

    kind: str
    error: str | None
    sample: dict[str, Any] | None
    skipped: int

    @property
    def row(self) -> str:
        column, _, kind = self.kind.partition(": ")
        if self.error is None:
            return f"| {column} | {kind} | used | |"
        message = re.sub(r" at 0x[0-9a-f]+", "", self.error)
        message = re.sub(r"a{100,}", "aaa...", message).replace("|", "\\|").replace("\n", " ")
        return f"| {column} | {kind} | error, or skipped | {message} |"


@functools.cache
def _good_items() -> list[dict[str, Any]]:
    rows = make_rows(5, size=SIZE)
    for name in ("image", "semantic", "instance"):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows.to_list()


def observe(kind: str) -> Observed:
    items = [dict(item) for item in _good_items()]
    items[ROW].update(KINDS[kind]())
    strict = C2FMAEDataset(items, TRANSFORM, num_semantic_classes=NUM_CLASSES)
    lenient = C2FMAEDataset(items, TRANSFORM, num_semantic_classes=NUM_CLASSES, on_bad_row="skip")
    error, sample = None, None
    try:
        sample = strict[ROW]
    except ValueError as found:
        error = str(found)
    return Observed(kind, error, sample, lenient[ROW]["num_skipped"])


HEAD = """# Bad rows

This table shows what pre-training does with a row of each kind, for a dataset of five classes and photographs of 48 x
48 pixels. An error stops the run and names row, `image_id` and column. With `--on_bad_row skip` the next good row is
used instead, each worker logs the message once, and the training log counts such rows (`skipped_rows`).

Made by `python tests/bad_rows.py > docs/bad_rows.md`; `tests/test_bad_rows.py` compares it with a new run. Pillow's
messages depend on its version.

| column | kind | result | message |
| --- | --- | --- | --- |"""


def main() -> None:
    print(HEAD)
    for kind in KINDS:
        print(observe(kind).row)


if __name__ == "__main__":
    main()
