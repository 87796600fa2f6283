"""
C2FMAE's encoders in timm's registry: timm's own `VisionTransformer` in the sizes of `SIZES`.

No weights are on the Hub yet, so `pretrained=True` needs a file: `pretrained_cfg_overlay={"file": ...}`. A folder
written by `save_pretrained` loads without this module, as `local-dir:<folder>`.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.naflexvit import _create_naflexvit_from_classic  # as timm's own models do for `use_naflex=True`
from timm.models.vision_transformer import checkpoint_filter_fn as filter_vit_checkpoint
from transformers.image_utils import PILImageResampling

from .configuration_c2fmae import C2FMAEConfig, crop_share
from .image_processing_c2fmae import C2FMAEImageProcessor, size_before_crop
from .modeling_c2fmae import BEYOND_TIMM
from .utils.files import read_json, write_json


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: VisionTransformer) -> dict[str, torch.Tensor]:
    """
    Keep the encoder's and the classifier's parameters of a file saved by any class of this package. Positions are
    resampled to the model's grid.
    """
    state_dict = {name: value for name, value in state_dict.items() if name.partition(".")[0] not in BEYOND_TIMM}
    return filter_vit_checkpoint(state_dict, model)


def _create(size: str, pretrained: bool, **kwargs) -> Any:
    keys = C2FMAEConfig.from_size(size).timm_keys()
    assert keys is not None  # timm can build every size of the table
    out_indices = kwargs.pop("out_indices", 3)
    use_naflex = kwargs.pop("use_naflex", None)
    model_args = {**keys["model_args"], **kwargs}
    if use_naflex:  # timm's own filter keeps weights that timm does not know, and reports them
        model_args.setdefault("pretrained_strict", False)
        return _create_naflexvit_from_classic(f"c2fmae_{keys['architecture']}", pretrained, **model_args)
    return build_model_with_cfg(
        VisionTransformer,
        f"c2fmae_{keys['architecture']}",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **model_args,
    )


def _cfg(size: str) -> dict:
    keys = C2FMAEConfig.from_size(size).timm_keys()
    assert keys is not None
    return {**keys["pretrained_cfg"], "url": "", "license": "apache-2.0"}


default_cfgs = generate_default_cfgs(
    {
        "c2fmae_vit_tiny_patch16_224": _cfg("tiny"),
        "c2fmae_vit_small_patch16_224": _cfg("small"),
        "c2fmae_vit_base_patch16_224": _cfg("base"),
        "c2fmae_vit_large_patch16_224": _cfg("large"),
        "c2fmae_vit_huge_patch14_224": _cfg("huge"),
    }
)


@register_model
def c2fmae_vit_tiny_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """C2FMAE ViT-Tiny/16."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def c2fmae_vit_small_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """C2FMAE ViT-Small/16."""
    return _create("small", pretrained, **kwargs)


@register_model
def c2fmae_vit_base_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """C2FMAE ViT-Base/16."""
    return _create("base", pretrained, **kwargs)


@register_model
def c2fmae_vit_large_patch16_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """C2FMAE ViT-Large/16."""
    return _create("large", pretrained, **kwargs)


@register_model
def c2fmae_vit_huge_patch14_224(pretrained: bool = False, **kwargs) -> VisionTransformer:
    """C2FMAE ViT-Huge/14."""
    return _create("huge", pretrained, **kwargs)


logger = logging.getLogger(__name__)


def convert_processor_to_timm(processor: C2FMAEImageProcessor) -> dict[str, Any]:
    """Convert an image processor to fields of timm's `pretrained_cfg`. The log warns of what timm cannot do."""
    mean, std = effective_statistics(processor)
    if not processor.do_resize:
        logger.warning("do_resize: timm resizes images, which the image processor does not.")
    fields: dict[str, Any] = {
        "mean": mean,
        "std": std,
    }
    if processor.resample is not None:
        fields["interpolation"] = PILImageResampling(processor.resample).name.lower()
    size = dict(processor.size or {})
    if size.get("height"):
        crop = processor.crop_size if processor.do_center_crop else processor.size
        fields.update(crop_mode="squash", crop_pct=crop_share(crop["height"], size["height"]))
    elif processor.do_center_crop and processor.crop_size and size.get("shortest_edge"):
        if processor.crop_size["height"] != processor.crop_size["width"]:
            logger.warning("crop_size: timm resizes to cover a crop that is not square; the image processor does not.")
        side = max(processor.crop_size["height"], processor.crop_size["width"])
        resized = size_before_crop(processor.size, processor.crop_size, processor.crop_pct)
        fields["crop_pct"] = crop_share(side, int(resized.shortest_edge or side))
    return fields


def tell_timm(folder: str | os.PathLike, processor: Any) -> None:
    """Let the configuration in a saved folder tell timm what its image processor does."""
    path = Path(folder) / "config.json"
    if not isinstance(processor, C2FMAEImageProcessor) or not path.is_file():
        return
    content = read_json(path)
    if "pretrained_cfg" in content:
        content["pretrained_cfg"].update(convert_processor_to_timm(processor))
        write_json(path, content)


def effective_statistics(processor: Any) -> tuple[list[float], list[float]]:
    """
    Mean and standard deviation, for pixels in [0, 1], that are equivalent to the processor's steps. A processor may
    skip rescaling or normalisation although it has values for them.
    """
    channels = len(processor.image_mean or [0.0] * 3)
    mean, std = [0.0] * channels, [1.0] * channels
    if processor.do_normalize:
        mean, std = list(processor.image_mean), list(processor.image_std)
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    if math.isclose(scale, 1):
        return mean, std
    return [value / scale for value in mean], [value / scale for value in std]
