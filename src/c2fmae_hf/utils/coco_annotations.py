"""Read and check COCO's annotation files, and draw objects as masks. Checks come before memory is allocated."""

from __future__ import annotations

import collections
import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np


logger = logging.getLogger(__name__)

_MAX_NAME_BYTES = 255  # of a file name
_MAX_COORDINATE = 1e12


@dataclass(frozen=True)
class CocoFile:
    """
    Contents of a COCO annotation file, instances or panoptic, by id.

    Args:
        names: Names of the categories.
        things: Categories that have instances.
        images: Entries of the images, as in the file.
        annotations: Annotations of each image.
    """

    names: dict[int, str]
    things: frozenset[int]
    images: dict[int | str, dict[str, Any]]
    annotations: dict[int | str, list[dict[str, Any]]]


def read_coco(path: str | os.PathLike, kind: str = "instances") -> CocoFile:
    """
    Read an annotation file. Annotations of images that it does not list are left out with a warning. Entries of images
    and annotations are checked on use, by [`check_image_entry`], [`check_object`] and [`check_segments`].

    Args:
        path: The JSON file.
        kind (`str`): `instances` or `panoptic`; panoptic categories need `isthing`.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: naming the file, if it has another format or repeats an id or an image's name.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"annotations: expected a JSON file at {str(path)!r}, found none")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        categories, images, annotations = (_entries(content, name) for name in ("categories", "images", "annotations"))
        for category in categories:
            is_complete = _is_id(category.get("id"), int) and _is_text(category.get("name"))
            if not is_complete or (kind == "panoptic" and category.get("isthing") not in (0, 1)):
                fields = "id, name and isthing (0 or 1)" if kind == "panoptic" else "id and name"
                raise ValueError(f"expected categories with {fields}, got {category!r:.80}")
        for place, entries in (("images", images), ("categories", categories)):
            for entry in entries:
                if not _is_id(entry.get("id"), int, str):
                    raise ValueError(f"expected {place} with an id, got {entry!r:.80}")
            refuse_repeated(f"the id of {place}", [entry["id"] for entry in entries])
        names = [image["file_name"] for image in images if isinstance(image.get("file_name"), str)]
        refuse_repeated("the file_name of images", [str(PurePosixPath(name)) for name in names])
        by_image: dict[int | str, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        strays: list[dict[str, Any]] = []
        for annotation in annotations:
            image_id: Any = annotation.get("image_id")
            is_known = _is_id(image_id, int, str) and image_id in by_image
            (by_image[image_id] if is_known else strays).append(annotation)
    except (ValueError, RecursionError) as error:  # from JSON, UTF-8 or the checks above
        raise ValueError(f"annotations: expected COCO's {kind} format in {str(path)!r}, got: {error}") from None
    if not categories or not images:
        raise ValueError(f"annotations: expected categories and images in {str(path)!r}, got none")
    if strays:
        logger.warning(
            f"{path}: left out {len(strays)} annotations of images that it does not list, the first of image_id "
            f"{strays[0].get('image_id')!r}"
        )
    return CocoFile(
        {category["id"]: category["name"] for category in sorted(categories, key=lambda one: one["id"])},
        frozenset(category["id"] for category in categories if category.get("isthing")),
        {image["id"]: image for image in images},
        by_image,
    )


def _entries(content: Any, name: str) -> list[dict[str, Any]]:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{name}: expected a list of objects, got {entries!r:.80}")
    return entries


def _is_text(value: Any) -> bool:
    """Whether a value is a string that UTF-8 can encode; JSON's escapes can make others."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_id(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def refuse_repeated(what: str, values: Collection[Any]) -> None:
    """
    Check that values are unique.

    Raises:
        `ValueError`: naming the most frequent value, if one is repeated.
    """
    if len(set(values)) < len(values):
        repeated, number = collections.Counter(values).most_common(1)[0]
        raise ValueError(f"expected {what} to be unique, {repeated!r} occurs {number} times")


def check_image_entry(entry: Mapping[str, Any], max_pixels: int) -> tuple[int, int]:
    """
    Check an image's entry.

    Args:
        entry: Entry of COCO's `images`.
        max_pixels (`int`): Largest accepted number of pixels.

    Returns:
        `(height, width)`.

    Raises:
        `ValueError`: for a name that leads out of the image folder, or an invalid size.
    """
    check_inside(entry.get("file_name"))
    height: Any = entry.get("height")
    width: Any = entry.get("width")
    if not _is_id(height, int) or not _is_id(width, int) or min(height, width) < 1:
        raise ValueError(f"expected a height and a width, whole numbers above 0, got {height!r} and {width!r}")
    if height * width > max_pixels:
        raise ValueError(f"expected at most {max_pixels} pixels, got {width} x {height}")
    return height, width


