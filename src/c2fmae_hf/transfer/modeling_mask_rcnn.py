"""torchvision's Mask R-CNN on a plain vision transformer, as in ViTDet, as a transformers model."""

# No `from __future__ import annotations` here: `@strict` checks fields against their annotations' real types.

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..constants import IMAGENET_MEAN, IMAGENET_STD


NUM_LEVELS = 5  # levels of the pyramid: the backbone's four maps, and the last one at half its size


@strict
class MaskRCNNConfig(PreTrainedConfig):
    r"""
    Configuration of [`MaskRCNNForObjectDetection`]. Where ViTDet and torchvision differ, the
    defaults are ViTDet's.

    Args:
        backbone_config: Configuration of a backbone with four maps; see
            [`~c2fmae_hf.transfer.modeling_encoder_backbone.build_backbone`].
        image_size (`int`): Shorter side of resized images.
        max_image_size (`int`): Maximum longer side of resized images.
        train_image_sizes (`list[int]`, *optional*): Shorter sides to choose from at random in training.
        pyramid_channels (`int`): Width of the pyramid and of the convolutional heads.
        num_box_convolutions, num_mask_convolutions, num_rpn_convolutions (`int`): Depths of the heads.
        box_hidden_size (`int`): Width of the box head's linear layer.
        anchor_scale (`float`): Side of a level's anchors, as a multiple of its stride.
        rpn_batch_size_per_image, box_batch_size_per_image (`int`): Anchors and boxes sampled per training image for
            the losses.
        rpn_pre_nms_top_n, rpn_post_nms_top_n (`int`): Proposals kept per level and per image.
        score_threshold (`float`): Minimum score of a detection.
        detections_per_image (`int`): Maximum number of detections per image.
        image_mean, image_std: Mean and standard deviation per channel, for pixels in [0, 1].
    """

    model_type = "vit_mask_rcnn"
    sub_configs = {"backbone_config": AutoConfig}  # type: ignore[assignment]

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: int = 1024
    max_image_size: int = 1024
    train_image_sizes: list[int] | None = None
    pyramid_channels: int = 256
    num_box_convolutions: int = 4
    num_mask_convolutions: int = 4
    num_rpn_convolutions: int = 2
    box_hidden_size: int = 1024
    anchor_scale: float | int = 8
    rpn_batch_size_per_image: int = 256
    box_batch_size_per_image: int = 512
    rpn_pre_nms_top_n: int = 2000
    rpn_post_nms_top_n: int = 1000
    score_threshold: float = 0.05
    detections_per_image: int = 100
    image_mean: list[float] | None = None
    image_std: list[float] | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            options = dict(self.backbone_config)
            self.backbone_config = AutoConfig.for_model(options.pop("model_type"), **options)
        self.image_mean = list(self.image_mean or IMAGENET_MEAN)
        self.image_std = list(self.image_std or IMAGENET_STD)
        super().__post_init__(**kwargs)


