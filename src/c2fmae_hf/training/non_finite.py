"""Checks that losses and gradients are finite, and reports those that are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

from ..data.data_collator import decode_image_ids


REPORT_FILE = "non_finite.json"
# Updates after which the flags are read, if nothing was logged or saved before.
MAX_UNREAD = 50


class Batch(NamedTuple):
    """Losses `(number,)` of a batch, their names and the batch's image ids."""

    names: Sequence[str]
    losses: torch.Tensor
    image_ids: torch.Tensor | None


class Update(NamedTuple):
    """The batches of an update, its step and gradient norm `(1,)`, and a flag `()`: 1 if not all are finite."""

    step: int
    batches: list[Batch]
    norm: torch.Tensor | None
    flag: torch.Tensor


class Watched:
    """The losses, gradient norms and image ids of updates. They stay on their device until [`report`] reads them."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.updates: list[Update] = []

    def add(self, names: Sequence[str], losses: torch.Tensor, image_ids: torch.Tensor | None) -> None:
        """
        Add a batch to the update in progress.

        Args:
            names, losses (`torch.Tensor` of shape `(number,)`): Losses of the batch.
            image_ids (`torch.Tensor`, *optional*): See [`~c2fmae_hf.data.data_collator.encode_image_ids`].
        """
        self.batches.append(Batch(names, losses, image_ids))

    def end_update(self, step: int, gradient_norm: torch.Tensor | None = None) -> torch.Tensor:
        """
        Close the update in progress, without reading anything from the device.

        Args:
            step (`int`): Updates before this one.
            gradient_norm (`torch.Tensor`, *optional*): Scalar. If it is sharded, all processes must make this call.

        Returns:
            `torch.FloatTensor` of shape `()`: 1 if a loss or the norm is not finite, else 0. Several processes make it
            their maximum, in place.
        """
        if isinstance(gradient_norm, DTensor):
            gradient_norm = gradient_norm.full_tensor()
        norm = None if gradient_norm is None else gradient_norm.reshape(1)
        values = [batch.losses for batch in self.batches] + ([] if norm is None else [norm])
        flag = 1 - torch.cat(values).isfinite().all().float()
        self.updates.append(Update(step, self.batches, norm, flag))
        self.batches = []
        return flag

    def report(self) -> tuple[int, dict[str, Any] | None] | None:
        """
        Read the flags of all updates, forget these updates and report the first that is not finite.

        Returns:
            `None` if every update is finite. Otherwise its step and, unless only other processes had such values,
            `gradient_norm`, and the `losses` and `image_ids` of the batches whose loss is not finite, or of all
            batches if only the gradient is not. Values that JSON cannot hold are strings, such as `"nan"`.
        """
        updates, self.updates = self.updates, []
        flags = torch.stack([update.flag for update in updates]).tolist() if updates else []
        faulty = [update for update, flag in zip(updates, flags) if flag]
        if not faulty:
            return None
        step, batches, norm, _ = faulty[0]
        gradient_norm = None if norm is None else norm.item()
        losses = [dict(zip(batch.names, batch.losses.tolist())) for batch in batches]
        bad = [number for number, values in enumerate(losses) if not all(map(math.isfinite, values.values()))]
        if not bad and (gradient_norm is None or math.isfinite(gradient_norm)):
            return step, None
        chosen = bad or range(len(batches))
        image_ids = [batches[number].image_ids for number in chosen]
        return step, {
            "losses": [{name: _for_json(value) for name, value in losses[number].items()} for number in chosen],
            "gradient_norm": None if gradient_norm is None else _for_json(gradient_norm),
            "image_ids": [name for ids in image_ids if ids is not None for name in decode_image_ids(ids)],
        }


def has_faulty_loss(report: dict[str, Any]) -> bool:
    """Whether a report has a loss that is not finite."""
    return any(isinstance(value, str) for losses in report["losses"] for value in losses.values())


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
