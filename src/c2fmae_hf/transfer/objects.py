"""
Training samples for detectors: the objects of images, from label maps or COCO annotations. COCO files need
pycocotools, `pip install "c2fmae-hf[all]"`.

The objects of an image are a dictionary of arrays: `masks` `(N, height, width)`, uint8; `class_labels` `(N,)`, int64,
from 0; `iscrowd` `(N,)`, bool, true for regions that are neither one object nor background; `boxes` `(N, 4)`, float32:
left, top, right, bottom.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvF
from tqdm.auto import tqdm

from ..constants import IGNORE_INDEX, IMAGENET_MEAN, NO_INSTANCE
from ..data.rows import undecoded
from ..images import MAX_IMAGE_PIXELS, expand_label_map, open_image, to_label_map, to_rgb
from ..utils.coco_annotations import check_image_entry, check_object, object_mask, read_coco


logger = logging.getLogger(__name__)


class ObjectSource(Protocol):
    """Images with their objects, by index."""

    id2label: dict[int, str]

    def present(self) -> set[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, np.ndarray]]: ...


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """Bounding boxes `(N, 4)`, float32, of masks `(N, height, width)`, none of which may be empty."""
    if len(masks) == 0:
        return torch.zeros((0, 4))
    boxes = masks_to_boxes(masks).float()
    boxes[:, 2:] += 1  # to the right and bottom edges of the last pixels
    return boxes


def objects_from_maps(semantic: np.ndarray, instance: np.ndarray, labels: Mapping[int, int]) -> dict[str, np.ndarray]:
    """
    Extract the objects of an image from its two label maps.

    Args:
        semantic, instance: `(height, width)` ids, -100 = ignore.
        labels: The detector's class by class id of the map. Instances of other classes are left out.

    Returns:
        Objects in the format of this module. Pixels with a class but an ignored instance become a crowd of that class.
    """
    masks, class_labels, iscrowd = [], [], []
    for instance_id in np.unique(instance):
        if instance_id in (NO_INSTANCE, IGNORE_INDEX):
            continue
        mask = instance == instance_id
        classes, counts = np.unique(semantic[mask], return_counts=True)
        label = labels.get(int(classes[counts.argmax()]))
        if label is not None:
            masks.append(mask)
            class_labels.append(label)
            iscrowd.append(False)
    for class_id in np.unique(semantic[instance == IGNORE_INDEX]):
        if int(class_id) in labels:
            masks.append((instance == IGNORE_INDEX) & (semantic == class_id))
            class_labels.append(labels[int(class_id)])
            iscrowd.append(True)
    stacked = np.stack(masks).astype(np.uint8) if masks else np.zeros((0, *semantic.shape), dtype=np.uint8)
    return {
        "masks": stacked,
        "class_labels": np.array(class_labels, dtype=np.int64),
        "iscrowd": np.array(iscrowd, dtype=bool),
        "boxes": boxes_of(torch.from_numpy(stacked)).numpy(),
    }


class MapObjects:
    """
    The objects of a dataset with the columns `image`, `semantic` and `instance`.

    Args:
        rows (`datasets.Dataset`).
        classes: Names of the classes to detect, by class id of the maps; see [`find_thing_classes`].
        num_classes (`int`, *optional*): Class ids must be below it.

    Raises:
        `ValueError`: if columns are missing. On access, if a row cannot be decoded or its maps do not fit; the message
            names row and column.
    """

    def __init__(self, rows: datasets.Dataset, classes: Mapping[int, str], num_classes: int | None = None) -> None:
        self.num_classes = num_classes
        columns = ["image", "semantic", "instance"]
        missing = [name for name in columns if name not in rows.column_names]
        if missing:
            raise ValueError(f"dataset: expected the columns {missing}, got {rows.column_names}")
        self.rows = undecoded(rows.select_columns(columns))
        self.labels = {class_id: label for label, class_id in enumerate(sorted(classes))}
        self.id2label = {label: classes[class_id] for class_id, label in self.labels.items()}

    def present(self) -> set[int]:
        """Classes of which there is an object, crowds aside. Reads all label maps."""
        return {self.labels[class_id] for class_id in find_instances(self.rows, self.num_classes) & self.labels.keys()}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, np.ndarray]]:
        row, column = self.rows[index], "image"
        try:
            image = to_rgb(open_image(row["image"]))
            maps = []
            for column in ("semantic", "instance"):
                if row[column] is None:
                    raise ValueError("expected a label map, got none")
                label_map = to_label_map(open_image(row[column], image_size=(image.height, image.width)))
                if column == "semantic":
                    check_class_ids(label_map, self.num_classes)
                maps.append(expand_label_map(label_map, (image.height, image.width)))
        except ValueError as error:
            raise ValueError(f"row {index}, column {column!r}: {error}") from error
        return image, objects_from_maps(maps[0], maps[1], self.labels)


def check_class_ids(semantic: np.ndarray, num_classes: int | None) -> None:
    """
    Raises:
        `ValueError`: if the map holds a class id that is not below `num_classes`.
    """
    if num_classes is not None and semantic.max() >= num_classes:
        raise ValueError(f"expected class ids in [0, {num_classes}), got {semantic.max()}")


def find_thing_classes(rows: datasets.Dataset, num_classes: int | None = None) -> list[int]:
    """
    Find the classes that have instances, by reading all label maps once.

    Args:
        rows (`datasets.Dataset`): With the columns `semantic` and `instance`.
        num_classes (`int`, *optional*): Class ids must be below it.

    Raises:
        `ValueError`: if no row has an instance, or a map cannot be decoded or has a class id out of range. The message
            names the row.
    """
    found = find_instances(rows, num_classes)
    if not found:
        raise ValueError("dataset: expected at least one instance, got none in any row")
    return sorted(found)


def find_instances(rows: datasets.Dataset, num_classes: int | None = None) -> set[int]:
    """As [`find_thing_classes`], without an error if there are none."""
    found: set[int] = set()
    maps = undecoded(rows.select_columns(["semantic", "instance"]))
    for index, row in enumerate(tqdm(maps, desc="Finding classes with instances", unit=" maps", mininterval=1)):
        if row["semantic"] is None or row["instance"] is None:
            continue
        try:
            semantic, instance = (to_label_map(open_image(row[name])) for name in ("semantic", "instance"))
            check_class_ids(semantic, num_classes)
            size = max(semantic.shape, instance.shape)  # one of the two may be stored at a stride
            semantic, instance = expand_label_map(semantic, size), expand_label_map(instance, size)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
        found.update(np.unique(semantic[instance > NO_INSTANCE]).tolist())
    return found - {IGNORE_INDEX}


class CocoObjects:
    """
    The objects of COCO annotations, with outlines and boxes unchanged, as official scores require. Images with an
    invalid entry are left out, with a warning.

    Args:
        folder: Folder of the images.
        annotations: `instances_*.json`.
        training ([`CocoObjects`], *optional*): The training split, whose classes are used.

    Raises:
        `ValueError`: for a file of another format, or a class that the training split lacks or names differently. On
            access, for an image that cannot be read or whose size differs from its entry.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        annotations: str | os.PathLike,
        training: CocoObjects | None = None,
    ) -> None:
        self.folder = Path(folder)
        content = read_coco(annotations)
        own, images = content.names, content.images
        self.names: dict[int, str] = own if training is None else training.names
        if not own.items() <= self.names.items():
            raise ValueError(f"{annotations}: expected the training split's classes, {self.names}, got {own}")
        self.labels = {category_id: label for label, category_id in enumerate(sorted(self.names))}
        self.id2label = {label: self.names[category_id] for category_id, label in self.labels.items()}
        self.images: list[tuple[str, tuple[int, int], list[dict]]] = []
        refused = []
        for image_id, image in images.items():
            try:
                size = check_image_entry(image, MAX_IMAGE_PIXELS)
                if not (self.folder / image["file_name"]).is_file():
                    raise ValueError(f"expected a file in {self.folder}, found none")
                for annotation in content.annotations[image_id]:
                    check_object(annotation, size, self.labels)
            except ValueError as error:
                refused.append(f"{image.get('file_name')}: {error}")
            else:
                self.images.append((image["file_name"], size, content.annotations[image_id]))
        if not self.images:
            raise ValueError(f"{annotations}: expected at least one valid entry, got none: {refused[0]}")
        if refused:
            logger.warning(f"{annotations}: left out {len(refused)} of {len(images)} images: {'; '.join(refused[:5])}")

    def present(self) -> set[int]:
        """Classes of which there is an object, crowds aside."""
        objects = (annotation for _, _, annotations in self.images for annotation in annotations)
        return {self.labels[one["category_id"]] for one in objects if not one.get("iscrowd", 0)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, np.ndarray]]:
        name, size, annotations = self.images[index]
        try:
            image = to_rgb(open_image(str(self.folder / name)))
        except ValueError as error:
            raise ValueError(f"{self.folder / name}: {error}") from error
        if (image.height, image.width) != size:
            raise ValueError(
                f"{self.folder / name}: expected {size[1]} x {size[0]} pixels, as in its annotations, got "
                f"{image.width} x {image.height} (width x height as displayed)"
            )
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
        masks = [object_mask(annotation, size) for annotation in annotations]
        return image, {
            "masks": np.stack(masks) if masks else np.zeros((0, image.height, image.width), dtype=np.uint8),
            "class_labels": np.array([self.labels[a["category_id"]] for a in annotations], dtype=np.int64),
            "iscrowd": np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
            "boxes": np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        }


