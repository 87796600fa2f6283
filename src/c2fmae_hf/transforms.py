"""Joint transforms of an image and its two label maps, built from torchvision's v2 transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvF

from .constants import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD
from .targets import reduce_label_map


class JointTransform:
    """
    Geometry drawn once and applied to the image (antialiased bicubic) and both maps (nearest), then normalisation of
    the image and reduction of the maps to the label grid.

    Args:
        geometry: A torchvision v2 transform of a dictionary of tv_tensors; its output has size `size`.
        size (`tuple[int, int]`): Output `(height, width)` in pixels.
        label_stride (`int`): Pixels per label cell.
        mean, std: Per channel, for pixels in [0, 1].
    """

    def __init__(
        self,
        geometry: v2.Transform,
        size: tuple[int, int],
        label_stride: int = 4,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.geometry = geometry
        self.size = tuple(size)
        self.label_stride = label_stride
        self.mean, self.std = list(mean), list(std)

    def __call__(
        self, image: Image.Image, semantic: np.ndarray | None, instance: np.ndarray | None, seed: int
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            image: RGB.
            semantic, instance: `(height, width)` label maps of the image's size, -100 = ignore; `None` = no map, which
                gives a map of -100.
            seed (`int`): Seed of everything random in the transform. torch's global generator is left as it was.

        Returns:
            `pixel_values` `(3, height, width)` float32, `semantic` and `instance` `(height / s, width / s)` int64.
        """
        sample: dict[str, torch.Tensor] = {"image": tv_tensors.Image(tvF.pil_to_tensor(image))}
        for name, label_map in (("semantic", semantic), ("instance", instance)):
            if label_map is not None:
                sample[name] = tv_tensors.Mask(torch.from_numpy(label_map))
        with _seeded(seed):
            sample = self.geometry(sample)

        pixels = tvF.to_dtype(sample["image"].as_subclass(torch.Tensor), torch.float32, scale=True)
        result = {"pixel_values": tvF.normalize(pixels, self.mean, self.std, inplace=True)}
        grid_size = tuple(side // self.label_stride for side in self.size)
        for name in ("semantic", "instance"):
            if name in sample:
                cropped = sample[name].as_subclass(torch.Tensor)
                if cropped.shape != grid_size:
                    cropped = reduce_label_map(cropped, self.label_stride)
                result[name] = cropped.long().contiguous()
            else:
                result[name] = torch.full(grid_size, IGNORE_INDEX)
        return result


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """
    torch's CPU generator with this seed, and then as it was. Not by `torch.manual_seed`, which also asks every kind
    of accelerator to be seeded once there is one: in a data-loading worker that is a list that grows with each sample.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


class RandomResizedCropToGrid(v2.RandomResizedCrop):
    """
    torchvision's random resized crop, with label maps brought to the label grid at once: the pixel nearest to each
    cell's centre, which is what [`reduce_label_map`] takes from a map of the image's output size.

    Args:
        size (`tuple[int, int]`): Output `(height, width)` of the image.
        label_stride (`int`): Pixels per label cell.
        options: Of [`~torchvision.transforms.v2.RandomResizedCrop`].
    """

    def __init__(self, size: tuple[int, int], label_stride: int, **options) -> None:
        super().__init__(size, **options)
        self.grid_size = [side // label_stride for side in size]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        centres = []
        for start, side, cells in zip(("top", "left"), ("height", "width"), self.grid_size):
            centres.append(params[start] + ((torch.arange(cells) + 0.5) * params[side] / cells).long())
        return tv_tensors.Mask(inpt.as_subclass(torch.Tensor)[centres[0][:, None], centres[1]])


def training_transform(
    size: tuple[int, int], scale: tuple[float, float] = (0.2, 1.0), label_stride: int = 4, **options
) -> JointTransform:
    """
    Random resized crop and horizontal flip, the augmentation of MAE.

    Args:
        size (`tuple[int, int]`): Output `(height, width)`.
        scale (`tuple[float, float]`): Bounds of the crop's area relative to the image's.
        label_stride (`int`): Pixels per label cell.
        options: `mean`, `std` of [`JointTransform`].
    """
    bicubic = v2.InterpolationMode.BICUBIC
    crop = RandomResizedCropToGrid(size, label_stride, scale=scale, interpolation=bicubic, antialias=True)
    return JointTransform(v2.Compose([crop, v2.RandomHorizontalFlip()]), size, label_stride, **options)


def evaluation_transform(size: tuple[int, int], crop_ratio: float = 0.875, **options) -> JointTransform:
    """
    Resize, then the central crop; nothing random.

    Args:
        size (`tuple[int, int]`): Output `(height, width)`.
        crop_ratio (`float`): Side of the crop relative to the resized image's shorter side; 0.875 is 224 of 256.
        options: `label_stride`, `mean`, `std` of [`JointTransform`].
    """
    geometry = v2.Compose(
        [
            v2.Resize(round(max(size) / crop_ratio), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
        ]
    )
    return JointTransform(geometry, size, **options)
