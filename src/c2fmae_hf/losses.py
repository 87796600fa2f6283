"""
The three losses, computed in fp32 at any training precision.

Each is a mean per image, then over the batch, so that gradient accumulation and data parallelism do not change it. An
image without a valid cell contributes 0.

If only a random part of the patches is decoded, the loss is an unbiased estimate of the loss over all patches: each
decoded patch is weighted by the number of patches that it stands for, and sums are divided by the number of valid
cells among all patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .constants import IGNORE_INDEX


# 64 MiB in fp32: small models stay below it; many classes with a large batch are far above.
MAX_ELEMENTS = 2**24


def in_chunks(
    function: Callable[..., torch.Tensor], values: torch.Tensor, *others: torch.Tensor, max_elements: int | None = None
) -> torch.Tensor:
    """
    Compute `function(values, *others)`, a few rows of the batch at a time if `values` is large. The backward pass
    recomputes intermediate results, so that memory never holds more than one chunk of them. A compiled graph makes the
    plain call, because the compiler fuses them away.

    Args:
        function: Maps tensors `(B, ...)` to a tensor `(B, ...)`, row by row and without randomness.
        values (`torch.Tensor` of shape `(B, ...)`): Its size decides about chunks.
        others (`torch.Tensor` of shape `(B, ...)`).
        max_elements (`int`, *optional*): Elements of `values` in a chunk, `MAX_ELEMENTS` by default; a single row may
            have more.
    """
    limit = MAX_ELEMENTS if max_elements is None else max_elements
    if torch.compiler.is_compiling() or values.numel() <= limit:
        return function(values, *others)
    rows = max(limit // (values.numel() // len(values)), 1)
    pieces = zip(*(tensor.split(rows) for tensor in (values, *others)))
    if not torch.is_grad_enabled():
        return torch.cat([function(*piece) for piece in pieces])
    return torch.cat([checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])


def masked_mean(
    values: torch.Tensor,
    valid: torch.Tensor,
    weights: torch.Tensor | None = None,
    all_valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Mean of the valid values of each row, then over the rows. A row without valid values gives 0.

    Args:
        values (`torch.FloatTensor` of shape `(B, M, ...)`).
        valid (`torch.BoolTensor` of the same shape).
        weights (`torch.FloatTensor` of shape `(M,)`, *optional*): How many patches each of the M stands for.
        all_valid (`torch.BoolTensor` of shape `(B, N, ...)`, *optional*): Validity of all N patches that the M stand
            for.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    if weights is not None:
        values = values * weights.reshape(1, -1, *[1] * (values.ndim - 2))
    sums = torch.where(valid, values, 0).flatten(1).sum(dim=1)
    counts = (valid if all_valid is None else all_valid).flatten(1).sum(dim=1)
    return (sums / counts.clamp(min=1)).mean()


def semantic_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    all_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Cross-entropy of logits `(B, M, cells, classes)` against class ids `(B, M, cells, 1)`, -100 = ignore, in fp32:
    `()`. If the M patches are a random part of N, `weights` `(M,)` and `all_labels` `(B, N, cells, 1)` are as for
    [`masked_mean`].
    """
    values = in_chunks(_cross_entropy, logits, labels)
    all_valid = None if all_labels is None else all_labels[..., 0] != IGNORE_INDEX
    return masked_mean(values, labels[..., 0] != IGNORE_INDEX, weights, all_valid)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    values = nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return values.view(logits.shape[:-1])


def instance_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    offset_weight: float,
    weights: torch.Tensor | None = None,
    all_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    L1 on offsets over the foreground plus binary cross-entropy on the flag, in fp32: `()`. Logits and labels are
    `(B, M, cells, 3)`; a cell with a flag of -100 counts in neither. If the M patches are a random part of N,
    `weights` `(M,)` and `all_labels` `(B, N, cells, 3)` are as for [`masked_mean`].
    """
    logits, labels = logits.float(), labels.float()
    flag, all_flags = labels[..., 2], None if all_labels is None else all_labels[..., 2]
    offset_values = (logits[..., :2] - labels[..., :2]).abs().sum(dim=-1)
    flag_values = nn.functional.binary_cross_entropy_with_logits(logits[..., 2], flag.clamp(min=0), reduction="none")
    all_foreground = None if all_flags is None else all_flags > 0.5
    all_known = None if all_flags is None else all_flags != IGNORE_INDEX
    offset_mean = masked_mean(offset_values, flag > 0.5, weights, all_foreground)
    return offset_weight * offset_mean + masked_mean(flag_values, flag != IGNORE_INDEX, weights, all_known)


def image_loss(logits: torch.Tensor, pixels: torch.Tensor, norm_pix_loss: bool) -> torch.Tensor:
    """
    Mean squared error of predictions `(B, M, cells, channels)` against pixels, normalised per patch with
    `norm_pix_loss`, in fp32: `()`. Every patch counts the same, so a random part of them needs no weights.
    """
    logits, pixels = logits.float().flatten(2), pixels.float().flatten(2)
    if norm_pix_loss:
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        pixels = (pixels - mean) / (variance + 1e-6) ** 0.5
    return (logits - pixels).square().sum() / max(logits.numel(), 1)
