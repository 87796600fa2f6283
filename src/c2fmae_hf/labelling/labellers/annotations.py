"""Labels made by people: the layouts of COCO, ADE20K and PASCAL VOC, mirrored folders, columns of a dataset."""

from __future__ import annotations

import abc
import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...constants import IGNORE_INDEX, NO_INSTANCE
from ...images import MAX_IMAGE_PIXELS, check_lossless, expand_label_map, open_image, to_label_map
from ...utils.coco_masks import check_image_entry, check_inside, check_object, object_mask
from ...utils.files import file_sha256
from ..records import LabelMaps, PreparedImage, SourceRecord
from ..sources.folder import FolderSource
from .base import Labeller, unique_names


# fmt: off
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


class AnnotationLabeller(Labeller):
    """
    Base class of layouts: reads maps instead of making them. An image whose annotation is missing or has another size
    is rejected.
    """

    libraries = ("pycocotools",)
    batch_size = 1
    summary = "The maps are the annotations of the source, and have its licence."
    layout: str

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"annotations ({self.layout})"

    def settings(self) -> dict[str, Any]:
        return {"layout": self.layout}

    def source(self) -> FolderSource:
        """Source of the annotated images."""
        raise NotImplementedError

    @abc.abstractmethod
    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        """Maps of an image of `size` (height, width). `ValueError` if there are none."""

    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        results = []
        for prepared in batch:
            size = (prepared.image.height, prepared.image.width)
            maps = self.read_maps(prepared.record, size)
            for name, label_map in (("semantic", maps.semantic), ("instance", maps.instance)):
                if label_map is not None and label_map.shape != size:
                    raise ValueError(
                        f"{name} annotation: expected the image's size {size} (height, width, as it is displayed), "
                        f"got {label_map.shape}"
                    )
            results.append(maps)
        return results


class _CocoLabeller(AnnotationLabeller):
    """Base class of COCO's two JSON formats."""

    def __init__(self, images: str | Path, annotations: str | Path) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        self.start()
        categories = sorted(self.content["categories"], key=lambda category: category["id"])
        self.class_ids = {category["id"]: self.first_class + i for i, category in enumerate(categories)}
        names = {self.class_ids[category["id"]]: category["name"] for category in categories}
        self.id2label = unique_names({0: "background", **names} if self.first_class else names)

    # 1 if class 0 is the background.
    first_class = 0

    def settings(self) -> dict[str, Any]:
        return {"layout": self.layout, "annotations_sha256": file_sha256(self.annotations)}

    def start(self, worker: int = 0) -> None:
        try:
            self.content = json.loads(self.annotations.read_text(encoding="utf-8"))
            self.image_ids = {image["file_name"]: image["id"] for image in self.content["images"]}
            for name in self.image_ids:
                check_inside(name)
            self.index()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"annotations: expected COCO's {self.layout!r} format in {str(self.annotations)!r}, got "
                f"{type(error).__name__}: {error}"
            ) from error

    @abc.abstractmethod
    def index(self) -> None:
        """Index `content` by image."""

    def source(self) -> FolderSource:
        return FolderSource(self.images, paths=list(self.image_ids))

    def find(self, record: SourceRecord) -> Any:
        if record.image_id not in self.image_ids:
            raise ValueError(f"has no entry in {self.annotations.name}")
        return self.image_ids[record.image_id]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("content", "coco", "panoptic")}


