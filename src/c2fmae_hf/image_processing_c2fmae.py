"""C2FMAE's image processor: turns photographs and label maps into tensors, and the model's outputs into maps."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .configuration_c2fmae import crop_share, known_names, resize_before_crop
from .constants import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD, NO_INSTANCE
from .images import to_label_map, to_rgb
from .targets import instance_labels_from_map, instance_map_from_labels, patchify, reduce_label_map, unpatchify


logger = logging.get_logger(__name__)


class C2FMAEImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    patch_size (`int`, *optional*, defaults to `self.patch_size`):
        Side of a patch in pixels.
    label_stride (`int`, *optional*, defaults to `self.label_stride`):
        Pixels per cell of the label grid. With 1, label maps keep the images' size, as semantic segmentation needs.
    crop_pct (`float`, *optional*, defaults to `self.crop_pct`):
        Side of the central crop relative to the resized image's shorter side, if `size` is the crop's.
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        Round the sides of a resized image to multiples of it.
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Ignore class 0 of segmentation maps and lower every other class by one, as for ADE20K.
    """

    patch_size: int
    label_stride: int
    crop_pct: float
    size_divisor: int | None
    do_reduce_labels: bool


def rounded_size(image: torch.Tensor, size: SizeDict, divisor: int) -> SizeDict:
    """
    Size to resize `image` `(..., height, width)` to: `size`, with each side rounded to the nearest multiple of
    `divisor`.

    Raises:
        `ValueError`: if `size` has neither `shortest_edge` nor `height` and `width`.
    """
    sides: tuple[float, ...]
    if size.shortest_edge:
        scale = size.shortest_edge / min(image.shape[-2:])
        if size.longest_edge:
            scale = min(scale, size.longest_edge / max(image.shape[-2:]))
        sides = tuple(side * scale for side in image.shape[-2:])
    elif size.height and size.width:
        sides = (size.height, size.width)
    else:
        raise ValueError(f"size: expected shortest_edge, or height and width, beside size_divisor, got {size}")
    height, width = (max(round(side / divisor), 1) * divisor for side in sides)
    return SizeDict(height=height, width=width)


def size_before_crop(size: Any, crop_size: Any, crop_pct: Any) -> SizeDict:
    """
    Size to which an image is resized before the central crop: `size`, or, if its shortest edge equals the crop's
    longer side, that side divided by `crop_pct`, rounded as in timm.

    Args:
        size, crop_size (`SizeDict`): Sizes of an image processor.
        crop_pct (`float`): In (0, 1].
    """
    if not isinstance(crop_pct, (int, float)) or not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct: expected a number in (0, 1], got {crop_pct!r}")
    side = max(crop_size.height or 0, crop_size.width or 0)
    if size.shortest_edge != side or size.longest_edge:
        return size
    return SizeDict(shortest_edge=math.floor(side / crop_pct))


def _with_crop(kwargs: Any) -> Any:
    """Add `crop_size` to options that have only `size`; `size` may be `(height, width)`."""
    size = kwargs.get("size")
    if isinstance(size, (list, tuple)):
        size = dict(zip(("height", "width"), size, strict=True))
        kwargs = {**kwargs, "size": size}
    if size is None or kwargs.get("crop_size") is not None:
        return kwargs
    sides = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    height, width = (sides.get(name) or sides.get("shortest_edge") for name in ("height", "width"))
    return {**kwargs, "crop_size": {"height": height, "width": width}} if height and width else kwargs


def with_channels(images: Any) -> Any:
    """Add a channel axis to arrays and tensors `(H, W)`, alone or in lists: `(1, H, W)`."""
    if isinstance(images, (list, tuple)):
        return [with_channels(image) for image in images]
    is_flat = not isinstance(images, (str, Image.Image)) and getattr(images, "ndim", None) == 2
    return images[None] if is_flat else images


