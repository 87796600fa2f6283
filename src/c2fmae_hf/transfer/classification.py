"""Fine-tuning for image classification, for any model that transformers or timm builds."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
)

from ..configuration_c2fmae import C2FMAEConfig, resize_before_crop
from ..constants import IMAGENET_MEAN, IMAGENET_STD
from ..data.rows import undecoded
from ..images import open_image, to_rgb
from .encoders import check_channels, encoder_config, load_with_new_parts
from .fine_tuning import FineTuningTrainer, named_classes


logger = logging.getLogger(__name__)


def build_classifier(
    name: str,
    id2label: Mapping[int, str],
    from_scratch: bool = False,
    image_size: int | None = None,
    pooling: str | None = None,
    drop_path_rate: float = 0.0,
) -> PreTrainedModel:
    """
    Build a classifier with a new head on an encoder.

    Args:
        name (`str`): As for [`~c2fmae_hf.transfer.encoders.load_encoder`].
        id2label: Names of the classes.
        from_scratch (`bool`): Random weights instead of the saved ones.
        image_size (`int`, *optional*): Side of the images, for C2FMAE, ViT and bare names of timm architectures.
        pooling (`str`, *optional*): `mean` or `cls`, for C2FMAE and timm. By default the model's own.
        drop_path_rate (`float`): Stochastic depth, if the model supports it.

    Raises:
        `ValueError`: for a bare timm architecture without `from_scratch`, or two classes with the same name.
    """
    options: dict[str, Any] = {"image_size": image_size, "pooling": pooling, "drop_path_rate": drop_path_rate}
    config = encoder_config(name, from_scratch, **options, **named_classes(id2label))
    check_channels(config)
    if image_size is not None and isinstance(config, C2FMAEConfig):
        # Pipelines, timm and the published model then use the size of the training images.
        config.image_size = image_size
    if from_scratch:
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = load_with_new_parts(AutoModelForImageClassification, name, config=config, ignore_mismatched_sizes=True)
    if image_size is not None and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        resize_positions(model, image_size)
    return model


@torch.no_grad()
def resize_positions(model: PreTrainedModel, image_size: int) -> None:
    """
    Change the input size of transformers' ViT, or of a model with its table of positions, as [`C2FMAEModel`]'s method
    does: a saved model, and pipelines on it, then take images of this size. Other models stay as they are.
    """
    config, embeddings = model.config, getattr(model.base_model, "embeddings", None)
    table: Any = getattr(embeddings, "position_embeddings", None)
    patches: Any = getattr(embeddings, "patch_embeddings", None)
    sides = [getattr(config, name, None) for name in ("image_size", "patch_size")]
    has_table = isinstance(table, nn.Parameter) and table.ndim == 3 and all(isinstance(side, int) for side in sides)
    if embeddings is None or patches is None or not has_table or image_size in (sides[0], None):
        return
    if image_size % config.patch_size:
        raise ValueError(f"image_size: expected a multiple of the patch size {config.patch_size}, got {image_size}")
    others = table.shape[1] - (config.image_size // config.patch_size) ** 2
    number = (image_size // config.patch_size) ** 2
    tokens = table.new_zeros(1, others + number, table.shape[2])
    embeddings.position_embeddings = nn.Parameter(
        embeddings.interpolate_pos_encoding(tokens, image_size, image_size).clone()
    )
    patches.image_size, patches.num_patches = (image_size, image_size), number
    config.image_size = image_size


def name_classes(
    train: datasets.Dataset, validation: datasets.Dataset
) -> tuple[datasets.Dataset, datasets.Dataset, dict[int, str]]:
    """
    Return both splits with integer labels, and the class names: those of a `ClassLabel`, else `class 0`, ...

    Raises:
        `ValueError`: if labels are missing, negative or not integers, or the classes of the splits differ.
    """
    feature, other = train.features["label"], validation.features["label"]
    if getattr(feature, "names", None) != getattr(other, "names", None):
        raise ValueError(
            f"dataset, column 'label': expected the same classes in both splits, got {feature} and {other}"
        )
    if not re.fullmatch(r"u?int\d+|bool", getattr(feature, "dtype", "")):
        raise ValueError(f"dataset, column 'label': expected class names or integers, got {feature}")
    if feature.dtype == "bool":
        train, validation = (rows.cast_column("label", datasets.Value("int64")) for rows in (train, validation))
    labels = {"training": train["label"], "held-out": validation["label"]}
    for split, values in labels.items():
        bad = [row for row, label in enumerate(values) if label is None or label < 0]
        if bad:
            raise ValueError(
                f"dataset, column 'label': expected a class in every row, got {values[bad[0]]} in {len(bad)} of "
                f"{len(values)} {split} rows; remove these: rows.filter(lambda row: row['label'] >= 0)"
            )
    if hasattr(feature, "names"):
        return train, validation, dict(enumerate(feature.names))
    number = 1 + max(max(values) for values in labels.values())
    occurring = len({label for values in labels.values() for label in values})
    if occurring < number:
        logger.warning(
            "The highest label is %d, which makes %d classes, but only %d occur.",
            *(number - 1, number, occurring),
        )
    return train, validation, {index: f"class {index}" for index in range(number)}


class ImageLabelDataset(Dataset):
    """
    A dataset of images with one class each.

    Args:
        rows (`datasets.Dataset`): Columns `image` and `label`.
        transform: Turns an RGB PIL image into `pixel_values`.
        image_column, label_column (`str`): Names of the columns.

    Raises:
        `ValueError`: if columns are missing. On access, if an image cannot be decoded or has no class; names the row.
    """

    def __init__(
        self, rows: datasets.Dataset, transform: v2.Transform, image_column: str = "image", label_column: str = "label"
    ) -> None:
        missing = [name for name in (image_column, label_column) if name not in rows.column_names]
        if missing:
            raise ValueError(f"dataset: expected the columns {missing}, got {rows.column_names}")
        self.rows = undecoded(rows.select_columns([image_column, label_column]))
        self.transform, self.image_column, self.label_column = transform, image_column, label_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        label = row[self.label_column]
        if label is None or label < 0:
            raise ValueError(f"row {index}, column {self.label_column!r}: expected a class, got {label}")
        try:
            image = to_rgb(open_image(row[self.image_column]))
        except ValueError as error:
            raise ValueError(f"row {index}, column {self.image_column!r}: {error}") from error
        return {"pixel_values": self.transform(image), "labels": label}


def classification_transforms(
    image_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    min_crop_scale: float = 0.2,
    crop_pct: float = 0.875,
    rand_augment: bool = False,
    random_erasing: float = 0.0,
) -> tuple[v2.Transform, v2.Transform]:
    """
    The usual transforms: for training a random resized crop, a random flip and optional RandAugment and random
    erasing; for evaluation the central crop.

    Args:
        image_size (`int`): Side of the result.
        mean, std: Statistics per channel, for pixels in [0, 1].
        min_crop_scale (`float`): Smallest area of a training crop.
        crop_pct (`float`): Side of the central crop relative to the resized image's shorter side.
        rand_augment (`bool`): Whether to use timm's `rand-m9-mstd0.5-inc1`, as MAE and BEiT do.
        random_erasing (`float`): Share of images in which a rectangle becomes noise; 0.25 in MAE's recipe.
    """
    interpolation = v2.InterpolationMode.BICUBIC
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    augment_options = {
        "translate_const": int(0.45 * image_size),
        "img_mean": tuple(round(255 * value) for value in mean),
    }
    training = [
        v2.RandomResizedCrop(image_size, (min_crop_scale, 1.0), interpolation=interpolation, antialias=True),
        v2.RandomHorizontalFlip(),
        *([rand_augment_transform("rand-m9-mstd0.5-inc1", augment_options)] if rand_augment else []),
        *finish,
        *([RandomErasing(random_erasing, mode="pixel", device="cpu")] if random_erasing > 0 else []),
    ]
    evaluation = [
        v2.Resize(resize_before_crop(image_size, crop_pct), interpolation=interpolation, antialias=True),
        v2.CenterCrop(image_size),
        *finish,
    ]
    return v2.Compose(training), v2.Compose(evaluation)


def ranked_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """
    Score to rank epochs by top-1 accuracy, then by cross-entropy, since accuracies on few images are often equal.

    Args:
        logits (`np.ndarray` of shape `(N, num_classes)`).
        labels (`np.ndarray` of shape `(N,)`): Class ids.

    Returns:
        The accuracy, minus a fraction of `1 / N` that grows with the loss.
    """
    scores, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    loss = nn.functional.cross_entropy(scores, targets).item()
    right = (scores.argmax(dim=1) == targets).sum().item()
    return (right - loss / (1 + loss)) / len(labels)


class ImageClassificationTrainer(FineTuningTrainer):
    """
    [`FineTuningTrainer`] with mixup and cutmix (torchvision's), and label smoothing in training only.

    Args:
        mixup_alpha, cutmix_alpha (`float`): Parameters of the beta distributions; 0 turns mixup or cutmix off. With
            both on, each batch uses one of them.
        label_smoothing (`float`): Label smoothing of the training loss.
        kwargs: Arguments of [`FineTuningTrainer`].
    """

    def __init__(
        self,
        *args,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        label_smoothing: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.model, PreTrainedModel)
        self.label_smoothing = label_smoothing
        num_labels = self.model.config.num_labels
        mixes: list[v2.Transform] = []
        if mixup_alpha > 0:
            mixes.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_labels))
        if cutmix_alpha > 0:
            mixes.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_labels))
        self.mix = v2.RandomChoice(mixes) if mixes else None
        self.forward_options = {}
        if "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            # Image sizes may differ from pre-training.
            self.forward_options["interpolate_pos_encoding"] = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        if model.training and self.mix is not None:
            pixel_values, labels = self.mix(pixel_values, labels)
        logits = model(pixel_values=pixel_values, **self.forward_options).logits
        smoothing = self.label_smoothing if model.training else 0.0
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
