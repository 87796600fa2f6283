"""torchvision's Mask R-CNN on a plain vision transformer, after ViTDet, as a model that transformers loads."""

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


NUM_LEVELS = 5  # of the pyramid: four maps of the backbone, and the last one halved


@strict
class MaskRCNNConfig(PreTrainedConfig):
    r"""
    Configuration of [`MaskRCNNForObjectDetection`]. Defaults are ViTDet's where it differs from torchvision.

    Args:
        backbone_config: Of a backbone with four maps; see
            [`~c2fmae_hf.transfer.modeling_encoder_backbone.build_backbone`].
        image_size (`int`): The shorter side that images are resized to.
        max_image_size (`int`): The longer side that they do not exceed.
        train_image_sizes (`list[int]`, *optional*): Shorter sides to choose from in training.
        pyramid_channels (`int`): Width of the pyramid and of the convolutional heads.
        num_box_convolutions, num_mask_convolutions, num_rpn_convolutions (`int`): Depths of the heads.
        box_hidden_size (`int`): Width of the box head's linear layer.
        anchor_scale (`float`): Side of a level's anchors over its stride.
        rpn_batch_size_per_image, box_batch_size_per_image (`int`): Anchors and boxes that a training image adds to the
            losses.
        rpn_pre_nms_top_n, rpn_post_nms_top_n (`int`): Proposals kept per level and per image.
        score_threshold (`float`): Least score of a detection.
        detections_per_image (`int`): At most so many are returned.
        image_mean, image_std: Per channel, for pixels in [0, 1].
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
        loss (`torch.FloatTensor`, *optional*): Sum of `losses`; in training.
        losses (`dict[str, torch.FloatTensor]`, *optional*): Its five parts.
        detections (`list[dict[str, torch.Tensor]]`, *optional*): Otherwise, for each image `boxes` `(N, 4)` (left,
            top, right, bottom in pixels of that image), `scores` `(N,)`, falling, `labels` `(N,)`, int64, from 0, and
            `masks` `(N, height, width)`, probabilities.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    detections: list[dict[str, torch.Tensor]] | None = None


def _norm(channels: int) -> nn.GroupNorm:
    """By group: batches of detectors are too small for their own statistics."""
    return nn.GroupNorm(min(32, channels // 2), channels)


def _roi_align(levels: list[str], strides: list[int], output_size: int) -> MultiScaleRoIAlign:
    """With the true strides; torchvision guesses them from its first batch, wrongly if that is padded a lot."""
    align = MultiScaleRoIAlign(levels, output_size, sampling_ratio=0)
    align.scales = [1 / stride for stride in strides]
    align.map_levels = initLevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return align


class _Pyramid(nn.Module):
    """The backbone's four maps at one width, and the last one halved once more, by level as torchvision expects it."""

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
    Boxes, classes and masks of the objects in images. The encoder's maps at four resolutions, at one width, feed
    torchvision's region proposals, box and mask heads, which are normalised by group. Attention is global in every
    block, where ViTDet's is windowed in most.
    """

    config_class = MaskRCNNConfig
    base_model_prefix = "detector"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True  # if the encoder does
    _no_split_modules = []
    # Loaded in half precision, the encoder and its pyramid are; boxes would lie on a grid of several pixels.
    _keep_in_fp32_modules_strict = ["detector.rpn", "detector.roi_heads"]

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__(config)
        backbone = AutoBackbone.from_config(config.backbone_config)
        channels = config.pyramid_channels
        patch_size = int(config.backbone_config.patch_size)  # type: ignore[union-attr]
        if len(backbone.channels) != 4:
            raise ValueError(f"backbone_config: expected a backbone of four maps, got {len(backbone.channels)}")
        if patch_size % 4:
            raise ValueError(
                "backbone_config: expected patches of 4, 8, 12, ... pixels, since the finest map has four rows to a "
                f"patch, each of whole pixels, got {patch_size}"
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
            # In training torchvision takes one of these at random, in evaluation the last.
            min_size=[*sizes, config.image_size] if config.train_image_sizes else sizes,
            max_size=config.max_image_size,
            image_mean=config.image_mean,
            image_std=config.image_std,
            size_divisible=4 * patch_size,  # so that every level's stride is what its anchors take it for
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
        """torchvision's modules initialise themselves, and nothing may be missing from a saved model."""

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
            pixel_values: Images `(3, height, width)` of any sizes, in [0, 1]; they are resized, normalised and padded
                here.
            labels (*optional*): For each image `boxes` `(N, 4)` (left, top, right, bottom in its pixels),
                `class_labels` `(N,)`, int64, from 0, and `masks` `(N, height, width)`, uint8. Required in
                training, else not used.
            pixel_mask (*optional*): For each image `(height, width)`, 1 where there is image; what was padded on the
                right and below is cut off.

        Returns:
            [`MaskRCNNOutput`]: In training the losses, else the detections.

        Raises:
            `ValueError`: in training without labels.
        """
        images = list(pixel_values)
        if pixel_mask is not None:
            sides = [(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in pixel_mask]
            images = [image[:, :height, :width] for image, (height, width) in zip(images, sides)]
        # torchvision would compute boxes in the lower precision too, in steps of several pixels.
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
