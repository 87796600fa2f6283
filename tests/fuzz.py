"""
Coverage-guided fuzzing of what reads files of strangers: images, label maps and configurations.

    while python tests/fuzz.py maps -runs=100000 -rss_limit_mb=5000 runs/fuzz/maps; do :; done
    python tests/fuzz.py config -max_total_time=3600 runs/fuzz/config

Needs `pip install atheris`, whose instrumentation of Pillow holds on to some 20 KiB a file (the same files without it
do not), so that a process should not read many more. The options are libFuzzer's; the folder keeps what reached new
code. Anything else than a `ValueError` (or, of configurations, what transformers raises for a file that is none) is a
finding, and ends the run with the input in a file `crash-*`.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import atheris


with atheris.instrument_imports(include=["PIL", "c2fmae_hf.images", "c2fmae_hf.configuration_c2fmae"]):
    import numpy as np
    from huggingface_hub.errors import StrictDataclassError
    from PIL import Image, ImageCms

    from c2fmae_hf import C2FMAEConfig
    from c2fmae_hf.constants import IGNORE_INDEX
    from c2fmae_hf.images import expand_label_map, number_of_frames, open_image, to_label_map, to_rgb

    Image.init()  # or what reads the formats would be imported later, and not be watched


warnings.simplefilter("ignore")
MAX_PIXELS = 1 << 22


def _interlaced() -> bytes:
    """Two by two grey pixels in the order of Adam7, which Pillow does not write."""
    lines = b"\0\x10" + b"\0\x80" + b"\0\x20\xf0"  # passes 1, 6 and 7 have pixels
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1), b"IDAT": zlib.compress(lines), b"IEND": b""}
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def seeds(kind: str, folder: Path) -> None:
    """Something to begin with: of images files of every format."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "config":
        (folder / "seed").write_bytes(bytes(range(200)))
        return
    image = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3))
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA"):
        for mode in ("RGB", "L", "P", "1"):
            buffer = io.BytesIO()
            try:
                image.convert(mode).save(buffer, format)
            except OSError:
                continue
            (folder / f"seed-{format}-{mode}").write_bytes(buffer.getvalue())
    for name, seed in special_seeds(image).items():
        (folder / f"seed-{name}").write_bytes(seed)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def special_seeds(image: Image.Image) -> dict[str, bytes]:
    """What mutations of plain files would hardly come to."""
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x0131: "software", 0x011A: 72.0, 0x0103: 6})
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = Image.fromarray(np.arange(108, dtype=np.uint16).reshape(12, 9))
    palette, others = image.convert("P"), [image.rotate(180), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return {
        **{f"{format}-EXIF": encoded(image, format, exif=exif) for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")},
        **{f"{format}-ICC": encoded(image, format, icc_profile=profile) for format in ("JPEG", "PNG", "TIFF")},
        **{
            f"{format}-RGBA": encoded(image.convert("RGBA"), format)
            for format in ("PNG", "WEBP", "TIFF", "TGA", "AVIF")
        },
        **{
            f"{format}-frames": encoded(image, format, save_all=True, append_images=others)
            for format in ("GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF")
        },
        "PNG-16": encoded(wide, "PNG"),
        "TIFF-16": encoded(wide, "TIFF"),
        "PNG-LA": encoded(image.convert("LA"), "PNG"),
        "PNG-transparent": encoded(palette, "PNG", transparency=bytes([0, 128, 255])),
        "GIF-transparent": encoded(palette, "GIF", transparency=3),
        "PNG-interlaced": _interlaced(),
        "JPEG-progressive": encoded(image, "JPEG", progressive=True),
        "JPEG-CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "TIFF-JPEG": encoded(image, "TIFF", compression="jpeg"),
        "TIFF-LZW": encoded(image.convert("L"), "TIFF", compression="tiff_lzw"),
    }


def read_maps(content: bytes) -> None:
    try:
        image = open_image(content, MAX_PIXELS)
    except ValueError:
        return
    try:
        rgb = to_rgb(image)
        assert rgb.mode == "RGB"
        assert min(rgb.size) > 0
    except ValueError:
        pass
    with contextlib.suppress(ValueError):
        read_label_map(image)
    number_of_frames(image)


def read_label_map(image: Image.Image) -> None:
    label_map = to_label_map(image)
    assert label_map.shape == (image.height, image.width)
    assert label_map.dtype == np.int32
    assert ((label_map >= 0) | (label_map == IGNORE_INDEX)).all()
    with contextlib.suppress(ValueError):
        expand_label_map(label_map, (image.height * 2, image.width * 2))


# The library's own fields it reads as it likes.
FIELDS = {name: getattr(C2FMAEConfig(num_hidden_layers=2), name) for name in C2FMAEConfig.__annotations__}


def a_value(data: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    """Anything that JSON can hold."""
    kind = data.ConsumeIntInRange(0, 7 if depth < 2 else 5)
    if kind == 6:
        return [a_value(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 4))]
    if kind == 7:
        return {
            data.ConsumeUnicodeNoSurrogates(8): a_value(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 3))
        }
    return (
        None,
        data.ConsumeBool(),
        data.ConsumeIntInRange(-3, 300),
        data.ConsumeInt(8),
        data.ConsumeFloat(),
        data.ConsumeUnicodeNoSurrogates(12),
    )[kind]


def read_config(content: bytes) -> None:
    """A configuration with other values in a few of its fields; or any JSON at all."""
    data = atheris.FuzzedDataProvider(content)
    found: Any = a_value(data)
    if data.ConsumeIntInRange(0, 9) > 0:
        changes = {data.PickValueInList(list(FIELDS)): a_value(data) for _ in range(data.ConsumeIntInRange(1, 3))}
        found = {**FIELDS, **changes}
    try:
        config = C2FMAEConfig.from_dict(json.loads(json.dumps(found)))
    except (ValueError, StrictDataclassError):
        return
    again = C2FMAEConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    for name in FIELDS:  # what else is there is the library's
        assert getattr(config, name) == getattr(again, name), name
    config.timm_keys()


def main() -> None:
    kind = sys.argv.pop(1)
    folder = Path(sys.argv[-1])
    seeds(kind, folder)
    atheris.Setup(sys.argv, {"maps": read_maps, "config": read_config}[kind])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
