"""Labels from two models of transformers: one for semantics, one for masks without classes (SAM)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForMaskGeneration,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from ...constants import IGNORE_INDEX, NO_INSTANCE
from ..records import LabelMaps, PreparedImage
from .base import Labeller, unique_names
from .checkpoints import check_dtype, find_things, identify_checkpoint, limit_size, pick_device, pick_dtype


def resolve_masks(
    semantic: np.ndarray,
    masks: Sequence[np.ndarray],
    things: frozenset[int],
    min_area: int,
    min_purity: float,
) -> LabelMaps:
    """
    Resolve overlapping masks to one instance map:

    1. A mask's class is the commonest class under it. A mask is dropped if that class is not a thing or covers less
       than `min_purity` of the known pixels.
    2. Masks are painted from the largest to the smallest (of equal ones the first on top), so a small object lies over
       a larger one.
    3. The visible rest of a mask is an instance if it covers at least `min_area` pixels. The semantic map takes the
       mask's class there, because mask generators find outlines better than semantic models. So every instance lies in
       one class.

    Args:
        semantic: `(height, width)` class ids, -100 = ignore.
        masks: Boolean arrays of that shape.
        things (`frozenset[int]`): Classes that have instances.
        min_area (`int`): Pixels.
        min_purity (`float`): Share in [0, 1].
    """
    painted = np.zeros(semantic.shape, dtype=np.int32)
    classes = [0]
    kept = []
    for mask in masks:
        known = semantic[mask]
        known = known[known != IGNORE_INDEX]
        if len(known) == 0:
            continue
        counts = np.bincount(known)
        label = int(counts.argmax())
        if label in things and counts[label] >= min_purity * len(known):
            kept.append((int(mask.sum()), mask, label))
    kept.sort(key=lambda entry: entry[0])
    for number, (_, mask, label) in enumerate(reversed(kept), start=1):
        painted[mask] = number
        classes.append(label)
    area = np.bincount(painted.ravel(), minlength=len(classes))
    is_kept = (area >= min_area) & (np.arange(len(classes)) > 0)
    instance = np.where(is_kept[painted], painted, NO_INSTANCE)
    return LabelMaps(np.where(is_kept[painted], np.asarray(classes)[painted], semantic), instance)


class SemanticAndMasksLabeller(Labeller):
    """
    Semantics from a checkpoint of `AutoModelForSemanticSegmentation`, instances from one of
    `AutoModelForMaskGeneration` through transformers' `mask-generation` pipeline. [`resolve_masks`] resolves overlaps.

    Args:
        checkpoint (`str`): Semantic segmentation: name on the Hub or folder.
        mask_checkpoint (`str`): Mask generation: name on the Hub or folder.
        thing_classes (`str`, *optional*): See [`find_things`].
        points_per_side (`int`): Points per side of the square grid that prompts the mask generator.
        points_per_batch (`int`): Points per forward pass of the mask decoder.
        pred_iou_thresh, stability_score_thresh (`float`, *optional*): Options of the pipeline. Default: its own.
        min_area (`float`): Smallest share of the image for an instance.
        min_purity (`float`): See [`resolve_masks`].
        map_size (`int`): Images whose longer side is longer are resized to it first.
        batch_size, device, dtype, revision: As for [`PanopticLabeller`].
        mask_revision (`str`, *optional*): Revision of the mask generation checkpoint on the Hub.

    Raises:
        `ValueError`: if things are neither given nor known, or for an unknown `dtype`.
    """

    name = "semantic+masks"
    libraries = ("torch", "transformers")

    def __init__(
        self,
        checkpoint: str,
        mask_checkpoint: str,
        thing_classes: str | None = None,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        min_area: float = 0.0005,
        min_purity: float = 0.5,
        map_size: int = 1024,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        mask_revision: str | None = None,
    ) -> None:
        check_dtype(dtype)
        self.checkpoint, self.revision = checkpoint, revision
        self.mask_checkpoint, self.mask_revision = mask_checkpoint, mask_revision
        self.config = AutoConfig.from_pretrained(checkpoint, revision=revision)
        self.mask_config = AutoConfig.from_pretrained(mask_checkpoint, revision=mask_revision)
        id2label = {int(index): name for index, name in self.config.id2label.items()}
        self.things = find_things(id2label, thing_classes)
        self.id2label = unique_names(id2label)
        self.points_per_side, self.points_per_batch = points_per_side, points_per_batch
        thresholds = {"pred_iou_thresh": pred_iou_thresh, "stability_score_thresh": stability_score_thresh}
        self.thresholds = {name: value for name, value in thresholds.items() if value is not None}
        self.min_area, self.min_purity, self.map_size = min_area, min_purity, map_size
        self.batch_size, self.device_name, self.dtype_name = batch_size, device, dtype
        names = [Path(name).name if Path(name).is_dir() else name for name in (checkpoint, mask_checkpoint)]
        self.summary = (
            f"Semantics are predictions of `{names[0]}`, instances of `{names[1]}`. The maps inherit their mistakes, "
            "classes and licences; they were not checked."
        )
        self.model: Any = None

    def settings(self) -> dict[str, Any]:
        return {
            **identify_checkpoint(self.checkpoint, self.config),
            "masks": identify_checkpoint(self.mask_checkpoint, self.mask_config),
            "things": sorted(self.things),
            "points_per_side": self.points_per_side,
            **self.thresholds,
            "min_area": self.min_area,
            "min_purity": self.min_purity,
            "map_size": self.map_size,
            "batch_size": self.batch_size,
            "dtype": self.dtype_name,
        }

    def start(self, worker: int = 0) -> None:
        device = pick_device(self.device_name, worker)
        dtype = pick_dtype(self.dtype_name, device)
        self.image_processor = AutoImageProcessor.from_pretrained(self.checkpoint, revision=self.revision)
        model = AutoModelForSemanticSegmentation.from_pretrained(self.checkpoint, revision=self.revision, dtype=dtype)
        self.model = model.to(device).eval()
        mask_model = AutoModelForMaskGeneration.from_pretrained(
            self.mask_checkpoint, revision=self.mask_revision, dtype=dtype
        )
        self.generate_masks = pipeline(
            "mask-generation",
            model=mask_model.eval(),
            image_processor=AutoImageProcessor.from_pretrained(self.mask_checkpoint, revision=self.mask_revision),
            device=device,
        )

    @torch.inference_mode()
    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        images = []
        for prepared in batch:
            height, width = limit_size((prepared.image.height, prepared.image.width), self.map_size)
            images.append(prepared.image.resize((width, height), Image.Resampling.BICUBIC))
        inputs = self.image_processor(images=images, return_tensors="pt").to(self.model.device)
        outputs = self.model(pixel_values=inputs["pixel_values"].to(self.model.dtype))
        outputs["logits"] = outputs["logits"].float()
        semantic = self.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes=[(image.height, image.width) for image in images]
        )
        results = []
        for image, classes in zip(images, semantic):
            generated = self.generate_masks(
                image,
                points_per_crop=self.points_per_side,
                points_per_batch=self.points_per_batch,
                **self.thresholds,
            )
            masks = [np.asarray(mask).astype(bool) for mask in generated["masks"]]
            min_area = max(round(self.min_area * image.width * image.height), 1)
            class_map = classes.cpu().numpy().astype(np.int32)
            results.append(resolve_masks(class_map, masks, self.things, min_area, self.min_purity))
        return results
