"""A nearest-neighbour probe of the encoder during pre-training: whether it learns anything that classes show."""

from __future__ import annotations

import logging
import math

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.splits import load_train_and_validation
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..training.trainer import C2FMAETrainer
from .classification import ImageLabelDataset, classification_transforms
from .probes import extract_features, weighted_knn


logger = logging.getLogger(__name__)

#: At most so many training and so many held-out images are looked at, so that a probe takes seconds.
MOST_IMAGES = 2000


class KNNProbeCallback(TrainerCallback):
    """
    Judges the encoder by [`weighted_knn`] (k = 20, or a fifth of the training images if that is less) on a labelled
    dataset: before the first step, every so many steps, and after the last. The share of held-out images that get
    their class right is logged as `knn_accuracy`. Training itself is the same with a probe as without.

    Args:
        trainer ([`C2FMAETrainer`]): Whose model is judged. Add the callback to it.
        dataset_name (`str`): A dataset with the columns `image` and `label`, or a folder with a subfolder of images
            for each class; see [`~c2fmae_hf.data.splits.load_train_and_validation`]. Without a split `validation` a
            fifth is held out.
        steps (`int`): Between probes.

    Raises:
        `ValueError`: if there are no such columns, or weights are sharded.
    """

    def __init__(self, trainer: C2FMAETrainer, dataset_name: str, steps: int = 500) -> None:
        if steps < 1:
            raise ValueError(f"probe_steps: expected at least 1, got {steps}")
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("probe_dataset: expected whole weights in each process, got sharded ones")
        self.trainer, self.steps = trainer, steps
        config = trainer.accelerator.unwrap_model(trainer.model).config
        height, width = config.image_height_width
        if height != width:
            raise ValueError(f"probe_dataset: expected a model for square images, got one for {width} x {height}")
        processor = trainer.processing_class
        assert isinstance(processor, C2FMAEImageProcessor)
        _, transform = classification_transforms(height, processor.image_mean, processor.image_std)
        parts = []
        for rows in load_train_and_validation(dataset_name, seed=trainer.args.seed):
            if not {"image", "label"} <= set(rows.column_names):
                raise ValueError(
                    f"probe_dataset: expected the columns 'image' and 'label', got {rows.column_names}. A folder with "
                    "a subfolder of images for each class has them"
                )
            if len(rows) > MOST_IMAGES:
                rows = rows.shuffle(seed=trainer.args.seed).select(range(MOST_IMAGES))
            parts.append(ImageLabelDataset(rows, transform))
        self.parts = tuple(parts)
        self.num_classes = 1 + max(max(part.rows["label"]) for part in self.parts)
        self.k = min(20, max(1, len(self.parts[0]) // 5))
        logger.info(
            "k-NN probe on %s every %d steps: %d images of %d classes to learn from, %d held out, k = %d.",
            *(dataset_name, steps, len(self.parts[0]), self.num_classes, len(self.parts[1]), self.k),
        )

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.global_step == 0:
            self.trainer.log({"knn_accuracy": self.probe()})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            self.trainer.add_to_log(knn_accuracy=self.probe())
            control.should_log = True

    @torch.no_grad()
    def probe(self) -> float:
        """Share of the held-out images that get their class right, in all processes; the main one computes it."""
        trainer = self.trainer
        accuracy = torch.full((), math.nan, device=trainer.args.device)
        if trainer.is_world_process_zero():
            model = trainer.accelerator.unwrap_model(trainer.model)
            encoder = model.image_encoder()  # whose mode is its own, unlike its weights
            features = []
            for part in self.parts:
                loader = DataLoader(
                    part,
                    batch_size=trainer.args.per_device_eval_batch_size,
                    num_workers=trainer.args.dataloader_num_workers,
                    # A loader draws a number, which must not be one of the training's.
                    generator=torch.Generator().manual_seed(0),
                )
                found, labels = extract_features(encoder, loader, description=None)
                features.append((found[encoder.config.pooling], labels))
            (train, train_labels), (held_out, labels) = features
            scores = weighted_knn(train, train_labels, held_out, self.num_classes, self.k)
            accuracy.fill_((scores.argmax(dim=1) == labels).float().mean().item())
        trainer.accelerator.wait_for_everyone()
        return trainer.accelerator.gather(accuracy[None])[0].item()
