"""Learning rates that fall towards the first layers, for fine-tuning a vision transformer of any library."""

from __future__ import annotations

import re

from torch import nn


_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|layer)\.(\d+)\.")
_TOKENS_AND_POSITIONS = (
    "pos_embed",
    "position_embeddings",
    "position_embedding.weight",
    "relative_position_bias_table",
    "_token",
    "_tokens",
)
_EMBEDDINGS = ("embed", "cls_token", "mask_token", "register_tokens", "reg_token", "dist_token")


def layer_indices(model: nn.Module) -> dict[str, int]:
    """
    The layer of each parameter by its name: 0 for embeddings, `i + 1` for block `i`, one more than the last block for
    everything behind the blocks (final norm, head).

    Raises:
        `ValueError`: if the model has no numbered blocks.
    """
    blocks = _blocks(model)
    last = max(blocks.values()) + 2
    indices = {}
    for name, _ in model.named_parameters():
        if name in blocks:
            indices[name] = blocks[name] + 1
        else:
            indices[name] = 0 if any(word in name for word in _EMBEDDINGS) else last
    return indices


def _blocks(model: nn.Module) -> dict[str, int]:
    """The block that each parameter of a block belongs to."""
    blocks = {name: int(match[1]) for name, _ in model.named_parameters() if (match := _BLOCK.search(name))}
    if not blocks:
        raise ValueError("layer_decay: expected a model with blocks named blocks.N, layers.N or layer.N, got none")
    return blocks


def layer_decay_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    encoder: nn.Module | None = None,
) -> list[dict]:
    """
    Parameter groups for an optimizer: the learning rate of a layer is that of the next one times `layer_decay` (BEiT's
    and MAE's recipe); vectors (biases, norms, tokens) are not decayed. Parameters that are frozen are left out.

    Args:
        model: Any vision transformer with numbered blocks, or a model around one.
        learning_rate (`float`): Of what lies behind the blocks.
        weight_decay (`float`): Of matrices.
        layer_decay (`float`): In (0, 1]; 1 gives every layer the same rate.
        encoder (*optional*): The part of `model` whose layers count; the rest, which may have numbered layers of its
            own, lies behind them. By default all of it.

    Raises:
        `ValueError`: if `layer_decay` is out of range, or the model has no numbered blocks.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay: expected a value in (0, 1], got {layer_decay}")
    indices: dict[int, int] = {}
    last = 0
    if layer_decay < 1:
        part = model if encoder is None else encoder
        by_name = layer_indices(part)
        indices = {id(parameter): by_name[name] for name, parameter in part.named_parameters()}
        last = max(_blocks(part).values()) + 2
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Position tables are matrices by shape only.
        is_decayed = parameter.ndim > 1 and not name.endswith(_TOKENS_AND_POSITIONS)
        layer = indices.get(id(parameter), last)
        rate = learning_rate * layer_decay ** (last - layer)
        group = groups.setdefault(
            (layer, is_decayed),
            {"params": [], "lr": rate, "weight_decay": weight_decay if is_decayed else 0.0},
        )
        group["params"].append(parameter)
    return list(groups.values())
