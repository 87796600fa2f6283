"""
Continue pre-training from the weights of another model, of C2FMAE or another library.

Weights that fit are copied, all others are new, and the log says which.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from ..configuration_c2fmae import LOSS_WEIGHTS, SIZES, C2FMAEConfig
from ..modeling_c2fmae import C2FMAEForPreTraining, C2FMAEModel
from .sources import find_processor, is_file, load_config, load_source


logger = logging.getLogger(__name__)

# Fields that the shapes and the meaning of the encoder's weights depend on.
ENCODER_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("patch_size", "num_channels", "qkv_bias", "layer_norm_eps"),
)
_DECODER_WIDTH = ("decoder_hidden_size", "decoder_num_attention_heads")
_CLASS_PARTS = (
    "c2fmae.label_embed.semantic.",
    "decoder.stages.semantic.head.",
    "decoder.stages.semantic.prediction_embed.",
)


def load_starting_point(source: str, *, counted_classes: int | None = None, **fields: Any) -> C2FMAEForPreTraining:
    """
    Build a model to pre-train from another one's weights.

    The whole encoder is copied; for another image size its positions are resampled. The decoder of a pre-training
    checkpoint is copied too, except the semantic head if the classes differ, and stages that the checkpoint lacks;
    with another width or number of heads, the whole decoder is new. An encoder alone gets a new decoder: the one that
    its configuration describes if it is C2FMAE's, else that of its size in `SIZES`.

    Args:
        source (`str`): A folder or a name on the Hub of C2FMAE (of any of its classes), ViT, ViTMAE or timm; or a file
            of weights in timm's or MAE's names (`.safetensors`, `.pth`, `.pt`, `.bin`).
        counted_classes (`int`, *optional*): Number of unnamed classes in the data. If the source has at least as many,
            they are taken to be its first classes; otherwise the semantic head is new.
        fields: Fields of [`C2FMAEConfig`] that override the source's.

    Returns:
        The model, in training mode and float32.

    Raises:
        `ValueError`: for a field that the encoder's weights do not fit, or another kind of model.
    """
    start = _load(source)
    own = start.config
    for name in ENCODER_FIELDS:
        if name in fields and fields[name] != getattr(own, name):
            raise ValueError(
                f"{name}: expected {getattr(own, name)!r}, as in the encoder of {source}, got {fields[name]!r}"
            )
    is_whole = isinstance(start, C2FMAEForPreTraining)
    is_assumed = counted_classes is not None and is_whole and counted_classes <= own.num_semantic_classes
    if counted_classes is not None and not is_assumed:
        fields["num_semantic_classes"] = counted_classes
    fields = _complete(own, fields)
    inherited = {**own.to_dict(), **fields}
    for name in ("architectures", "dtype", "id2label", "label2id", "model_type", "transformers_version"):
        inherited.pop(name, None)
    config = C2FMAEConfig(**inherited)
    is_same_width = all(getattr(own, name) == getattr(config, name) for name in _DECODER_WIDTH)
    keeps_decoder = is_whole and is_same_width
    logger.info(
        "Starting from %s: its encoder%s.", source, " and its decoder" if keeps_decoder else ", with a new decoder"
    )
    if own.image_height_width != config.image_height_width:
        sizes = tuple("{1} x {0}".format(*one.image_height_width) for one in (own, config))
        logger.info("Resampled: positions, from %s to %s pixels.", *sizes)
    settings = [name for name in fields if name not in ("image_size", "semantic_id2label", "num_semantic_classes")]
    changes = [f"{name} {getattr(own, name)} -> {getattr(config, name)}" for name in settings]
    changes = [text for name, text in zip(settings, changes) if getattr(own, name) != getattr(config, name)]
    if changes and is_whole:
        logger.info("Changed: %s.", ", ".join(changes))

    has_other_classes = _has_other_classes(own, config)
    start.resize_positions(config.image_size)
    model = C2FMAEForPreTraining(config)
    target, weights = model.state_dict(), start.state_dict()
    if not is_whole:
        weights = {f"c2fmae.{name}": value for name, value in weights.items()}
    taken = {
        name: value
        for name, value in weights.items()
        if name in target
        and value.shape == target[name].shape
        and not (has_other_classes and name.startswith(_CLASS_PARTS))
        and (keeps_decoder or not name.startswith("decoder."))
    }
    new = [name for name in target if name not in taken]
    lost = [name for name in new if name.startswith("c2fmae.") and not name.startswith("c2fmae.label_embed.")]
    if lost:
        raise ValueError(f"{source}: expected the weights of a whole encoder, got none that fit {lost[:3]}")
    model.load_state_dict({**target, **taken})
    model.license_text = start.license_text
    if keeps_decoder:
        _log_parts("New", _parts(new, target), own, config)
        _log_parts("Left out", _parts([name for name in weights if name not in target], weights), own, config)
    if is_assumed and not has_other_classes and "semantic" in config.granularities:
        logger.info(
            "Kept: the semantic head; the dataset's unnamed classes are taken to be the first of its %d. For a new "
            "head, set another number with --num_semantic_classes.",
            own.num_semantic_classes,
        )
    return model.train()


def _load(source: str) -> C2FMAEForPreTraining | C2FMAEModel:
    if not is_file(source):
        config = load_config(source)
        if isinstance(config, C2FMAEConfig) and "C2FMAEForPreTraining" in (config.architectures or ()):
            return C2FMAEForPreTraining.from_pretrained(source, dtype=torch.float32)
    model: Any
    model, _ = load_source(source, encoder_only=True)
    if is_file(source) or not isinstance(config, C2FMAEConfig):
        find_processor(source, model.config)  # sets the statistics of pixels
        size = next((size for size, row in SIZES.items() if row["hidden_size"] == model.config.hidden_size), "base")
        for name, value in SIZES[size].items():
            if name.startswith("decoder_"):
                setattr(model.config, name, value)
    return model


def _complete(own: C2FMAEConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Add the fields that follow from the given ones."""
    fields = dict(fields)
    if "granularities" in fields and "loss_weights" not in fields:
        weights = LOSS_WEIGHTS | (own.loss_weights or {})
        fields["loss_weights"] = {name: weights.get(name, 1.0) for name in fields["granularities"]}
    if fields.get("num_semantic_classes", own.num_semantic_classes) != own.num_semantic_classes:
        fields.setdefault("semantic_id2label", None)
    return fields


