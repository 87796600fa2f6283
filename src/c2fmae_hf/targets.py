"""
Convert label maps to training targets on the label grid, and back. Pure functions, vectorised over the batch.

Instance ids are arbitrary, so that a class per id would be ill-posed. The target is the centre-offset field of
Panoptic-DeepLab (Cheng et al., CVPR 2020), which does not change when ids are permuted; using it here is our choice.
"""

from __future__ import annotations

import torch

from .constants import IGNORE_INDEX, NO_INSTANCE


def patchify(values: torch.Tensor, cells_per_side: int) -> torch.Tensor:
    """
    Cut a map into patches.

    Args:
        values (`torch.Tensor` of shape `(batch_size, channels, height, width)`).
        cells_per_side (`int`): Side of a patch in cells of the map; divides height and width.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, cells_per_side ** 2, channels)`; patches and the cells
        within a patch are row-major.
    """
    batch_size, channels, height, width = values.shape
    rows, columns = height // cells_per_side, width // cells_per_side
    values = values.reshape(batch_size, channels, rows, cells_per_side, columns, cells_per_side)
    return values.permute(0, 2, 4, 3, 5, 1).reshape(batch_size, rows * columns, cells_per_side**2, channels)


def unpatchify(patches: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """
    Inverse of [`patchify`].

    Args:
        patches (`torch.Tensor` of shape `(batch_size, num_patches, cells, channels)`).
        grid_size (`tuple[int, int]`): Patches per column and per row.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, height, width)`.
    """
    batch_size, _, cells, channels = patches.shape
    side = int(cells**0.5)
    rows, columns = grid_size
    patches = patches.reshape(batch_size, rows, columns, side, side, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, channels, rows * side, columns * side)


def reduce_label_map(label_map: torch.Tensor, label_stride: int) -> torch.Tensor:
    """
    Bring a label map from pixels to the label grid by taking the pixel nearest to each cell's centre.

    Args:
        label_map (`torch.Tensor` of shape `(..., height, width)`).
        label_stride (`int`): Pixels per label cell; divides height and width.

    Returns:
        `torch.Tensor` of shape `(..., height / label_stride, width / label_stride)`.
    """
    return label_map[..., label_stride // 2 :: label_stride, label_stride // 2 :: label_stride]


def instance_labels_from_map(instance_map: torch.Tensor) -> torch.Tensor:
    """
    Compute the centre-offset field of instance maps.

    Args:
        instance_map (`torch.LongTensor` of shape `(batch_size, height, width)`): Instance ids, 0 = none,
            -100 = ignore.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 3, height, width)`: offset down and offset right from the cell to
        the centre of mass of its instance, in units of the map's height and width; and the foreground flag, 1 on
        instances, 0 elsewhere, -100 = ignore. Offsets are 0 outside instances.
    """
    batch_size, height, width = instance_map.shape
    cells, device = height * width, instance_map.device
    flat = instance_map.flatten()
    is_instance = flat > NO_INSTANCE
    # Only the cells of instances are computed, which are few.
    cell = is_instance.nonzero()[:, 0]
    labels = torch.zeros(batch_size, 3, height, width, device=device)
    if len(cell):
        row = torch.div(cell, cells, rounding_mode="floor")
        ids = flat.index_select(0, cell)
        if ids.max() > flat.numel():  # too large for a bincount: use the ranks of the ids
            ids = ids.unique(return_inverse=True)[1]
        groups = ids + (int(ids.max()) + 1) * row  # one number per (row of the batch, instance)
        size = torch.bincount(groups).clamp_(min=1)
        in_row, target = cell - cells * row, cell + cells * 2 * row
        axes = [(torch.arange(side, device=device, dtype=torch.float64) + 0.5) / side for side in (height, width)]
        for channel, axis in enumerate(torch.meshgrid(*axes, indexing="ij")):
            positions = axis.flatten()
            centre = torch.bincount(groups, weights=positions.index_select(0, in_row)).div_(size)
            offset = centre.float().index_select(0, groups) - positions.float().index_select(0, in_row)
            labels.view(-1).index_copy_(0, target + cells * channel, offset)
    flag = is_instance.float().masked_fill_(flat == IGNORE_INDEX, IGNORE_INDEX)
    labels[:, 2] = flag.view(batch_size, height, width)
    return labels


def instance_map_from_labels(
    instance_labels: torch.Tensor,
    radius: float = 0.06,
    min_cells: int = 4,
    max_instances: int = 64,
) -> torch.Tensor:
    """
    Decode a centre-offset field back to an instance map. Every foreground cell votes for a centre; the place with the
    most votes around it becomes an instance, its votes are removed, and so on. Finally every foreground cell goes to
    the centre nearest to its vote. Voting is our choice: Panoptic-DeepLab predicts a centre heat map instead.

    Args:
        instance_labels (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): As from
            [`instance_labels_from_map`]; the third channel is foreground above 0.5.
        radius (`float`): Votes closer than this to a centre belong to it, in units of the map's sides. Instances whose
            centres are closer together are merged.
        min_cells (`int`): A centre needs this many votes.
        max_instances (`int`): At most this many instances in a map.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height, width)`: 0 = none, 1, 2, ... in the order of detection, the
        densest first.
    """
    batch_size, _, height, width = instance_labels.shape
    device = instance_labels.device
    foreground = (instance_labels[:, 2] > 0.5).flatten(1)  # (batch, cells)
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    votes = (instance_labels[:, :2].float() + position).flatten(2).transpose(1, 2)  # (batch, cells, 2)

    # Votes are counted on the map's grid, each spread over the square of side 2 * radius around it.
    bins_y = (votes[..., 0] * height).long().clamp(0, height - 1)
    bins_x = (votes[..., 1] * width).long().clamp(0, width - 1)
    bins = bins_y * width + bins_x
    reach = (max(int(radius * height), 0), max(int(radius * width), 0))
    kernel = (2 * reach[0] + 1, 2 * reach[1] + 1)

    free = foreground.clone()
    centres: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    for _ in range(max_instances):
        counts = torch.zeros(batch_size, height * width, device=device).scatter_add_(1, bins, free.float())
        density = torch.nn.functional.avg_pool2d(
            counts.view(batch_size, 1, height, width), kernel, stride=1, padding=reach, divisor_override=1
        ).flatten(1)
        # Only places that have votes; among equally dense ones, the one with the most.
        density = density + counts / (counts.sum(dim=1, keepdim=True) + 1)
        peak = density.masked_fill(counts == 0, -1).argmax(dim=1)
        peak_centre = torch.stack([(peak // width + 0.5) / height, (peak % width + 0.5) / width], dim=1)
        for _ in range(2):  # move to the mean of the votes within reach
            near = free & _within(votes, peak_centre, max(radius, 0.75 / height), max(radius, 0.75 / width))
            number = near.sum(dim=1)
            mean = (votes * near[..., None]).sum(dim=1) / number.clamp(min=1)[:, None]
            peak_centre = torch.where(number[:, None] > 0, mean, peak_centre)
        centres.append(peak_centre)
        found.append(number >= max(min_cells, 1))
        # Drop the peak even if it is too small, and the votes of its place that the last move left out of reach.
        free = free & ~(near | (bins == peak[:, None]))
        if not free.any():
            break

    is_instance = torch.stack(found, dim=1)  # (batch, peaks)
    distance = torch.cdist(votes, torch.stack(centres, dim=1), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.masked_fill(~is_instance[:, None], float("inf")).min(dim=2)
    # Number the instances without the gaps that too small peaks left.
    names = is_instance.cumsum(dim=1).gather(1, nearest.indices)
    return torch.where(foreground & nearest.values.isfinite(), names, NO_INSTANCE).view(batch_size, height, width)


def _within(votes: torch.Tensor, centre: torch.Tensor, reach_y: float, reach_x: float) -> torch.Tensor:
    """`(batch, cells)`: which votes `(batch, cells, 2)` lie within the ellipse around `centre` `(batch, 2)`."""
    offset = (votes - centre[:, None]) / torch.tensor([reach_y, reach_x], device=votes.device)
    return offset.square().sum(dim=-1) <= 1
