"""Fine-tuning for semantic segmentation: models, transforms, inference at any image size, and mean IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvF
from transformers import (
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.image_utils import SizeDict

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD
from ..data.rows import undecoded
from ..image_processing_c2fmae import rounded_size
from ..images import expand_label_map, open_image, to_label_map, to_rgb
from ..metrics.scores import confusion_matrix, iou_scores
from .encoders import NARROW, check_channels, encoder_config, load_with_new_parts
from .fine_tuning import FineTuningTrainer, named_classes
from .modeling_encoder_backbone import build_backbone


# Models


def build_segmenter(
    name: str,
    id2label: Mapping[int, str],
    head: Literal["upernet", "light"] = "upernet",
    from_scratch: bool = False,
    image_size: int | None = None,
    out_indices: list[int] | None = None,
    head_channels: int | None = None,
    drop_path_rate: float = 0.0,
) -> PreTrainedModel:
    """
    Build a semantic segmenter with a new head on an encoder.

    Args:
        name (`str`): As for [`build_backbone`].
        id2label: Names of the classes, at least two.
        head (`str`): `upernet` for transformers' `UperNetForSemanticSegmentation` on a feature pyramid, with any
            encoder; `light` for `C2FMAEForSemanticSegmentation`.
        from_scratch (`bool`): Random weights instead of the saved ones.
        image_size (`int`, *optional*): Side of the training crops, for the bare name of a timm architecture.
        out_indices (*optional*): Blocks that UperNet reads; see [`build_backbone`].
        head_channels (`int`, *optional*): Width of the head; by default 512 for UperNet (64 for encoders narrower
            than 384), the model's own for `light`.
        drop_path_rate (`float`): Stochastic depth, if the model supports it.

    Raises:
        `ValueError`: for fewer than two classes or two with the same name, an unknown head, or the light head on a
            model other than C2FMAE.
    """
    if len(id2label) < 2:
        raise ValueError(f"classes: expected at least two (background counts), got {list(id2label.values())}")
    labels = named_classes(id2label)
    if head == "light":
        config = encoder_config(name, from_scratch, drop_path_rate=drop_path_rate, **labels)
        check_channels(config)
        if not isinstance(config, C2FMAEConfig):
            raise ValueError(f"head: expected 'upernet' for a {config.model_type}, got 'light', which only C2FMAE has")
        config.semantic_loss_ignore_index = IGNORE_INDEX  # of our maps; the model's own may be a class
        config.segmentation_head_channels = head_channels or config.segmentation_head_channels
        if from_scratch:
            return AutoModelForSemanticSegmentation.from_config(config)
        options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True}
        return load_with_new_parts(AutoModelForSemanticSegmentation, name, **options)
    if head != "upernet":
        raise ValueError(f"head: expected 'upernet' or 'light', got {head!r}")
    backbone = build_backbone(name, from_scratch, out_indices, image_size, drop_path_rate)
    channels = head_channels or (512 if backbone.config.hidden_size >= NARROW else 64)
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone.config,
            hidden_size=channels,
            auxiliary_in_channels=backbone.config.hidden_size,
            auxiliary_channels=channels // 2,
            loss_ignore_index=IGNORE_INDEX,
            **labels,
        )
    )
    model.backbone.load_state_dict(backbone.state_dict())
    model.backbone.license_text = getattr(backbone, "license_text", None)
    return model


def patch_size_of_segmenter(model: PreTrainedModel) -> int:
    """Side of the encoder's patches in pixels."""
    return int(getattr(model.config, "backbone_config", model.config).patch_size)


