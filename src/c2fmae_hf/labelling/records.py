"""The steps of an image: source record, decoded image, label maps, row of the dataset."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image

from ..constants import IGNORE_INDEX, IGNORE_INDEX_8BIT, IGNORE_INDEX_16BIT
from ..images import MAX_IMAGE_PIXELS, number_of_frames, open_image, to_rgb
from ..pictures.colours import UNKNOWN_COLOUR, colour_classes


# A longer file is rejected instead of read into memory.
MAX_FILE_BYTES = 1 << 28
MAX_JPEG_SIDE = 65_500  # libjpeg's limit
# Paths of this kind are what `datasets` names the files of a stream by.
STREAMED = ("zip://", "tar://", "gzip://", "hf://")
# Stored unchanged if they are 8-bit RGB or grey; everything else is stored as an RGB PNG.
KEPT_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")


@dataclass(frozen=True)
class SourceRecord:
    """An image of a source, not decoded yet."""

    image_id: str
    """Unique within the dataset."""
    location: str
    """A path, or a file and the place in it, for messages."""
    value: Any
    """A path, encoded bytes, or `{"bytes", "path"}`."""
    label: int | None = None
    """Class of the whole image."""
    row: Mapping[str, Any] | None = None
    """Further columns of a dataset, for the labeller."""
    error: str | None = None
    """Why the source cannot deliver it."""


@dataclass(frozen=True)
class Reject:
    """An image that cannot be labelled, and why."""

    image_id: str
    location: str
    reason: str


@dataclass(frozen=True)
class OutputOptions:
    """
    How images and maps are stored.

    Args:
        label_stride (`int`): Pixels of the stored image per cell of a label map.
        shortest_edge (`int`, *optional*): Images whose shorter side is longer are resized to it and stored as JPEG. By
            default they are stored unchanged.
        jpeg_quality (`int`): JPEG quality of resized images.
        min_side (`int`): Images with a shorter side are rejected.
        max_pixels (`int`): Larger images are rejected before they are decoded.
        rows_per_shard (`int`): Images per Parquet file, counted before rejection.

    Raises:
        `ValueError`: if a value is out of range.
    """

    label_stride: int = 2
    shortest_edge: int | None = None
    jpeg_quality: int = 90
    min_side: int = 16
    max_pixels: int = MAX_IMAGE_PIXELS
    rows_per_shard: int = 1000

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("label_stride", 1, 16),
            ("shortest_edge", 16, 2**16),
            ("jpeg_quality", 1, 100),
            ("min_side", 1, 2**16),
            ("max_pixels", 1, 2**40),
            ("rows_per_shard", 1, 2**20),
        ):
            value = getattr(self, name)
            if value is None and name == "shortest_edge":
                continue
            if not isinstance(value, int) or not lowest <= value <= highest:
                raise ValueError(f"{name}: expected an integer in [{lowest}, {highest}], got {value!r}")


@dataclass(frozen=True)
class PreparedImage:
    """A decoded image, ready for a labeller."""

    record: SourceRecord
    image: Image.Image
    """RGB at its original size, as a viewer shows it."""
    encoded: bytes
    """The stored file."""
    stored_size: tuple[int, int]
    """`(height, width)` of the stored image."""


@dataclass(frozen=True)
class LabelMaps:
    """
    A labeller's maps of an image. Both cover the whole image, each at any resolution.

    Args:
        semantic: `(height, width)` integer array of class ids, -100 = ignore.
        instance: `(height, width)` integer array of instance ids, 0 = none, -100 = ignore; `None` without instances.
    """

    semantic: np.ndarray
    instance: np.ndarray | None


def read_bytes(value: Any) -> bytes:
    """
    The encoded image behind a record's value.

    Raises:
        `ValueError`: if there is nothing to read.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str) and value.startswith(STREAMED):
        try:
            with fsspec.open(value, "rb") as file:
                value = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror or error}") from error
        if len(value) > MAX_FILE_BYTES:
            raise ValueError(f"expected a file of at most {MAX_FILE_BYTES} bytes, got a larger one")
    if isinstance(value, (str, os.PathLike)):
        path = Path(value)
        try:
            if not path.is_file():  # a pipe would block
                raise ValueError("is not a file" if path.exists() else "does not exist")
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"expected a file of at most {MAX_FILE_BYTES} bytes, got {path.stat().st_size}")
            value = path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror or error}") from error
    if not isinstance(value, bytes):
        raise ValueError("has no image" if value is None else f"expected an encoded image, got {type(value).__name__}")
    if not value:
        raise ValueError("is empty (0 bytes)")
    return value


def prepare_image(record: SourceRecord, options: OutputOptions) -> PreparedImage | Reject:
    """Read and decode an image and encode what is stored; an image that cannot be used becomes a [`Reject`]."""
    try:
        if record.error is not None:
            raise ValueError(record.error)
        content = read_bytes(record.value)
        original = open_image(content, options.max_pixels)
        image = to_rgb(original)
        if min(image.size) < options.min_side:
            raise ValueError(
                f"expected sides of at least {options.min_side} pixels, got {image.width} x {image.height}"
            )
        encoded, (width, height) = _encode_image(content, original, image, options)
    except ValueError as error:
        return Reject(record.image_id, record.location, str(error))
    return PreparedImage(record, image, encoded, (height, width))