def _has_other_classes(own: C2FMAEConfig, config: C2FMAEConfig) -> bool:
    before, now = own.semantic_id2label, config.semantic_id2label
    return own.num_semantic_classes != config.num_semantic_classes or bool(before and now and before != now)


def _part(name: str) -> str:
    """The part of the model that a weight belongs to, in words."""
    words = name.split(".")
    if words[:2] == ["c2fmae", "label_embed"]:
        return f"embedding of {words[2]} maps"
    if words[:2] == ["decoder", "stages"]:
        return f"{words[2]} head" if words[3] in ("head", "prediction_embed") else f"{words[2]} stage"
    return words[0]


def _parts(names: Iterable[str], everything: Iterable[str]) -> list[str]:
    """Names of the parts that weights belong to; a whole stage or decoder is named once."""
    names = list(names)
    found = list(dict.fromkeys(map(_part, names)))
    if names and {name for name in everything if name.startswith("decoder.")} <= set(names):
        return ["decoder", *(part for part in found if part.startswith("embedding"))]
    whole = [part.removesuffix(" stage") for part in found if part.endswith(" stage")]
    return [part for part in found if part.removesuffix(" head") not in whole]


def _log_parts(verb: str, parts: list[str], own: C2FMAEConfig, config: C2FMAEConfig) -> None:
    for part in parts:
        reason = ""
        if verb == "New" and part.startswith("semantic "):
            before, now = own.num_semantic_classes, config.num_semantic_classes
            kind = "other names" if before == now else f"{now} classes instead of {before}"
            reason = f", for {kind}" if _has_other_classes(own, config) else ""
        logger.info("%s: %s%s.", verb, part, reason)