class CocoInstancesLabeller(_CocoLabeller):
    """
    COCO's instances format, polygons or run lengths. Class 0 is the background; the categories follow in the order of
    their ids. A smaller object lies over a larger one. A crowd gives its class and is ignored in the instance map.

    Args:
        images: Folder of the images.
        annotations: The JSON file.

    Raises:
        `ValueError`: if the file is not of that format.
    """

    layout = "coco"
    first_class = 1

    def index(self) -> None:
        from pycocotools.coco import COCO

        self.coco = COCO()
        self.coco.dataset = self.content
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        image_id = self.find(record)
        own_size = check_image_entry(self.coco.imgs[image_id], MAX_IMAGE_PIXELS)
        semantic = np.zeros(own_size, dtype=np.int32)
        instance = np.zeros_like(semantic)
        painted = []
        for number, annotation in enumerate(self.coco.imgToAnns[image_id], start=1):
            check_object(annotation, own_size, self.class_ids, needs_box=False)
            mask = object_mask(annotation, own_size).astype(bool)
            name = IGNORE_INDEX if annotation.get("iscrowd") else number
            painted.append((int(mask.sum()), mask, self.class_ids[annotation["category_id"]], name))
        for _, mask, label, name in sorted(painted, key=lambda entry: -entry[0]):
            semantic[mask], instance[mask] = label, name
        return LabelMaps(semantic, instance)


class CocoPanopticLabeller(_CocoLabeller):
    """
    COCO's panoptic format. Classes are the categories in the order of their ids, from 0. Segments of things are
    instances in the order of their ids. A crowd is ignored in the instance map, an unlabelled pixel in the semantic
    map.

    Args:
        images: Folder of the images.
        annotations: The JSON file.
        segments: Folder of PNG files with segment ids. Default: the folder beside the JSON file with its name.

    Raises:
        `ValueError`: if the file is not of that format.
    """

    layout = "coco_panoptic"

    def __init__(self, images: str | Path, annotations: str | Path, segments: str | Path | None = None) -> None:
        self.segments = Path(segments) if segments is not None else Path(annotations).with_suffix("")
        super().__init__(images, annotations)
        self.things = {category["id"] for category in self.content["categories"] if category["isthing"]}

    def index(self) -> None:
        self.panoptic = {entry["image_id"]: entry for entry in self.content["annotations"]}

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        entry = self.panoptic.get(self.find(record))
        if entry is None:
            raise ValueError(f"has no annotation in {self.annotations.name}")
        colours = _read_annotation(self.segments / entry["file_name"], _to_colours).astype(np.int64)
        segments = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        semantic = np.full(segments.shape, IGNORE_INDEX, dtype=np.int32)
        instance = np.zeros(segments.shape, dtype=np.int32)
        number = 0
        for segment in sorted(entry["segments_info"], key=lambda segment: segment["id"]):
            mask = segments == segment["id"]
            semantic[mask] = self.class_ids[segment["category_id"]]
            if segment.get("iscrowd"):
                instance[mask] = IGNORE_INDEX
            elif segment["category_id"] in self.things:
                number += 1
                instance[mask] = number
        return LabelMaps(semantic, instance)


def _read_annotation(path: Path, read: Callable[[Image.Image], np.ndarray] = to_label_map) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"has no annotation {path}")
    try:
        return read(open_image(str(path)))
    except ValueError as error:
        raise ValueError(f"annotation {path}: {error}") from error


def _to_colours(image: Image.Image) -> np.ndarray:
    """`(height, width, 3)` of an image whose colours are ids."""
    check_lossless(image)
    return np.asarray(image.convert("RGB"))


class VocLabeller(AnnotationLabeller):
    """
    PASCAL VOC: `JPEGImages`, `SegmentationClass`, `SegmentationObject` and `ImageSets/Segmentation/<split>.txt`.

    Args:
        root: Folder with these (`VOC2012`).
        split (`str`): `train`, `val` or `trainval`.
    """

    layout = "voc"

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root, self.split = Path(root), split
        self.id2label = dict(enumerate(VOC_CLASSES))

    def source(self) -> FolderSource:
        names = (self.root / "ImageSets" / "Segmentation" / f"{self.split}.txt").read_text(encoding="utf-8").split()
        return FolderSource(self.root / "JPEGImages", paths=[f"{name}.jpg" for name in names])

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        name = Path(record.image_id).with_suffix(".png")
        return LabelMaps(
            _read_annotation(self.root / "SegmentationClass" / name),
            _read_annotation(self.root / "SegmentationObject" / name),
        )


