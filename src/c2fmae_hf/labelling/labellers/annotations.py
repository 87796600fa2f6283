"""Labels made by people: COCO, ADE20K, PASCAL VOC, mirrored folders, columns of a dataset."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ...constants import IGNORE_INDEX
from ...images import MAX_IMAGE_PIXELS, check_lossless, expand_label_map, open_image, to_label_map
from ...utils.coco_annotations import (
    check_image_entry,
    check_inside,
    check_object,
    check_segments,
    object_mask,
    read_coco,
    refuse_repeated,
)
from ...utils.files import file_sha256, read_lines
from ...utils.packages import require
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
    Base class for layouts of annotations. An image whose annotation is missing, damaged or of another size is
    rejected.
    """

    batch_size = 1
    summary = "The maps are the annotations of the source and are under its licence."
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

    kind: str
    # 1 if class 0 is the background.
    first_class = 0

    def __init__(self, images: str | Path, annotations: str | Path) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        self.start()
        self.class_ids = {category: number for number, category in enumerate(self.content.names, self.first_class)}
        names = {self.class_ids[category]: name for category, name in self.content.names.items()}
        self.id2label = unique_names({0: "background", **names} if self.first_class else names)

    def settings(self) -> dict[str, Any]:
        return {"layout": self.layout, "annotations_sha256": file_sha256(self.annotations)}

    def start(self, worker: int = 0) -> None:
        self.content = read_coco(self.annotations, self.kind)
        self.image_ids: dict[str, int | str] = {}
        self.errors: dict[str, str] = {}
        for image_id, entry in self.content.images.items():
            name = entry.get("file_name")
            path = str(PurePosixPath(name)) if isinstance(name, str) else f"image {image_id}, without a name"
            self.image_ids[path] = image_id
            if (error := _why_outside(name)) is not None:
                self.errors[path] = error

    def source(self) -> FolderSource:
        return FolderSource(self.images, paths=list(self.image_ids), errors=self.errors)

    def find(self, record: SourceRecord) -> int | str:
        if record.image_id not in self.image_ids:
            raise ValueError(f"has no entry in {self.annotations.name}")
        return self.image_ids[record.image_id]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "content"}


def _why_outside(name: Any) -> str | None:
    """Why a file name is refused, such as one outside the image folder; `None` if it may be read."""
    try:
        check_inside(name)
    except ValueError as error:
        return str(error)
    return None


