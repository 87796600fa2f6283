"""Files and PIL images to the two things the rest of the package works on: RGB photographs and label maps."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .constants import IGNORE_INDEX, IGNORE_INDEX_8BIT, IGNORE_INDEX_16BIT


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Any PIL image as 8-bit RGB, the way a viewer shows it: rotated as its EXIF orientation says, transparency over
    white, 16-bit greys scaled rather than clipped, CMYK and palettes converted.

    Raises:
        `ValueError`: for floating-point pixels that are not finite or not in [0, 1].
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits; Pillow widens some of them to "I"
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > IGNORE_INDEX_16BIT:
            raise ValueError(f"expected grey values in [0, 65535], got [{values.min()}, {values.max()}]")
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(f"expected floating-point pixels in [0, 1], got [{values.min()}, {values.max()}]")
        return Image.fromarray(np.round(values * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_label_map(image: Image.Image) -> np.ndarray:
    """
    A single-channel image of ids as an array.

    Args:
        image: Mode `1`, `L`, `P` (the indices, not their colours; 255 = ignore) or 16-bit grey (65535 = ignore).

    Returns:
        `np.ndarray` of shape `(height, width)`, int32, -100 = ignore.

    Raises:
        `ValueError`: for several channels or floating-point values.
    """
    if image.mode in ("1", "L", "P"):
        ignore = IGNORE_INDEX_8BIT
    elif image.mode.startswith("I"):
        ignore = IGNORE_INDEX_16BIT
    else:
        raise ValueError(f"expected a single-channel 8- or 16-bit label map, got an image of mode {image.mode!r}")
    label_map = np.array(image, dtype=np.int32)
    label_map[label_map == ignore] = IGNORE_INDEX
    return label_map


def open_image(value: Any) -> Image.Image:
    """
    Open and fully read what an undecoded `datasets.Image` column holds.

    Args:
        value: `{"bytes": ..., "path": ...}`, encoded bytes, a path, or a PIL image.

    Raises:
        `ValueError`: if it cannot be decoded; the message says why.
    """
    if isinstance(value, Image.Image):
        image = value
    else:
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if not isinstance(value, (bytes, str)):
            raise ValueError(f"expected an encoded image, a path or a PIL image, got {type(value).__name__}")
        try:
            image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot be opened: {error}") from error
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded: {error}") from error
    return image
