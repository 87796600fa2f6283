"""Training progress in shared memory: what the trainer's process writes, DataLoader workers read."""

from __future__ import annotations

import logging

import torch


logger = logging.getLogger(__name__)


class SharedProgress:
    """
    Where training stands, visible to DataLoader workers under fork and spawn, persistent or not.

    A worker holds a copy of the dataset and the collator, so that a plain attribute would stay at its first value.
    And workers run ahead of training by a few batches, so that reading a live step counter would make a mask depend
    on timing. Progress is therefore written per epoch, as a start and an increment per sample, and a sample's own
    progress follows from its position in the epoch: exact, and the same after a resume.

    Loops without [`EpochSampler`] have no positions; they see `current`, which [`CurriculumCallback`] (or a call of
    [`set_current`]) moves at every step, and which workers read up to their prefetch ahead of time.
    """

    def __init__(self) -> None:
        # epoch, progress at its start, increment per sample, current progress, whether anybody has set them
        self._state = torch.zeros(5, dtype=torch.float64).share_memory_()
        self._has_warned = False

    def start_epoch(self, epoch: int, start: float, per_sample: float) -> None:
        """
        Args:
            epoch (`int`): The epoch that begins.
            start (`float`): Progress in [0, 1] at its first sample.
            per_sample (`float`): What one sample adds, `1 / (max_steps * total batch size)`.
        """
        self._state.copy_(torch.tensor([epoch, start, per_sample, start, 1], dtype=torch.float64))

    def set_current(self, progress: float) -> None:
        """
        Set the progress of samples that have no position.

        Raises:
            `ValueError`: outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress: expected a number in [0, 1], got {progress!r}")
        self._state[3] = progress
        self._state[4] = 1

    @property
    def has_begun(self) -> bool:
        """Whether an epoch was started or progress set, here or in the process that shares this memory."""
        return bool(self._state[4])

    def warn_if_standing_still(self) -> None:
        """Warn, once in each process, if samples are read though nobody has begun an epoch."""
        if not self.has_begun and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Training data is read, but nobody has begun an epoch: masks stay at the curriculum's beginning, and "
                "crops and masks of a row never change. C2FMAETrainer does this; another trainer needs "
                "CurriculumCallback(dataset.progress) in its callbacks."
            )

    @property
    def epoch(self) -> int:
        return int(self._state[0])

    @property
    def current(self) -> float:
        return float(self._state[3])

    def at(self, position: int) -> float:
        """Progress in [0, 1] of the sample that is the `position`-th of the current epoch, over all processes."""
        return min(float(self._state[1] + self._state[2] * position), 1.0)