def segment(
    model: nn.Module, pixel_values: torch.Tensor, window: int | None = None, stride: int | None = None
) -> torch.Tensor:
    """
    Predict class scores for images of one size.

    Args:
        model: A model that returns `logits`.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`).
        window (`int`, *optional*): Side of a square that slides over the images in steps of `stride` (by default two
            thirds of it); scores of overlapping squares are averaged. By default the model sees whole images.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_labels, height, width)`; without `window` at the resolution of
        the model's `logits`.

    Raises:
        `ValueError`: if the images are smaller than the window, or the stride is not in [1, window].
    """

    def scores(part: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=part).logits.float()

    if window is None:
        return scores(pixel_values)
    height, width = pixel_values.shape[-2:]
    stride = max(window * 2 // 3, 1) if stride is None else stride
    if min(height, width) < window or not 1 <= stride <= window:
        raise ValueError(
            f"window: expected at most the image's shorter side and a stride in [1, window], got window={window}, "
            f"stride={stride}, image {height} x {width}"
        )
    total, count = None, pixel_values.new_zeros((1, 1, height, width), dtype=torch.float32)
    for top in window_starts(height, window, stride):
        for left in window_starts(width, window, stride):
            area = (..., slice(top, top + window), slice(left, left + window))
            part = scores(pixel_values[area])
            part = nn.functional.interpolate(part, size=(window, window), mode="bilinear", align_corners=False)
            if total is None:
                total = part.new_zeros((*part.shape[:2], height, width))
            total[area] += part
            count[area] += 1
    assert total is not None
    return total / count


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Start positions of windows that cover a side; the last window ends where the side ends."""
    return [*range(0, side - window, stride), side - window]


# Data


def segmentation_transforms(
    image_size: int,
    patch_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    scale_range: tuple[float, float] = (0.5, 2.0),
    photometric: bool = True,
) -> tuple[SegmentationTransform, SegmentationTransform]:
    """
    The usual transforms for training and evaluation.

    Training: resize the shorter side to `image_size` times a random scale, take a random crop of `image_size` (smaller
    images are padded with the mean colour and the ignore index), flip at random and, if `photometric`, jitter colours.
    Evaluation: resize the shorter side to `image_size` and keep the aspect ratio, both sides rounded to whole patches;
    labels keep their original size, at which predictions are scored.
    """
    fill = {
        tv_tensors.Image: [round(255 * value) for value in mean],
        tv_tensors.Mask: IGNORE_INDEX,
    }
    # Not RandomPhotometricDistort of torchvision, which swaps colour channels too.
    colour = v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)
    # RandomShortestSize takes a list of sizes, so sample the range.
    scales = np.linspace(*scale_range, 13) if scale_range[0] < scale_range[1] else [scale_range[0]]
    geometry = v2.Compose(
        [
            v2.RandomShortestSize([max(round(image_size * scale), 1) for scale in scales], antialias=True),
            v2.RandomCrop(image_size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            *([v2.RandomApply([colour], p=0.5)] if photometric else []),
        ]
    )
    return (
        SegmentationTransform(mean, std, geometry=geometry),
        SegmentationTransform(mean, std, size=image_size, divisor=patch_size),
    )


class SegmentationTransform:
    """
    Turns an RGB PIL image and a label map `(height, width)` into `pixel_values` `(3, h, w)` and `labels`, int64.

    Args:
        mean, std: Statistics per channel, for pixels in [0, 1].
        geometry (*optional*): A torchvision v2 transform of image and labels together.
        size (`int`, *optional*): Without `geometry`, shorter side of the resized image; labels are not resized.
        divisor (`int`): With `size`, sides are rounded to multiples of it.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        geometry: v2.Transform | None = None,
        size: int | None = None,
        divisor: int = 1,
    ) -> None:
        self.mean, self.std, self.geometry, self.size, self.divisor = list(mean), list(std), geometry, size, divisor

    def __call__(self, image: Image.Image, label_map: np.ndarray) -> dict[str, torch.Tensor]:
        pixels: torch.Tensor = tv_tensors.Image(tvF.pil_to_tensor(image))
        labels: torch.Tensor = tv_tensors.Mask(torch.from_numpy(label_map))
        if self.geometry is not None:
            pixels, labels = self.geometry(pixels, labels)
        elif self.size is not None:
            size = rounded_size(pixels, SizeDict(shortest_edge=self.size), self.divisor)
            sides = [size.height, size.width]
            pixels = tvF.resize(pixels, sides, tvF.InterpolationMode.BICUBIC, antialias=True)
        pixels = tvF.to_dtype(pixels.as_subclass(torch.Tensor), torch.float32, scale=True)
        return {
            "pixel_values": tvF.normalize(pixels, self.mean, self.std),
            "labels": labels.as_subclass(torch.Tensor).long(),
        }


class SemanticSegmentationDataset(Dataset):
    """
    A dataset of images with maps of classes.

    Args:
        rows (`datasets.Dataset`): Columns `image` and `semantic` (see [`~c2fmae_hf.data.dataset`]).
        transform ([`SegmentationTransform`]).
        num_labels (`int`): Number of classes; ids must be below it.

    Raises:
        `ValueError`: if columns are missing. On access, if a row cannot be decoded or its map does not fit; the
            message names row and column.
    """

    def __init__(self, rows: datasets.Dataset, transform: SegmentationTransform, num_labels: int) -> None:
        missing = [name for name in ("image", "semantic") if name not in rows.column_names]
        if missing:
            raise ValueError(f"dataset: expected the columns {missing}, got {rows.column_names}")
        self.rows = undecoded(rows.select_columns(["image", "semantic"]))
        self.transform, self.num_labels = transform, num_labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        column = "image"
        try:
            image = to_rgb(open_image(row["image"]))
            column = "semantic"
            if row["semantic"] is None:
                raise ValueError("expected a map of classes, got none")
            label_map = to_label_map(open_image(row["semantic"], image_size=(image.height, image.width)))
            if label_map.max() >= self.num_labels:
                raise ValueError(f"expected class ids in [0, {self.num_labels}), got {label_map.max()}")
            label_map = expand_label_map(label_map, (image.height, image.width))
        except ValueError as error:
            raise ValueError(f"row {index}, column {column!r}: {error}") from error
        return self.transform(image, label_map)


