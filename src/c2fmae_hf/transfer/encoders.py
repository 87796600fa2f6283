"""Encoders that `AutoModel` or timm builds: configuration, weights, tokens and pooled features."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperImageProcessor,
    TimmWrapperModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
)
from transformers.image_utils import PILImageResampling

from ..configuration_c2fmae import C2FMAEConfig, crop_share, resize_before_crop
from ..constants import IMAGENET_MEAN, IMAGENET_STD
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..publishing.repository import not_found


logger = logging.getLogger(__name__)

# The field's usual 224 of 256 pixels.
CROP_PCT = 0.875

POOLINGS = ("cls", "mean")
#: Encoders narrower than this get small heads, since full ones cost a hundred times as much as the encoder.
NARROW = 384


def encoder_config(
    name: str,
    from_scratch: bool = False,
    image_size: int | None = None,
    drop_path_rate: float = 0.0,
    pooling: str | None = None,
    **options: Any,
) -> PreTrainedConfig:
    """
    Load the configuration of an encoder, set up for images of any size and for float32, however its weights are
    stored: AdamW loses most of its small steps in half precision. ViTMAE, which masks its input, becomes a ViT.

    Args:
        name (`str`): As for [`load_encoder`].
        from_scratch (`bool`): Whether its weights will be random.
        image_size (`int`, *optional*): Side of the images, for the bare name of a timm architecture.
        drop_path_rate (`float`): Stochastic depth; ignored with a warning if the model does not support it.
        pooling (`str`, *optional*): `mean` or `cls`, for C2FMAE and timm; else ignored with a warning.
        options: Further fields, such as `id2label`.

    Raises:
        `ValueError`: for the bare name of a timm architecture without `from_scratch`, or an unknown pooling.
    """
    if pooling not in (None, *POOLINGS):
        raise ValueError(f"pooling: expected one of {POOLINGS}, got {pooling!r}")
    config: PreTrainedConfig
    is_bare = not Path(name).exists() and "/" not in name and timm.is_model(name)
    if is_bare and not from_scratch:
        raise ValueError(
            f"model: expected a folder or a name on the Hub, got {name!r}, an architecture without weights; pass "
            f"'timm/{name}', or train from scratch"
        )
    if is_bare:
        config = TimmWrapperConfig(architecture=name)
        for field, value in options.items():
            setattr(config, field, value)
    else:
        try:
            config = AutoConfig.from_pretrained(name, **options)
        except OSError as error:
            if Path(name).exists():
                raise
            raise FileNotFoundError(not_found(name, error)) from error
    if isinstance(config, ViTMAEConfig):
        known = set(ViTConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
        config = ViTConfig(**{**{k: v for k, v in config.to_dict().items() if k in known}, **options})
    config.dtype = torch.float32
    if isinstance(config, TimmWrapperConfig):
        _configure_timm(config, image_size if is_bare else None, drop_path_rate, pooling)
        return config
    for field, value in (("drop_path_rate", drop_path_rate), ("pooling", pooling)):
        if value is None:
            continue
        if hasattr(config, field):
            setattr(config, field, value)  # 0, too: a saved model may have another rate
        elif value:
            logger.warning("%s: %s ignored, since a %s has none.", name, field, config.model_type)
    return config


def own_image_size(config: PreTrainedConfig) -> int:
    """
    The side in pixels of the square images that an encoder expects; 224 if its configuration does not say.

    Raises:
        `ValueError`: if it expects images that are not square.
    """
    size = getattr(config, "image_size", None)
    if isinstance(config, TimmWrapperConfig):
        shape = (getattr(config, "pretrained_cfg", None) or {}).get("input_size")
        shape = shape or timm.get_pretrained_cfg_value(config.architecture, "input_size")
        size = (config.model_args or {}).get("img_size") or (shape and shape[-2:])
    if size is None:
        return 224
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"image_size: expected a value, since the model's own size is not square: {height} x {width}")
    return height


def check_channels(config: PreTrainedConfig) -> None:
    """
    Check that an encoder reads RGB images, as the commands do.

    Raises:
        `ValueError`: if it has another number of channels.
    """
    of_timm = (getattr(config, "model_args", None) or {}).get("in_chans")
    channels = getattr(config, "num_channels", None) or of_timm or 3
    if channels != 3:
        raise ValueError(f"num_channels: expected an encoder of RGB images (3), got {channels}")


def saved_view(name: str) -> tuple[int | None, float | None]:
    """
    How a saved model sees images: side of its square input, or the shorter side of whole images, in pixels, and share
    of the central crop. `None` for what its image processor does not say.
    """
    try:
        saved = AutoImageProcessor.from_pretrained(name).to_dict()
    except (OSError, ValueError):
        return None, None
    size, share = saved.get("size") or {}, saved.get("crop_pct")
    if saved.get("do_center_crop") and saved.get("crop_size"):
        resized, size = size.get("shortest_edge"), saved["crop_size"]
        if share is None and resized and resized >= size.get("height", math.inf):
            share = size["height"] / resized
    is_square = size.get("height") == size.get("width")
    return (size.get("height") or size.get("shortest_edge")) if is_square else None, share


def _configure_timm(
    config: TimmWrapperConfig, image_size: int | None, drop_path_rate: float, pooling: str | None
) -> None:
    options: dict[str, Any] = dict(config.model_args or {})
    with torch.device("meta"):
        model = timm.create_model(config.architecture, **options)
    takes = inspect.signature(type(model).__init__).parameters
    if "dynamic_img_size" in takes:
        options["dynamic_img_size"] = True
    if image_size is not None and "img_size" in takes:
        options["img_size"] = image_size
    if drop_path_rate > 0 or "drop_path_rate" in options:
        options["drop_path_rate"] = drop_path_rate
    if pooling is not None:
        options["global_pool"] = {"mean": "avg", "cls": "token"}[pooling]
    config.model_args = options


def load_encoder(name: str, from_scratch: bool = False, **options: Any) -> PreTrainedModel:
    """
    Load an encoder by name.

    Args:
        name (`str`): A folder or a name on the Hub that `AutoModel` loads, including C2FMAE pre-training checkpoints,
            ViTMAE and `timm/...`; or the bare name of a timm architecture, which has no weights.
        from_scratch (`bool`): Random weights instead of the saved ones.
        options: Other arguments of [`encoder_config`].

    Raises:
        `ValueError`: for the bare name of a timm architecture without `from_scratch`.
    """
    config = encoder_config(name, from_scratch, **options)
    if from_scratch:
        return AutoModel.from_config(config)
    return AutoModel.from_pretrained(name, config=config)


def load_with_new_parts(auto_class: Any, name: str, new: Sequence[str] = (), **options: Any) -> PreTrainedModel:
    """
    Load a model with a new head by `from_pretrained`. transformers' report on weights is shown only if other weights
    are missing, unexpected or of another shape.

    Args:
        auto_class: Class with `from_pretrained`.
        name (`str`): A folder or a name on the Hub.
        new: Prefixes of the new weights; by default all weights outside the base model, and timm's heads.
        options: Arguments of `from_pretrained`.
    """
    source, reports = logging.getLogger("transformers.modeling_utils"), []

    def hold_back(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        reports.extend([record] * is_report)
        return not is_report

    is_expected = False
    source.addFilter(hold_back)
    try:
        model, info = auto_class.from_pretrained(name, output_loading_info=True, **options)
        prefix = f"{model.base_model_prefix}."
        heads = tuple(new) or tuple(f"{prefix}{head}." for head in ("head", "fc", "classifier"))  # timm's names
        lacking = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
        others = [key for key in lacking if not key.startswith(heads) and (new or key.startswith(prefix))]
        left_over = [key for key in info["unexpected_keys"] if "pooler." not in key]  # no head reads ViT's pooler
        is_expected = not others and not left_over
    finally:
        source.removeFilter(hold_back)
        for record in [] if is_expected else reports:
            source.handle(record)
    return model


def pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """An encoder's mean and standard deviation per channel, for pixels in [0, 1]; ImageNet's if it has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        if not Path(name).exists() and "/" not in name and timm.is_model(name):
            cfg = timm.get_pretrained_cfg(name)
            if cfg is not None:
                return list(cfg.mean), list(cfg.std)
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    data_config = getattr(processor, "data_config", {})
    mean = getattr(processor, "image_mean", None) or data_config.get("mean", IMAGENET_MEAN)
    std = getattr(processor, "image_std", None) or data_config.get("std", IMAGENET_STD)
    return list(mean), list(std)