class Ade20kLabeller(AnnotationLabeller):
    """
    ADE20K's release for the scene parsing challenge (150 classes): `images/<split>`, `annotations/<split>` (0 =
    unlabelled) and, if present, `annotations_instance/<split>` (the green channel counts instances).

    Args:
        root: Folder with these and `objectInfo150.txt` (`ADEChallengeData2016`).
        split (`str`): `training` or `validation`.
    """

    layout = "ade20k"

    def __init__(self, root: str | Path, split: str = "training") -> None:
        self.root, self.split = Path(root), split
        self.has_instances = (self.root / "annotations_instance").is_dir()
        info = self.root / "objectInfo150.txt"
        if not info.is_file():
            raise FileNotFoundError(f"annotations: expected the names of the classes in {info}, found none")
        lines = [line.split("\t") for line in info.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        # Columns: index from 1, ratio, train, val, names separated by commas.
        self.id2label = unique_names({int(line[0]) - 1: line[-1].split(",")[0].strip() for line in lines})

    def source(self) -> FolderSource:
        return FolderSource(self.root / "images" / self.split)

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        name = Path(record.image_id).with_suffix(".png")
        semantic = _read_annotation(self.root / "annotations" / self.split / name)
        semantic = np.where(semantic == NO_INSTANCE, IGNORE_INDEX, semantic - 1)
        instance = None
        if self.has_instances:
            path = self.root / "annotations_instance" / self.split / name
            instance = _read_annotation(path, _to_colours)[..., 1].astype(np.int32)
        return LabelMaps(semantic, instance)


class MirroredFoldersLabeller(AnnotationLabeller):
    """
    `images/a/b.jpg` beside `semantic/a/b.png` and, if present, `instance/a/b.png`: single-channel PNG as in a
    multi-granular dataset (255, or 65535 in 16 bits, = ignore; instance 0 = none). The first line of `classes.txt`
    names class 0, and so on.

    Args:
        root: Folder with these.
    """

    layout = "folders"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.has_instances = (self.root / "instance").is_dir()
        names = self.root / "classes.txt"
        if not names.is_file():
            raise FileNotFoundError(f"annotations: expected the names of the classes in {names}, one in a line")
        lines = names.read_text(encoding="utf-8").splitlines()
        self.id2label = unique_names({i: line.strip() or f"class {i}" for i, line in enumerate(lines)})

    def source(self) -> FolderSource:
        return FolderSource(self.root / "images")

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        name = Path(record.image_id).with_suffix(".png")
        instance = _read_annotation(self.root / "instance" / name) if self.has_instances else None
        return LabelMaps(_read_annotation(self.root / "semantic" / name), instance)


class ColumnsLabeller(AnnotationLabeller):
    """
    Columns `semantic` and `instance` of a dataset, in the format of a multi-granular dataset.

    Args:
        id2label (`dict[int, str]`): Names of the classes.
        semantic_column (`str`), instance_column (`str`, *optional*): Names of the columns; `None` = no instances.
    """

    layout = "columns"

    def __init__(
        self, id2label: dict[int, str], semantic_column: str = "semantic", instance_column: str | None = "instance"
    ) -> None:
        self.id2label = unique_names(id2label)
        self.semantic_column, self.instance_column = semantic_column, instance_column

    @property
    def columns(self) -> list[str]:
        """Columns that a source must carry."""
        return [name for name in (self.semantic_column, self.instance_column) if name is not None]

    def settings(self) -> dict[str, Any]:
        return {"layout": self.layout, "columns": self.columns}

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        maps = []
        for column in self.columns:
            value = (record.row or {}).get(column)
            if value is None:
                raise ValueError(f"has no {column!r} map")
            try:
                maps.append(expand_label_map(to_label_map(open_image(value, image_size=size)), size))
            except ValueError as error:
                raise ValueError(f"column {column!r}: {error}") from error
        return LabelMaps(maps[0], maps[1] if len(maps) > 1 else None)
