"""Convert image processors of timm and transformers to C2FMAE's, and back."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import timm
from transformers import AutoImageProcessor, ViTImageProcessor
from transformers.image_utils import PILImageResampling

from ..configuration_c2fmae import C2FMAEConfig, crop_share
from ..image_processing_c2fmae import C2FMAEImageProcessor, size_before_crop


logger = logging.getLogger(__name__)

# Attributes that transformers' processors and C2FMAE's have in common.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_SHARED = (*_STEPS, "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")


def convert_processor_to_c2fmae(source: str, config: C2FMAEConfig) -> C2FMAEImageProcessor:
    """
    Build the image processor that goes with converted weights. The log warns of what it cannot express, or must
    change to fit the model's image size.

    Args:
        source (`str`): A folder or a name on the Hub, of transformers or timm, or the bare name of a timm
            architecture. If it has no image processor, C2FMAE's own is built, with ImageNet's statistics.
        config ([`C2FMAEConfig`]): The converted model's configuration.
    """
    if not Path(source).exists() and "/" not in source and timm.is_model(source):
        cfg = timm.get_pretrained_cfg(source)
        data_config = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict() if cfg else {})
        return C2FMAEImageProcessor.from_config(config, **_from_timm(data_config, config))
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        logger.warning("%s: found no image processor; using C2FMAE's own.", source)
        return C2FMAEImageProcessor.from_config(config)
    data_config = getattr(processor, "data_config", None)
    fields = _from_timm(data_config, config) if data_config else _from_transformers(processor, config)
    return C2FMAEImageProcessor.from_config(config, **fields)


def _from_transformers(processor: Any, config: C2FMAEConfig) -> dict[str, Any]:
    found = {name: getattr(processor, name, None) for name in _SHARED}
    fields = {name: value for name, value in found.items() if value is not None}
    fields["do_center_crop"] = bool(fields.get("do_center_crop"))
    for name in ("size", "crop_size"):
        if name in fields:
            fields[name] = {side: number for side, number in dict(fields[name]).items() if number}
    # The last step's output has the model's size.
    last = "crop_size" if fields["do_center_crop"] else "size"
    height, width = config.image_height_width
    expected = {"height": height, "width": width}
    if fields.get(last) != expected and fields.get("do_resize", True):
        logger.warning("%s: the source's image processor has %s, the model %s.", last, fields.get(last), expected)
        fields[last] = expected
    side, resized = max(height, width), fields.get("size", {}).get("shortest_edge") or 0
    fields["crop_pct"] = getattr(processor, "crop_pct", None) or 1.0
    if fields["crop_pct"] < 1 and not isinstance(processor, C2FMAEImageProcessor):  # as ConvNeXt's
        fields.update(do_center_crop=True, crop_size=expected, size={"shortest_edge": max(height, width)})
    if fields["do_center_crop"] and resized > side:  # the same in terms of the model's size
        fields.update(size={"shortest_edge": side}, crop_pct=crop_share(side, resized))
    return fields


def _from_timm(data_config: dict[str, Any], config: C2FMAEConfig) -> dict[str, Any]:
    height, width = config.image_height_width
    share, mode = data_config.get("crop_pct") or 0.875, data_config.get("crop_mode") or "center"
    interpolation = data_config.get("interpolation") or "bilinear"
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        text = "crop_mode: timm's %r of %d x %d cannot be expressed; the shorter side is resized."
        logger.warning(text, mode, height, width)
    if interpolation.upper() not in PILImageResampling.__members__:
        logger.warning("interpolation: timm's %r cannot be expressed; using bicubic.", interpolation)
        interpolation = "bicubic"
    size = {"shortest_edge": max(height, width)}
    if mode == "squash":
        size = {"height": math.floor(height / share), "width": math.floor(width / share)}  # as timm rounds
    return {
        "size": size,
        "crop_pct": share,
        "resample": PILImageResampling[interpolation.upper()],
        "image_mean": list(data_config["mean"]),
        "image_std": list(data_config["std"]),
    }


def convert_processor_to_vit(processor: C2FMAEImageProcessor) -> ViTImageProcessor:
    """Build the equivalent image processor of transformers' ViT."""
    fields = {name: getattr(processor, name) for name in _SHARED}
    if processor.do_center_crop:  # ViT's has no `crop_pct`
        fields["size"] = size_before_crop(processor.size, processor.crop_size, processor.crop_pct)
    for name in ("size", "crop_size"):
        fields[name] = {side: number for side, number in dict(fields[name] or {}).items() if number}
    return ViTImageProcessor(**fields)