def collate_padded(samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Collate samples of any sizes, padded on the right and below: images with 0, labels with the ignore index. `sizes`
    and `label_sizes` `(batch_size, 2)` hold the heights and widths of images and labels before padding.
    """
    batch = {}
    for name, fill, sizes_name in (("pixel_values", 0.0, "sizes"), ("labels", IGNORE_INDEX, "label_sizes")):
        tensors = [sample[name] for sample in samples]
        batch[sizes_name] = torch.tensor([tensor.shape[-2:] for tensor in tensors])
        height, width = batch[sizes_name].amax(dim=0).tolist()
        batch[name] = torch.stack(
            [
                nn.functional.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=fill)
                for tensor in tensors
            ]
        )
    return batch


# Training


class MeanIoUOfBatches:
    """
    `compute_metrics` of [`SemanticSegmentationTrainer`]: sums confusion matrices over batches, to score the whole set
    without keeping its predictions.

    Args:
        num_labels (`int`): Number of classes.
    """

    def __init__(self, num_labels: int) -> None:
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, Any]:
        """Add confusion matrices `(batch_size, num_labels, num_labels)`, whose rows are the classes of the labels."""
        self.matrix += torch.as_tensor(prediction.predictions).sum(dim=0).cpu().numpy()
        if not compute_result:
            return {}
        scores = iou_scores(self.matrix)
        self.matrix = np.zeros_like(self.matrix)
        return scores


class SemanticSegmentationTrainer(FineTuningTrainer):
    """
    [`FineTuningTrainer`] for models that return `logits` of classes. Evaluation predicts each image at its own aspect
    ratio and resizes scores to the labels' size. It keeps only a confusion matrix per image, for [`MeanIoUOfBatches`].

    Args:
        window, stride (`int`, *optional*): For sliding-window evaluation; see [`segment`].
        kwargs: Arguments of [`FineTuningTrainer`]; `data_collator` is [`collate_padded`].

    Raises:
        `ValueError`: if the stride is not in [1, window].
    """

    def __init__(self, *args, window: int | None = None, stride: int | None = None, **kwargs) -> None:
        if stride is not None and (window is None or not 1 <= stride <= window):
            raise ValueError(f"stride: expected a value in [1, window], got window={window}, stride={stride}")
        super().__init__(*args, data_collator=collate_padded, **kwargs)
        self.window, self.stride = window, stride
        self.args.batch_eval_metrics = True
        self.has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())  # type: ignore[union-attr]
        if self.has_batch_norm:
            self._prepare_batch_norm()

    def _prepare_batch_norm(self) -> None:
        """Prepare batch normalisation. UperNet pools each image to one value, so a batch needs several images."""
        if self.args.world_size > 1 and self.args.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self.model_wrapped = self.model
        elif self.args.train_batch_size < 2 and self.train_dataset is not None:
            raise ValueError("per_device_train_batch_size: expected at least 2 for batch normalisation, got 1")

    def get_train_dataloader(self) -> DataLoader:
        own = self.args.dataloader_drop_last
        num_rows = len(self.train_dataset)  # type: ignore[arg-type]
        if self.has_batch_norm and num_rows >= self.args.train_batch_size:
            # A last batch of one image could not be normalised. Reset below: evaluation must not drop any image.
            self.args.dataloader_drop_last = True
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = own

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        if bool((labels != IGNORE_INDEX).any()):
            outputs = model(pixel_values=pixel_values, labels=labels)
            loss = outputs.loss
        else:  # without labelled pixels the mean loss would be NaN
            outputs = model(pixel_values=pixel_values)
            loss = outputs.logits.sum() * 0
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return no loss, confusion matrices `(batch_size, num_labels, num_labels)`, and sizes in place of labels."""
        inputs = self._prepare_inputs(inputs)
        num_labels = int(self.model.config.num_labels)  # type: ignore
        matrices = [
            confusion_matrix(label_map.cpu().numpy(), labels.cpu().numpy(), num_labels)
            for label_map, labels in zip(self.predict_maps(model, inputs), inputs["labels"])
        ]
        device = inputs["labels"].device
        return None, torch.from_numpy(np.stack(matrices)).to(device), inputs["label_sizes"]

    def predict_maps(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Class maps of a batch from [`collate_padded`], as large as its `labels`, with -100 for padding."""
        maps = torch.full_like(inputs["labels"], IGNORE_INDEX)
        sizes = [tuple(size) for size in inputs["sizes"].tolist()]
        label_sizes = inputs["label_sizes"].tolist()
        with torch.inference_mode(), self.compute_loss_context_manager():
            for size in sorted(set(sizes)):  # images of one size go through the model together
                chosen = [index for index, other in enumerate(sizes) if other == size]
                images = inputs["pixel_values"][chosen, :, : size[0], : size[1]]
                scores = segment(model, images, self.window, self.stride)
                for index, own in zip(chosen, scores):
                    height, width = label_sizes[index]
                    resized = nn.functional.interpolate(
                        own[None], size=(height, width), mode="bilinear", align_corners=False
                    )
                    maps[index, :height, :width] = resized[0].argmax(dim=0)
        return maps
