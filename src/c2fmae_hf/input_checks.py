"""Checks of the models' inputs. Every error names the field, what was expected and what came."""

from __future__ import annotations

import torch

from .configuration_c2fmae import C2FMAEConfig
from .constants import IGNORE_INDEX


def check_pixel_values(
    config: C2FMAEConfig, pixel_values: torch.Tensor, interpolate_pos_encoding: bool
) -> tuple[int, int]:
    """Return the patch grid of images `(B, C, H, W)`; `ValueError` if the model cannot take their shape."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values: expected shape (batch_size, {config.num_channels}, height, width), got "
            f"{tuple(pixel_values.shape)}"
        )
    height, width = pixel_values.shape[2:]
    if not interpolate_pos_encoding and (height, width) != config.image_height_width:
        raise ValueError(
            f"pixel_values: expected images of {config.image_height_width} (height, width), got {(height, width)}; "
            "resize them, or pass interpolate_pos_encoding=True"
        )
    patch_size = config.patch_size
    if height < patch_size or width < patch_size:
        raise ValueError(
            f"pixel_values: expected images of at least one patch ({patch_size} x {patch_size}), got {height} x "
            f"{width}"
        )
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"pixel_values: expected height and width divisible by patch_size={patch_size}, got {height} x {width}"
        )
    return height // patch_size, width // patch_size


def check_labels(
    config: C2FMAEConfig, name: str, labels: torch.Tensor, batch_size: int, grid_size: tuple[int, int]
) -> None:
    """
    Check that labels fit the images and, on the CPU, that semantic ones are known classes.

    Args:
        name (`str`): `"semantic"` or `"instance"`.
        labels: `(B, H/s, W/s)` int64, or `(B, 3, H/s, W/s)`.
        batch_size (`int`): Number of images.
        grid_size: Patches per column and per row of the images.

    Raises:
        `ValueError`: if they do not.
    """
    height, width = (side * config.label_cells_per_side for side in grid_size)
    expected = (batch_size, height, width) if name == "semantic" else (batch_size, 3, height, width)
    if labels.shape != expected:
        raise ValueError(
            f"{name}_labels: expected shape {expected}, that of the images at label_stride={config.label_stride}, got "
            f"{tuple(labels.shape)}"
        )
    if name == "semantic" and labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        highest, lowest = labels.max().item(), labels.masked_fill(labels == IGNORE_INDEX, 0).min().item()
        if highest >= config.num_semantic_classes or lowest < 0:
            raise ValueError(
                f"semantic_labels: expected class ids in [0, num_semantic_classes={config.num_semantic_classes}) or "
                f"{IGNORE_INDEX}, got [{lowest}, {highest}]"
            )


def count_masked(
    config: C2FMAEConfig,
    bool_masked_pos: torch.Tensor,
    batch_size: int,
    num_patches: int,
    num_masked: int | None = None,
) -> int:
    """
    Number of masked patches per row of a mask `(batch_size, num_patches)`, bool.

    A compiled graph needs the number before it sees the mask: there it is `num_masked` or the configuration's, and the
    mask is checked against it at run time. On an accelerator a given `num_masked` is not checked, which avoids a
    device synchronisation.

    Raises:
        `ValueError`: if the mask has another shape or dtype, its rows have different counts, or another one than
            `num_masked`.
    """
    if bool_masked_pos.shape != (batch_size, num_patches) or bool_masked_pos.dtype != torch.bool:
        raise ValueError(
            f"bool_masked_pos: expected a bool tensor of shape {(batch_size, num_patches)}, got "
            f"{bool_masked_pos.dtype} of shape {tuple(bool_masked_pos.shape)}"
        )
    if torch.compiler.is_compiling():
        expected = config.num_masked_patches(num_patches) if num_masked is None else num_masked
        matches = (bool_masked_pos.sum(dim=1) == expected).all()
        torch._assert_async(matches, f"bool_masked_pos: expected {expected} masked in each row")
        return expected
    if num_masked is not None and bool_masked_pos.device.type != "cpu":
        return num_masked
    counts = bool_masked_pos.sum(dim=1)
    lowest, highest = counts.min().item(), counts.max().item()
    if lowest != highest:
        raise ValueError(
            f"bool_masked_pos: expected the same number of masked patches in every row, got {lowest} to {highest}"
        )
    if num_masked not in (None, highest):
        raise ValueError(f"bool_masked_pos: expected num_masked={num_masked} in each row, got {highest}")
    return int(highest)