class CocoInstancesLabeller(_CocoLabeller):
    """
    COCO's instances format, polygons or run lengths. Class 0 is the background; the categories follow in the order of
    their ids. A smaller object lies over a larger one. A crowd gives its class and is ignored in the instance map.

    Args:
        images: Folder of the images.
        annotations: The JSON file.

    Raises:
        `ImportError`: if pycocotools is not installed.
        `ValueError`: if the file is not of that format.
    """

    libraries = ("pycocotools",)
    layout = "coco"
    kind = "instances"
    first_class = 1

    def __init__(self, images: str | Path, annotations: str | Path) -> None:
        require("pycocotools", "COCO's annotations")
        super().__init__(images, annotations)

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        image_id = self.find(record)
        own_size = check_image_entry(self.content.images[image_id], MAX_IMAGE_PIXELS)
        semantic = np.zeros(own_size, dtype=np.int32)
        instance = np.zeros_like(semantic)
        painted = []
        for number, annotation in enumerate(self.content.annotations[image_id], start=1):
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
    map. An image whose segments are not those of its PNG file is rejected.

    Args:
        images: Folder of the images.
        annotations: The JSON file.
        segments: Folder of PNG files with segment ids. Default: the folder beside the JSON file with its name.

    Raises:
        `FileNotFoundError`: if there is no such folder.
        `ValueError`: if the file is not of that format.
    """

    layout = "coco_panoptic"
    kind = "panoptic"

    def __init__(self, images: str | Path, annotations: str | Path, segments: str | Path | None = None) -> None:
        self.segments = Path(segments) if segments is not None else Path(annotations).with_suffix("")
        super().__init__(images, annotations)
        if not self.segments.is_dir():
            raise FileNotFoundError(f"annotations: expected a folder of PNG files at {self.segments}, found none")

    def files(self, record: SourceRecord) -> list[Path]:
        entries = self.content.annotations[self.find(record)]
        if len(entries) != 1:
            raise ValueError(f"expected one annotation in {self.annotations.name}, got {len(entries)}")
        check_segments(entries[0], self.class_ids)
        return [self.segments / entries[0]["file_name"]]

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        (path,) = self.files(record)
        (entry,) = self.content.annotations[self.find(record)]
        colours = _read_annotation(path, size, _to_colours).astype(np.int64)
        ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        segments = check_segments(entry, self.class_ids)
        listed, drawn = {0, *(segment["id"] for segment in segments)}, {0, *np.unique(ids).tolist()}
        if listed != drawn:
            raise ValueError(
                f"annotation {path}: expected the segments of {self.annotations.name}, got others: "
                f"{sorted(listed ^ drawn)[:5]} are in one of the two only"
            )
        semantic = np.full(ids.shape, IGNORE_INDEX, dtype=np.int32)
        instance = np.zeros(ids.shape, dtype=np.int32)
        number = 0
        for segment in segments:
            mask = ids == segment["id"]
            semantic[mask] = self.class_ids[segment["category_id"]]
            if segment.get("iscrowd"):
                instance[mask] = IGNORE_INDEX
            elif segment["category_id"] in self.content.things:
                number += 1
                instance[mask] = number
        return LabelMaps(semantic, instance)


def _read_annotation(
    path: Path, size: tuple[int, int], read: Callable[[Image.Image], np.ndarray] = to_label_map
) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"has no annotation {path}")
    try:
        return read(open_image(str(path), image_size=size))
    except ValueError as error:
        raise ValueError(f"annotation {path}: {error}") from error


def _to_colours(image: Image.Image) -> np.ndarray:
    """`(height, width, 3)` of an image whose colours are ids."""
    check_lossless(image)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"expected ids as colours, RGB, got an image of mode {image.mode!r}")
    return np.asarray(image)[..., :3]


class VocLabeller(AnnotationLabeller):
    """
    PASCAL VOC: `JPEGImages`, `SegmentationClass`, `SegmentationObject` and `ImageSets/Segmentation/<split>.txt`.

    Args:
        root: Folder with these (`VOC2012`).
        split (`str`): `train`, `val` or `trainval`.

    Raises:
        `FileNotFoundError`: if the split's list is not there.
        `ValueError`: if it has a name twice.
    """

    layout = "voc"

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root)
        path = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        self.names = [
            line.strip() for line in read_lines(path, "annotations: expected names of images") if line.strip()
        ]
        refuse_repeated(f"every name in {path}", self.names)
        self.id2label = dict(enumerate(VOC_CLASSES))

    def source(self) -> FolderSource:
        paths = [f"{name}.jpg" for name in self.names]
        errors = {path: error for path in paths if (error := _why_outside(path)) is not None}
        return FolderSource(self.root / "JPEGImages", paths=paths, errors=errors)

    def files(self, record: SourceRecord) -> list[Path]:
        name = Path(record.image_id).with_suffix(".png")
        return [self.root / "SegmentationClass" / name, self.root / "SegmentationObject" / name]

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        semantic, instance = (_read_annotation(path, size) for path in self.files(record))
        return LabelMaps(semantic, instance)


class Ade20kLabeller(AnnotationLabeller):
    """
    ADE20K's release for the scene parsing challenge (150 classes): `images/<split>`, `annotations/<split>` (0 and 255
    = unlabelled) and, if present, `annotations_instance/<split>` (the green channel counts instances).

    Args:
        root: Folder with these and `objectInfo150.txt` (`ADEChallengeData2016`).
        split (`str`): `training` or `validation`.

    Raises:
        `FileNotFoundError`: if `objectInfo150.txt` is not there.
        `ValueError`: if its lines do not begin with 1, 2, ...
    """

    layout = "ade20k"

    def __init__(self, root: str | Path, split: str = "training") -> None:
        self.root, self.split = Path(root), split
        self.has_instances = (self.root / "annotations_instance").is_dir()
        info = self.root / "objectInfo150.txt"
        lines = [
            line.split("\t")
            for line in read_lines(info, "annotations: expected names of the classes")[1:]
            if line.strip()
        ]
        # Columns: index from 1, ratio, train, val, names separated by commas.
        for number, line in enumerate(lines, start=1):
            if len(line) < 2 or line[0].strip() != str(number):
                raise ValueError(f"annotations: expected class {number} and its names in {info}, got {line}")
        if not lines:
            raise ValueError(f"annotations: expected classes in {info}, got none")
        self.id2label = unique_names({i: line[-1].split(",")[0].strip() for i, line in enumerate(lines)})

    def source(self) -> FolderSource:
        return FolderSource(self.root / "images" / self.split)

    def files(self, record: SourceRecord) -> list[Path]:
        folders = ["annotations", "annotations_instance"] if self.has_instances else ["annotations"]
        name = Path(record.image_id).with_suffix(".png")
        return [self.root / folder / self.split / name for folder in folders]

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        path, *instances = self.files(record)
        semantic = _read_annotation(path, size)
        semantic = np.where(semantic > 0, semantic - 1, IGNORE_INDEX)
        instance = None
        for instance_path in instances:
            instance = _read_annotation(instance_path, size, _to_colours)[..., 1].astype(np.int32)
        return LabelMaps(semantic, instance)


class MirroredFoldersLabeller(AnnotationLabeller):
    """
    `images/a/b.jpg` beside `semantic/a/b.png` and, if present, `instance/a/b.png`: single-channel PNG as in a
    multi-granular dataset (255, or 65535 in 16 bits, = ignore; instance 0 = none). The first line of `classes.txt`
    names class 0, and so on.

    Args:
        root: Folder with these.

    Raises:
        `FileNotFoundError`: if `classes.txt` is not there.
        `ValueError`: if it names no class.
    """

    layout = "folders"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.has_instances = (self.root / "instance").is_dir()
        names = self.root / "classes.txt"
        lines = read_lines(names, "annotations: expected names of the classes")
        if not lines:
            raise ValueError(f"annotations: expected names of the classes in {names}, one in a line, got none")
        self.id2label = unique_names({i: line.strip() or f"class {i}" for i, line in enumerate(lines)})

    def source(self) -> FolderSource:
        return FolderSource(self.root / "images")

    def files(self, record: SourceRecord) -> list[Path]:
        folders = ["semantic", "instance"] if self.has_instances else ["semantic"]
        return [self.root / folder / Path(record.image_id).with_suffix(".png") for folder in folders]

    def read_maps(self, record: SourceRecord, size: tuple[int, int]) -> LabelMaps:
        semantic, *instance = (_read_annotation(path, size) for path in self.files(record))
        return LabelMaps(semantic, instance[0] if instance else None)


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
            if value is None and column == self.instance_column:
                continue  # the classes of an image count without instances, too
            if value is None:
                raise ValueError(f"has no {column!r} map")
            try:
                maps.append(expand_label_map(to_label_map(open_image(value, image_size=size)), size))
            except ValueError as error:
                raise ValueError(f"column {column!r}: {error}") from error
        return LabelMaps(maps[0], maps[1] if len(maps) > 1 else None)
