"""The trainer for all fine-tuning tasks, with layer-wise learning rates and an average of the weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..training.publishing_trainer import PublishingTrainer
from .fine_tuning_args import FineTuningArguments


_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|layer)\.(\d+)\.")
_TOKENS_AND_POSITIONS = (
    "pos_embed",
    "position_embeddings",
    "position_embedding.weight",
    "relative_position_bias_table",
    "_token",
    "_tokens",
)
_EMBEDDINGS = ("embed", "cls_token", "mask_token", "register_tokens", "reg_token", "dist_token")


def layer_indices(model: nn.Module) -> dict[str, int]:
    """
    The layer of each parameter by name: 0 for embeddings, `i + 1` for block `i`, and one more than the last block for
    everything after the blocks (final norm, head).

    Raises:
        `ValueError`: if the model has no numbered blocks.
    """
    blocks = _blocks(model)
    last = max(blocks.values()) + 2
    indices = {}
    for name, _ in model.named_parameters():
        if name in blocks:
            indices[name] = blocks[name] + 1
        else:
            indices[name] = 0 if any(word in name for word in _EMBEDDINGS) else last
    return indices


def _blocks(model: nn.Module) -> dict[str, int]:
    """The block number of each parameter in a block, by name."""
    blocks = {name: int(match[1]) for name, _ in model.named_parameters() if (match := _BLOCK.search(name))}
    if not blocks:
        raise ValueError("layer_decay: expected a model with blocks named blocks.N, layers.N or layer.N, got none")
    return blocks


def layer_decay_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    encoder: nn.Module | None = None,
) -> list[dict]:
    """
    Parameter groups for an optimizer. Each layer's learning rate is the next layer's times `layer_decay` (BEiT's and
    MAE's recipe). Biases, norms and tokens get no weight decay. Frozen parameters are left out.

    Args:
        model: Any vision transformer with numbered blocks, or a model around one.
        learning_rate (`float`): Learning rate after the last block.
        weight_decay (`float`): Weight decay of matrices.
        layer_decay (`float`): In (0, 1]; 1 gives every layer the same rate.
        encoder (*optional*): The part of `model` whose layers count; the rest is treated as coming after them, even if
            it has numbered layers. By default the whole model.

    Raises:
        `ValueError`: if `layer_decay` is out of range, or the model has no numbered blocks.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay: expected a value in (0, 1], got {layer_decay}")
    indices: dict[int, int] = {}
    last = 0
    if layer_decay < 1:
        part = model if encoder is None else encoder
        by_name = layer_indices(part)
        indices = {id(parameter): by_name[name] for name, parameter in part.named_parameters()}
        last = max(_blocks(part).values()) + 2
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Position tables have two dimensions but are not matrices.
        is_decayed = parameter.ndim > 1 and not name.endswith(_TOKENS_AND_POSITIONS)
        layer = indices.get(id(parameter), last)
        rate = learning_rate * layer_decay ** (last - layer)
        group = groups.setdefault(
            (layer, is_decayed),
            {"params": [], "lr": rate, "weight_decay": weight_decay if is_decayed else 0.0},
        )
        group["params"].append(parameter)
    # The head first: the Trainer logs the rate of the first group.
    return [groups[key] for key in sorted(groups, key=lambda key: (-key[0], key[1]))]


EMA_FILE = "ema.safetensors"


def named_classes(id2label: Mapping[int, str]) -> dict[str, Any]:
    """
    `id2label` and `label2id` of a configuration.

    Raises:
        `ValueError`: if two classes have the same name, or ids are not 0, 1, 2, ...
    """
    names = [id2label[index] for index in sorted(id2label)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or sorted(id2label) != list(range(len(names))):
        raise ValueError(f"classes: expected a unique name for each of 0, 1, 2, ..., got {dict(id2label)}")
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


class FineTuningTrainer(PublishingTrainer):
    """
    `Trainer` with layer-wise learning rates and an optional exponential moving average of the weights. `push_to_hub`
    publishes in one commit, with a card.

    Args:
        model, args: As in `Trainer`; [`FineTuningArguments`] have suitable defaults.
        encoder (`nn.Module`, *optional*): The part of the model whose layers `layer_decay` counts; by default all.
        layer_decay (`float`): See [`layer_decay_groups`].
        ema_decay (`float`, *optional*): Decay of the average, in (0, 1), with timm's warm-up. Evaluation uses the
            average, and after training the model holds it. Checkpoints hold both.
        others, kwargs: Arguments of `Trainer`.

    Raises:
        `ValueError`: for a decay out of range, or an average with sharded weights or `load_best_model_at_end`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *others,
        encoder: nn.Module | None = None,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        **kwargs,
    ) -> None:
        if isinstance(args, FineTuningArguments):
            args.choose_best_model(has_average=ema_decay is not None)
        super().__init__(model, args, *others, **kwargs)
        # Losses are means over a batch, so the Trainer must divide them by the number of accumulated batches.
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

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, **kwargs):
        if self.average is not None:
            checkpoint = resume_from_checkpoint
            if checkpoint is True:
                checkpoint = get_last_checkpoint(str(self.args.output_dir))
            self.average_callback.checkpoint = os.fspath(checkpoint) if checkpoint else None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _add_to_checkpoint(self, folder: Path) -> None:
        super()._add_to_checkpoint(folder)
        if self.average is not None and self.args.should_save:
            state = self.average.module.state_dict()
            save_file({name: value.contiguous() for name, value in state.items()}, folder / EMA_FILE)

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
    """Updates the average, restores it from a checkpoint, and copies it into the model at the end."""

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
                raise FileNotFoundError(f"{file}: expected the average of the weights, found no such file")
            self.average.module.load_state_dict(load_file(file, device=str(device)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        self.average.update(model, step=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        model.load_state_dict(self.average.module.state_dict())
