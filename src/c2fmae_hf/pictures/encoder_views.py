"""Attention of patches and features as colours, as arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms

from ..configuration_c2fmae import C2FMAEConfig
from ..constants import NO_INSTANCE
from ..masking import patch_regions
from ..modeling_c2fmae import C2FMAEModel
from .views import Photo, ViewedModel


MIN_OBJECT_PATCHES = 4


@torch.no_grad()
def attention_maps(encoder: C2FMAEModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Compute the attention of unmasked images.

    Args:
        encoder ([`C2FMAEModel`]): Runs in evaluation mode with eager attention, which returns its weights; both
            settings are restored.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Height and width are
            multiples of the patch size.

    Returns:
        `torch.FloatTensor` of shape `(layers, batch_size, heads, 1 + N, 1 + N)`: how much each token (second last
        dimension) attends to each token (last dimension); rows sum to 1. The class token comes first, then the N
        patches in raster order.
    """
    implementation, was_training = encoder.config._attn_implementation, encoder.training
    encoder.set_attn_implementation("eager")
    encoder.eval()
    try:
        outputs = encoder(pixel_values, output_attentions=True, interpolate_pos_encoding=True)
    finally:
        encoder.set_attn_implementation(implementation)
        encoder.train(was_training)
    return torch.stack(outputs.attentions).float()


def photo_attention(viewed: ViewedModel, photo: Photo) -> torch.Tensor:
    """
    Compute what the patches of an unmasked photograph attend to: `torch.FloatTensor` of shape `(layers, heads, N, N)`
    on the CPU. Attention to the class token is left out, so rows sum to less than 1.
    """
    pixel_values = photo.pixel_values[None].to(viewed.encoder.device)
    return attention_maps(viewed.encoder, pixel_values)[:, 0, :, 1:, 1:].cpu()


