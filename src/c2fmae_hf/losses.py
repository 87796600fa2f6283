"""
The three losses, in fp32 whatever the precision of training.

Each is a mean per image and then over the batch, so that a batch's loss is the mean of its images' losses: gradient
accumulation and data parallelism change nothing. An image without a valid cell contributes 0.
"""

from __future__ import annotations

import torch
from torch import nn

from .constants import IGNORE_INDEX


def masked_mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of `values` `(B, ...)` where `valid`, per row, then over the rows: `()`. All-invalid rows give 0."""
    values, valid = values.flatten(1), valid.flatten(1)
    return (torch.where(valid, values, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()


def semantic_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `(B, M, cells, classes)` against classes `(B, M, cells, 1)`, -100 = ignore, in fp32: `()`."""
    labels = labels[..., 0]
    values = nn.functional.cross_entropy(
        logits.float().movedim(-1, 1), labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return masked_mean(values, labels != IGNORE_INDEX)


def instance_loss(logits: torch.Tensor, labels: torch.Tensor, offset_weight: float) -> torch.Tensor:
    """
    L1 on offsets over the foreground plus binary cross-entropy on the flag, in fp32: `()`. Logits and labels are
    `(B, M, cells, 3)`; a flag of -100 takes the cell out of both.
    """
    logits, labels = logits.float(), labels.float()
    flag = labels[..., 2]
    offset_values = (logits[..., :2] - labels[..., :2]).abs().sum(dim=-1)
    flag_values = nn.functional.binary_cross_entropy_with_logits(logits[..., 2], flag.clamp(min=0), reduction="none")
    return offset_weight * masked_mean(offset_values, flag > 0.5) + masked_mean(flag_values, flag != IGNORE_INDEX)


def image_loss(logits: torch.Tensor, pixels: torch.Tensor, norm_pix_loss: bool) -> torch.Tensor:
    """Squared error of `(B, M, cells, channels)` against pixels, normalised per patch if asked, in fp32: `()`."""
    logits, pixels = logits.float().flatten(2), pixels.float().flatten(2)
    if norm_pix_loss:
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        pixels = (pixels - mean) / (variance + 1e-6) ** 0.5
    return masked_mean((logits - pixels).square(), torch.ones_like(logits, dtype=torch.bool))
