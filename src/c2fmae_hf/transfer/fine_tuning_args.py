"""Arguments of fine-tuning: those of transformers, with defaults that work for small datasets."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class FineTuningArguments(TrainingArguments):
    r"""
    Arguments of `c2fmae classify`, `segment` and `detect`. Defaults that differ from transformers', with reasons:

    - `learning_rate=None`: `base_learning_rate` times the square root of the batch over 256, with the batch over all
      devices and accumulation steps. The square root is Adam's scaling rule (Malladi et al., 2022). MAE's linear rule
      is meant for batches of about a thousand; at 8 images its rate is too low to learn anything.
    - `num_train_epochs=20`, `weight_decay=0.05`, `lr_scheduler_type="cosine"`, `warmup_steps=0.1` (of all steps).
    - `eval_strategy="epoch"`, `save_strategy="epoch"`, `save_total_limit=1`: the best epoch and the last are kept.
    - `load_best_model_at_end=None`: true if every epoch is saved and evaluated, unless an average of the weights is
      used instead of the best epoch. The best epoch has the lowest loss; `classify` uses accuracy and then loss,
      `segment` mean IoU and `detect` the average precision of masks.
    - `logging_steps=0.01`: a hundred lines per run.
    - `dataloader_pin_memory=None`: used if there is a GPU.
    - `remove_unused_columns=False`, `label_names=["labels"]`: the datasets return tensors, not columns.

    Args:
        base_learning_rate (`float`, defaults to 2e-3): Learning rate at a batch of 256.
    """

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Learning rate; by default base_learning_rate * sqrt(total batch / 256)."}
    )
    base_learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate at a batch of 256 images."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over the training rows."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay; norms, biases and tokens have none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep, besides the best."})
    load_best_model_at_end: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Keep the best epoch; by default if every epoch is saved and evaluated."}
    )
    metric_for_best_model: str | None = field(
        default="loss", metadata={"help": "Score that selects the best epoch, as named in the evaluation's log."}
    )
    logging_steps: float = field(default=0.01, metadata={"help": "Steps between logs; below 1, a share of all steps."})
    dataloader_pin_memory: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Pinned memory for batches; by default if there is a GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: rows are tensors."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Inputs whose presence means that a loss is computed."}
    )

    def __post_init__(self) -> None:
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available() and not self.use_cpu
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor: expected 0, got {self.label_smoothing_factor}; classification has its own: "
                "--label_smoothing, or ImageClassificationTrainer(label_smoothing=...)"
            )
        if self.auto_find_batch_size and self.learning_rate is None:
            raise ValueError(
                "auto_find_batch_size: expected False, since the learning rate follows the batch size; set "
                "learning_rate, or lower per_device_train_batch_size"
            )
        if self.learning_rate is None:
            batch_size = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.learning_rate = self.base_learning_rate * (batch_size / 256) ** 0.5

    def choose_best_model(self, has_average: bool) -> None:
        """Set `load_best_model_at_end` if it is still `None`."""
        if self.load_best_model_at_end is None:
            is_epoch = self.eval_strategy == self.save_strategy == "epoch"
            self.load_best_model_at_end = is_epoch and not has_average
