"""
Encoder weights to and from other libraries' plain vision transformers. Strict: a weight is used, or it belongs to a
part that is known and left out, or it is an error.

    file or folder -> read_state_dict -> convert_to_c2fmae -> C2FMAE -> convert_from_c2fmae -> timm, ViT, ViTMAE, MAE

C2FMAE's encoder has timm's names, which MAE's files share. transformers' ViT and ViTMAE have their own, which differ
between saved files (`encoder.layer.0.attention.attention.query`) and modules (`layers.0.attention.q_proj`): both are
read, and what to write is asked of the module.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from ..configuration_c2fmae import SIZES, C2FMAEConfig
from ..modeling_c2fmae import C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel


logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

FORMATS = ("timm", "vit", "vit_mae", "mae")

# Fields that C2FMAE shares with ViT and ViTMAE: those that weights tell by their shapes, and those that they do not.
_SHAPE_FIELDS = ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size", "num_channels", "qkv_bias")
_TOLD_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size")

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
# Decoders and mask tokens of pre-training, and ViT's pooler, a layer over the class token after the encoder.
_LEFT_OUT = {
    "timm": re.compile(r"decoder_(embed|pos_embed|blocks|norm|pred)\b|mask_token$"),
    "vit": re.compile(r"decoder\.|(vit\.)?embeddings\.mask_token$|(vit\.)?pooler\.dense\."),
}


def read_state_dict(source: str | os.PathLike) -> StateDict:
    """
    The weights of a checkpoint, on the CPU. PyTorch files are read with `weights_only=True` alone, which runs no code
    of theirs; the one class that is let through is `argparse.Namespace`, in which MAE records its options.

    Args:
        source: A `.safetensors`, `.pth`, `.pt`, `.bin` or `.pth.tar` file; or a folder or a name on the Hub with
            `model.safetensors` or, if there is none, `pytorch_model.bin`, in one piece or in shards.

    Returns:
        Tensors by name, out of a wrapping `model` or `state_dict` and without the prefixes of `DataParallel` and
        `torch.compile`.

    Raises:
        `ValueError`: for a file of another kind, one that cannot be read or not safely, or one without weights.
    """
    content: dict[str, Any] = {}
    for file in _weight_files(str(source)):
        if not file.endswith(".safetensors"):
            content.update(_unwrap(_read_torch_file(Path(file)), file))
            continue
        try:
            content.update(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file}: expected a safetensors file, got one that fails with {error}") from error
    return _unwrap(content, str(source))


def _read_torch_file(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a broken file stumbles anywhere
        # Not with torch's own message, which explains how to load the file unsafely.
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        got = f"one that calls for {found[1]}" if found else f"one that fails with {type(error).__name__}"
        raise ValueError(
            f"{path}: expected a PyTorch file of tensors and plain containers, got {got}. It was read with "
            "weights_only=True, so that no code of it ran. If you trust it, save the model's state_dict() alone where "
            "it was made."
        ) from None


def _weight_files(source: str) -> list[str]:
    if source.endswith((".safetensors", ".pth", ".pt", ".bin", ".pth.tar")) and not Path(source).is_dir():
        return [source]
    if Path(source).is_file():
        raise ValueError(f"source: expected a .safetensors, .pth, .pt or .bin file, got {source}")

    def find(name: str) -> str | None:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False)

    for index_name, name in ((SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME), (WEIGHTS_INDEX_NAME, WEIGHTS_NAME)):
        index = find(index_name)
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values() if index else []
        names = sorted(set(shards)) or [name]
        files = [file for file in map(find, names) if file is not None]
        if len(files) == len(names):
            return files
        if shards:
            raise ValueError(f"{source}: expected the files {names}, which {index_name} names, found {len(files)}")
    raise ValueError(
        f"source: expected a file, or a folder or a name on the Hub with {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, got "
        f"{source}"
    )


def _unwrap(content: Any, source: str = "source") -> StateDict:
    while isinstance(content, Mapping):
        inner = [content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source}: expected weights by name, got {type(content).__name__} without any")
    others = [name for name, value in content.items() if not torch.is_tensor(value) or not value.is_floating_point()]
    if others:
        raise ValueError(f"{source}: expected a floating-point tensor for each name, got others for {_few(others)}")
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return dict(content)


def _few(names: list[str]) -> str:
    return f"{sorted(map(str, names))[:6]}{' ...' if len(names) > 6 else ''} ({len(names)})"


def convert_to_c2fmae(
    source: Mapping[str, Any] | nn.Module,
    config: PreTrainedConfig | None = None,
    *,
    num_attention_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    layer_norm_eps: float | None = None,
    pooling: str | None = None,
    encoder_only: bool = False,
    dtype: torch.dtype = torch.float32,
) -> C2FMAEModel | C2FMAEForImageClassification:
    """
    A C2FMAE encoder, or a classifier where the source has a head, with the source's features. Shapes tell the sizes;
    the model, its configuration or the arguments tell the rest. Position tables are kept as they are; one without a
    class position gets a zero there. Left out, with a line in the log: the decoders and mask tokens of MAE, ViTMAE and
    ViT, and ViT's pooler, which comes after the encoder. Dropout rates are not taken over.

    Args:
        source: A state dict, such as [`read_state_dict`] returns, of timm's `VisionTransformer`, of MAE, or of ViT or
            ViTMAE of transformers; or such a model.
        config (`ViTConfig` or `ViTMAEConfig`, *optional*): Of a state dict. Without it the activation is taken to be
            GELU and images to be square, for which the position table must have a class position.
        num_attention_heads (`int`, *optional*): By default the source's; of a state dict alone that of `SIZES`.
        image_size (`int` or `(height, width)`, *optional*): By default the source's.
        layer_norm_eps (`float`, *optional*): By default the source's; of a state dict alone 1e-6 for timm and MAE, and
            1e-12 for ViT and ViTMAE. Another value than the source's changes features slightly.
        pooling (`"mean"` or `"cls"`, *optional*): What a head reads after the final norm: the source's, which for ViT
            is `"cls"`. To be given for a state dict in timm's names with a head. An encoder's is free; by default
            timm's `global_pool`, else the configuration's default.
        encoder_only (`bool`): Leave a head out.
        dtype (`torch.dtype`): Of the result. Half-precision weights, too, become float32 by default.

    Returns:
        The model, in evaluation mode, with weights of its own. Its configuration's `converted_from` names the source.

    Raises:
        `ValueError`: naming weights that are missing, have another shape or are of nothing that C2FMAE has (register
            tokens, layer scale, `fc_norm` ...), or a field that is not told, contradicts the source or cannot be had.
    """
    origin = _name_of(source)
    source = getattr(source, "timm_model", source)  # of transformers' wrapper
    told: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        if isinstance(source, VisionTransformer):
            told = _timm_fields(source)
        elif isinstance(source, PreTrainedModel):
            config = source.config
        else:
            raise ValueError(f"source: expected timm's VisionTransformer, ViT or ViTMAE, got {type(source).__name__}")
        source = source.state_dict()
    if config is not None:
        if not isinstance(config, (ViTConfig, ViTMAEConfig)):
            raise ValueError(f"config: expected a ViTConfig or ViTMAEConfig, got {type(config).__name__}")
        told = {name: getattr(config, name) for name in (*_TOLD_FIELDS, "id2label")}
    family, weights, left_out = _recognise(_unwrap(source))
    if encoder_only:
        left_out += [name for name in weights if name.startswith("head.")]
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}

    has_head = "head.weight" in weights
    fields = _fields_of_shapes(weights)
    for name, value in (("num_attention_heads", num_attention_heads), ("image_size", image_size)):
        if value is not None and _pair(told.setdefault(name, value)) != _pair(value):
            raise ValueError(f"{name}: expected the source's {told[name]}, got {value}")
    fields["hidden_act"] = told.get("hidden_act", "gelu")
    fields["layer_norm_eps"] = layer_norm_eps or told.get("layer_norm_eps", 1e-12 if family == "vit" else 1e-6)
    fields["num_attention_heads"] = told.get("num_attention_heads") or _heads_of_size(fields)
    patch_size = fields["patch_size"]
    fields["image_size"], weights["pos_embed"] = _fit_positions(
        weights["pos_embed"], patch_size, told.get("image_size")
    )
    own_pooling = "cls" if family == "vit" and has_head else told.get("pooling")
    fields.update(_pooling(own_pooling, pooling, has_head))
    if has_head:
        num_labels, id2label = len(weights["head.weight"]), told.get("id2label") or {}
        fields.update({"id2label": id2label} if len(id2label) == num_labels else {"num_labels": num_labels})
    fields["converted_from"] = origin
    # A stride that divides the patch: of four pixels, as everywhere, or half of a patch of 14.
    fields["label_stride"] = next(stride for stride in (4, 7, patch_size) if patch_size % stride == 0)

    with torch.device("meta"):
        model = (C2FMAEForImageClassification if has_head else C2FMAEModel)(C2FMAEConfig(**fields))
    if has_head:
        weights = {
            re.sub("^head", "classifier", n) if n.startswith("head.") else f"c2fmae.{n}": v for n, v in weights.items()
        }
    try:
        model.load_state_dict({n: v.detach().to(dtype, copy=True) for n, v in weights.items()}, assign=True)
    except RuntimeError as error:  # it names the weights
        raise ValueError(f"source: expected the shapes of one vision transformer, got others. {error}") from error
    logger.info("Recognised a vision transformer in %s's names: %s.", "ViT" if family == "vit" else "timm", fields)
    if left_out:
        parts = sorted({re.sub(r"\.(\d|dense|weight|bias).*", "", name) for name in left_out})
        logger.warning("Left out, as no part of the encoder: %s (%d weights).", ", ".join(parts), len(left_out))
    return model.eval()


def _name_of(source: Any) -> str:
    """What the source calls itself: a name on the Hub, the last part of a path, or an architecture."""
    cfg = getattr(source, "pretrained_cfg", None) or {}
    names = (getattr(source, "name_or_path", None), cfg.get("hf_hub_id"), cfg.get("architecture"))
    name = next((str(name) for name in names if name), "weights without a name")
    return Path(name).name if Path(name).exists() or name.count("/") > 1 else name


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _timm_fields(model: VisionTransformer) -> dict[str, Any]:
    """What weights do not tell. Blocks that compute something else under the same names are an error."""
    blocks: Any = model.blocks
    kinds = {type(model), *map(type, blocks)}
    if kinds != {VisionTransformer, Block}:
        names = sorted(kind.__name__ for kind in kinds)
        raise ValueError(f"source: expected timm's VisionTransformer of plain pre-norm blocks, got {names}")
    activations = {repr(block.mlp.act) for block in blocks}
    if not activations <= {"GELU(approximate='none')", "GELU()"}:
        raise ValueError(f"hidden_act: expected GELU in every block, got {sorted(activations)}")
    epsilons = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    if len(epsilons) != 1:
        raise ValueError(f"layer_norm_eps: expected layer norms of one epsilon, got {sorted(epsilons)}")
    pooling = {"token": "cls", "avg": "mean"}.get(model.global_pool, model.global_pool)
    if pooling == "mean" and getattr(model, "pool_include_prefix", False):
        pooling = "mean of all tokens"
    return {
        "num_attention_heads": blocks[0].attn.num_heads,
        "layer_norm_eps": epsilons.pop(),
        "image_size": model.patch_embed.img_size,
        "pooling": pooling,
    }


def _recognise(state: StateDict) -> tuple[str, StateDict, list[str]]:
    """Whose names these are, `"timm"` or `"vit"`; the weights under timm's names; and the names that are left out."""
    if any("patch_embeddings.projection." in name for name in state):
        family = "vit"
    elif "patch_embed.proj.weight" in state:
        family = "timm"
    else:
        raise ValueError(f"source: expected the names of timm's, MAE's or transformers' ViT, got {_few(list(state))}")
    left_out = [name for name in state if _LEFT_OUT[family].match(name)]
    kept = {name: value for name, value in state.items() if not _LEFT_OUT[family].match(name)}
    if family == "timm":
        return family, kept, left_out
    renamed = {_timm_name(name): value for name, value in kept.items()}
    if len(renamed) != len(kept):
        raise ValueError("source: expected each weight of a ViT once, got some under two names")
    for name in [name for name in renamed if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in renamed for part in parts):
            renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return family, renamed, left_out