def detection_transform(
    jitter_size: int | None = None, jitter_range: tuple[float, float] = (0.1, 2.0)
) -> v2.Transform:
    """
    Augment an image together with its masks: a random flip and, if `jitter_size` is given, ViTDet's large-scale
    jitter, which scales the image to fit that side times a random factor and then crops or pads it to a square of that
    side.
    """
    fill = {tv_tensors.Image: [round(255 * value) for value in IMAGENET_MEAN], tv_tensors.Mask: 0}
    jitter = []
    if jitter_size is not None:
        jitter = [
            v2.ScaleJitter((jitter_size, jitter_size), jitter_range, antialias=True),
            v2.RandomCrop(jitter_size, pad_if_needed=True, fill=fill),
        ]
    return v2.Compose([v2.RandomHorizontalFlip(), *jitter])


class DetectionDataset(Dataset):
    """
    Images in [0, 1] with their objects as tensors: `pixel_values` `(3, height, width)` and `labels`, a dictionary of
    `boxes`, `class_labels`, `masks` and `iscrowd`.

    Args:
        source ([`MapObjects`] or [`CocoObjects`]).
        transform (*optional*): Augmentation for training. With it, crowds and objects narrower than two pixels after
            the crop are left out, and boxes are computed from the masks.
    """

    def __init__(self, source: ObjectSource, transform: v2.Transform | None = None) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, objects = self.source[index]
        labels = {name: torch.from_numpy(values) for name, values in objects.items()}
        pixels: torch.Tensor = tv_tensors.Image(tvF.pil_to_tensor(image))
        if self.transform is not None:
            pixels, masks = self.transform(pixels, tv_tensors.Mask(labels["masks"]))
            masks = masks.as_subclass(torch.Tensor)
            kept = ~labels["iscrowd"] & masks.bool().flatten(1).any(dim=1)
            boxes = boxes_of(masks[kept])
            is_large = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= 2
            labels = {name: values[kept][is_large] for name, values in labels.items()}
            labels.update(masks=masks[kept][is_large], boxes=boxes[is_large])
        pixels = tvF.to_dtype(pixels.as_subclass(torch.Tensor), torch.float32, scale=True)
        return {"pixel_values": pixels, "labels": labels}


def collate_lists(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Collate images of any sizes and their objects as lists."""
    return {name: [sample[name] for sample in samples] for name in ("pixel_values", "labels")}
