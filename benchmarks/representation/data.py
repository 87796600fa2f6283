"""
Photographs of the study, decoded once: STL-10 with masks, Caltech-101 for transfer to classes without masks, and
scenes with many regions (COCO and CamVid) as other pre-training data. All are Parquet files with the columns `image`,
`semantic`, `instance`, `label` and `image_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from c2fmae_hf.constants import IMAGENET_MEAN, IMAGENET_STD
from c2fmae_hf.data.rows import MAP_COLUMNS, undecoded
from c2fmae_hf.images import open_image, to_rgb


IMAGE_SIZE = 96
# STL-10's masks consist of squares of six pixels, so finer scores would be meaningless.
GRID = 16
NUM_CLASSES = 11
# Pre-training sources with their number of semantic classes. Scenes: 0 and COCO's 133, and eleven of CamVid.
SOURCES = {"stl10": NUM_CLASSES, "scenes": 145}
CAMVID_OFFSET = 134


@dataclass
class Labelled:
    """Images `(N, 3, 96, 96)` uint8 and their classes `(N,)`."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass
class Masked:
    """Images `(N, 3, 96, 96)` uint8 with the classes and instances `(N, 16, 16)` of their squares."""

    images: torch.Tensor
    semantic: torch.Tensor
    instance: torch.Tensor


@dataclass
class StudyData:
    """
    Data to pre-train and evaluate on.

    Args:
        source (`str`): Source of `pretraining`, one of `SOURCES`.
        pretraining: Decoded rows for [`C2FMAEDataset`]: STL-10's photographs with masks, without the test photographs,
            or the scenes.
        train, test: STL-10 with classes. Probes train on `train`, a part of STL-10's `pretraining`; no variant has
            seen `test`.
        other_train, other_test: Caltech-101 with classes.
        mask_train, mask_test: STL-10 with masks: a part of its `pretraining`, and unseen photographs.
    """

    source: str
    pretraining: list[dict[str, Any]]
    train: Labelled
    test: Labelled
    other_train: Labelled
    other_test: Labelled
    mask_train: Masked
    mask_test: Masked


def load_study_data(folder: Path, source: str = "stl10", with_pretraining: bool = True) -> StudyData:
    """
    Load the study's data.

    Args:
        folder: Folder of the Parquet files.
        source (`str`): Data to pre-train on, one of `SOURCES`.
        with_pretraining (`bool`): Whether to load `pretraining`; otherwise it is empty.

    Raises:
        `FileNotFoundError`: if a file is missing.
    """
    train, test, val = (_rows(folder, f"stl10_seg_{name}.parquet") for name in ("train", "test", "val"))
    unmasked = _rows(folder, "stl10_images_train.parquet")
    caltech = [_rows(folder, f"caltech101_{name}.parquet") for name in ("train-*", "val")]
    held_out = [_labelled(val), _labelled(unmasked)]
    pretraining: list[dict[str, Any]] = []
    if with_pretraining:
        stl10 = (_decoded(row) for rows in (train, test) for row in rows)
        pretraining = list(stl10 if source == "stl10" else _scenes(folder))
    return StudyData(
        source=source,
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
    Crop two squares of 96 pixels from each photograph, one at each end. COCO photographs use panoptic maps if they
    have them; in the others, everything that is not a thing is class 0.
    """
    panoptic, things = (_rows(folder, f"coco_{name}_train.parquet") for name in ("panoptic", "things"))
    known = set(panoptic["image_id"])
    for row in [*panoptic, *(row for row in things if row["image_id"] not in known)]:
        yield from _squares(_decoded(row))
    for row in _rows(folder, "camvid_train.parquet"):
        whole = _decoded(row)
        moved = whole["semantic"].point(lambda value: value + CAMVID_OFFSET if value < 255 else 255)
        yield from _squares({**whole, "semantic": moved})


def _squares(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    width, height = row["image"].size
    side = min(width, height)
    resampling = {"image": Image.Resampling.BICUBIC, **dict.fromkeys(MAP_COLUMNS, Image.Resampling.NEAREST)}
    for end, (left, top) in {"first": (0, 0), "last": (width - side, height - side)}.items():
        box = (left, top, left + side, top + side)
        square = {name: row[name].crop(box).resize((IMAGE_SIZE, IMAGE_SIZE), how) for name, how in resampling.items()}
        yield {**row, **square, "image_id": f"{row['image_id']}-{end}"}


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
