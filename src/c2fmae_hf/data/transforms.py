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

from ..configuration_c2fmae import resize_before_crop
from ..constants import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD
from ..images import check_map_size, expand_label_map
from ..targets import reduce_label_map


# An image is decoded smaller only if that leaves this many times the pixels that a side needs.
REDUCTION_MARGIN = 2


class JointTransform:
    """
    Draws a geometry once, applies it to the image (antialiased bicubic) and both maps (nearest), then normalises the
    image and reduces the maps to the label grid.

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
        self.size = (size[0], size[1])
        self.label_stride = label_stride
        self.mean, self.std = list(mean), list(std)
        # For 8-bit pixels: saves the pass that scales them to [0, 1].
        self._mean_255, self._std_255 = (255 * torch.tensor(values)[:, None, None] for values in (self.mean, self.std))

    def reduction(self, size: tuple[int, int], seed: int) -> int:
        """
        By how much an image may be decoded smaller (1, 2, 4 or 8) before the transform is called with the same seed.

        Args:
            size (`tuple[int, int]`): `(height, width)` of the image.
        """
        return 1

    def __call__(
        self,
        image: Image.Image,
        semantic: np.ndarray | None,
        instance: np.ndarray | None,
        seed: int,
        size: tuple[int, int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            image: RGB.
            semantic, instance: Label maps, `(height, width)` of the image's size or of that size at a stride, -100 =
                ignore; `None` = no map, which gives a map of -100.
            seed (`int`): Seed of everything random in the transform. torch's global generator is left as it was.
            size (`tuple[int, int]`, *optional*): `(height, width)` of the image and of the maps, if the image was
                decoded smaller, see `reduction`.

        Returns:
            `pixel_values` `(3, height, width)` float32, `semantic` and `instance` `(height / s, width / s)` int64.

        Raises:
            `ValueError`: if a map has neither the image's size nor that size at a stride.
        """
        maps = {"semantic": semantic, "instance": instance}
        with _seeded(seed):
            given = {name: ids for name, ids in maps.items() if ids is not None}
            pixels, grids = self.apply_geometry(image, given, size or (image.height, image.width))
        result = {"pixel_values": pixels.to(torch.float32).sub_(self._mean_255).div_(self._std_255)}
        for name in maps:
            if name in grids:
                result[name] = grids[name].long().contiguous()
            else:
                result[name] = torch.full([side // self.label_stride for side in self.size], IGNORE_INDEX)
        return result

    def apply_geometry(
        self, image: Image.Image, maps: dict[str, np.ndarray], image_size: tuple[int, int]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Pixels `(3, height, width)` uint8 of the size `size`, and maps on the label grid."""
        sample: dict[str, torch.Tensor] = {"image": tv_tensors.Image(tvF.pil_to_tensor(image))}
        for name, ids in maps.items():
            sample[name] = tv_tensors.Mask(torch.from_numpy(expand_label_map(ids, image_size)))
        sample = {name: value.as_subclass(torch.Tensor) for name, value in self.geometry(sample).items()}
        pixels = sample.pop("image")
        return pixels, {name: reduce_label_map(ids, self.label_stride) for name, ids in sample.items()}


class RandomResizedCropAndFlip(JointTransform):
    """
    torchvision's random resized crop and horizontal flip, with the same draws and the same pixels. Maps are sampled at
    each cell's centre, as [`reduce_label_map`] does after a resize, to one pixel of the output. This avoids
    torchvision's dispatch over a dictionary, which takes longer than the maps' crops.

    Args:
        size, label_stride, mean, std: As for [`JointTransform`].
        scale (`tuple[float, float]`): Bounds of the crop's area relative to the image's.
        ratio (`tuple[float, float]`): Bounds of its aspect ratio.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        **options: Any,
    ) -> None:
        bicubic = v2.InterpolationMode.BICUBIC
        crop = v2.RandomResizedCrop(size, scale, ratio, interpolation=bicubic, antialias=True)
        super().__init__(v2.Compose([crop, v2.RandomHorizontalFlip()]), size, **options)
        self.crop = crop

    def draw(self, image_size: tuple[int, int]) -> dict[str, int]:
        """The next crop of an image of this `(height, width)`: `top`, `left`, `height` and `width`."""
        return self.crop.make_params([torch.empty((1, *image_size), device="meta")])

    def reduction(self, size: tuple[int, int], seed: int) -> int:
        if any(side < 2 * REDUCTION_MARGIN * target for side, target in zip(size, self.size)):
            return 1  # whatever the crop
        with _seeded(seed):
            box = self.draw(size)
        shrinks = min(box["height"] / self.size[0], box["width"] / self.size[1])
        return max(divisor for divisor in (1, 2, 4, 8) if divisor == 1 or divisor * REDUCTION_MARGIN <= shrinks)

    def apply_geometry(
        self, image: Image.Image, maps: dict[str, np.ndarray], image_size: tuple[int, int]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        box = self.draw(image_size)
        is_flipped = bool(torch.rand(1) < 0.5)
        left, top = box["left"], box["top"]
        sides = (left, top, left + box["width"], top + box["height"])
        divisor = round(max(image_size) / max(image.size))
        if divisor == 1:
            # Crop first: there is less to copy to a tensor.
            pixels = tvF.pil_to_tensor(image.crop(sides))
            pixels = tvF.resize(pixels, list(self.size), self.crop.interpolation, antialias=True)
        else:  # sides between two pixels, which torchvision has not
            reduced = (left / divisor, top / divisor, sides[2] / divisor, sides[3] / divisor)
            pixels = tvF.pil_to_tensor(image.resize(self.size[::-1], Image.Resampling.BICUBIC, box=reduced))
        centres = []
        for start, side, length in zip(("top", "left"), ("height", "width"), self.size):
            cells = length // self.label_stride
            centres.append(box[start] + ((np.arange(cells) + 0.5) * box[side] / cells).astype(np.int64))
        rows, columns = centres
        if is_flipped:
            pixels, columns = pixels.flip(-1), columns[::-1]
        grids = {}
        for name, ids in maps.items():
            stride = check_map_size((ids.shape[0], ids.shape[1]), image_size)
            grids[name] = torch.from_numpy(ids[rows[:, None] // stride, columns // stride])
        return pixels, grids


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """
    Seed torch's CPU generator, and restore it afterwards. `torch.manual_seed` would also queue a seed for every kind
    of accelerator: in a data-loading worker, where none is initialised, that queue grows with each sample.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def training_transform(size: tuple[int, int], **options: Any) -> JointTransform:
    """
    Random resized crop and horizontal flip, the augmentation of MAE.

    Args:
        size (`tuple[int, int]`): Output `(height, width)`.
        options: Of [`RandomResizedCropAndFlip`].
    """
    return RandomResizedCropAndFlip(size, **options)


def evaluation_transform(size: tuple[int, int], crop_pct: float = 0.875, **options) -> JointTransform:
    """
    Resize, then the central crop; nothing random.

    Args:
        size (`tuple[int, int]`): Output `(height, width)`.
        crop_pct (`float`): Side of the crop relative to the resized image's shorter side; 0.875 is 224 of 256. The
            margin is even, see [`~c2fmae_hf.configuration_c2fmae.resize_before_crop`].
        options: `label_stride`, `mean`, `std` of [`JointTransform`].
    """
    geometry = v2.Compose(
        [
            v2.Resize(
                resize_before_crop(max(size), crop_pct), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.CenterCrop(size),
        ]
    )
    return JointTransform(geometry, size, **options)
