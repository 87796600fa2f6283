"""
The zoo's encoders in timm's registry. They are timm's own `VisionTransformer`, built from the one table of sizes.

No weights are on the Hub yet, so that `pretrained=True` needs a file: `pretrained_cfg_overlay={"file": ...}`. A folder
that `C2FMAEModel.save_pretrained` wrote loads without this module, as `local-dir:<folder>`.
"""

from __future__ import annotations

import torch
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn as filter_vit_checkpoint

from .configuration_c2fmae import C2FMAEConfig


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: VisionTransformer) -> dict[str, torch.Tensor]:
    """
    The encoder's parameters, and a classifier's, of any checkpoint of this package: an encoder's, or one of a class
    around it. Positions are resampled to the model's grid.
    """
    prefix = "c2fmae."
    if any(name.startswith(prefix) for name in state_dict):
        head = {
            name.replace("classifier.", "head."): value
            for name, value in state_dict.items()
            if name.startswith("classifier.")
        }
        encoder = {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}
        state_dict = {**encoder, **head}
    state_dict = {name: value for name, value in state_dict.items() if not name.startswith("label_embed.")}
    return filter_vit_checkpoint(state_dict, model)


def _create(size: str, pretrained: bool, **kwargs) -> VisionTransformer:
    keys = C2FMAEConfig.from_size(size).timm_keys()
    assert keys is not None  # every size of the table is timm's
    model_args = {**keys["model_args"], **kwargs}
    return build_model_with_cfg(
        VisionTransformer,
        f"c2fmae_{keys['architecture']}",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
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