def as_8_bits(image: Any) -> Any:
    """Convert arrays to tensors, and 16-bit and bool pixels to 8-bit ones. PIL images pass unchanged."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and not image.flags.writeable:  # such as np.asarray of a PIL image
        image = image.copy()
    image = torch.as_tensor(image)
    if image.dtype == torch.uint16:
        return (image.to(torch.int32) / 257).round().to(torch.uint8)
    return image.to(torch.uint8) * 255 if image.dtype == torch.bool else image


def in_range(images: list[torch.Tensor], do_rescale: bool, do_normalize: bool) -> list[torch.Tensor]:
    """Bring pixels into the range that rescaling and normalising expect; one range for all images of a call."""
    are_shares = [bool(i.min() >= 0 and i.max() <= 1) for i in images if i.is_floating_point()] if do_rescale else []
    if any(are_shares) and not all(are_shares):
        logger.warning_once("Floating-point images of one call are in [0, 1] and beyond: all are divided by 255.")
    elif any(are_shares):
        logger.warning_once(
            "Floating-point pixels in [0, 1] are not divided by 255. Pass do_rescale=False to silence this warning."
        )
        return [image * 255 if image.is_floating_point() else image for image in images]
    if do_normalize and not do_rescale and any(not i.is_floating_point() and i.max() > 1 for i in images):
        logger.warning_once(
            "do_rescale=False: pixels up to 255 are normalised by statistics for [0, 1]. Leave do_rescale out."
        )
    return images


class C2FMAEImageProcessor(TorchvisionBackend):
    r"""
    Image processor of C2FMAE: resizes the shorter side, crops the centre, rescales and normalises. `size` and
    `crop_size` are the size of the model's input; if only `size` is given, `crop_size` follows from it.

    Takes the arguments of every torchvision image processor, and:

    Args:
        patch_size (`int`, defaults to 16): Side of a patch in pixels.
        label_stride (`int`, defaults to 4): Pixels per cell of the label grid.
        crop_pct (`float`, defaults to 0.875): As in timm and ConvNeXt: before a central crop, images are resized to
            `size / crop_pct`. A `size` whose `shortest_edge` is not the crop's is used unchanged. ViTImageProcessor
            ignores `crop_pct`; `c2fmae convert --format vit` writes the resulting size instead.
        size_divisor (`int`, *optional*): Round the sides of a resized image to multiples of it. With the patch size,
            and without a central crop, images of any aspect ratio stay whole.
        do_reduce_labels (`bool`, defaults to `False`): Ignore class 0 of segmentation maps and lower every other class
            by one, as BEiT's and SegFormer's processors do for ADE20K.
    """

    valid_kwargs = C2FMAEImageProcessorKwargs
    model_input_names = ["pixel_values"]

    resample = PILImageResampling.BICUBIC
    image_mean = list(IMAGENET_MEAN)
    image_std = list(IMAGENET_STD)
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    patch_size = 16
    label_stride = 4
    crop_pct = 0.875
    size_divisor = None
    do_reduce_labels = False

    def __init__(self, **kwargs: Unpack[C2FMAEImageProcessorKwargs]) -> None:
        super().__init__(**_with_crop(kwargs))

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; a `size` in `kwargs` also changes the crop."""
        return super().from_dict(image_processor_dict, **_with_crop(kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As in transformers; the error for an unknown name lists the available weights."""
        with known_names(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_config(cls, config: Any, **kwargs) -> C2FMAEImageProcessor:
        """
        Build the processor of a model: its image size, channels, pixel statistics, patch size and label stride.

        Args:
            config ([`C2FMAEConfig`]): The model's configuration.
            kwargs: Attributes that override the model's.
        """
        height, width = config.image_height_width
        side = max(height, width)
        defaults = {
            "size": {"shortest_edge": side},
            "crop_pct": crop_share(side, resize_before_crop(side)),
            "crop_size": {"height": height, "width": width},
            "image_mean": config.image_mean,
            "image_std": config.image_std,
            "patch_size": config.patch_size,
            "label_stride": config.label_stride,
            "do_convert_rgb": config.num_channels == len(IMAGENET_MEAN),
        }
        return cls(**{**defaults, **kwargs})

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        instance_maps: ImageInput | None = None,
        **kwargs: Unpack[C2FMAEImageProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Prepare images, and label maps with the same geometry.

        Args:
            images: One image or several: PIL images of any mode, arrays or tensors (channels first or last, or none).
                16-bit, bool and floating-point pixels in [0, 1] are scaled to the range of 8-bit ones.
            segmentation_maps (*optional*): As many single-channel maps of class ids. The ignore value is 255 in 8-bit
                PIL images, 65535 in 16-bit ones, and -100 in arrays and tensors.
            instance_maps (*optional*): As many single-channel maps of instance ids, 0 = none; same ignore values.

        Returns:
            [`BatchFeature`] for `C2FMAEForPreTraining` with `pixel_values` `(B, 3, H, W)` float32 and, if maps are
            given, `semantic_labels` `(B, H/s, W/s)` int64 and `instance_labels` `(B, 3, H/s, W/s)` float32.

        Raises:
            `ValueError`: for NaN pixels, maps of another size or number than the images, or an output size that is
                not divisible by the patch size; the message names the image.
        """
        return super().preprocess(with_channels(images), segmentation_maps, instance_maps, **_with_crop(kwargs))

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Convert an image to a tensor, channels first: 8-bit, or floating-point if the image is."""
        channels = len(self.image_mean) if isinstance(self.image_mean, (list, tuple)) else 3
        plain = as_8_bits(image)
        if isinstance(plain, Image.Image):
            if do_convert_rgb or channels == 1:
                plain = to_rgb(plain)
            if channels == 1:
                plain = plain.convert("L")
        else:
            is_first, is_last = (plain.ndim == 3 and plain.shape[side] == channels for side in (0, -1))
            if input_data_format is None and is_first != is_last:  # transformers recognises only 1, 3 and 4 channels
                input_data_format = ChannelDimension.FIRST if is_first else ChannelDimension.LAST
        return super().process_image(
            plain, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        """
        Crop the centre as torchvision and timm do, which round odd margins. transformers truncates them, which shifts
        the crop of `"shortest_edge": 257` by one pixel.
        """
        return tvF.center_crop(image, [size.height, size.width])

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        instance_maps: ImageInput | None,
        *,
        do_convert_rgb: bool,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | TensorType | None,
        device: str | torch.device | None = None,
        patch_size: int,
        label_stride: int,
        do_reduce_labels: bool,
        **kwargs,
    ) -> BatchFeature:
        if patch_size % label_stride:
            raise ValueError(f"label_stride: expected a divisor of patch_size={patch_size}, got {label_stride}")
        prepared = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device
        )
        mean = kwargs["image_mean"]
        for index, image in enumerate(prepared):
            if isinstance(mean, (list, tuple)) and len(image) != len(mean):
                raise ValueError(
                    f"images[{index}]: expected an image of {len(mean)} channels, got one of {len(image)}"
                )
            if image.is_floating_point() and not image.isfinite().all():
                raise ValueError(f"images[{index}]: expected finite pixels, got NaN or infinity")
        prepared = in_range(prepared, kwargs["do_rescale"], kwargs["do_normalize"])
        sizes = [tuple(image.shape[-2:]) for image in prepared]
        kwargs.setdefault("do_pad", None)
        kwargs.setdefault("pad_size", None)
        pixel_values = self._process(prepared, **kwargs)
        for index, image in enumerate(pixel_values):
            height, width = image.shape[-2:]
            if min(height, width) < patch_size or height % patch_size or width % patch_size:
                raise ValueError(
                    f"images[{index}]: expected an output height and width divisible by patch_size={patch_size}, got "
                    f"{height} x {width}; choose `size` and `crop_size` accordingly"
                )
        data: dict[str, Any] = {"pixel_values": pixel_values}
        if segmentation_maps is not None:
            maps = self._process_maps("segmentation_maps", segmentation_maps, sizes, label_stride, device, **kwargs)
            if do_reduce_labels:
                maps = [torch.where(one > 0, one - 1, IGNORE_INDEX) for one in maps]
            data["semantic_labels"] = maps
        if instance_maps is not None:
            maps = self._process_maps("instance_maps", instance_maps, sizes, label_stride, device, **kwargs)
            data["instance_labels"] = [instance_labels_from_map(label_map[None])[0] for label_map in maps]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _process(
        self, images: list[torch.Tensor], *, crop_pct: float, size_divisor: int | None = None, **kwargs
    ) -> list[torch.Tensor]:
        if kwargs["do_center_crop"]:
            kwargs["size"] = size_before_crop(kwargs["size"], kwargs["crop_size"], crop_pct)
        if size_divisor is not None and kwargs["do_resize"]:
            images = [
                self.resize(image, rounded_size(image, kwargs["size"], size_divisor), resample=kwargs["resample"])
                for image in images
            ]
            kwargs["do_resize"] = False
        return list(super()._preprocess(images, return_tensors=None, **kwargs)["pixel_values"])

    def _process_maps(
        self,
        name: str,
        label_maps: ImageInput,
        sizes: list[tuple[int, ...]],
        label_stride: int,
        device: str | torch.device | None,
        **kwargs,
    ) -> list[torch.Tensor]:
        """Resize (nearest) and crop label maps like the images, then reduce them: `(H/s, W/s)` int64 each."""
        maps: list[Any]
        if isinstance(label_maps, (list, tuple)):
            maps = list(label_maps)
        else:
            is_batch = not isinstance(label_maps, Image.Image) and label_maps.ndim == 3
            maps = list(label_maps) if is_batch else [label_maps]  # type: ignore[arg-type]
        if len(maps) != len(sizes):
            raise ValueError(f"{name}: expected one map for each of {len(sizes)} images, got {len(maps)}")
        tensors = []
        for index, (label_map, size) in enumerate(zip(maps, sizes)):
            if isinstance(label_map, Image.Image):
                try:
                    label_map = to_label_map(label_map)
                except ValueError as error:
                    raise ValueError(f"{name}[{index}]: {error}") from error
            tensor = torch.as_tensor(label_map, device=device)
            if tuple(tensor.shape) != size:
                raise ValueError(
                    f"{name}[{index}]: expected the image's size {size} (height, width), got {tuple(tensor.shape)}"
                )
            # float64 holds every id exactly. The shift turns a crop's padding (0) into the ignore value.
            tensors.append(tensor.to(torch.float64)[None] - IGNORE_INDEX)
        kwargs.update(do_normalize=False, do_rescale=False, resample=PILImageResampling.NEAREST)
        processed = self._process(tensors, **kwargs)
        return [reduce_label_map(tensor[0].long() + IGNORE_INDEX, label_stride).contiguous() for tensor in processed]

    # From the model's outputs back to maps

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
        grid_size: tuple[int, int] | None = None,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """
        Turn semantic predictions into maps of class ids.

        Args:
            outputs: Outputs of `C2FMAEForSemanticSegmentation` or `C2FMAEForPreTraining`.
            target_sizes (*optional*): `(height, width)` of each map; defaults to the logits' or the label grid's.
            return_segmentation_scores (`bool`): Whether to return the scores of all classes with each map. For
                pre-training outputs, which cover only masked patches, they are `None`.
            grid_size (*optional*): Patches per column and per row. Pre-training outputs need it if the images do not
                have the processor's `crop_size`.

        Returns:
            A list of `(height, width)` int64 maps of class ids (or of outputs with `segmentation` and
            `segmentation_scores` `(num_labels, height, width)`). Pre-training predicts only masked patches; visible
            ones are -100.

        Raises:
            `ValueError`: if there are no semantic predictions, or not one target size per image.
        """
        scores: list[torch.Tensor | None]
        if hasattr(outputs, "patch_ids"):  # pre-training outputs
            if outputs.semantic_logits is None:
                raise ValueError("outputs: expected semantic_logits, got none; the decoder has no semantic stage")
            classes = outputs.semantic_logits.argmax(dim=-1, keepdim=True)
            placed = self._place_patches(classes, outputs.patch_ids, grid_size, fill=IGNORE_INDEX)[:, 0]
            maps = self._resize_maps(placed, target_sizes)
            scores = [None] * len(maps)
        else:
            self._check_target_sizes(len(outputs.logits), target_sizes)
            resized = list(outputs.logits)
            if target_sizes is not None:
                resized = [
                    torch.nn.functional.interpolate(logits[None].float(), size=tuple(size), mode="bilinear")[0]
                    for logits, size in zip(resized, target_sizes)
                ]
            maps = [logits.argmax(dim=0) for logits in resized]
            scores = list(resized)
        if not return_segmentation_scores:
            return maps
        return [
            SemanticSegmentationPostProcessorOutput(data={"segmentation": ids, "segmentation_scores": values})
            for ids, values in zip(maps, scores)
        ]

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: list[tuple[int, int]] | None = None,
        grid_size: tuple[int, int] | None = None,
        **decoding,
    ) -> list[dict[str, Any]]:
        """
        Turn instance predictions into maps of instance ids.

        Args:
            outputs ([`C2FMAEForPreTrainingOutput`]): Outputs of a semantic segmenter are also accepted and give one
                segment per class, so that `pipeline("image-segmentation")` works without a `subtask`.
            threshold (`float`): A cell is foreground above this probability.
            target_sizes (*optional*): `(height, width)` of each map; defaults to the label grid's.
            grid_size (*optional*): As for [`post_process_semantic_segmentation`].
            decoding: `radius`, `min_cells`, `max_instances` of [`instance_map_from_labels`]. A pipeline's
                `mask_threshold` and `overlap_mask_area_threshold` have no effect.

        Returns:
            For each image `segmentation`, a `(height, width)` int64 map of instance ids (0 = none or a visible patch,
            where nothing is predicted), and `segments_info`, a list of `id`, `label_id` (the most frequent predicted
            class, `None` without semantic predictions) and `score` (mean foreground probability).

        Raises:
            `ValueError`: if there are no instance predictions, or not one target size per image.
        """
        for name in ("mask_threshold", "overlap_mask_area_threshold"):
            decoding.pop(name, None)
        logits: torch.Tensor | None = getattr(outputs, "instance_logits", None)
        if logits is None and getattr(outputs, "logits", None) is not None:
            return self._classes_as_segments(outputs, target_sizes)
        if logits is None:
            raise ValueError("outputs: expected instance_logits, got none; the model predicts no instances")
        values = torch.cat([logits[..., :2], logits[..., 2:].sigmoid()], dim=-1).float()
        field = self._place_patches(values, outputs.patch_ids, grid_size, fill=0.0)
        probability = field[:, 2]
        field = torch.cat([field[:, :2], (probability > threshold).float()[:, None]], dim=1)
        maps = instance_map_from_labels(field, **decoding)
        classes: list[torch.Tensor | None] = [None] * len(maps)
        if outputs.semantic_logits is not None:
            classes = list(self.post_process_semantic_segmentation(outputs, grid_size=grid_size))  # type: ignore[arg-type]

        results = []
        for label_map, scores, semantic, resized in zip(
            maps, probability, classes, self._resize_maps(maps, target_sizes)
        ):
            segments = []
            for instance_id in label_map.unique().tolist():
                if instance_id == NO_INSTANCE:
                    continue
                where = label_map == instance_id
                label_id = None if semantic is None else int(semantic[where].mode().values)
                segments.append({"id": instance_id, "label_id": label_id, "score": float(scores[where].mean())})
            results.append({"segmentation": resized, "segments_info": segments})
        return results

    def _classes_as_segments(self, outputs: Any, target_sizes: list[tuple[int, int]] | None) -> list[dict[str, Any]]:
        results = []
        found: Any
        for found in self.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True):
            classes, probabilities = found["segmentation"], found["segmentation_scores"].float().softmax(dim=0)
            segments = [
                {"id": label, "label_id": label, "score": float(probabilities[label][classes == label].mean())}
                for label in classes.unique().tolist()
            ]
            results.append({"segmentation": classes, "segments_info": segments})
        return results

    def post_process_reconstruction(
        self, outputs: Any, pixel_values: torch.Tensor, norm_pix_loss: bool
    ) -> list[np.ndarray]:
        """
        Replace the masked patches of photographs by the predicted pixels.

        Args:
            outputs ([`C2FMAEForPreTrainingOutput`]): The model's outputs.
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): The model's input.
            norm_pix_loss (`bool`): The model's `config.norm_pix_loss`. If set, predictions are relative to each
                patch's mean and variance, which are taken from the photograph: brightness is not predicted.

        Returns:
            A list of `(H, W, 3)` uint8 arrays.

        Raises:
            `ValueError`: if there are no pixel predictions.
        """
        if outputs.image_logits is None or outputs.patch_ids is None:
            raise ValueError("outputs: expected image_logits, got none; the decoder has no image stage")
        grid_size = (pixel_values.shape[2] // self.patch_size, pixel_values.shape[3] // self.patch_size)
        patches = patchify(pixel_values, self.patch_size).float()
        predicted = outputs.image_logits.float()
        patch_ids = outputs.patch_ids[:, : predicted.shape[1]]
        index = patch_ids[:, :, None, None].expand_as(predicted)
        if norm_pix_loss:
            variance, mean = torch.var_mean(patches.gather(1, index).flatten(2), dim=-1, keepdim=True)
            predicted = predicted * (variance + 1e-6)[..., None] ** 0.5 + mean[..., None]
        images = unpatchify(patches.scatter(1, index, predicted), grid_size)
        return self.to_pixels(images)

    def to_pixels(self, pixel_values: torch.Tensor) -> list[np.ndarray]:
        """Convert normalised images `(B, 3, H, W)` back to `(H, W, 3)` uint8 arrays."""
        mean, std = (
            torch.tensor(v, device=pixel_values.device)[:, None, None] for v in (self.image_mean, self.image_std)
        )
        pixels = ((pixel_values.detach().float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return [image.permute(1, 2, 0).cpu().numpy() for image in pixels]

    def _place_patches(
        self, values: torch.Tensor, patch_ids: torch.Tensor | None, grid_size: tuple[int, int] | None, fill: float
    ) -> torch.Tensor:
        """Place predictions `(B, M, cells, channels)` on the whole label grid `(B, channels, H/s, W/s)`."""
        assert patch_ids is not None
        if grid_size is None:
            side = self.crop_size
            grid_size = (side["height"] // self.patch_size, side["width"] // self.patch_size)
        num_patches = grid_size[0] * grid_size[1]
        if patch_ids.numel() and int(patch_ids.max()) >= num_patches:
            raise ValueError(
                f"grid_size: expected a grid that holds patch {int(patch_ids.max())}, got {grid_size}; pass the "
                "patches per column and per row of the images"
            )
        full = torch.full(
            (len(values), num_patches, *values.shape[2:]), fill, dtype=values.dtype, device=values.device
        )
        full.scatter_(1, patch_ids[:, :, None, None].expand_as(values), values.detach())
        return unpatchify(full, grid_size)

    def _check_target_sizes(self, num_images: int, target_sizes: list[tuple[int, int]] | None) -> None:
        if target_sizes is not None and len(target_sizes) != num_images:
            raise ValueError(f"target_sizes: expected one for each of {num_images} images, got {len(target_sizes)}")

    def _resize_maps(self, maps: torch.Tensor, target_sizes: list[tuple[int, int]] | None) -> list[torch.Tensor]:
        self._check_target_sizes(len(maps), target_sizes)
        if target_sizes is None:
            return list(maps)
        return [
            torch.nn.functional.interpolate(label_map[None, None].double(), size=tuple(size), mode="nearest-exact")[
                0, 0
            ].long()
            for label_map, size in zip(maps, target_sizes)
        ]


__all__ = ["C2FMAEImageProcessor"]
