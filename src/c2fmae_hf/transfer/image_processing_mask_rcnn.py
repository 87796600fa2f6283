"""The image processor of [`MaskRCNNForObjectDetection`], for photographs and COCO annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ChannelDimension, ImageInput
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from ..image_processing_c2fmae import as_8_bits, in_range, with_channels
from ..images import to_rgb
from ..utils.coco_annotations import check_object, object_mask


class MaskRCNNImageProcessor(TorchvisionBackend):
    r"""
    Image processor of Mask R-CNN. It rescales pixels to [0, 1] and pads images on the right and below, to the largest
    image of the batch or to `pad_size`. It does not resize or normalise, since the model does.

    Raises:
        `ValueError`: if `do_resize`, `do_center_crop` or `do_normalize` is set.
    """

    model_input_names = ["pixel_values", "pixel_mask"]

    do_resize = False
    do_rescale = True
    do_normalize = False
    do_convert_rgb = True
    do_pad = True

    def __init__(self, **kwargs: Unpack[ImagesKwargs]) -> None:
        _check_steps(kwargs)
        super().__init__(**kwargs)

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Unpack[ImagesKwargs],
    ) -> BatchFeature:
        r"""
        Prepare images and, for training, their objects.

        Args:
            images: One image or several, of any sizes.
            annotations (*optional*): One dictionary per image in COCO's format, as for DETR's image processor:
                `image_id`, and `annotations`, a list of `bbox` (left, top, width, height in pixels), `category_id`,
                `segmentation` (polygons or run lengths) and `iscrowd`. Crowds are left out.

        Returns:
            [`BatchFeature`] with `pixel_values` `(B, 3, H, W)` float32 and `pixel_mask` `(B, H, W)` int64, 0 for
            padding and 1 elsewhere (with `do_pad=False`, lists of tensors in each image's size), and, if there are
            annotations, `labels`: for each image `boxes` `(N, 4)` float32 (left, top, right, bottom in its pixels),
            `class_labels` `(N,)` int64, `masks` `(N, height, width)` uint8, `image_id` `(1,)` and `orig_size` `(2,)`.

        Raises:
            `ValueError`: if annotations do not fit the images or lack `segmentation`; names the image and object.
        """
        _check_steps(kwargs)
        return super().preprocess(with_channels(images), annotations, **kwargs)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Convert an image to a tensor, channels first: 8-bit, or floating-point if the image is."""
        image = to_rgb(image) if do_convert_rgb and isinstance(image, Image.Image) else as_8_bits(image)
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        annotations: Any,
        *,
        do_convert_rgb: bool,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | TensorType | None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device
        )
        sizes = [tuple(image.shape[-2:]) for image in prepared]
        prepared = in_range(prepared, kwargs["do_rescale"], kwargs["do_normalize"])
        is_padded, pad_size = kwargs["do_pad"], kwargs.get("pad_size")
        kwargs.update(do_pad=None, pad_size=None)  # images and masks are padded below
        pixel_values = list(self._preprocess(prepared, return_tensors=None, **kwargs)["pixel_values"])
        pixel_mask = [image.new_ones(image.shape[-2:], dtype=torch.int64) for image in pixel_values]
        if is_padded:
            height, width = (max(image.shape[side] for image in pixel_values) for side in (-2, -1))
            if pad_size is not None:
                if pad_size.height < height or pad_size.width < width:
                    raise ValueError(
                        f"pad_size: expected at least {height} x {width}, the largest image's, got {pad_size}"
                    )
                height, width = pad_size.height, pad_size.width
            for batch in (pixel_values, pixel_mask):
                batch[:] = [pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in batch]
        data: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        encoded = BatchFeature(data=data, tensor_type=return_tensors)
        if annotations is not None:
            entries = [annotations] if isinstance(annotations, Mapping) else list(annotations)
            if len(entries) != len(sizes):
                raise ValueError(f"annotations: expected those of {len(sizes)} images, got {len(entries)}")
            encoded["labels"] = [
                _labels(index, entry, size) for index, (entry, size) in enumerate(zip(entries, sizes))
            ]
        return encoded

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """
        Keep the detections above a score.

        Args:
            outputs: Outputs of `MaskRCNNForObjectDetection`.
            threshold (`float`): Detections need a higher score.
            target_sizes (*optional*): Ignored, since boxes are already in pixels of the original images.

        Returns:
            For each image `scores` `(N,)`, `labels` `(N,)`, `boxes` `(N, 4)`: left, top, right, bottom; and `masks`
            `(N, height, width)`, bool.

        Raises:
            `ValueError`: if the outputs hold no detections, as in training mode.
        """
        detections = getattr(outputs, "detections", None)
        if detections is None:
            raise ValueError("outputs: expected detections, got none; was the model in training mode?")
        if isinstance(detections, Mapping):  # a pipeline passes one image's detections
            detections = [detections]
        results = []
        for found in detections:
            kept = found["scores"] > threshold
            result = {name: found[name][kept] for name in ("scores", "labels", "boxes")}
            results.append({**result, "masks": found["masks"][kept] > 0.5})
        return results


def _check_steps(options: Mapping[str, Any]) -> None:
    for name in ("do_resize", "do_center_crop", "do_normalize"):
        if options.get(name):
            raise ValueError(
                f"{name}: expected False, got True. The model resizes and normalises images itself; set image_size "
                "and max_image_size in its configuration instead"
            )


def _labels(index: int, entry: Mapping[str, Any], size: tuple[int, ...]) -> BatchFeature:
    """Convert one image's annotations to the model's labels."""
    if not isinstance(entry, Mapping) or not {"image_id", "annotations"} <= entry.keys():
        raise ValueError(f"annotations[{index}]: expected image_id and annotations, got {entry!r:.80}")
    height, width = size
    boxes, classes, masks = [], [], []
    for number, one in enumerate(entry["annotations"]):
        if one.get("iscrowd"):
            continue
        where = f"annotations[{index}], object {number}"
        if not one.get("segmentation"):
            raise ValueError(
                f"{where}: expected a segmentation (polygons or run lengths), got none; Mask R-CNN also learns masks. "
                "To train on boxes alone, use DETR with C2FMAEBackbone as its backbone"
            )
        try:
            check_object(one, (height, width), [one.get("category_id")])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        left, top, box_width, box_height = one["bbox"]
        if not (box_width > 0 and box_height > 0):
            raise ValueError(f"{where}: expected a bbox with a width and a height above 0, got {one['bbox']}")
        boxes.append([left, top, left + box_width, top + box_height])
        classes.append(int(one["category_id"]))
        masks.append(torch.from_numpy(object_mask(one, (height, width))))
    return BatchFeature(
        {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "class_labels": torch.tensor(classes, dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8),
            "image_id": torch.tensor([entry["image_id"]]),
            "orig_size": torch.tensor(size),
        }
    )


__all__ = ["MaskRCNNImageProcessor"]