def build_processor(name: str, config: PreTrainedConfig, image_size: int, crop_pct: float | None = None) -> Any:
    """
    The image processor for evaluation, which is saved with a model: C2FMAE's or, of other models, ViT's; without
    `crop_pct` other models keep their own at this size, which may not crop.

    Args:
        name (`str`): As for [`load_encoder`].
        config: The model's configuration.
        image_size (`int`): Side of the square input in pixels.
        crop_pct (`float`, *optional*): Side of the central crop, as a share of the resized image's shorter side.
    """
    size = {"height": image_size, "width": image_size}
    resized = resize_before_crop(image_size, crop_pct or CROP_PCT)
    if isinstance(config, C2FMAEConfig):
        share, shortest_edge = crop_share(image_size, resized), {"shortest_edge": image_size}
        return C2FMAEImageProcessor.from_config(config, size=shortest_edge, crop_size=size, crop_pct=share)
    if crop_pct is not None:
        mean, std = pixel_statistics(name)
        return ViTImageProcessor(
            size={"shortest_edge": resized},
            resample=PILImageResampling.BICUBIC,
            do_center_crop=True,
            crop_size=size,
            image_mean=mean,
            image_std=std,
        )
    try:
        processor = AutoImageProcessor.from_pretrained(name, size=size, crop_size=size)
    except (OSError, ValueError):
        processor = None
    if processor is None or isinstance(processor, TimmWrapperImageProcessor):
        # timm's processor is part of the model's configuration and cannot take another size.
        mean, std = pixel_statistics(name)
        return ViTImageProcessor(size=size, image_mean=mean, image_std=std)
    return processor


