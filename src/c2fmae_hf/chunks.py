"""Large intermediate results a piece at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


# 64 MiB in fp32: above what small models make, far below what many classes at a large batch would.
MAX_ELEMENTS = 2**24


def in_chunks(
    function: Callable[..., torch.Tensor], values: torch.Tensor, *others: torch.Tensor, max_elements: int | None = None
) -> torch.Tensor:
    """
    `function(values, *others)`, a few rows of the batch at a time if `values` is large. What the function makes on
    the way is not kept for the backward pass but made again, so that never more than one chunk of it is in memory.
    A compiler fuses such results away, and gets the plain call.

    Args:
        function: Of tensors `(B, ...)`, row by row, with a result `(B, ...)`; without randomness.
        values (`torch.Tensor` of shape `(B, ...)`): Its size decides.
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
