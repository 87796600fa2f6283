"""Arguments of pre-training: those of transformers, with other defaults, and the curriculum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

import torch
from transformers import TrainingArguments

from ..constants import MASKING_STRATEGIES
from ..masking import MaskingCurriculum, RegionMasking


_CURRICULUM = MaskingCurriculum()
MAE_LEARNING_RATE, MAE_BATCH = 2.4e-3, 4096


@dataclass
class C2FMAETrainingArguments(TrainingArguments):
    r"""
    Arguments of [`C2FMAETrainer`]. Defaults that differ from transformers', with their reasons:

    - `learning_rate=None`: MAE's rate, 2.4e-3 at its batch of 4096, times the square root of the batch over 4096
      (Adam's scaling rule, Malladi et al., 2022). For 16 images that is 1.5e-4; MAE's linear rule gives 1e-5, with
      which a short run learns nothing.
    - `weight_decay=0.05`, `adam_beta2=0.95`, `lr_scheduler_type="cosine"`, `warmup_steps=0.05` (of all steps): MAE's.
    - `bf16=None`, `dataloader_pin_memory=None`: used where a GPU has them. Pinned batches are copied without waiting
      for the GPU, `accelerator_config={"non_blocking": True}`.
    - `remove_unused_columns=False`: the model's `forward` names none of a dataset's columns.
    - `label_names=["pixel_values"]`: the photograph is its own target, whatever the granularities, so that evaluation
      always returns a loss. `prediction_loss_only=True`: predictions are as large as the images.
    - `ddp_find_unused_parameters=False`: every parameter gets a gradient in every step.
    - `logging_steps=10`: a short run is logged too.
    - `logging_nan_inf_filter=False`: a loss that is not finite stops the run instead of vanishing from the logs.

    Args:
        base_learning_rate (`float`, *optional*): Use MAE's linear rule instead, `learning_rate = base_learning_rate *
            batch size / 256`, with the batch over all devices and accumulation steps. MAE's value is 1.5e-4.
        curriculum, curriculum_weights, curriculum_order, curriculum_length, region_masking (*optional*): Fields of
            [`MaskingCurriculum`]. The default is the paper's curriculum, from semantic over instance to random
            masks. For random masks only, use `curriculum="constant", curriculum_weights=[0, 0, 1]`.
        evaluation_masking (`str`, defaults to `"random"`): The strategy that masks evaluation images.
        min_crop_scale (`float`, defaults to 0.2): Smallest area of a training crop, as a share of the image.
        on_bad_row (`str`, defaults to `"raise"`): How to handle a row that cannot be used: `"raise"` stops the run,
            `"skip"` takes the next row.
        shuffle_rows (`int`, defaults to 8192): Rows of a stream that each process holds in memory and shuffles.

    The last three apply to plain rows that [`C2FMAETrainer`] wraps.
    """

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Learning rate; by default 2.4e-3 * sqrt(total batch / 4096)."}
    )
    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Sets the rate to this times the total batch / 256 (MAE's rule)."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay; norms, biases and tokens have none."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of AdamW (MAE's value)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Mixed bfloat16 precision; by default if the GPU supports it."}
    )
    dataloader_pin_memory: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Pinned memory for batches; by default if there is a GPU."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the model's forward names none of the columns."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["pixel_values"],
        metadata={"help": "Inputs whose presence means that a loss can be computed."},
    )
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Evaluate losses only, without collecting predictions."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DistributedDataParallel looks for parameters without a gradient."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs; below 1, a share of all steps."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay False: a loss that is not finite stops the run."}
    )

    curriculum: str = field(
        default=_CURRICULUM.schedule,
        metadata={
            "help": "Masking curriculum: linear is the paper's; constant keeps curriculum_weights.",
            "choices": ["linear", "step", "constant"],
        },
    )
    curriculum_weights: list[float] = field(
        default_factory=lambda: list(_CURRICULUM.weights),
        metadata={"help": "Weights of semantic, instance, random masking if the curriculum is constant."},
    )
    curriculum_order: list[str] = field(
        default_factory=lambda: list(_CURRICULUM.order),
        metadata={"help": "The masking strategies in the order in which they take over."},
    )
    curriculum_length: float = field(
        default=_CURRICULUM.length,
        metadata={"help": "Share of the run that the curriculum takes; the last strategy is used after it."},
    )
    region_masking: str = field(
        default=_CURRICULUM.region_masking,
        metadata={
            "help": "Whether guided masks show an equal share of every region, or whole regions.",
            "choices": list(get_args(RegionMasking)),
        },
    )
    evaluation_masking: str = field(
        default="random",
        metadata={"help": "Masking strategy of evaluation.", "choices": list(MASKING_STRATEGIES)},
    )
    min_crop_scale: float = field(default=0.2, metadata={"help": "Smallest area of a training crop."})
    on_bad_row: str = field(
        default="raise",
        metadata={"help": "Stop at a row that cannot be used, or skip it.", "choices": ["raise", "skip"]},
    )
    shuffle_rows: int = field(default=8192, metadata={"help": "Rows of a stream that each process shuffles."})

    def __post_init__(self) -> None:
        if self.bf16 is None:
            has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            self.bf16 = has_bf16 and not self.fp16 and not self.use_cpu
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available() and not self.use_cpu
        if self.accelerator_config is None and self.dataloader_pin_memory:
            self.accelerator_config = {"non_blocking": True}
        super().__post_init__()
        self.get_curriculum()  # raises if the curriculum is invalid
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns: expected False, got True; it would drop the image and its maps")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor: expected 0, got {self.label_smoothing_factor}; no loss smooths labels"
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size: expected False, since curriculum, learning rate and streams follow the batch "
                "size; lower per_device_train_batch_size"
            )
        if self.learning_rate is None:
            self.learning_rate = self.scaled_learning_rate(
                self.train_batch_size * self.gradient_accumulation_steps * self.world_size
            )

    def scaled_learning_rate(self, batch_size: int) -> float:
        """The learning rate for so many images a step, unless `learning_rate` sets it."""
        if self.base_learning_rate is None:
            return MAE_LEARNING_RATE * (batch_size / MAE_BATCH) ** 0.5
        return self.base_learning_rate * batch_size / 256

    def get_curriculum(self) -> MaskingCurriculum:
        """The [`MaskingCurriculum`] that these arguments describe."""
        if len(self.curriculum_weights) != len(MASKING_STRATEGIES):
            raise ValueError(f"curriculum_weights: expected three numbers, got {self.curriculum_weights}")
        semantic, instance, random = self.curriculum_weights
        return MaskingCurriculum(
            schedule=self.curriculum,  # type: ignore[arg-type]
            weights=(semantic, instance, random),
            order=tuple(self.curriculum_order),
            length=self.curriculum_length,
            region_masking=self.region_masking,  # type: ignore[arg-type]
        )
