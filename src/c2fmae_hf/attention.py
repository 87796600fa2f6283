"""What the encoder's patches attend to, and how much of it stays inside an object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .constants import NO_INSTANCE
from .modeling_c2fmae import C2FMAEModel


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention that can return its weights, for as long as the context lasts; then the one that was set."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


@torch.no_grad()
def attention_maps(encoder: C2FMAEModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    The attention of an unmasked image.

    Args:
        encoder ([`C2FMAEModel`]): Used in evaluation mode, and left as it was.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Any size that is a
            multiple of the patch size.

    Returns:
        `torch.FloatTensor` of shape `(layers, batch_size, heads, 1 + N, 1 + N)`: how much each token (the second last
        dimension; class token first, then N patches in raster order) attends to each (the last); rows sum to 1.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        with eager_attention(encoder):
            outputs = encoder(pixel_values, output_attentions=True, interpolate_pos_encoding=True)
    finally:
        encoder.train(was_training)
    return torch.stack(outputs.attentions).float()


def attention_in_objects(
    attention: torch.Tensor, instances: torch.Tensor, min_patches: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Of the attention of patches inside an object, the share that patches of the same object get of what all patches
    get (the paper calls what is missing attention drift; the measure is our choice).

    Args:
        attention (`torch.FloatTensor` of shape `(batch_size, N, N)`): Of patches to patches, not negative.
        instances (`torch.LongTensor` of shape `(batch_size, N)`): Instance id of each patch, 0 = none, -100 = ignore.
        min_patches (`int`): Smaller objects are left out.

    Returns:
        `shares` and `areas` of shape `(objects,)`, float32: that share, a mean over the object's patches, and the
        object's share of all patches, which even attention to everything would give.
    """
    attention = attention / attention.sum(dim=-1, keepdim=True)
    shares, areas = [], []
    for weights, ids in zip(attention, instances):
        for instance in ids[ids > NO_INSTANCE].unique():
            inside = ids == instance
            if inside.sum() >= min_patches:
                shares.append(weights[inside][:, inside].sum(dim=-1).mean())
                areas.append(inside.float().mean())
    if not shares:
        return attention.new_zeros(0), attention.new_zeros(0)
    return torch.stack(shares), torch.stack(areas)
