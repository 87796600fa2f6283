"""Fingerprints of weights, which tell the model that a record belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


@torch.no_grad()
def encoder_fingerprint(model: nn.Module) -> str:
    """
    SHA-256 of the encoder's weights, independent of file, model class and device. It leaves out the position table,
    which is resampled for images of another size.

    Args:
        model: A C2FMAE model. For any other model, all weights count.
    """
    prefix = "c2fmae."
    state = model.state_dict()
    if any(prefix in name for name in state):
        state = {name.partition(prefix)[2]: value for name, value in state.items() if prefix in name}
    left_out = ("label_embed.", "pos_embed")
    return _fingerprint({name: value for name, value in state.items() if not name.startswith(left_out)})


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights, with heads and decoders, under the names of the model's class."""
    return _fingerprint(model.state_dict())


def _fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    checksum = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        checksum.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        checksum.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()
