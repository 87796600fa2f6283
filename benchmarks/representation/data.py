"""
Photographs of the study, decoded once: STL-10 with masks and Caltech-101 for transfer to classes without masks, or
scenes with many regions (COCO and CamVid). All are Parquet files with the columns `image`, `semantic`, `instance`,
`label` and `image_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from c2fmae_hf.constants import IMAGENET_MEAN, IMAGENET_STD
from c2fmae_hf.data.rows import MAP_COLUMNS, undecoded
from c2fmae_hf.data.transforms import evaluation_transform
from c2fmae_hf.images import open_image, to_label_map, to_rgb


IMAGE_SIZE = 96
# STL-10's masks consist of squares of six pixels, so finer scores would be meaningless.
GRID = 16
NUM_CLASSES = 11
CAMVID_OFFSET = 134
# Pixels per label cell of the scenes' maps: 56 x 56 cells.
SCENE_STRIDE = 4


class Source(NamedTuple):
    """Photographs to pre-train on: semantic classes of their maps, and side of the encoder's images in pixels."""

    num_classes: int
    image_size: int


# Classes of scenes: 0 and COCO's 133, and eleven of CamVid.
SOURCES = {"stl10": Source(NUM_CLASSES, IMAGE_SIZE), "scenes": Source(145, 224)}


@dataclass
class Labelled:
    """Images `(N, 3, 96, 96)` uint8 and their classes `(N,)`."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass
class Masked:
    """
    Images `(N, 3, 96, 96)` uint8 with the classes and instances `(N, 16, 16)` of their squares; in scenes
    `(N, 3, 224, 224)`, `(N, 56, 56)` and -100 = ignore.
    """

    images: torch.Tensor
    semantic: torch.Tensor
    instance: torch.Tensor


@dataclass
class StudyData:
    """
    Data to pre-train and evaluate on.

    Args:
        pretraining: Decoded rows for [`C2FMAEDataset`]: STL-10's photographs with masks, without the test photographs.
        train, test: STL-10 with classes. Probes train on `train`, a part of STL-10's `pretraining`; no variant has
            seen `test`.
        other_train, other_test: Caltech-101 with classes.
        mask_train, mask_test: STL-10 with masks: a part of its `pretraining`, and unseen photographs.
    """

    pretraining: list[dict[str, Any]]
    train: Labelled
    test: Labelled
    other_train: Labelled
    other_test: Labelled
    mask_train: Masked
    mask_test: Masked
    source: str = "stl10"


@dataclass
class SceneData:
    """
    Scenes to pre-train and evaluate on.

    Args:
        pretraining: Decoded rows for [`C2FMAEDataset`], whole photographs.
        scored: Training and test photographs by name, one of `SCENES`. Those of `coco_panoptic` are also in `coco`.
    """

    pretraining: list[dict[str, Any]]
    scored: dict[str, tuple[Masked, Masked]]
    source: str = "scenes"


class SceneFiles(NamedTuple):
    """Scored scenes: first words of the files' names, number of classes, and whether people have drawn instances."""

    files: str
    num_classes: int
    has_instances: bool


SCENES = {
    "coco": SceneFiles("coco_things", 81, True),
    "coco_panoptic": SceneFiles("coco_panoptic", 134, False),
    "camvid": SceneFiles("camvid", 11, False),
}