def _encode_image(
    content: bytes, original: Image.Image, image: Image.Image, options: OutputOptions
) -> tuple[bytes, tuple[int, int]]:
    buffer = io.BytesIO()
    if options.shortest_edge is not None and min(image.size) > options.shortest_edge:
        scale = options.shortest_edge / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        resized = image.resize(size, Image.Resampling.BICUBIC)
        if max(size) > MAX_JPEG_SIDE:
            resized.save(buffer, "PNG")
        else:
            resized.save(buffer, "JPEG", quality=options.jpeg_quality)
        return buffer.getvalue(), size
    is_plain = original.mode in ("RGB", "L") and not original.has_transparency_data
    if original.format in KEPT_FORMATS and is_plain and number_of_frames(original) == 1:
        return content, image.size
    if original.format == "MPO" and is_plain:  # a JPEG with a second picture behind it: keep the first
        image.save(buffer, "JPEG", quality=95)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue(), image.size


def resample_label_map(label_map: np.ndarray, image_size: tuple[int, int], label_stride: int) -> np.ndarray:
    """
    Resize a label map to the resolution in which it is stored, by nearest neighbour.

    Args:
        label_map: `(height, width)` ids; covers the image at any resolution.
        image_size (`tuple[int, int]`): `(height, width)` of the stored image.
        label_stride (`int`): Pixels of the stored image per cell.

    Returns:
        `np.ndarray` of shape `(ceil(height / stride), ceil(width / stride))`. Cell `i` takes the id of pixel
        `i * stride + stride // 2` (or the last one).
    """
    places = []
    for cells, side in zip(label_map.shape, image_size):
        pixel = np.minimum(np.arange(-(-side // label_stride)) * label_stride + label_stride // 2, side - 1)
        # The centre of that pixel, in cells of the labeller's own map.
        places.append((2 * pixel + 1) * cells // (2 * side))
    return label_map[np.ix_(*places)]


def number_instances(instance: np.ndarray) -> np.ndarray:
    """Renumber instances without gaps (1, 2, ... in the order of their ids); 0 and -100 stay."""
    ids, inverse = np.unique(instance, return_inverse=True)
    names = np.cumsum(ids > 0)
    names[ids == IGNORE_INDEX] = IGNORE_INDEX
    return names[inverse].reshape(instance.shape)


def encode_label_map(label_map: np.ndarray) -> bytes:
    """
    Encode ids as a single-channel PNG: 8 bits if ids are below 255, else 16; -100 becomes 255 or 65535. An 8-bit map
    gets a palette if that makes it smaller, which is so for large maps; a viewer then shows colours, and decoding
    takes a quarter less time.

    Raises:
        `ValueError`: if an id does not fit into 16 bits.
    """
    highest, lowest = int(label_map.max()), int(np.where(label_map == IGNORE_INDEX, 0, label_map).min())
    if highest >= IGNORE_INDEX_16BIT or lowest < 0:
        raise ValueError(f"expected ids in [0, {IGNORE_INDEX_16BIT - 1}] or {IGNORE_INDEX}, got [{lowest}, {highest}]")
    dtype, ignore = (np.uint8, IGNORE_INDEX_8BIT) if highest < IGNORE_INDEX_8BIT else (np.uint16, IGNORE_INDEX_16BIT)
    ids = np.where(label_map == IGNORE_INDEX, ignore, label_map).astype(dtype)
    images = [Image.fromarray(ids)]
    if dtype is np.uint8:
        colours = colour_classes(np.arange(int(ids.max()) + 1)[None])[0]
        colours[IGNORE_INDEX_8BIT:] = UNKNOWN_COLOUR
        images.append(Image.frombytes("P", images[0].size, ids.tobytes()))
        images[1].putpalette(colours.tobytes())
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        encoded.append(buffer.getvalue())
    return min(encoded, key=len)


def build_row(prepared: PreparedImage, maps: LabelMaps, num_classes: int, options: OutputOptions) -> dict[str, Any]:
    """
    A row of the dataset: `image`, `semantic`, `instance`, `semantic_classes`, `image_id`, and `label` if known.

    Raises:
        `ValueError`: if a class id is not below `num_classes`, or an id cannot be stored.
    """
    semantic = resample_label_map(maps.semantic, prepared.stored_size, options.label_stride)
    if semantic.max() >= num_classes:
        raise ValueError(f"semantic: expected class ids in [0, {num_classes}), got {semantic.max()}")
    instance = None
    if maps.instance is not None:
        instance = number_instances(resample_label_map(maps.instance, prepared.stored_size, options.label_stride))
    classes = np.unique(semantic)
    record = prepared.record
    row = {
        "image": {"bytes": prepared.encoded, "path": None},
        "semantic": {"bytes": encode_label_map(semantic), "path": None},
        "instance": None if instance is None else {"bytes": encode_label_map(instance), "path": None},
        "semantic_classes": classes[classes != IGNORE_INDEX].tolist(),
        "image_id": record.image_id,
    }
    if record.label is not None:
        row["label"] = record.label
    return row
