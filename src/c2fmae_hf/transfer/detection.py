"""
Fine-tuning for detection and instance segmentation: detectors, trainers, and COCO's average precision. Needs
pycocotools, `pip install "c2fmae-hf[all]"`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedConfig,
)
from transformers.trainer_utils import EvalLoopOutput

from ..image_processing_c2fmae import rounded_size
from ..metrics.average_precision import average_precision, encode_objects
from .encoders import NARROW, pixel_statistics
from .fine_tuning import FineTuningTrainer, named_classes
from .modeling_encoder_backbone import build_backbone
from .modeling_mask_rcnn import MaskRCNNConfig, MaskRCNNForObjectDetection
from .objects import boxes_of, collate_lists


logger = logging.getLogger(__name__)

# Models

# Heads for encoders narrower than `NARROW`, chosen by us. Options of the caller override them.
NARROW_MASK_RCNN: dict[str, Any] = {
    "pyramid_channels": 64,
    "num_box_convolutions": 1,
    "num_mask_convolutions": 2,
    "num_rpn_convolutions": 1,
    "box_hidden_size": 256,
    "rpn_pre_nms_top_n": 300,
    "rpn_post_nms_top_n": 300,
    "box_batch_size_per_image": 64,
}
NARROW_MASK2FORMER: dict[str, Any] = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 128,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "dim_feedforward": 256,
    "num_queries": 20,
    "train_num_points": 2048,
}


def with_defaults(options: dict[str, Any], backbone_config: Any, narrow: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's options, with smaller default sizes for a narrow encoder, which are logged."""
    if backbone_config.hidden_size >= NARROW:
        return options
    sizes = ", ".join(f"{name} {value}" for name, value in narrow.items())
    logger.info("Small detector, since the encoder is narrow: %s. --detector_options overrides these.", sizes)
    return {**narrow, **options}