def load_study_data(folder: Path, source: str = "stl10", with_pretraining: bool = True) -> StudyData | SceneData:
    """
    Load the study's data.

    Args:
        folder: Folder of the Parquet files.
        source (`str`): Data to pre-train on, one of `SOURCES`.
        with_pretraining (`bool`): Whether to load `pretraining`; otherwise it is empty.

    Raises:
        `FileNotFoundError`: if a file is missing.
    """
    if source == "scenes":
        scored = {
            name: (
                _scored(_rows(folder, f"{one.files}_train.parquet")),
                _scored(_rows(folder, f"{one.files}_val.parquet")),
            )
            for name, one in SCENES.items()
        }
        return SceneData(list(_scenes(folder)) if with_pretraining else [], scored)
    train, test, val = (_rows(folder, f"stl10_seg_{name}.parquet") for name in ("train", "test", "val"))
    unmasked = _rows(folder, "stl10_images_train.parquet")
    caltech = [_rows(folder, f"caltech101_{name}.parquet") for name in ("train-*", "val")]
    held_out = [_labelled(val), _labelled(unmasked)]
    pretraining: list[dict[str, Any]] = []
    if with_pretraining:
        pretraining = [_decoded(row) for rows in (train, test) for row in rows]
    return StudyData(
        pretraining=pretraining,
        train=_labelled(train),
        test=Labelled(torch.cat([one.images for one in held_out]), torch.cat([one.labels for one in held_out])),
        other_train=_labelled(caltech[0]),
        other_test=_labelled(caltech[1]),
        mask_train=_masked(train),
        mask_test=_masked(val),
    )


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Normalise uint8 images for an encoder."""
    return tvF.normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))


def _rows(folder: Path, name: str) -> datasets.Dataset:
    files = sorted(str(path) for path in folder.glob(name))
    if not files:
        raise FileNotFoundError(f"{folder / name}: expected the study's data, found nothing")
    return undecoded(datasets.load_dataset("parquet", data_files=files, split="train"))


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    maps = {name: open_image(row[name]) for name in MAP_COLUMNS}
    return {"image": to_rgb(open_image(row["image"])), **maps, "image_id": row["image_id"], "label": row["label"]}


def _scenes(folder: Path) -> Iterator[dict[str, Any]]:
    """
    COCO photographs with their panoptic maps if they have them; in the others, everything that is not a thing is
    class 0. Then CamVid's, whose classes follow those of COCO.
    """
    panoptic, things = (_rows(folder, f"coco_{name}_train.parquet") for name in ("panoptic", "things"))
    known = set(panoptic["image_id"])
    for row in [*panoptic, *(row for row in things if row["image_id"] not in known)]:
        yield _decoded(row)
    for row in _rows(folder, "camvid_train.parquet"):
        whole = _decoded(row)
        moved = whole["semantic"].point(lambda value: value + CAMVID_OFFSET if value < 255 else 255)
        yield {**whole, "semantic": moved}


def _scored(rows: Sequence[dict[str, Any]]) -> Masked:
    """Resize the shorter side of scenes and take the centre crop; maps on the label grid."""
    side = SOURCES["scenes"].image_size
    transform = evaluation_transform((side, side), crop_pct=1.0, label_stride=SCENE_STRIDE)
    images, maps = [], []
    for row in map(_decoded, rows):
        ids = {name: to_label_map(row[name]) for name in MAP_COLUMNS}
        pixels, grids = transform.apply_geometry(row["image"], ids, (row["image"].height, row["image"].width))
        images.append(pixels)
        maps.append(torch.stack([grids[name].long() for name in MAP_COLUMNS]))
    semantic, instance = torch.stack(maps).unbind(dim=1)
    return Masked(torch.stack(images), semantic, instance)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """Resize the shorter side and take the centre crop, as for classification: `(3, 96, 96)` uint8."""
    image = to_rgb(image)
    if min(image.size) != IMAGE_SIZE:
        image = tvF.resize(image, IMAGE_SIZE, tvF.InterpolationMode.BICUBIC)
    return tvF.pil_to_tensor(tvF.center_crop(image, [IMAGE_SIZE, IMAGE_SIZE]))


def _labelled(rows: Sequence[dict[str, Any]]) -> Labelled:
    images = torch.stack([_to_tensor(open_image(row["image"])) for row in rows])
    return Labelled(images, torch.tensor([row["label"] for row in rows]))


def _masked(rows: Sequence[dict[str, Any]]) -> Masked:
    step = IMAGE_SIZE // GRID

    def squares(name: str) -> torch.Tensor:
        maps = [np.asarray(open_image(row[name]))[step // 2 :: step, step // 2 :: step] for row in rows]
        return torch.from_numpy(np.stack(maps).astype(np.int64))

    images = torch.stack([_to_tensor(open_image(row["image"])) for row in rows])
    return Masked(images, squares("semantic"), squares("instance"))