def attention_in_objects(
    attention: torch.Tensor, instances: torch.Tensor, min_patches: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Measure how much attention stays inside an object: of what its patches give to all patches, the share that goes to
    patches of the same object. (The paper calls the rest attention drift; this measure is ours.)

    Args:
        attention (`torch.FloatTensor` of shape `(batch_size, N, N)`): From patches to patches, not negative.
        instances (`torch.LongTensor` of shape `(batch_size, N)`): Instance id of each patch, 0 = none, -100 = ignore.
        min_patches (`int`): Smaller objects are left out.

    Returns:
        `shares` and `areas` of shape `(objects,)`, float32: that share, averaged over the object's patches, and the
        object's share of all patches, which is what even attention would give.
    """
    attention = attention / attention.sum(dim=-1, keepdim=True)
    shares, areas = [], []
    for weights, ids in zip(attention, instances):
        for instance in ids[ids > NO_INSTANCE].unique():
            inside = ids == instance
            if inside.sum() >= min_patches:
                shares.append(weights[inside][:, inside].sum(dim=-1).mean())
                areas.append(inside.float().mean())
    if not shares:
        return attention.new_zeros(0), attention.new_zeros(0)
    return torch.stack(shares), torch.stack(areas)


class ObjectAttention(NamedTuple):
    """
    The share of attention that stays inside the object by layer, `(layers,)`, float32, averaged over objects; the
    share that even attention would give; and the number of objects.
    """

    shares: np.ndarray
    even: float
    num_objects: int


def objects_attention(viewed: ViewedModel, photos: Sequence[Photo]) -> ObjectAttention | None:
    """
    Average [`attention_in_objects`] over heads and over all photographs with known objects. Returns `None` if no
    object has at least four patches.
    """
    shares, areas = [], []
    for photo in (photo for photo in photos if photo.has_objects):
        instances = patch_regions(photo.instance[None], viewed.config.label_cells_per_side)
        attention = photo_attention(viewed, photo).mean(dim=1)
        found = attention_in_objects(attention, instances.expand(len(attention), -1), MIN_OBJECT_PATCHES)
        share, area = (values.view(len(attention), -1) for values in found)
        shares.append(share)
        areas.append(area[0])
    num_objects = sum(map(len, areas))
    if num_objects == 0:
        return None
    return ObjectAttention(torch.cat(shares, dim=1).mean(dim=1).numpy(), float(torch.cat(areas).mean()), num_objects)


def choose_patches(photo: Photo, config: C2FMAEConfig, number: int = 2) -> list[tuple[int, int]]:
    """
    Choose patches to show attention for: the patch nearest to the centre of each known object, largest objects first,
    then the middle of the photograph and of its quarters.

    Returns:
        Up to `number` pairs of (row, column), from 0 at the upper left.
    """
    rows, columns = config.grid_size
    chosen: list[tuple[int, int]] = []
    if photo.has_objects:
        ids = patch_regions(photo.instance[None], config.label_cells_per_side)[0].view(rows, columns)
        found, counts = ids[ids > NO_INSTANCE].unique(return_counts=True)
        for instance in found[counts.argsort(descending=True, stable=True)].tolist():
            inside = (ids == instance).nonzero().float()
            nearest = (inside - inside.mean(dim=0)).square().sum(dim=1).argmin()
            chosen.append((int(inside[nearest, 0]), int(inside[nearest, 1])))
    places = ((2, 2), (1, 1), (3, 3), (1, 3), (3, 1))
    chosen += [(min(rows * y // 4, rows - 1), min(columns * x // 4, columns - 1)) for y, x in places]
    return list(dict.fromkeys(chosen))[:number]


def parse_patch(text: str, grid_size: tuple[int, int]) -> tuple[int, int]:
    """
    Parse the row and column of a patch, counted from 1 in the text and from 0 in the result: `"4,11"` gives `(3, 10)`.

    Raises:
        `ValueError`: if the text has another form, or the patch is outside the grid.
    """
    rows, columns = grid_size
    found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    if found is None:
        raise ValueError(f"patches: expected ROW,COLUMN such as 4,11, got {text!r}")
    row, column = map(int, found.groups())
    if not (1 <= row <= rows and 1 <= column <= columns):
        raise ValueError(f"patches: expected a row from 1 to {rows} and a column from 1 to {columns}, got {text!r}")
    return row - 1, column - 1


class Features(NamedTuple):
    """Pictures of the photographs' features, `(rows, columns, 3)`, uint8, and the share of variance they show."""

    pictures: list[np.ndarray]
    explained: float


@torch.no_grad()
def feature_pictures(viewed: ViewedModel, photos: Sequence[Photo]) -> Features:
    """
    Show patch features (after the final norm) as colours: their first three principal components over all photographs.
    The first is lightness, the second goes from blue to yellow, the third from green to red, so that readers who
    confuse red and green see the first two.
    """
    device = viewed.encoder.device
    features = torch.stack(
        [viewed.encoder(photo.pixel_values[None].to(device)).last_hidden_state[0, 1:].float() for photo in photos]
    ).cpu()
    flat = features.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    top = vectors[:, -3:].flip(1)
    # The sign of a component is arbitrary; its largest entry is made positive.
    top = top * top.gather(0, top.abs().argmax(dim=0, keepdim=True)).sign()
    explained = float(values[-3:].sum() / values.sum().clamp(min=1e-12))
    components = flat @ top
    low, high = (torch.quantile(components, share, dim=0) for share in (0.02, 0.98))
    scaled = ((components - low) / (high - low).clamp(min=1e-9)).clamp(0, 1).numpy()
    scaled = np.pad(scaled, ((0, 0), (0, 3 - scaled.shape[1])), constant_values=0.5)
    pictures = _lab_colours(scaled).reshape(len(photos), *viewed.config.grid_size, 3)
    return Features(list(pictures), explained)


def _lab_colours(components: np.ndarray) -> np.ndarray:
    """Map `(K, 3)` in [0, 1] (lightness, blue to yellow, green to red, in CIELAB) to `(K, 3)`, uint8, sRGB."""
    lightness = 25 + 65 * components[:, 0]
    yellow, red = (extent * (2 * components[:, index] - 1) for index, extent in ((1, 60), (2, 45)))
    # Pillow's 8-bit Lab: L over 0 to 255, a and b as signed bytes.
    lab = np.stack([lightness * 2.55, red.astype(np.int8).view(np.uint8), yellow.astype(np.int8).view(np.uint8)], -1)
    image = Image.frombytes("LAB", (len(lab), 1), lab.astype(np.uint8).tobytes())
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return np.asarray(ImageCms.applyTransform(image, transform))[0]
