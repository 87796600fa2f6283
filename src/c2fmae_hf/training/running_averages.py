"""Means of logged values over steps, images and processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from accelerate import Accelerator


class RunningAverages:
    """Weighted means of logged values, kept on their device until they are read."""

    def __init__(self) -> None:
        # By the names of a batch's values: their weighted sums and the sum of the weights.
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}
        self._weights: dict[tuple[str, ...], float] = defaultdict(float)

    def add(self, names: Sequence[str], values: torch.Tensor, weight: float) -> None:
        """Add values `(number,)` with their names."""
        key = tuple(names)
        if key not in self._sums:
            dtype = torch.float32 if values.device.type == "mps" else torch.float64
            self._sums[key] = torch.zeros_like(values, dtype=dtype)
        self._sums[key].add_(values, alpha=weight)
        self._weights[key] += weight

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, which must have the same names."""
        sums: dict[str, float] = defaultdict(float)
        weights: dict[str, float] = defaultdict(float)
        for names, vector in self._sums.items():
            vector = torch.cat([vector, vector.new_full((1,), self._weights[names])])
            *totals, weight = accelerator.reduce(vector, reduction="sum").tolist()
            for name, total in zip(names, totals):
                sums[name] += total
                weights[name] += weight
        return {name: total / weights[name] for name, total in sums.items()}
