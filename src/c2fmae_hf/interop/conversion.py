"""
Convert encoders and classifiers of timm and transformers to C2FMAE, and back. Every weight is used, belongs to a known
part that is left out, or is an error.

    file -> read_state_dict -> build_timm -> convert_to_c2fmae -> C2FMAE -> convert_from_c2fmae -> timm, ViT

C2FMAE's encoder and MAE's files have timm's names of weights; transformers' ViT and ViTMAE have others.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTModel

from ..configuration_c2fmae import SIZES, C2FMAEConfig
from ..modeling_c2fmae import C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel


logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

FORMATS = ("timm", "vit")

# Fields that C2FMAE shares with ViT and ViTMAE.
_WIDTHS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_VIT_FIELDS = (*_WIDTHS, "image_size", "patch_size", "num_channels", "qkv_bias", "hidden_act", "layer_norm_eps")

# From ViT's names to timm's, in this order; queries, keys and values are joined afterwards.
_RENAMINGS = (
    (r"^vit\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?([qkv])(?:_proj|uery|ey|alue)\.", r".attn.\1."),
    (r"\.attention\.(o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
# Decoders and mask tokens of pre-training, ViT's pooler after the encoder, and ViT's head if it was not loaded.
LEFT_OUT = re.compile(r"decoder[._]|(embeddings\.)?mask_token$|pooler\.dense\.|classifier\.")


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """
    Read the weights of a `.safetensors` or PyTorch file to the CPU. PyTorch files are read with `weights_only=True`,
    which runs no code from the file; `argparse.Namespace`, in which MAE records its options, is allowed.

    Returns:
        Tensors by name, unwrapped from `model` or `state_dict` and without the prefixes of `DataParallel` and
        `torch.compile`.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: for a file that cannot be read safely, or has no weights.
    """
    content: Any
    try:
        if str(path).endswith(".safetensors"):
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises various errors on other files, such as Git LFS pointers
        # Without torch's own message, which explains how to load the file unsafely.
        raise ValueError(
            f"{path}: expected a safetensors file, or a PyTorch file of tensors and plain containers, got one that "
            f"fails with {type(error).__name__}. Files are read with weights_only=True, so that none of their code "
            "runs; if you trust this one, save the model's state_dict() alone where it was made."
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    values = list(content.values()) if isinstance(content, dict) else []
    if not values or not all(torch.is_tensor(value) and value.is_floating_point() for value in values):
        got = f"{list(content)[:6]}" if values else f"{type(content).__name__} without any"
        raise ValueError(f"{path}: expected floating-point tensors by name, got {got}")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in content.items()}


def build_timm(state: StateDict, architecture: str | None = None, **model_args: Any) -> nn.Module:
    """
    Build timm's model with a file's weights, in evaluation mode. MAE's decoder is left out.

    Args:
        state: Weights in timm's or MAE's names, such as [`read_state_dict`] returns.
        architecture (`str`, *optional*): timm's name of the model. Defaults to the ViT in `SIZES` with the weights'
            width, for square images and without pooling.
        model_args: Arguments of timm's model that differ, such as `img_size`, `num_heads` or `global_pool`.

    Raises:
        `ValueError`: for an unknown architecture, or weights that are not exactly the architecture's.
    """
    weights = {name: value for name, value in state.items() if not LEFT_OUT.match(name)}
    if architecture is None:
        patches, positions = (weights.get(name, torch.empty(0)) for name in ("patch_embed.proj.weight", "pos_embed"))
        size = next((name for name, fields in SIZES.items() if fields["hidden_size"] == len(patches)), None)
        if size is None or patches.ndim != 4 or positions.ndim != 3:
            got = f"None for {list(weights)[:3]} ..."
            raise ValueError(f"architecture: expected timm's name, as no size in {list(SIZES)} fits, got {got}")
        architecture = f"vit_{size}_patch{SIZES[size]['patch_size']}_224"
        _, channels, _, patch_size = patches.shape
        side = math.isqrt(positions.shape[1] - 1) * patch_size
        sizes = {"patch_size": patch_size, "in_chans": channels, "img_size": side}
        model_args = {**sizes, "global_pool": "", "fc_norm": False, **model_args}
    if len(weights) < len(state):
        logger.warning("Left out, not part of the encoder: decoder (%d weights).", len(state) - len(weights))
    model_args["num_classes"] = len(weights["head.weight"]) if "head.weight" in weights else 0
    try:
        model = timm.create_model(architecture, **model_args)
        model.load_state_dict(weights)
    except RuntimeError as error:
        got = " ".join(str(error).split())
        got = f"{got[:300]} ..." if len(got) > 300 else got
        raise ValueError(f"source: expected the weights of timm's {architecture} {model_args}, got {got}") from None
    return model.eval()


def convert_to_c2fmae(
    source: nn.Module,
    *,
    layer_norm_eps: float | None = None,
    pooling: str | None = None,
    encoder_only: bool = False,
) -> C2FMAEModel | C2FMAEForImageClassification:
    """
    Build a C2FMAE encoder, or a classifier if the source has a head, with the source's features.

    The class token's position is zero if the source has none. The decoders and mask tokens of ViTMAE and ViT, and
    ViT's pooler, are left out with a warning. Dropout rates are not copied.

    Args:
        source: timm's `VisionTransformer`, or a ViT or ViTMAE of transformers.
        layer_norm_eps (`float`, *optional*): Defaults to the source's. Another value changes features slightly.
        pooling (`"mean"` or `"cls"`, *optional*): Pooling of an encoder, by default timm's `global_pool`, else
            `"mean"`. A classifier keeps the source's.
        encoder_only (`bool`): Whether to leave out a head.

    Returns:
        The model, in evaluation mode and float32, with weights of its own. Its configuration's `converted_from` names
        the source.

    Raises:
        `ValueError`: for another class of model, missing weights, weights of a part that C2FMAE lacks (register
            tokens, layer scale, `fc_norm` ...), or a field that C2FMAE cannot express.
    """
    origin = _name_of(source)
    source = getattr(source, "timm_model", source)  # inside transformers' wrapper
    weights = source.state_dict()
    if isinstance(source, VisionTransformer):
        fields = _timm_fields(source)
        if source.no_embed_class and "pos_embed" in weights:
            weights["pos_embed"] = nn.functional.pad(weights["pos_embed"], (0, 0, 1, 0))
    elif isinstance(source, PreTrainedModel) and isinstance(source.config, (ViTConfig, ViTMAEConfig)):
        fields = {name: getattr(source.config, name) for name in _VIT_FIELDS}
        weights = _timm_weights(weights)
        if "head.weight" in weights:
            fields.update(pooling="cls", id2label=source.config.id2label)
    else:
        raise ValueError(f"source: expected timm's VisionTransformer, ViT or ViTMAE, got {type(source).__name__}")

    left_out = [name for name in weights if LEFT_OUT.match(name) or (encoder_only and name.startswith("head."))]
    weights = {n: v.detach().to(torch.float32, copy=True) for n, v in weights.items() if n not in left_out}
    has_head = "head.weight" in weights
    own_pooling = fields.pop("pooling", "")
    if has_head and (own_pooling not in ("mean", "cls") or pooling not in (None, own_pooling)):
        raise ValueError(f"pooling: expected 'mean' or 'cls', as the head reads ({own_pooling!r}), got {pooling!r}")
    fields["pooling"] = pooling or (own_pooling if own_pooling in ("mean", "cls") else "mean")
    fields["layer_norm_eps"] = layer_norm_eps or fields["layer_norm_eps"]
    # A divisor of the patch size: 4 by default, 7 for 14-pixel patches.
    fields["label_stride"] = next(s for s in (4, 7, fields["patch_size"]) if fields["patch_size"] % s == 0)
    if has_head:
        fields.setdefault("id2label", {index: f"LABEL_{index}" for index in range(len(weights["head.weight"]))})
        weights = {f"c2fmae.{name}".replace("c2fmae.head.", "classifier."): value for name, value in weights.items()}
    with torch.device("meta"):
        config = C2FMAEConfig(**fields, converted_from=origin)
        model = (C2FMAEForImageClassification if has_head else C2FMAEModel)(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # its message names the weights
        raise ValueError(f"source: expected exactly the weights of a plain vision transformer, got {error}") from None
    logger.info("Recognised a vision transformer: %s.", fields)
    if left_out:
        parts = sorted({re.sub(r"\.(\d|dense|weight|bias).*", "", name) for name in left_out})
        logger.warning("Left out, not part of the encoder: %s (%d weights).", ", ".join(parts), len(left_out))
    return model.eval()


def _name_of(source: Any) -> str:
    """The source's name on the Hub, the last part of its path, or its architecture."""
    cfg = {"architecture": type(source).__name__, **(getattr(source, "pretrained_cfg", None) or {})}
    name = getattr(source, "name_or_path", "") or cfg.get("hf_hub_id") or cfg["architecture"]
    return Path(name).name if Path(name).exists() or name.count("/") > 1 else name


