"""What is known of a step whose losses or gradients are not finite: numbers, images, and the granularity at fault."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..constants import GRANULARITIES
from ..data.data_collator import decode_image_ids


REPORT_FILE = "non_finite.json"
# Of the folder that holds weights that are not finite.
UNSOUND_PREFIX = "non-finite"


def with_words_for_numbers(content: Any) -> Any:
    """JSON has no NaN and no infinity: `"nan"`, `"inf"` and `"-inf"` in their places."""
    if isinstance(content, dict):
        return {name: with_words_for_numbers(value) for name, value in content.items()}
    if isinstance(content, list):
        return [with_words_for_numbers(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content


@dataclass
class Watched:
    """
    The batches of one update, as they are on their device: nothing waits for a device until [`report`].

    Args:
        losses: For each batch its losses by name, scalars.
        inputs: For each batch what the model was given.
        image_ids: For each batch the encoded identifiers of its images, or `None`.
    """

    losses: list[dict[str, torch.Tensor]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    image_ids: list[torch.Tensor | None] = field(default_factory=list)

    def add(self, losses: dict[str, torch.Tensor], inputs: dict[str, Any], image_ids: torch.Tensor | None) -> None:
        self.losses.append({name: value.detach() for name, value in losses.items()})
        self.inputs.append(inputs)
        self.image_ids.append(image_ids)

    def report(self, gradient_norm: Any = None) -> dict[str, Any] | None:
        """
        Args:
            gradient_norm (`torch.Tensor` or `float`, *optional*): Of the update. A sharded one is put together, for
                which all processes must call this.

        Returns:
            `None` if everything is finite; else `losses` and `image_ids` of the batches at fault (of all, if only the
            gradient is), and `gradient_norm`. One transfer from the device.
        """
        scalars = [value.reshape(()).float() for losses in self.losses for value in losses.values()]
        if gradient_norm is not None:
            if isinstance(gradient_norm, DTensor):
                gradient_norm = gradient_norm.full_tensor()
            device = scalars[0].device if scalars else None
            scalars.append(torch.as_tensor(gradient_norm, dtype=torch.float32, device=device).reshape(()))
        if not scalars:
            return None
        values = torch.stack(scalars).tolist()
        if all(map(math.isfinite, values)):
            return None
        norm = values.pop() if gradient_norm is not None else None
        by_batch = []
        for losses in self.losses:
            by_batch.append(dict(zip(losses, values)))
            values = values[len(losses) :]
        at_fault = [index for index, losses in enumerate(by_batch) if not all(map(math.isfinite, losses.values()))]
        chosen = at_fault or range(len(by_batch))
        image_ids = [self.image_ids[index] for index in chosen]
        return {
            "losses": [by_batch[index] for index in chosen],
            "gradient_norm": norm,
            "image_ids": [name for encoded in image_ids if encoded is not None for name in decode_image_ids(encoded)],
        }

    def granularities_at_fault(self, model: nn.Module) -> list[str]:
        """
        Whose gradients are not finite, where the losses are: each granularity's loss once more, by itself.

        Args:
            model ([`C2FMAEForPreTraining`]): Not wrapped.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = []
        for name in GRANULARITIES:
            for inputs in self.inputs:
                loss = model(**inputs).get(f"{name}_loss")
                if loss is None:
                    continue
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                if not all(gradient.isfinite().all() for gradient in gradients if gradient is not None):
                    found.append(name)
                    break
        return found
