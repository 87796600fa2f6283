"""Labels from a universal segmentation model of transformers: both maps in one forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation, AutoProcessor

from ...constants import IGNORE_INDEX, NO_INSTANCE
from ..records import LabelMaps, PreparedImage
from .base import Labeller, unique_names
from .checkpoints import check_dtype, find_things, identify_checkpoint, limit_size, pick_device, pick_dtype


class PanopticLabeller(Labeller):
    """
    Maps from a checkpoint of `AutoModelForUniversalSegmentation` (Mask2Former, MaskFormer, OneFormer, EoMT, DETR, ...)
    and its processor's panoptic post-processing. Segments of thing classes become instances; others only give their
    class. Pixels outside all segments are ignored in both maps.

    Args:
        checkpoint (`str`): Name on the Hub or folder.
        thing_classes (`str`, *optional*): See [`find_things`].
        threshold, mask_threshold, overlap_mask_area_threshold (`float`, *optional*): Options of the
            post-processing. Default: the processor's own.
        map_size (`int`): Longest side of the computed maps. A hundred masks of a 12-megapixel photograph would need a
            lot of memory.
        batch_size (`int`): Images per forward pass.
        device, dtype (`str`, *optional*): Default: an accelerator with bfloat16, else the CPU with float32.
        revision (`str`, *optional*): Revision of a checkpoint on the Hub.

    Raises:
        `ValueError`: if things are neither given nor known, or for an unknown `dtype`.
    """

    name = "panoptic"
    libraries = ("torch", "transformers")

    def __init__(
        self,
        checkpoint: str,
        thing_classes: str | None = None,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_mask_area_threshold: float | None = None,
        map_size: int = 1024,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
    ) -> None:
        check_dtype(dtype)
        self.checkpoint, self.revision = checkpoint, revision
        self.config = AutoConfig.from_pretrained(checkpoint, revision=revision)
        id2label = {int(index): name for index, name in self.config.id2label.items()}
        self.things = find_things(id2label, thing_classes)
        self.id2label = unique_names(id2label)
        thresholds = {
            "threshold": threshold,
            "mask_threshold": mask_threshold,
            "overlap_mask_area_threshold": overlap_mask_area_threshold,
        }
        self.thresholds = {name: value for name, value in thresholds.items() if value is not None}
        self.map_size, self.batch_size = map_size, batch_size
        self.device_name, self.dtype_name = device, dtype
        self.summary = (
            f"The maps are predictions of `{Path(checkpoint).name if Path(checkpoint).is_dir() else checkpoint}` "
            f"({self.config.model_type}) and inherit its mistakes, its classes and its licence; they were not checked."
        )
        self.model: Any = None

    def settings(self) -> dict[str, Any]:
        return {
            **identify_checkpoint(self.checkpoint, self.config),
            "things": sorted(self.things),
            **self.thresholds,
            "map_size": self.map_size,
            "batch_size": self.batch_size,
            "dtype": self.dtype_name,
        }

    def start(self, worker: int = 0) -> None:
        device = pick_device(self.device_name, worker)
        dtype = pick_dtype(self.dtype_name, device)
        # OneFormer takes its task in words, so its processor has a tokenizer.
        processor_class = AutoProcessor if self.config.model_type == "oneformer" else AutoImageProcessor
        self.processor = processor_class.from_pretrained(self.checkpoint, revision=self.revision)
        model = AutoModelForUniversalSegmentation.from_pretrained(self.checkpoint, revision=self.revision, dtype=dtype)
        self.model = model.to(device).eval()
        self.image_processor = getattr(self.processor, "image_processor", self.processor)
        if not hasattr(self.image_processor, "post_process_panoptic_segmentation"):
            raise ValueError(
                f"checkpoint: expected a processor with post_process_panoptic_segmentation, got "
                f"{type(self.image_processor).__name__} of {self.checkpoint!r}"
            )
        parameters = inspect.signature(self.image_processor.post_process_panoptic_segmentation).parameters
        # The library's fusing can give the same id to different segments; stuff is fused by class in `_read_maps`.
        self.post_process_options: dict[str, Any] = {**self.thresholds}
        if "label_ids_to_fuse" in parameters:
            self.post_process_options["label_ids_to_fuse"] = set()

    @torch.inference_mode()
    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        images = [prepared.image for prepared in batch]
        if self.config.model_type == "oneformer":
            inputs = self.processor(images=images, task_inputs=["panoptic"] * len(images), return_tensors="pt")
        else:
            inputs = self.processor(images=images, return_tensors="pt")
        pixel_mask = inputs.get("pixel_mask")
        inputs = inputs.to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        outputs = self.model(**{name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        return [
            self._read_maps(outputs, index, None if pixel_mask is None else pixel_mask[index], image.size[::-1])
            for index, image in enumerate(images)
        ]

    def _read_maps(
        self, outputs: Any, index: int, pixel_mask: torch.Tensor | None, image_size: tuple[int, int]
    ) -> LabelMaps:
        size = limit_size(image_size, self.map_size)
        result = self.image_processor.post_process_panoptic_segmentation(
            _select_image(outputs, index, pixel_mask), target_sizes=[size], **self.post_process_options
        )[0]
        segmentation = result["segmentation"].long().cpu().numpy()
        semantic = np.full(size, IGNORE_INDEX, dtype=np.int32)
        instance = np.full(size, IGNORE_INDEX, dtype=np.int32)
        number = 0
        for segment in result["segments_info"]:
            place = segmentation == segment["id"]
            semantic[place] = segment["label_id"]
            instance[place] = NO_INSTANCE
            if segment["label_id"] in self.things:
                number += 1
                instance[place] = number
        return LabelMaps(semantic, instance)


class _ImageOutputs(dict):
    """A model's outputs for one image, readable as attributes, as the post-processing expects."""

    __getattr__ = dict.__getitem__


def _select_image(outputs: Any, index: int, pixel_mask: torch.Tensor | None) -> _ImageOutputs:
    """
    Outputs for one image of a batch, in float32, with the padding cut off its masks: the library's post-processing
    would stretch the padded area over the image.
    """
    selected = _ImageOutputs()
    for name in ("class_queries_logits", "masks_queries_logits", "logits", "pred_masks"):
        value = outputs.get(name)
        if isinstance(value, torch.Tensor):
            selected[name] = value[index : index + 1].float()
    if pixel_mask is not None:
        filled = (int(pixel_mask.any(dim=1).sum()), int(pixel_mask.any(dim=0).sum()))
        for name in ("masks_queries_logits", "pred_masks"):
            if name in selected:
                cells = selected[name].shape[-2:]
                height, width = (
                    max(round(part * number / side), 1) for part, number, side in zip(filled, cells, pixel_mask.shape)
                )
                selected[name] = selected[name][..., :height, :width]
    return selected