def _timm_name(name: str) -> str:
    """timm's name for a weight of ViT or ViTMAE; queries, keys and values are apart, `attn.q`, `attn.k`, `attn.v`."""
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def _fields_of_shapes(weights: StateDict) -> dict[str, Any]:
    """The sizes, once it is sure that exactly the weights of a plain vision transformer are there."""
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    qkv_bias = "blocks.0.attn.qkv.bias" in weights
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ["patch_embed.proj", *(f"blocks.{i}.{part}" for i in range(depth) for part in parts), "norm"]
    modules += ["head"] if "head.weight" in weights else []
    expected = {"cls_token", "pos_embed", *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}
    if not qkv_bias:
        expected -= {f"blocks.{i}.attn.qkv.bias" for i in range(depth)}
    missing, unknown = expected - set(weights), set(weights) - expected
    if missing or unknown or depth == 0:
        raise ValueError(
            f"source: expected the weights of a plain vision transformer with a class token and a final norm ({depth} "
            f"blocks, in timm's names); missing {_few(list(missing))}, of no known part {_few(list(unknown))}"
        )
    patches = weights["patch_embed.proj.weight"]
    if patches.ndim != 4 or patches.shape[2] != patches.shape[3]:
        raise ValueError(f"patch_size: expected a convolution over square patches, got weights {tuple(patches.shape)}")
    intermediate_size = weights["blocks.0.mlp.fc1.weight"].shape[0]
    sizes = (patches.shape[0], depth, intermediate_size, patches.shape[2], patches.shape[1], qkv_bias)
    return dict(zip(_SHAPE_FIELDS, sizes))


