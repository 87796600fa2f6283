"""COCO's objects as masks. The files are others': an entry is checked before anything is allocated for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np


def check_image_entry(entry: Mapping[str, Any], max_pixels: int) -> tuple[int, int]:
    """
    Args:
        entry: Of COCO's `images`.
        max_pixels (`int`): Of the largest image that is read.

    Returns:
        `(height, width)`.

    Raises:
        `ValueError`: for a name that leads out of the image folder, or a size that is none.
    """
    check_inside(entry.get("file_name"))
    height, width = entry.get("height"), entry.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise ValueError(f"expected a height and a width, whole numbers above 0, got {height!r} and {width!r}")
    if height * width > max_pixels:
        raise ValueError(f"expected at most {max_pixels} pixels, got {width} x {height}")
    return height, width


def check_inside(name: Any) -> None:
    """
    Raises:
        `ValueError`: for a file's name that is none, or leads out of its folder.
    """
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not isinstance(name, str) or not name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"expected a file_name within the image folder, got {name!r}")


def check_object(
    annotation: Mapping[str, Any], size: tuple[int, int], categories: Collection[int], needs_box: bool = True
) -> None:
    """
    Args:
        annotation: Of COCO's `annotations`.
        size (`tuple[int, int]`): `(height, width)` of its image.
        categories: Known ids.
        needs_box (`bool`): Whether there must be a box.

    Raises:
        `ValueError`: for another category, a box or an outline that is none, or run lengths of another size.
    """
    category = annotation.get("category_id")
    if not isinstance(category, int) or category not in categories:
        raise ValueError(f"expected a category_id of the file's categories, got {category!r}")
    box: Any = annotation.get("bbox")
    if needs_box and (not _are_numbers(box) or len(box) != 4 or min(box[2:]) < 0):
        raise ValueError(f"expected a bbox of left, top, width and height, got {box!r:.80}")
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        _run_lengths(segmentation, size)
        return
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"expected a segmentation, polygons or run lengths, got {segmentation!r:.80}")
    far = 2 * max(size)
    for polygon in segmentation:
        if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"expected a polygon of three points or more, x and y in turn, got {polygon!r:.80}")
        if min(polygon) < -far or max(polygon) > far:
            raise ValueError(f"expected points within the image of {size[1]} x {size[0]}, got {polygon!r:.80}")


def object_mask(annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The mask `(height, width)`, uint8, of an annotation that [`check_object`] has passed."""
    from pycocotools import mask as coco_mask

    segmentation = annotation["segmentation"]
    if isinstance(segmentation, Mapping):
        counts = _run_lengths(segmentation, size)
        values = np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)  # 0 and 1 in turn, by columns
        return np.ascontiguousarray(values.reshape(size[1], size[0]).T)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size)))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def _run_lengths(segmentation: Mapping[str, Any], size: tuple[int, int]) -> list[int]:
    """The counts of run lengths that fill an image of that size."""
    if list(segmentation.get("size") or []) != list(size):
        raise ValueError(f"expected run lengths of the image's size {size}, got {segmentation.get('size')!r}")
    counts: Any = segmentation.get("counts")
    if isinstance(counts, (str, bytes)):
        counts = _decompressed(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    is_list = isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts)
    if not is_list or sum(counts) != size[0] * size[1]:
        raise ValueError(f"expected counts of {size[0] * size[1]} pixels in all, got {counts!r:.80}")
    return counts


def _decompressed(text: bytes) -> list[int] | None:
    """
    COCO's text of run lengths as numbers: five bits a character, the lowest first, a sixth where more follow; from
    the fourth number on as differences to the last but one. `None` if it is no such text.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts if shift == 0 else None
