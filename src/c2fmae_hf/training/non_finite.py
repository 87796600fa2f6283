"""Checks that losses and gradients are finite, and reports those that are not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ..data.data_collator import decode_image_ids


REPORT_FILE = "non_finite.json"


class Watched:
    """The losses and image ids of batches, kept on their device until [`report`] reads them."""

    def __init__(self) -> None:
        self._batches: list[tuple[list[str], torch.Tensor, torch.Tensor | None]] = []

    def add(self, losses: dict[str, torch.Tensor], image_ids: torch.Tensor | None) -> None:
        """
        Args:
            losses: Scalars of one batch, by name.
            image_ids (`torch.Tensor`, *optional*): See [`~c2fmae_hf.data.data_collator.encode_image_ids`].
        """
        values = torch.stack([value.detach().float().reshape(()) for value in losses.values()])
        self._batches.append((list(losses), values, image_ids))

    def report(self, gradient_norm: torch.Tensor | None = None) -> dict[str, Any] | None:
        """
        Args:
            gradient_norm (`torch.Tensor`, *optional*): Scalar. If it is sharded, all processes must make this call.

        Returns:
            `None` if everything is finite. Otherwise `gradient_norm`, and the `losses` and `image_ids` of the batches
            whose loss is not finite, or of all batches if only the gradient is not. Values that JSON cannot hold are
            strings, such as `"nan"`.
        """
        if isinstance(gradient_norm, DTensor):
            gradient_norm = gradient_norm.full_tensor()
        norm = None if gradient_norm is None else float(gradient_norm)
        batches = [(dict(zip(names, values.tolist())), ids) for names, values, ids in self._batches]
        bad = [batch for batch in batches if not all(map(math.isfinite, batch[0].values()))]
        if not bad and (norm is None or math.isfinite(norm)):
            return None
        chosen = bad or batches
        return {
            "losses": [{name: _for_json(value) for name, value in losses.items()} for losses, _ in chosen],
            "gradient_norm": None if norm is None else _for_json(norm),
            "image_ids": [name for _, ids in chosen if ids is not None for name in decode_image_ids(ids)],
        }


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
