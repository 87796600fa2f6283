"""Fixed positions of patches, on any grid."""

from __future__ import annotations

import torch
from torch import nn


def sincos_position_table(width: int, grid_size: tuple[int, int]) -> torch.Tensor:
    """
    Fixed 2D sine-cosine positions (Vaswani et al. 2017, in two dimensions as in MAE).

    Args:
        width (`int`): Channels; the first half encodes the row, the second half the column. A multiple of 4.
        grid_size (`tuple[int, int]`): Patches per column and per row.

    Returns:
        `torch.FloatTensor` of shape `(1, num_patches, width)`, row-major.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    axes = [torch.arange(side, dtype=torch.float64)[:, None] * frequencies for side in grid_size]
    rows, columns = (torch.cat([axis.sin(), axis.cos()], dim=1) for axis in axes)
    table = torch.cat([rows[:, None].expand(-1, grid_size[1], -1), columns[None].expand(grid_size[0], -1, -1)], dim=2)
    return table.flatten(0, 1)[None].float()


def resize_position_table(table: torch.Tensor, old_size: tuple[int, int], new_size: tuple[int, int]) -> torch.Tensor:
    """
    Resample the positions `(1, num_patches, width)` of one grid to another. Antialiased bicubic, like timm, so that
    both give the same features at every image size.
    """
    if old_size == new_size:
        return table
    maps = table.float().reshape(1, *old_size, -1).permute(0, 3, 1, 2)
    maps = nn.functional.interpolate(maps, size=new_size, mode="bicubic", antialias=True)
    return maps.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
