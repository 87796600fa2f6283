"""What fine-tuning for every task shares: layer-wise learning rates and an average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .files import replace_file
from .hub import PublishingTrainer
from .optimization import layer_decay_groups


EMA_FILE = "ema.safetensors"


def named_classes(id2label: Mapping[int, str]) -> dict[str, Any]:
    """
    `id2label` and `label2id` of a configuration.

    Raises:
        `ValueError`: if two classes have one name, or ids are not 0, 1, 2, ...
    """
    names = [id2label[index] for index in sorted(id2label)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or sorted(id2label) != list(range(len(names))):
        raise ValueError(f"classes: expected a name of its own for each of 0, 1, 2, ..., got {dict(id2label)}")
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


class FineTuningTrainer(PublishingTrainer):
    """
    `Trainer` with layer-wise learning rates and, if wanted, an exponential moving average of the weights. Its
    `push_to_hub` publishes in one commit, with a card.

    Args:
        encoder (`nn.Module`, *optional*): The part of the model whose layers `layer_decay` counts; by default all.
        layer_decay (`float`): See [`layer_decay_groups`].
        ema_decay (`float`, *optional*): Decay of the average, in (0, 1), with timm's warm-up. The average is
            what is evaluated and, after training, what the model holds and `save_model` writes. Checkpoints hold both.
        kwargs: Of `Trainer`.

    Raises:
        `ValueError`: for a decay out of range, or an average with sharded weights or `load_best_model_at_end`.
    """

    def __init__(
        self,
        *args,
        encoder: nn.Module | None = None,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        # The losses here are means over a batch, whatever arguments a model's forward takes: they are to be divided by
        # the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        self.encoder, self.layer_decay = encoder, layer_decay
        self.average: ModelEmaV3 | None = None
        if ema_decay is not None:
            if not 0 < ema_decay < 1:
                raise ValueError(f"ema_decay: expected a value in (0, 1), got {ema_decay}")
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("ema_decay: expected whole weights in each process, got sharded ones")
            if self.args.load_best_model_at_end:
                raise ValueError(
                    "ema_decay: cannot be combined with load_best_model_at_end, which loads other weights"
                )
            self.average = ModelEmaV3(self.accelerator.unwrap_model(self.model), decay=ema_decay, use_warmup=True)
            self.average_callback = _AverageCallback(self.average)
            self.add_callback(self.average_callback)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if self.average is not None:
            checkpoint = resume_from_checkpoint
            if checkpoint is True:
                checkpoint = get_last_checkpoint(str(self.args.output_dir))
            self.average_callback.checkpoint = checkpoint or None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            assert self.model is not None
            groups = layer_decay_groups(
                self.model, self.args.learning_rate, self.args.weight_decay, self.layer_decay, self.encoder
            )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(groups, **{name: v for name, v in options.items() if name != "params"})
        return self.optimizer

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        if self.average is None or not self.is_in_train:
            return super().evaluate(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average.module.state_dict())
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            model.load_state_dict(own)


class _AverageCallback(TrainerCallback):
    """Keeps the average up to date, in checkpoints too, and puts it in the model's place at the end."""

    def __init__(self, average: ModelEmaV3) -> None:
        self.average = average
        self.checkpoint: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        device = next(model.parameters()).device
        self.average.to(device)
        if self.checkpoint is not None:
            file = Path(self.checkpoint) / EMA_FILE
            if not file.is_file():
                raise FileNotFoundError(f"{file}: expected the average of the weights to go on with, found nothing")
            self.average.module.load_state_dict(load_file(file, device=str(device)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        self.average.update(model, step=state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.is_world_process_zero:
            file = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / EMA_FILE
            with replace_file(file) as temporary:
                save_file({name: value.contiguous() for name, value in self._state().items()}, temporary)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        model.load_state_dict(self._state())

    def _state(self) -> dict[str, torch.Tensor]:
        return self.average.module.state_dict()
