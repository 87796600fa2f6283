"""Images and maps for tests of labelling, good ones and bad ones."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """Discs of different colours on a sloping ground."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 120 / width, y * 120 / height, (x + y) * 60 / (width + height)], axis=-1) + 60
    for _ in range(4):
        centre, radius = generator.uniform(0, (height, width)), generator.uniform(5, height / 3)
        pixels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = generator.uniform(0, 255, 3)
    return Image.fromarray(np.clip(pixels + generator.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_photographs(folder: Path, number: int, **size) -> list[Path]:
    paths = []
    for index in range(number):
        path = folder / f"folder_{index % 3}" / f"photo_{index:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photograph(index, **size)))
        paths.append(path)
    return paths


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_with(width: int, height: int, *chunks: bytes) -> bytes:
    """The beginning of a PNG that claims a size."""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + b"".join(chunks)
    )


def plant_bad_files(folder: Path) -> list[str]:
    """Files of more than 20 kinds that are no usable image although their names say so; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    good = photograph(0, 96, 96)
    jpeg, png, webp, tiff = (encode(good, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF"))
    noise = np.random.default_rng(0).bytes(4000)
    broken = bytearray(png)
    broken[len(png) // 2] ^= 0xFF
    files = {
        "empty.jpg": b"",
        "one_byte.jpg": b"\xff",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "truncated.webp": webp[: len(webp) // 2],
        "truncated.tif": tiff[: len(tiff) // 2],
        "header_only.jpg": jpeg[:20],
        "header_only.png": png[:33],
        "header_only.gif": b"GIF89a",
        "flipped_byte.png": bytes(broken),
        "error_page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "text.png": b"this is a text\n" * 40,
        "noise.jpg": noise,
        "noise_after_signature.png": b"\x89PNG\r\n\x1a\n" + noise,
        "document.jpg": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n",
        "archive.png": b"PK\x03\x04" + noise,
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"></svg>',
        "film.jpg": b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + noise,
        "telephone.heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + noise,
        "bomb.png": png_with(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")),
        "text_bomb.png": png_with(64, 64, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20))))
        + chunk(b"IDAT", zlib.compress(bytes(64 * 193)))
        + chunk(b"IEND", b""),
        "no_size.png": png_with(0, 0, chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")),
        "one_pixel.png": encode(Image.new("RGB", (1, 1)), "PNG"),
        "thread.png": encode(Image.new("RGB", (3000, 2)), "PNG"),
        "not_a_number.tif": encode(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF"),
        "negative.tif": encode(Image.fromarray(np.full((32, 32), -3, np.int32)), "TIFF"),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "broken_link.jpg").symlink_to(folder / "nothing.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return [*files, "broken_link.jpg", "pipe.jpg"]


def plant_odd_files(folder: Path) -> list[str]:
    """Images that look unusual and are fine; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    photo = photograph(1, 80, 60)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    files = {
        "cmyk.jpg": encode(photo.convert("CMYK")),
        "grey.jpg": encode(photo.convert("L")),
        "alpha.png": encode(photo.convert("RGBA"), "PNG"),
        "grey_alpha.png": encode(photo.convert("LA"), "PNG"),
        "palette.png": encode(photo.convert("P"), "PNG"),
        "bits.png": encode(photo.convert("1"), "PNG"),
        "deep.png": encode(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257), "PNG"),
        "moving.gif": encode(photo, "GIF", save_all=True, append_images=[photograph(2, 80, 60)]),
        "rotated.jpg": encode(photo, exif=rotated),
        "photo.webp": encode(photo, "WEBP"),
        "photo.bmp": encode(photo, "BMP"),
        "LOUD.JPEG": encode(photo),
        "日本 ü.jpg": encode(photo),
        f"{'long' * 60}.jpg": encode(photo),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with open(os.fsencode(folder) + b"/latin_\xfc.jpg", "wb") as file:
        file.write(encode(photo))
    return [*files, "latin_\\xfc.jpg"]


def tree_checksums(root: Path) -> dict[str, str]:
    """Checksums of every file below a folder, except the lock."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