@dataclass
class MaskRCNNOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, *optional*): Sum of `losses`, in training.
        losses (`dict[str, torch.FloatTensor]`, *optional*): The five terms of the loss, in training.
        detections (`list[dict[str, torch.Tensor]]`, *optional*): In evaluation, for each image `boxes` `(N, 4)` (left,
            top, right, bottom in pixels of that image), `scores` `(N,)` in descending order, `labels` `(N,)`, int64,
            from 0, and `masks` `(N, height, width)`, probabilities.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    detections: list[dict[str, torch.Tensor]] | None = None


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation, since a detector's batches are too small for batch statistics."""
    return nn.GroupNorm(min(32, channels // 2), channels)


def _roi_align(levels: list[str], strides: list[int], output_size: int) -> MultiScaleRoIAlign:
    """RoIAlign with fixed strides. torchvision infers them from the first batch, wrongly if that has much padding."""
    align = MultiScaleRoIAlign(levels, output_size, sampling_ratio=0)
    align.scales = [1 / stride for stride in strides]
    align.map_levels = initLevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return align


class _Pyramid(nn.Module):
    """The backbone's four maps at one width and a halved copy of the last, by level, as torchvision expects them."""

    def __init__(self, backbone: PreTrainedModel, channels: int) -> None:
        super().__init__()
        self.body = backbone
        self.out_channels = channels
        self.autocast_dtype: torch.dtype | None = None  # of the next call
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, 1, bias=False),
                _norm(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                _norm(channels),
            )
            for width in list(backbone.channels)  # type: ignore[arg-type]
        )

    def forward(self, pixel_values: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        device = pixel_values.device.type
        with torch.autocast(device, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            maps = self.body(pixel_values).feature_maps
            levels = [project(level).float() for project, level in zip(self.projections, maps)]
        levels.append(nn.functional.max_pool2d(levels[-1], 1, stride=2))
        return OrderedDict((str(index), level) for index, level in enumerate(levels))


class MaskRCNNForObjectDetection(PreTrainedModel):
    """
    Mask R-CNN: predicts boxes, classes and masks of objects. The encoder's maps at four resolutions, projected to one
    width, feed torchvision's region proposals and box and mask heads, with group normalisation. Attention is global in
    every block, unlike ViTDet, which uses windowed attention in most.
    """

    config_class = MaskRCNNConfig
    base_model_prefix = "detector"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True  # if the encoder does
    _no_split_modules = []
    # These stay in float32 when the model is loaded in half precision, where boxes would be off by several pixels.
    _keep_in_fp32_modules_strict = ["detector.rpn", "detector.roi_heads"]

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__(config)
        backbone = AutoBackbone.from_config(config.backbone_config)
        channels = config.pyramid_channels
        patch_size = int(config.backbone_config.patch_size)  # type: ignore[union-attr]
        if len(backbone.channels) != 4:
            raise ValueError(f"backbone_config: expected a backbone with four maps, got {len(backbone.channels)}")
        if patch_size % 4:
            raise ValueError(
                "backbone_config: expected a patch size divisible by 4, since the finest map has four rows per patch, "
                f"got {patch_size}"
            )
        levels = [str(index) for index in range(NUM_LEVELS)]
        strides = [patch_size * 2**index // 4 for index in range(NUM_LEVELS)]
        anchors = AnchorGenerator(
            tuple((int(config.anchor_scale * stride),) for stride in strides), ((0.5, 1.0, 2.0),) * NUM_LEVELS
        )
        sizes = config.train_image_sizes or [config.image_size]
        num_classes = (config.num_labels or 0) + 1  # torchvision's class 0 is the background
        self.detector = MaskRCNN(
            _Pyramid(backbone, channels),
            # torchvision picks one of these at random in training and the last one in evaluation.
            min_size=[*sizes, config.image_size] if config.train_image_sizes else sizes,
            max_size=config.max_image_size,
            image_mean=config.image_mean,
            image_std=config.image_std,
            size_divisible=4 * patch_size,  # so that the true stride of every level equals the one of its anchors
            rpn_anchor_generator=anchors,
            rpn_head=RPNHead(channels, 3, conv_depth=config.num_rpn_convolutions),
            rpn_pre_nms_top_n_train=config.rpn_pre_nms_top_n,
            rpn_pre_nms_top_n_test=config.rpn_pre_nms_top_n,
            rpn_post_nms_top_n_train=config.rpn_post_nms_top_n,
            rpn_post_nms_top_n_test=config.rpn_post_nms_top_n,
            rpn_batch_size_per_image=config.rpn_batch_size_per_image,
            box_roi_pool=_roi_align(levels[:4], strides[:4], output_size=7),
            box_head=FastRCNNConvFCHead(
                (channels, 7, 7), [channels] * config.num_box_convolutions, [config.box_hidden_size], _norm
            ),
            box_predictor=FastRCNNPredictor(config.box_hidden_size, num_classes),
            box_score_thresh=config.score_threshold,
            box_detections_per_img=config.detections_per_image,
            box_batch_size_per_image=config.box_batch_size_per_image,
            mask_roi_pool=_roi_align(levels[:4], strides[:4], output_size=14),
            mask_head=MaskRCNNHeads(channels, [channels] * config.num_mask_convolutions, 1, norm_layer=_norm),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: torchvision's modules initialise themselves, and a saved model has all weights."""

    @property
    def backbone(self) -> PreTrainedModel:
        """The encoder with its pyramid."""
        return self.detector.backbone.body

    def forward(
        self,
        pixel_values: torch.Tensor | Sequence[torch.Tensor],
        labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
        pixel_mask: torch.Tensor | Sequence[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> MaskRCNNOutput:
        """
        Args:
            pixel_values: Images `(3, height, width)` of any sizes, in [0, 1]. The model resizes, normalises and pads
                them.
            labels (*optional*): For each image `boxes` `(N, 4)` (left, top, right, bottom in its pixels),
                `class_labels` `(N,)`, int64, from 0, and `masks` `(N, height, width)`, uint8. Required in training,
                ignored in evaluation.
            pixel_mask (*optional*): For each image `(height, width)`, 0 for padding on the right and below, which is
                cut off, and 1 elsewhere.

        Returns:
            [`MaskRCNNOutput`]: Losses in training, detections in evaluation.

        Raises:
            `ValueError`: in training without labels.
        """
        images = list(pixel_values)
        if pixel_mask is not None:
            sides = [(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in pixel_mask]
            images = [image[:, :height, :width] for image, (height, width) in zip(images, sides)]
        for part in (self.detector.rpn, self.detector.roi_heads):
            part.float()  # as when loaded; `model.half()` converts these, too
        # In mixed precision torchvision would compute boxes in steps of several pixels.
        device = images[0].device.type
        enabled = torch.is_autocast_enabled(device)
        self.detector.backbone.autocast_dtype = torch.get_autocast_dtype(device) if enabled else None
        with torch.autocast(device, enabled=False):
            return self._detect(images, labels)

    def _detect(
        self, images: list[torch.Tensor], labels: Sequence[Mapping[str, torch.Tensor]] | None
    ) -> MaskRCNNOutput:
        if not self.training:
            detections = self.detector(images)
            for found in detections:
                found["labels"] = found["labels"] - 1
                found["masks"] = found["masks"][:, 0]
            return MaskRCNNOutput(detections=detections)
        if labels is None:
            raise ValueError("labels: expected boxes, class_labels and masks of each image in training, got None")
        targets = [
            {"boxes": target["boxes"], "labels": target["class_labels"] + 1, "masks": target["masks"]}
            for target in labels
        ]
        losses = self.detector(images, targets)
        return MaskRCNNOutput(loss=torch.stack(list(losses.values())).sum(), losses=losses)