def check_inside(name: Any) -> None:
    """
    Check the name of a file in a folder.

    Raises:
        `ValueError`: if it is invalid or leads out of the folder.
    """
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not _is_text(name) or not path.name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"expected the name of a file within the folder, got {name!r}")
    if max(len(part.encode()) for part in path.parts) > _MAX_NAME_BYTES:
        raise ValueError(f"expected a file's name of at most {_MAX_NAME_BYTES} bytes, got {name!r:.80}")


def check_object(
    annotation: Mapping[str, Any], size: tuple[int, int], categories: Collection[int], needs_box: bool = True
) -> None:
    """
    Check the annotation of an object.

    Args:
        annotation: Entry of COCO's `annotations`.
        size (`tuple[int, int]`): `(height, width)` of its image.
        categories: Ids of the file's categories.
        needs_box (`bool`): Whether there must be a box.

    Raises:
        `ValueError`: for an unknown category, an invalid box or outline, or run lengths of another size.
    """
    category = annotation.get("category_id")
    if not _is_id(category, int) or category not in categories:
        raise ValueError(f"expected a category_id of the file's categories, got {category!r}")
    box: Any = annotation.get("bbox")
    far = 2 * max(size)
    if needs_box and (not _are_numbers(box) or len(box) != 4 or min(box[2:]) < 0 or max(map(abs, box)) > far):
        raise ValueError(f"expected a bbox of left, top, width and height within the image, got {box!r:.80}")
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"expected iscrowd to be 0 or 1, got {annotation['iscrowd']!r:.80}")
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        _run_lengths(segmentation, size)
        return
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"expected a segmentation, polygons or run lengths, got {segmentation!r:.80}")
    for polygon in segmentation:
        if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"expected a polygon of three points or more, x and y in turn, got {polygon!r:.80}")
        if min(polygon) < -far or max(polygon) > far:
            raise ValueError(f"expected points within the image of {size[1]} x {size[0]}, got {polygon!r:.80}")


def check_segments(entry: Mapping[str, Any], categories: Collection[int]) -> list[dict[str, Any]]:
    """
    Check the segments of an image.

    Args:
        entry: Entry of the `annotations` of COCO's panoptic format.
        categories: Ids of the file's categories.

    Returns:
        The segments in the order of their ids.

    Raises:
        `ValueError`: for a name that leads out of the folder of segments, an unknown category, or an invalid or
            repeated id.
    """
    check_inside(entry.get("file_name"))
    segments = _entries(entry, "segments_info")
    for segment in segments:
        if not _is_id(segment.get("id"), int) or not 0 < segment["id"] < 1 << 24:
            raise ValueError(f"expected a segment's id, above 0 and of 24 bits, got {segment!r:.80}")
        if not _is_id(segment.get("category_id"), int) or segment["category_id"] not in categories:
            raise ValueError(f"expected a category_id of the file's categories, got {segment.get('category_id')!r}")
        if segment.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"expected iscrowd to be 0 or 1, got {segment['iscrowd']!r:.80}")
    refuse_repeated("the id of segments", [segment["id"] for segment in segments])
    return sorted(segments, key=lambda segment: segment["id"])


def object_mask(annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Draw the mask `(height, width)`, uint8, of an annotation that has passed [`check_object`]."""
    from pycocotools import mask as coco_mask

    segmentation = annotation["segmentation"]
    if isinstance(segmentation, Mapping):
        counts = _run_lengths(segmentation, size)
        values = np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)  # 0 and 1 in turn, by columns
        return np.ascontiguousarray(values.reshape(size[1], size[0]).T)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size)))


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and -_MAX_COORDINATE < value < _MAX_COORDINATE
        for value in values
    )


def _run_lengths(segmentation: Mapping[str, Any], size: tuple[int, int]) -> list[int]:
    """Run lengths of a mask, checked against the image's size."""
    if segmentation.get("size") not in (list(size), size):
        raise ValueError(f"expected run lengths of the image's size {size}, got {segmentation.get('size')!r}")
    counts: Any = segmentation.get("counts")
    if isinstance(counts, (str, bytes)):
        counts = _decompressed(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    is_list = isinstance(counts, list) and all(_is_id(count, int) and count >= 0 for count in counts)
    if not is_list or sum(counts) != size[0] * size[1]:
        raise ValueError(f"expected counts of {size[0] * size[1]} pixels in all, got {counts!r:.80}")
    return counts


def _decompressed(text: bytes) -> list[int] | None:
    """
    Decode COCO's compressed run lengths; `None` for invalid text. A character holds five bits of a number, lowest
    first, and a sixth that says whether more follow. From the fourth on, numbers are differences to the last but one.
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