def check_options(config_class: type[PreTrainedConfig], options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for unknown fields, which the configuration would silently accept."""
    unknown = sorted(set(options) - set(config_class().to_dict()))
    if unknown:
        raise ValueError(f"detector_options: expected fields of {config_class.__name__}, got {unknown}")


def build_mask_rcnn(
    name: str,
    id2label: Mapping[int, str],
    from_scratch: bool = False,
    out_indices: list[int] | None = None,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> MaskRCNNForObjectDetection:
    """
    Build Mask R-CNN on an encoder. All other weights are new.

    Args:
        name (`str`), from_scratch (`bool`), drop_path_rate (`float`): As for [`build_backbone`].
        id2label: Names of the classes, without background.
        out_indices (*optional*): Blocks that feed the pyramid; by default only the last one (ViTDet).
        options: Fields of [`MaskRCNNConfig`]; by default those of `NARROW_MASK_RCNN` for encoders narrower than
            `NARROW`.
    """
    check_options(MaskRCNNConfig, options)
    backbone = build_backbone(name, from_scratch, out_indices or [-1], options.get("image_size"), drop_path_rate)
    mean, std = pixel_statistics(name)
    options = {"image_mean": mean, "image_std": std, **with_defaults(options, backbone.config, NARROW_MASK_RCNN)}
    config = MaskRCNNConfig(backbone_config=backbone.config, **named_classes(id2label), **options)
    model = MaskRCNNForObjectDetection(config)
    model.backbone.load_state_dict(backbone.state_dict())
    model.backbone.license_text = getattr(backbone, "license_text", None)  # type: ignore[assignment]
    return model


def build_mask2former(
    name: str,
    id2label: Mapping[int, str],
    from_scratch: bool = False,
    out_indices: list[int] | None = None,
    drop_path_rate: float = 0.0,
    image_size: int | None = None,
    **options: Any,
) -> Mask2FormerForUniversalSegmentation:
    """
    Build transformers' Mask2Former on an encoder's feature pyramid. All other weights are new.

    Args:
        name (`str`), from_scratch (`bool`), drop_path_rate (`float`), image_size (`int`): As for [`build_backbone`].
        id2label: Names of the classes, without background.
        out_indices (*optional*): Blocks that feed the pyramid; by default four evenly spaced ones.
        options: Fields of `Mask2FormerConfig`; by default those of `NARROW_MASK2FORMER` for encoders narrower than
            `NARROW`.
    """
    check_options(Mask2FormerConfig, options)
    backbone = build_backbone(name, from_scratch, out_indices, image_size, drop_path_rate)
    options = with_defaults(options, backbone.config, NARROW_MASK2FORMER)
    patch_size = int(backbone.config.patch_size)
    config = Mask2FormerConfig(
        backbone_config=backbone.config,
        feature_strides=[patch_size // 4, patch_size // 2, patch_size, 2 * patch_size],
        **named_classes(id2label),
        **options,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    model.model.pixel_level_module.encoder.load_state_dict(backbone.state_dict())
    model.model.pixel_level_module.encoder.license_text = getattr(backbone, "license_text", None)
    return model


# Training and scores


class DetectionTrainer(FineTuningTrainer):
    """
    [`FineTuningTrainer`] for [`MaskRCNNForObjectDetection`]. Evaluation reports COCO's average precision of boxes and
    masks: `eval_bbox_map`, `eval_bbox_map_50`, ..., `eval_segm_map`, ...; see
    [`~c2fmae_hf.metrics.average_precision.average_precision`].

    Args: those of [`FineTuningTrainer`]; `data_collator` is [`collate_lists`].
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, data_collator=collate_lists, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        outputs = model(pixel_values=inputs["pixel_values"], labels=inputs["labels"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the number depends on the detections, so it is not counted."""
        return 0

    def detect(self, model: nn.Module, inputs: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """Detections of each image: `boxes`, `scores`, `labels`, and `masks` `(N, height, width)`, bool."""
        detections = model(pixel_values=inputs["pixel_values"]).detections
        return [{**found, "masks": found["masks"] > 0.5} for found in detections]

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        model = self.accelerator.unwrap_model(self.model).eval()
        self.callback_handler.eval_dataloader = dataloader
        references, predictions, sizes = [], [], []
        for inputs in dataloader:
            inputs = self._prepare_inputs(inputs)
            with torch.inference_mode(), self.compute_loss_context_manager():
                found = self.detect(model, inputs)
            records = [
                (encode_objects(labels), encode_objects(detections), tuple(image.shape[-2:]))
                for labels, detections, image in zip(inputs["labels"], found, inputs["pixel_values"])
            ]
            # Gather from all processes, without the copies that fill up the last batch.
            for reference, prediction, size in self.accelerator.gather_for_metrics(records, use_gather_object=True):
                references.append(reference)
                predictions.append(prediction)
                sizes.append(size)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        scores = average_precision(references, predictions, sizes, model.config.id2label)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        return EvalLoopOutput(None, None, metrics, len(sizes))  # type: ignore[arg-type]


class Mask2FormerTrainer(DetectionTrainer):
    """
    [`DetectionTrainer`] for `Mask2FormerForUniversalSegmentation`. The image processor resizes and pads images and
    masks. There is at most one detection per query, and training masks do not overlap.

    Args:
        processor (`Mask2FormerImageProcessor`): With a `size` of `shortest_edge`, and `size_divisor`.
        kwargs: Arguments of [`DetectionTrainer`].
    """

    def __init__(self, *args, processor: Mask2FormerImageProcessor, **kwargs) -> None:
        super().__init__(*args, processing_class=processor, **kwargs)
        self.processor = processor

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        maps, classes = [], []
        for labels in inputs["labels"]:
            label_map = np.zeros(tuple(labels["masks"].shape[-2:]), dtype=np.int64)
            # Where objects overlap, the later one covers the earlier.
            for instance_id, mask in enumerate(labels["masks"], start=1):
                label_map[mask.bool().cpu().numpy()] = instance_id
            maps.append(label_map)
            classes.append({0: 0, **dict(enumerate(labels["class_labels"].tolist(), start=1))})
        batch = self.processor(
            list(inputs["pixel_values"]),
            maps,
            instance_id_to_semantic_id=classes,
            ignore_index=0,
            do_rescale=False,
            return_tensors="pt",
        )
        outputs = model(**self._prepare_inputs(dict(batch)))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def detect(self, model: nn.Module, inputs: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        results = []
        divisor = self.processor.size_divisor
        for image in inputs["pixel_values"]:
            own = tuple(image.shape[-2:])
            # Resize to multiples of the divisor instead of padding, which would shift the predicted masks.
            size = rounded_size(image, self.processor.size, divisor)  # type: ignore[arg-type]  # a SizeDict by now
            batch = self.processor(
                [image], size={"height": size.height, "width": size.width}, do_rescale=False, return_tensors="pt"
            )
            outputs = model(pixel_values=batch["pixel_values"].to(image.device))
            (found,) = self.processor.post_process_instance_segmentation(
                outputs, threshold=0.0, target_sizes=[own], return_binary_maps=True
            )
            segments = found["segments_info"]
            masks = torch.zeros((0, *own), dtype=torch.bool, device=image.device)
            if segments:
                masks = torch.as_tensor(found["segmentation"]).bool().reshape(-1, *own)
            filled = masks.flatten(1).any(dim=1)
            scores = torch.tensor([segment["score"] for segment in segments], device=image.device)
            labels = torch.tensor([segment["label_id"] for segment in segments], device=image.device).long()
            results.append(
                {
                    "boxes": boxes_of(masks[filled]),
                    "scores": scores[filled],
                    "labels": labels[filled],
                    "masks": masks[filled],
                }
            )
        return results