def encode_images(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Tokens of the last layer, `(B, tokens, width)`, at any image size that the model accepts."""
    options = {}
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True
    return model(pixel_values=pixel_values, **options).last_hidden_state


def pool_tokens(tokens: torch.Tensor, num_patches: int, pooling: str) -> torch.Tensor:
    """
    Pool tokens to one vector per image.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, prefix + num_patches, width)`).
        num_patches (`int`): Number of patch tokens, which come last.
        pooling (`str`): `cls` for the first token, or `mean` over the patches.

    Raises:
        `ValueError`: for an unknown pooling, or `cls` without a class token.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {POOLINGS}, got {pooling!r}")
    prefix = tokens.shape[1] - num_patches
    if pooling == "cls":
        if prefix < 1:
            raise ValueError("pooling: expected 'mean', since the encoder has no class token, got 'cls'")
        return tokens[:, 0]
    return tokens[:, prefix:].mean(dim=1)


def patch_size_of(model: PreTrainedModel) -> int:
    """
    The side of a patch in pixels.

    Raises:
        `ValueError`: if the model has no patch size.
    """
    size = getattr(model.config, "patch_size", None)
    if size is None and isinstance(model, TimmWrapperModel):
        size = getattr(getattr(model.timm_model, "patch_embed", None), "patch_size", None)
    size = size[0] if isinstance(size, (tuple, list)) else size
    if size is None:
        raise ValueError(f"model: expected a vision transformer with a patch_size, got {type(model).__name__}")
    return int(size)