def _heads_of_size(fields: dict[str, Any]) -> int:
    names = ("hidden_size", "num_hidden_layers", "intermediate_size")
    for size in SIZES.values():
        if all(size[name] == fields[name] for name in names):
            return size["num_attention_heads"]
    got = ", ".join(f"{name}={fields[name]}" for name in names)
    raise ValueError(
        f"num_attention_heads: expected a number, which the weights of no known size need, got None ({got})"
    )


def _fit_positions(table: torch.Tensor, patch_size: int, image_size: Any) -> tuple[list[int], torch.Tensor]:
    """The image's height and width, and the table with a class position: `(1, 1 + N, width)`."""
    length = table.shape[1] if table.ndim == 3 else 0
    if image_size is None:
        side = math.isqrt(max(length - 1, 0))
        # Not a guess at a table without a class position: nine positions are those of 3 x 3 patches, or of 2 x 4.
        if side == 0 or side * side != length - 1:
            raise ValueError(f"image_size: expected it, as {length} positions are not 1 + those of a square, got None")
        image_size = side * patch_size
    height, width = _pair(image_size)
    num_patches = (height // patch_size) * (width // patch_size)
    if length == num_patches:  # timm's `no_embed_class`
        return [height, width], nn.functional.pad(table, (0, 0, 1, 0))
    if length != num_patches + 1:
        raise ValueError(
            f"image_size: expected one of {length} positions, got {height} x {width}: {num_patches} patches"
        )
    return [height, width], table


def _pooling(own: str | None, given: str | None, has_head: bool) -> dict[str, str]:
    """The field `pooling`, if the source or the caller tell it. A head binds it to the source's."""
    known = ("mean", "cls")
    choice = given or own
    if given not in (None, *known) or (has_head and (choice not in known or own not in (None, choice))):
        own_name = "not told" if own is None else repr(own)
        raise ValueError(
            f"pooling: expected one of {known}, as a head of the source reads ({own_name}), got {given!r}"
        )
    return {"pooling": choice} if choice in known else {}


def convert_from_c2fmae(model: C2FMAEModel | C2FMAEForImageClassification | C2FMAEForPreTraining, format: str) -> Any:
    """
    The encoder, or classifier, for another library.

    Args:
        model: Of a pre-training model the encoder for images is taken.
        format (`str`): One of `FORMATS`.

    Returns:
        With weights of its own, in the model's dtype:

        - `"timm"`: a state dict for `VisionTransformer`, with `global_pool="avg", fc_norm=False` or `"token"`;
        - `"vit"`: a `ViTModel` without pooler, or a `ViTForImageClassification`, in evaluation mode;
        - `"vit_mae"`: a `ViTMAEModel`, in evaluation mode;
        - `"mae"`: `{"model": state_dict}`, which MAE's programs load once `torch.save` has written it.

    Raises:
        `ValueError`: naming the field that the format cannot express.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {FORMATS}, got {format!r}")
    if isinstance(model, C2FMAEForPreTraining):
        model = model.image_encoder()
    if not isinstance(model, (C2FMAEModel, C2FMAEForImageClassification)):
        raise ValueError(
            f"model: expected an encoder, a classifier or a pre-training model, got {type(model).__name__}"
        )
    config = model.config
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    weights = {name.removeprefix("c2fmae.").replace("classifier.", "head."): value for name, value in state.items()}
    has_head = "head.weight" in weights
    _check_expressible(config, format, has_head)
    if format in ("timm", "mae"):
        return weights if format == "timm" else {"model": weights}

    fields = {name: getattr(config, name) for name in (*_SHAPE_FIELDS, *_TOLD_FIELDS)}
    target: PreTrainedModel
    with torch.device("meta"):
        if format == "vit_mae":
            target = ViTMAEModel(ViTMAEConfig(**fields))
        elif has_head:
            target = ViTForImageClassification(ViTConfig(**fields, id2label=config.id2label, label2id=config.label2id))
        else:
            target = ViTModel(ViTConfig(**fields), add_pooling_layer=False)
    for name in [name for name in weights if ".attn.qkv." in name]:
        for part, value in zip("qkv", weights.pop(name).chunk(3)):
            weights[name.replace(".attn.qkv.", f".attn.{part}.")] = value.clone()
    target.load_state_dict({name: weights.pop(_timm_name(name)) for name in target.state_dict()}, assign=True)
    assert not weights, f"weights that {type(target).__name__} does not take: {_few(list(weights))}"
    return target.eval()


def _check_expressible(config: C2FMAEConfig, format: str, has_head: bool) -> None:
    height, width = config.image_height_width
    timm_like = format in ("timm", "mae")
    for holds, field, expected in (
        (config.input_granularities == ["image"], "input_granularities", ["image"]),
        (not timm_like or config.hidden_act == "gelu", "hidden_act", "gelu"),
        (not timm_like or config.layer_norm_eps == 1e-6, "layer_norm_eps", 1e-6),
        (format != "mae" or config.qkv_bias, "qkv_bias", True),
        (format != "mae" or height == width, "image_size", "a square"),
        (format == "timm" or not has_head or config.pooling == "cls", "pooling", "cls"),
        (format != "vit_mae" or not has_head, "num_labels", "an encoder without a head, `model.c2fmae`"),
    ):
        if not holds:
            raise ValueError(
                f"{field}: expected {expected!r} for the format {format!r}, got {getattr(config, field)!r}"
            )


__all__ = ["FORMATS", "convert_from_c2fmae", "convert_to_c2fmae", "read_state_dict"]
