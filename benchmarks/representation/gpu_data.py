"""
The study's photographs on a GPU, cropped one epoch at a time. Crops, flips and label grids are those of
[`c2fmae_hf.data.transforms.RandomResizedCropAndFlip`], with another random generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvF

from c2fmae_hf.constants import IMAGENET_MEAN, IMAGENET_STD
from c2fmae_hf.images import to_label_map
from c2fmae_hf.targets import instance_labels_from_map


SCALE, RATIO, ATTEMPTS = (0.2, 1.0), (3 / 4, 4 / 3), 10
CUBIC = -0.5  # the coefficient of antialiased bicubic interpolation


class Boxes(NamedTuple):
    """Crops `(N,)`: first row and column, height and width in pixels, and whether the crop is mirrored."""

    top: torch.Tensor
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    flipped: torch.Tensor


def draw_boxes(number: int, size: int, generator: torch.Generator) -> Boxes:
    """Draw boxes of `RandomResizedCrop` for square photographs: the first of ten draws that fits, or the whole."""
    device = generator.device

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device, dtype=torch.double)

    area = size**2 * (SCALE[0] + (SCALE[1] - SCALE[0]) * uniform(number, ATTEMPTS))
    low, high = np.log(RATIO)
    aspect = (low + (high - low) * uniform(number, ATTEMPTS)).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths <= size) & (heights <= size)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    height, width = (
        torch.where(found, sides.gather(1, first)[:, 0], float(size)).long() for sides in (heights, widths)
    )
    top, left = ((uniform(number) * (size - side + 1)).long() for side in (height, width))
    return Boxes(top, left, height, width, uniform(number) < 0.5)


def crop_images(images: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """
    Crop `images` `(N, 3, S, S)` uint8, resize the crops to the images' size and normalise them: `(N, 3, S, S)`
    float32. They differ from torchvision's, which uses integers, by at most two grey levels.
    """
    size = images.shape[-1]
    rows = _cubic_weights(boxes.top, boxes.height, size)
    columns = _cubic_weights(boxes.left, boxes.width, size)
    columns = torch.where(boxes.flipped[:, None, None], columns.flip(1), columns)
    # Columns first, then rows, with rounding in between, as in torchvision.
    pixels = (images.float() @ columns[:, None].transpose(-1, -2)).round_().clamp_(0, 255)
    pixels = (rows[:, None] @ pixels).round_().clamp_(0, 255)
    mean, std = 255 * torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=images.device)[:, :, None, None]
    return pixels.sub_(mean).div_(std)


def _cubic_weights(start: torch.Tensor, length: torch.Tensor, size: int) -> torch.Tensor:
    """Weights of source pixels for `size` output pixels, `(N, output, source)`; never downscales."""
    source = torch.arange(size, device=start.device, dtype=torch.float32)
    centre = (source + 0.5) * length[:, None] / size - 0.5 + start[:, None]
    distance = (centre[:, :, None] - source).abs()
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * CUBIC - 4 * CUBIC
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    inside = (source >= start[:, None]) & (source < (start + length)[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def crop_maps(maps: torch.Tensor, boxes: Boxes, cells: int) -> torch.Tensor:
    """Crop `maps` `(N, S, S)` to the pixel nearest to each cell's centre, `(N, cells, cells)` int64."""
    steps = torch.arange(cells, device=maps.device, dtype=torch.double) + 0.5
    rows, columns = (
        start[:, None] + (steps * length[:, None] / cells).long()
        for start, length in ((boxes.top, boxes.height), (boxes.left, boxes.width))
    )
    columns = torch.where(boxes.flipped[:, None], columns.flip(1), columns)
    number = torch.arange(len(maps), device=maps.device)[:, None, None]
    return maps[number, rows[:, :, None], columns[:, None, :]].long()


class Photographs:
    """
    The samples of an epoch on the device, drawn again for every epoch. Several models can share them.

    Args:
        rows: Photographs and maps from [`data.StudyData`].
        seed (`int`): Crops and order depend only on seed and epoch.
        cells (`int`): Cells along a side of the label grid.
        device: Device for all tensors.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], seed: int, cells: int, device: torch.device) -> None:
        self.seed, self.cells = seed, cells
        self.generator = torch.Generator(device)
        self.images = torch.stack([tvF.pil_to_tensor(row["image"]) for row in rows]).to(device)
        self.maps = {
            name: torch.from_numpy(np.stack([to_label_map(row[name]) for row in rows])).to(device)
            for name in ("semantic", "instance")
        }
        self.all_labels = torch.tensor([row["label"] for row in rows], device=device)
        self.buffers: dict[str, torch.Tensor] = {}
        self.instance: torch.Tensor | None = None
        self.draw(0)

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, epoch: int) -> None:
        """Fill `buffers` in place: `pixel_values`, `semantic_labels`, `instance_labels`, `labels`, in a new order."""
        self.generator.manual_seed(1_000_003 * self.seed + epoch)
        order = torch.randperm(len(self), generator=self.generator, device=self.generator.device)
        boxes = draw_boxes(len(self), self.images.shape[-1], self.generator)
        semantic, instance = (crop_maps(maps[order], boxes, self.cells) for maps in self.maps.values())
        drawn = {
            "pixel_values": crop_images(self.images[order], boxes),
            "semantic_labels": semantic,
            "instance_labels": instance_labels_from_map(instance),
            "labels": self.all_labels[order],
        }
        self.instance = instance
        if self.buffers:
            for name, value in drawn.items():
                self.buffers[name].copy_(value)
        else:
            self.buffers = drawn
