"""Training progress in shared memory: the trainer's process writes it, DataLoader workers read it."""

from __future__ import annotations

import logging

import torch


logger = logging.getLogger(__name__)


class SharedProgress:
    """
    Training progress, visible to DataLoader workers under fork and spawn, persistent or not.

    Workers hold a copy of the dataset and the collator, where a plain attribute would keep its first value. They also
    run a few batches ahead of training, so that masks would depend on timing if they read a live step counter.
    Progress is therefore written per epoch, as a start and an increment per sample. A sample's own progress follows
    from its position in the epoch: exact, and the same after a resume.

    Without [`EpochSampler`] samples have no positions and take `current`, which [`CurriculumCallback`] (or a call of
    [`set_current`]) updates at every step; workers read it ahead of training by their prefetch.
    """

    def __init__(self) -> None:
        # epoch, progress at its start, increment per sample, current progress, whether these were set
        self._state = torch.zeros(5, dtype=torch.float64).share_memory_()
        self._has_warned = False

    def start_epoch(self, epoch: int, start: float, per_sample: float) -> None:
        """
        Start an epoch.

        Args:
            epoch (`int`): Number of the epoch.
            start (`float`): Progress in [0, 1] at its first sample.
            per_sample (`float`): Progress per sample, `1 / (max_steps * total batch size)`.
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
        """Whether an epoch was started or progress set, in any process that shares this memory."""
        return bool(self._state[4])

    def warn_if_no_epoch_started(self) -> None:
        """Warn, once per process, if samples are read before an epoch was started."""
        if not self.has_begun and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Training data is read, but no epoch was started: the curriculum stays at its beginning, and the crop "
                "and mask of a row never change. C2FMAETrainer starts epochs; with another trainer, add "
                "CurriculumCallback(dataset.progress) to its callbacks."
            )

    @property
    def epoch(self) -> int:
        return int(self._state[0])

    @property
    def current(self) -> float:
        return float(self._state[3])

    def at(self, position: int) -> float:
        """Progress in [0, 1] of the `position`-th sample of the current epoch, counted over all processes."""
        return min(float(self._state[1] + self._state[2] * position), 1.0)
