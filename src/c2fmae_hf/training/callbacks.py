"""The callback that passes training progress to the data."""

from __future__ import annotations

import math

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.progress import SharedProgress


class CurriculumCallback(TrainerCallback):
    """
    Writes training progress, `global_step / max_steps`, into shared memory. [`C2FMAETrainer`] adds it by itself; for
    another trainer, pass it in `callbacks`.

    Args:
        progress ([`SharedProgress`]): The object that the training dataset reads.
    """

    def __init__(self, progress: SharedProgress) -> None:
        self.progress = progress
        self.is_stream = False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ) -> None:
        """Start the epoch. This runs before workers prepare the epoch's samples."""
        try:
            steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        except TypeError:  # a stream is one endless epoch
            steps_per_epoch, self.is_stream = state.max_steps, True
        # A resumed run may begin in the middle of an epoch, but its sampler counts from the start of the epoch.
        epoch = state.global_step // steps_per_epoch
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.progress.start_epoch(
            epoch,
            start=min(epoch * steps_per_epoch / state.max_steps, 1.0),
            per_sample=1 / (state.max_steps * batch_size),
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.is_stream:  # the library would count only batches that were read since the run was resumed
            state.epoch = state.global_step / state.max_steps

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.progress.set_current(min(state.global_step / state.max_steps, 1.0))
