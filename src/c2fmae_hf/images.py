"""Read files and PIL images as RGB photographs or label maps."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from .constants import IGNORE_INDEX, IGNORE_INDEX_8BIT, IGNORE_INDEX_16BIT


# Formats that may be read. Pillow knows more, but some of them start other programs (EPS) or are not pictures.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_IMAGE_PIXELS = 150_000_000
# Most pixels per cell of a stored label map.
MAX_MAP_STRIDE = 16
# WebP, JPEG 2000 and AVIF can be lossless, but Pillow does not report whether a file is.
_LOSSLESS_FORMATS = ("PNG", "BMP", "DIB", "PPM", "TGA")
# Key of `image.info` under which `open_image` keeps the result of `changed_greys`: it is unknown after reading.
_CHANGED = "c2fmae_changed_greys"
_LOSSLESS_IN_TIFF = (
    *("raw", "tiff_raw_16", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd"),
    *("tiff_ccitt", "group3", "group4"),  # 1-bit
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Turns that exchange height and width.
_SWAPS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """The transpose that shows an image upright; `None` if it needs none, or its EXIF cannot be read."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises various errors on damaged EXIF
        return None


def number_of_frames(image: Image.Image) -> int:
    """Number of pictures in an image's file; 1 if Pillow, which reads to the end to count them, fails."""
    try:
        return getattr(image, "n_frames", 1)
    except Exception:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """
    Return an upright copy, turned as the EXIF says. `ImageOps.exif_transpose` rewrites the whole EXIF and fails if any
    of it is damaged.
    """
    image.load()  # Pillow turns some formats itself when it reads them
    turn = exif_turn(image)
    if turn is None:
        return image.copy()
    image = image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # otherwise it would be turned again
        image.info.pop(name, None)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Convert any PIL image to 8-bit RGB as a viewer shows it: turned by its EXIF orientation, transparency over white,
    16-bit greys scaled rather than clipped, CMYK and palettes converted. Unreadable EXIF is ignored.

    Raises:
        `ValueError`: for floating-point pixels that are not finite or not in [0, 1].
    """
    image = _upright(image)
    if image.mode == "RGB" and not image.has_transparency_data:
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


def changed_greys(image: Image.Image) -> str | None:
    """Describe how Pillow will change the greys of an image that is open but not read yet; `None` if it will not."""
    for tile in getattr(image, "tile", None) or ():
        raw, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
        layout = str(raw).partition(";")[2]
        if image.mode == "L" and layout[:1] in ("2", "4"):
            return f"{layout[0]}-bit greys, which are stretched to 255"
        if image.mode in ("L", "1") and "I" in layout:
            return "greys that are stored inverted"
        if tile.codec_name in ("ppm", "ppm_plain") and image.mode != "1" and rest and rest[0] not in (255, 65535):
            return f"greys up to {rest[0]}, which are stretched to 255 or 65535"
    return None


def check_lossless(image: Image.Image) -> None:
    """
    Check that a label map's file, if it comes from one, keeps its ids.

    Raises:
        `ValueError`: for JPEG, also within TIFF, and formats that may be lossy; for GIF, whose writers renumber ids;
            for 2-bit, 4-bit and inverted greys, and PGM up to another value than 255 or 65535; for an EXIF
            orientation.
    """
    changed = image.info.get(_CHANGED) or changed_greys(image)
    if image.format == "GIF":
        changed = "GIF, whose writers renumber them"
    if exif_turn(image) is not None:
        raise ValueError("expected a label map that is stored upright, got one with an EXIF orientation")
    if changed:
        raise ValueError(f"expected a label map whose ids are kept, got {changed}: store it as 8-bit or 16-bit PNG")
    compression = image.info.get("compression") if image.format == "TIFF" else None
    is_lossless = compression in _LOSSLESS_IN_TIFF if image.format == "TIFF" else image.format in _LOSSLESS_FORMATS
    if image.format is not None and not is_lossless:
        stored = f"TIFF with the compression {compression}" if image.format == "TIFF" else image.format
        raise ValueError(f"expected a label map stored without losses, got {stored}: store it as PNG")


def to_label_map(image: Image.Image) -> np.ndarray:
    """
    Convert a single-channel image of ids to an array.

    Args:
        image: Mode `1`, `L`, `P` (the indices, not their colours; 255 = ignore) or 16-bit grey (65535 = ignore).

    Returns:
        `np.ndarray` of shape `(height, width)`, int32, -100 = ignore.

    Raises:
        `ValueError`: for several channels, floating-point values, ids above 16 bits, or a file that may not keep its
            ids (see [`check_lossless`]).
    """
    check_lossless(image)
    if image.mode in ("1", "L", "P"):
        ignore = IGNORE_INDEX_8BIT
    elif image.mode.startswith("I"):
        ignore = IGNORE_INDEX_16BIT
    else:
        raise ValueError(f"expected a single-channel 8- or 16-bit label map, got an image of mode {image.mode!r}")
    ids = np.asarray(image)
    if ids.dtype.itemsize > 2 and (ids.min() < 0 or ids.max() > IGNORE_INDEX_16BIT):
        raise ValueError(f"expected ids in [0, {IGNORE_INDEX_16BIT}], got [{ids.min()}, {ids.max()}]")
    label_map = ids.astype(np.int32)
    label_map[ids == ignore] = IGNORE_INDEX
    return label_map


def open_image(
    value: Any, max_pixels: int = MAX_IMAGE_PIXELS, image_size: tuple[int, int] | None = None
) -> Image.Image:
    """
    Open and fully read an image, such as a value of an undecoded `datasets.Image` column.

    Args:
        value: `{"bytes": ..., "path": ...}`, encoded bytes, a path, or a PIL image.
        max_pixels (`int`): A larger image is refused before it is read: a small file can claim any size.
        image_size (`tuple[int, int]`, *optional*): For a label map, `(height, width)` of its image. A map that has
            neither this size nor this size at a stride is refused before it is read.

    Raises:
        `ValueError`: if it cannot be decoded; the message says why.
    """
    image = _open(value, max_pixels)
    if image_size is not None:
        check_map_size((image.height, image.width), image_size)
    if changed := changed_greys(image):
        image.info[_CHANGED] = changed
    return _load(image)


def open_photograph(
    value: Any, reduction: Callable[[tuple[int, int]], int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """
    Open a photograph as RGB, upright. A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which saves most of the
    time where a small input is made of a large photograph.

    Args:
        value: As for [`open_image`].
        reduction (*optional*): Of the photograph's `(height, width)`, as it is displayed: 1, 2, 4 or 8.

    Returns:
        The photograph, and its `(height, width)` without the reduction.

    Raises:
        `ValueError`: if it cannot be decoded; the message says why.
    """
    image = _open(value, MAX_IMAGE_PIXELS)
    size = None
    if reduction is not None and image is not value and isinstance(image, JpegImageFile):
        turn = exif_turn(image)
        size = (image.width, image.height) if turn in _SWAPS else (image.height, image.width)
        divisor = reduction(size)
        while turn is not None and any(side % divisor for side in size):  # turning would move incomplete last pixels
            divisor //= 2
        image.draft(None, (image.width // divisor, image.height // divisor))  # type: ignore[arg-type]
    image = to_rgb(_load(image))
    return image, size or (image.height, image.width)


def _open(value: Any, max_pixels: int) -> Image.Image:
    if isinstance(value, Image.Image):
        image = value
    else:
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(value, (bytes, str)):
            raise ValueError(f"expected an encoded image, a path or a PIL image, got {type(value).__name__}")
        if len(value) == 0:
            raise ValueError(f"expected an encoded image, got {'zero bytes' if value == b'' else 'an empty path'}")
        # Opening a pipe would wait for somebody to write to it.
        if isinstance(value, str) and os.path.exists(value) and not os.path.isfile(value):
            raise ValueError(f"cannot be opened: expected a file, got {value!r}, which is not one")
        try:
            image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=IMAGE_FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError(f"cannot be opened: {_what_it_is(value)}") from error
        except Image.DecompressionBombError as error:  # at Pillow's own limit, which is usually higher
            limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
            raise ValueError(f"expected at most {limit} pixels, got an image that claims more") from error
        except Exception as error:  # decoders raise various errors on damaged files
            raise ValueError(f"cannot be opened: {_explain(error)}") from error
    if image.width * image.height > max_pixels:
        raise ValueError(f"expected at most {max_pixels} pixels, got {image.width} x {image.height}")
    return image


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"cannot be decoded: {_explain(error)}") from error
    return image


def _what_it_is(value: bytes | str) -> str:
    """Describe a file of an unknown format, for messages."""
    head = value[:16]
    if isinstance(value, str):
        with open(value, "rb") as file:
            head = file.read(16)
    if len(head) == 0:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "HEIC is not read: save it as JPEG or PNG"
    return f"none of the formats {', '.join(IMAGE_FORMATS)}"


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def map_stride(map_size: tuple[int, int], image_size: tuple[int, int]) -> int | None:
    """
    Pixels per cell of a stored label map: a stride `s` for which the map has `ceil(height / s)` rows and
    `ceil(width / s)` columns of its image; `None` if no stride fits. If several do, as they may for small images, the
    least power of two among them, or else the least.
    """
    for stride in sorted(range(1, MAX_MAP_STRIDE + 1), key=lambda number: (number & (number - 1) != 0, number)):
        if all(-(-side // stride) == cells for cells, side in zip(map_size, image_size)):
            return stride
    return None


def check_map_size(map_size: tuple[int, int], image_size: tuple[int, int]) -> int:
    """
    Return the stride that [`map_stride`] finds.

    Raises:
        `ValueError`: if the map has neither the image's size nor that size at a stride.
    """
    stride = map_stride(map_size, image_size)
    if stride is None:
        raise ValueError(
            f"expected the image's size {image_size[1]}x{image_size[0]} (width x height), or that size at a stride of "
            f"up to {MAX_MAP_STRIDE}, got {map_size[1]}x{map_size[0]}"
        )
    return stride


def expand_label_map(label_map: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """
    Expand a stored label map to its image's size: each pixel takes the id of its cell.

    Args:
        label_map: `(rows, columns)` ids.
        image_size (`tuple[int, int]`): `(height, width)` of the image.

    Raises:
        `ValueError`: if the map has neither the image's size nor that size at a stride.
    """
    stride = check_map_size((label_map.shape[0], label_map.shape[1]), image_size)
    if stride == 1:
        return label_map
    height, width = image_size
    return label_map.repeat(stride, axis=0)[:height].repeat(stride, axis=1)[:, :width]
