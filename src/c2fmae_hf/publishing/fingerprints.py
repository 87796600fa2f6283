"""Fingerprints of weights, which tell the model that a record belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


@torch.no_grad()
def encoder_fingerprint(model: nn.Module, rounded: bool = False) -> str:
    """
    SHA-256 of the encoder's weights, independent of file, model class, device and dtype. It leaves out the position
    table, which is resampled for images of another size.

    Args:
        model: A C2FMAE model. For any other model, all weights count.
        rounded (`bool`): Of the weights as they are after saving them in bfloat16.
    """
    prefix = "c2fmae."
    state = model.state_dict()
    if any(prefix in name for name in state):
        state = {name.partition(prefix)[2]: value for name, value in state.items() if prefix in name}
    left_out = ("label_embed.", "pos_embed")
    return _fingerprint({name: value for name, value in state.items() if not name.startswith(left_out)}, rounded)


@torch.no_grad()
def weights_fingerprint(model: nn.Module, rounded: bool = False) -> str:
    """SHA-256 of all weights, with heads and decoders, under the names of the model's class; `rounded` as above."""
    return _fingerprint(model.state_dict(), rounded)


def _fingerprint(state: Mapping[str, torch.Tensor], rounded: bool) -> str:
    checksum = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu()
        if value.is_floating_point():
            value = (value.bfloat16() if rounded else value).float()
        value = value.contiguous()
        checksum.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        checksum.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()
