"""The order of samples, and the key that determines each one's randomness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from .progress import SharedProgress
from .randomness import sample_seeds


class SampleKey(NamedTuple):
    """Identifies a sample: its row and the point in training (`progress` is `None` in evaluation)."""

    index: int  # type: ignore[assignment]
    epoch: int
    progress: float | None


class EpochSampler(Sampler[SampleKey]):
    """
    Yields the rows in a new order every epoch, each with its epoch and training progress. Both travel to DataLoader
    workers with the index, so that samples do not depend on how far ahead a worker is.

    Args:
        num_rows (`int`): Rows of the dataset.
        progress ([`SharedProgress`]): Read whenever an epoch starts.
        seed (`int`): The order is a function of (seed, epoch).
        left_out (`int`): Rows to leave out, the last in each epoch's order.
    """

    def __init__(self, num_rows: int, progress: SharedProgress, seed: int, left_out: int = 0) -> None:
        self.num_rows, self.progress, self.seed, self.left_out = num_rows, progress, seed, left_out

    def __len__(self) -> int:
        return self.num_rows - self.left_out

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.progress.epoch
        generator = torch.Generator().manual_seed(int(sample_seeds(self.seed, [epoch], [-1])[0]) >> 1)
        for position, index in enumerate(torch.randperm(self.num_rows, generator=generator)[: len(self)].tolist()):
            yield SampleKey(index, epoch, self.progress.at(position))