def _timm_fields(model: VisionTransformer) -> dict[str, Any]:
    """Read fields from timm's model; blocks that compute something else under the same names are an error."""
    blocks: Any = model.blocks
    kinds = {type(model), *map(type, blocks)}
    if kinds != {VisionTransformer, Block}:
        names = sorted(kind.__name__ for kind in kinds)
        raise ValueError(f"source: expected timm's VisionTransformer of plain pre-norm blocks, got {names}")
    activation = repr(blocks[0].mlp.act)
    if activation not in ("GELU(approximate='none')", "GELU()"):
        raise ValueError(f"hidden_act: expected GELU, got {activation}")
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "intermediate_size": blocks[0].mlp.fc1.out_features,
        "image_size": model.patch_embed.img_size,
        "patch_size": model.patch_embed.patch_size[0],
        "num_channels": model.patch_embed.proj.in_channels,
        "qkv_bias": blocks[0].attn.qkv.bias is not None,
        "layer_norm_eps": blocks[0].norm1.eps,
        "pooling": {"token": "cls", "avg": "mean"}.get(model.global_pool, model.global_pool),
    }


def _timm_name(name: str) -> str:
    """timm's name of a ViT's weight. Queries, keys and values are apart: `attn.q`, `attn.k`, `attn.v`."""
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def _timm_weights(state: StateDict) -> StateDict:
    """Weights of ViT or ViTMAE under timm's names."""
    weights = {_timm_name(name): value for name, value in state.items()}
    for name in [name for name in weights if ".attn.q." in name]:
        parts = [weights.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        weights[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return weights


def convert_from_c2fmae(
    model: C2FMAEModel | C2FMAEForImageClassification | C2FMAEForPreTraining, format: str
) -> VisionTransformer | ViTModel | ViTForImageClassification:
    """
    Build another library's model with an encoder's or a classifier's features.

    Args:
        model: The model; of a pre-training model, its image encoder is converted.
        format (`str`): `"timm"` for timm's `VisionTransformer`; `"vit"` for transformers' `ViTModel` without pooler,
            or `ViTForImageClassification`.

    Returns:
        The model, in evaluation mode and `model`'s dtype, with weights of its own.

    Raises:
        `ValueError`: for a field that the format cannot express.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {FORMATS}, got {format!r}")
    if isinstance(model, C2FMAEForPreTraining):
        model = model.image_encoder()
    if not isinstance(model, (C2FMAEModel, C2FMAEForImageClassification)):
        raise ValueError(f"model: expected an encoder, classifier or pre-training model, got {type(model).__name__}")
    config = model.config
    has_head = isinstance(model, C2FMAEForImageClassification)
    needed: dict[str, Any] = {"input_granularities": ["image"]}
    if format == "timm":
        needed.update(hidden_act="gelu", layer_norm_eps=1e-6)
    elif has_head:
        needed.update(pooling="cls")
    for field, value in needed.items():
        if getattr(config, field) != value:
            raise ValueError(f"{field}: expected {value!r} for {format!r}, got {getattr(config, field)!r}")
    weights = {
        name.removeprefix("c2fmae.").replace("classifier.", "head."): value.detach().clone()
        for name, value in model.state_dict().items()
    }
    fields = {name: getattr(config, name) for name in _VIT_FIELDS}
    target: Any
    with torch.device("meta"):
        if format == "timm":
            keys: Any = config.timm_keys()
            target = VisionTransformer(**keys["model_args"], num_classes=(config.num_labels or 0) if has_head else 0)
        elif has_head:
            target = ViTForImageClassification(ViTConfig(**fields, id2label=config.id2label, label2id=config.label2id))
        else:
            target = ViTModel(ViTConfig(**fields), add_pooling_layer=False)
    if format == "vit":
        for name in [name for name in weights if ".attn.qkv." in name]:
            for part, value in zip("qkv", weights.pop(name).chunk(3)):
                weights[name.replace(".attn.qkv.", f".attn.{part}.")] = value.clone()
        weights = {name: weights[_timm_name(name)] for name in target.state_dict()}
    target.load_state_dict(weights, assign=True)
    return target.eval()


__all__ = ["FORMATS", "LEFT_OUT", "build_timm", "convert_from_c2fmae", "convert_to_c2fmae", "read_state_dict"]
