"""A k-NN probe that measures the encoder's accuracy during pre-training."""

from __future__ import annotations

import logging
import math

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.splits import load_train_and_validation
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..training.trainer import C2FMAETrainer
from .classification import ImageLabelDataset, classification_transforms, name_classes
from .probes import extract_features, weighted_knn


logger = logging.getLogger(__name__)

#: Maximum number of training and of held-out images, so that a probe takes seconds.
MOST_IMAGES = 2000


def load_probe_rows(name: str, seed: int = 0) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Load labelled training and held-out rows, at most `MOST_IMAGES` each, drawn at random.

    Args:
        name (`str`): A dataset with the columns `image` and `label`, or a folder with a subfolder of images for each
            class; see [`~c2fmae_hf.data.splits.load_train_and_validation`]. Without a split `validation`, a
            fifth of the rows is held out.
        seed (`int`): Seed of the random choice.

    Raises:
        `ValueError`: if the dataset lacks these columns or has fewer than two classes.
    """
    parts = load_train_and_validation(name, seed=seed)
    try:
        for rows in parts:
            if not {"image", "label"} <= set(rows.column_names):
                raise ValueError(
                    f"expected the columns 'image' and 'label', got {rows.column_names}. Pass a dataset with them, "
                    "or a folder with a subfolder of images for each class"
                )
        train, held_out, _ = name_classes(*parts)
        if len(set(train["label"])) < 2:
            raise ValueError("expected images of at least two classes, got one")
    except ValueError as error:
        raise ValueError(f"probe_dataset {name}: {error}") from None
    chosen = [rows.shuffle(seed=seed).select(range(min(MOST_IMAGES, len(rows)))) for rows in (train, held_out)]
    return chosen[0], chosen[1]


class KNNProbeCallback(TrainerCallback):
    """
    Evaluates the encoder with [`weighted_knn`] (k = 20, or a fifth of the training images if that is less): before the
    first step, every `steps` steps, and after the last. The accuracy on held-out images is logged as `knn_accuracy`.
    The probe does not change the training.

    Args:
        trainer ([`C2FMAETrainer`]): The trainer of the model to evaluate. Add the callback to it.
        train, held_out (`datasets.Dataset`): Rows from [`load_probe_rows`].
        steps (`int`): Steps between probes.

    Raises:
        `ValueError`: if weights are sharded, or the model does not take square images.
    """

    def __init__(
        self, trainer: C2FMAETrainer, train: datasets.Dataset, held_out: datasets.Dataset, steps: int = 500
    ) -> None:
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
        self.parts = ImageLabelDataset(train, transform), ImageLabelDataset(held_out, transform)
        labels = {*train["label"], *held_out["label"]}
        self.num_classes = 1 + max(labels)
        self.k = min(20, max(1, len(train) // 5))
        logger.info(
            "k-NN probe every %d steps: %d images of %d classes to learn from, %d held out, k = %d.",
            *(steps, len(train), len(labels), len(held_out), self.k),
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
        """Accuracy on the held-out images. The main process computes it; all processes must call this."""
        trainer = self.trainer
        accuracy = torch.full((), math.nan, device=trainer.args.device)
        if trainer.is_world_process_zero():
            model = trainer.accelerator.unwrap_model(trainer.model)
            encoder = model.image_encoder()  # shares the weights, but not the training mode
            features = []
            for part in self.parts:
                loader = DataLoader(
                    part,
                    batch_size=trainer.args.per_device_eval_batch_size,
                    num_workers=trainer.args.dataloader_num_workers,
                    # The loader draws a random number, which must not come from the training's generator.
                    generator=torch.Generator().manual_seed(0),
                )
                found, labels = extract_features(encoder, loader, description=None)
                features.append((found[encoder.config.pooling], labels))
            (train, train_labels), (held_out, labels) = features
            scores = weighted_knn(train, train_labels, held_out, self.num_classes, self.k)
            accuracy.fill_((scores.argmax(dim=1) == labels).float().mean().item())
        trainer.accelerator.wait_for_everyone()
        return trainer.accelerator.gather(accuracy[None])[0].item()
