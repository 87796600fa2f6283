"""
Choose the patches to mask: guided masking over regions, and the curriculum of masking strategies.

The paper fixes the three strategies and their order. Our choices: one mechanism for all three, equal shares of the
regions, and a cross-fade between strategies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .constants import IGNORE_INDEX, MASKING_STRATEGIES, NO_INSTANCE


SEMANTIC, INSTANCE, RANDOM = range(len(MASKING_STRATEGIES))
RegionMasking = Literal["balanced", "whole"]
DEFAULT_REGION_MASKING: RegionMasking = "balanced"


def combine_regions(semantic: torch.Tensor, instance: torch.Tensor) -> torch.Tensor:
    """
    Region of every label cell for instance-guided masking: its instance, or else its semantic class.

    Args:
        semantic (`torch.LongTensor` of shape `(batch_size, height, width)`): Class ids, -100 = ignore.
        instance (`torch.LongTensor` of shape `(batch_size, height, width)`): Instance ids, 0 = none, -100 = ignore.

    Returns:
        `torch.LongTensor` of shape `(batch_size, height, width)`. Instances are positive ids, semantic regions
        (and the region of ignored cells) negative ones.
    """
    semantic_region = IGNORE_INDEX - 1 - semantic  # -100 -> -1, 0 -> -101, 1 -> -102, ...
    return torch.where(instance > NO_INSTANCE, instance, semantic_region)


def patch_regions(cell_regions: torch.Tensor, cells_per_side: int) -> torch.Tensor:
    """
    Region of every patch: the one that covers most of its label cells (in a tie, the smallest id).

    Args:
        cell_regions (`torch.LongTensor` of shape `(batch_size, height, width)`): Region of every label cell.
        cells_per_side (`int`): Label cells along a side of a patch; divides height and width.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_patches)`, row-major.
    """
    batch_size, height, width = cell_regions.shape
    rows, columns = height // cells_per_side, width // cells_per_side
    cells = cell_regions.reshape(batch_size, rows, cells_per_side, columns, cells_per_side)
    cells = cells.transpose(2, 3).reshape(batch_size, rows * columns, cells_per_side**2)
    return cells.mode(dim=-1).values


def rank_regions(region_ids: torch.Tensor) -> torch.Tensor:
    """
    Replace the ids of each row by their rank within it, 0, 1, 2, ...

    Args:
        region_ids (`torch.LongTensor` of shape `(batch_size, num_patches)`): Arbitrary ids.

    Returns:
        `torch.LongTensor` of the same shape, in [0, num_patches).
    """
    ordered, order = region_ids.sort(dim=1)
    is_new = torch.zeros_like(ordered)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(region_ids).scatter_(1, order, is_new.cumsum(dim=1))


def places_in_regions(ranks: torch.Tensor, patch_keys: torch.Tensor) -> torch.Tensor:
    """
    Place of every patch within its region, 0, 1, 2, ..., by ascending key.

    Args:
        ranks (`torch.LongTensor` of shape `(batch_size, num_patches)`): From [`rank_regions`].
        patch_keys (`torch.FloatTensor` of shape `(batch_size, num_patches)`): In [0, 1).

    Returns:
        `torch.LongTensor` of the same shape.
    """
    order = (ranks + patch_keys.double()).argsort(dim=1)
    ordered = ranks.gather(1, order)
    places = torch.arange(ranks.shape[1], device=ranks.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(ranks).scatter_(1, order, places)


def mask_regions(
    region_ids: torch.Tensor,
    num_masked: int,
    region_keys: torch.Tensor,
    patch_keys: torch.Tensor,
    region_masking: RegionMasking = DEFAULT_REGION_MASKING,
) -> torch.Tensor:
    """
    Guided masking: show a part of every region and hide the rest.

    The patches of each region are put in random order. Those in first place of their regions stay visible first, then
    those in second place, and so on; within a place, regions come in random order. The visible patches are thus shared
    equally among the regions, as far as their sizes allow. If every patch is its own region, this is MAE's random
    masking.

    Args:
        region_ids (`torch.LongTensor` of shape `(batch_size, num_patches)`): Region of every patch.
        num_masked (`int`): Masked patches in each row, in [0, num_patches].
        region_keys (`torch.FloatTensor` of shape `(batch_size, num_patches)`): Uniform in [0, 1); the r-th is the key
            of the region with the r-th smallest id of the row.
        patch_keys (`torch.FloatTensor` of shape `(batch_size, num_patches)`): Uniform in [0, 1).
        region_masking (`str`): `"balanced"` as above, or `"whole"`: whole regions are shown or hidden, in random
            order, except the one that `num_masked` splits.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_patches)`: `True` = masked, exactly `num_masked` in each row.

    Raises:
        `ValueError`: if `num_masked` is not in [0, num_patches].
    """
    num_patches = region_ids.shape[1]
    if not 0 <= num_masked <= num_patches:
        raise ValueError(f"num_masked: expected an integer in [0, {num_patches}], got {num_masked}")
    ranks = rank_regions(region_ids)
    places = places_in_regions(ranks, patch_keys).double()
    keys = region_keys.double().gather(1, ranks)
    # Keys are multiples of 2**-24, so that small fractions of a place only order the patches of a region.
    scores = places + keys if region_masking == "balanced" else keys + places * 2.0**-40
    visible_ids = scores.argsort(dim=1, stable=True)[:, : num_patches - num_masked]
    return torch.ones_like(region_ids, dtype=torch.bool).scatter_(1, visible_ids, False)


def mask_by_strategy(
    semantic: torch.Tensor,
    instance: torch.Tensor,
    strategy: torch.Tensor,
    uniform: torch.Tensor,
    num_masked: int,
    cells_per_side: int,
    region_masking: RegionMasking = DEFAULT_REGION_MASKING,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mask every row by its own strategy.

    Args:
        semantic, instance (`torch.LongTensor` of shape `(batch_size, height, width)`): Label maps, as for
            [`combine_regions`].
        strategy (`torch.LongTensor` of shape `(batch_size,)`): Index into `MASKING_STRATEGIES`.
        uniform (`torch.FloatTensor` of shape `(batch_size, 2 * num_patches)`): Each row's random numbers.
        num_masked (`int`): Masked patches in each row.
        cells_per_side (`int`): Label cells along a side of a patch.
        region_masking (`str`): As for [`mask_regions`].

    Returns:
        `bool_masked_pos` (`torch.BoolTensor` of shape `(batch_size, num_patches)`, `True` = masked) and `applied`
        (`torch.LongTensor` of shape `(batch_size,)`): the strategy of each row, random masking if the maps that the
        given strategy needs are empty.
    """
    # The ignore index is the lowest number of a map.
    has_semantic = semantic.amax(dim=(1, 2)) > IGNORE_INDEX
    has_instance = (instance.amax(dim=(1, 2)) > NO_INSTANCE) | has_semantic
    usable = torch.stack([has_semantic, has_instance, torch.ones_like(has_semantic)], dim=1)
    applied = torch.where(usable.gather(1, strategy[:, None])[:, 0], strategy, RANDOM)

    is_instance = (applied == INSTANCE)[:, None, None]
    # For semantic masking, instances are hidden from `combine_regions`.
    cell_regions = combine_regions(semantic, torch.where(is_instance, instance, NO_INSTANCE))
    regions = patch_regions(cell_regions, cells_per_side)
    num_patches = regions.shape[1]
    regions = torch.where((applied == RANDOM)[:, None], torch.arange(num_patches, device=regions.device), regions)
    region_keys, patch_keys = uniform[:, :num_patches], uniform[:, num_patches:]
    return mask_regions(regions, num_masked, region_keys, patch_keys, region_masking), applied


@dataclass(frozen=True)
class MaskingCurriculum:
    """
    Maps training progress t in [0, 1] to the probabilities of the masking strategies, and draws one per sample.

    Args:
        schedule (`str`): `"linear"` cross-fades from one strategy to the next (w = max(0, 1 - 2t), 1 - |2t - 1|,
            max(0, 2t - 1)), `"step"` gives each a third of the run, `"constant"` keeps `weights` throughout.
        weights: Probabilities of (semantic, instance, random), for `"constant"` only; they are divided by their sum.
        order: The strategies in the order in which they take over, coarse to fine by default.
        region_masking (`str`): As for [`mask_regions`].
        length (`float`): Share of the run, in (0, 1], that the schedule takes; afterwards it stays at its end. Our
            addition.

    Raises:
        `ValueError`: for an unknown schedule, an order that is not a permutation of the strategies, negative or
            all-zero weights, unknown region masking, a length outside (0, 1].
    """

    schedule: Literal["linear", "step", "constant"] = "linear"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: tuple[str, ...] = MASKING_STRATEGIES
    length: float = 1.0
    region_masking: RegionMasking = DEFAULT_REGION_MASKING

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "step", "constant"):
            raise ValueError(f"schedule: expected 'linear', 'step' or 'constant', got {self.schedule!r}")
        if sorted(self.order) != sorted(MASKING_STRATEGIES):
            raise ValueError(f"order: expected a permutation of {MASKING_STRATEGIES}, got {self.order!r}")
        if len(self.weights) != len(MASKING_STRATEGIES) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"weights: expected three numbers >= 0, not all zero, got {self.weights!r}")
        if self.schedule != "constant" and len(set(self.weights)) > 1:
            raise ValueError(f"weights: expected schedule='constant' with {self.weights!r}, got {self.schedule!r}")
        if self.region_masking not in get_args(RegionMasking):
            raise ValueError(f"region_masking: expected one of {get_args(RegionMasking)}, got {self.region_masking!r}")
        if not 0 < self.length <= 1:
            raise ValueError(f"length: expected a share in (0, 1], got {self.length!r}")

    def probabilities(self, progress: torch.Tensor) -> torch.Tensor:
        """
        Probability of each strategy at the given progress.

        Args:
            progress (`torch.Tensor` of shape `(batch_size,)`): Training progress; clamped to [0, 1].

        Returns:
            `torch.DoubleTensor` of shape `(batch_size, 3)`: probabilities in the order of `MASKING_STRATEGIES`.
        """
        t = (progress.double() / self.length).clamp(0, 1)
        if self.schedule == "constant":
            weights = torch.tensor(self.weights, dtype=torch.double, device=t.device)
            return (weights / weights.sum()).expand(len(t), -1)
        if self.schedule == "step":
            stage = (t * len(self.order)).long().clamp(max=len(self.order) - 1)
            by_order = torch.nn.functional.one_hot(stage, len(self.order)).double()
        else:
            by_order = torch.stack([(1 - 2 * t).clamp(min=0), 1 - (2 * t - 1).abs(), (2 * t - 1).clamp(min=0)], dim=1)
        return by_order[:, [self.order.index(name) for name in MASKING_STRATEGIES]]

    def draw(self, progress: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """
        Draw a strategy for each sample.

        Args:
            progress (`torch.Tensor` of shape `(batch_size,)`): Training progress.
            uniform (`torch.FloatTensor` of shape `(batch_size,)`): A random number in [0, 1) for each sample.

        Returns:
            `torch.LongTensor` of shape `(batch_size,)`: index into `MASKING_STRATEGIES`.
        """
        upper = self.probabilities(progress).cumsum(dim=1)
        # The last bound is 1 up to rounding; leaving it out keeps the index in range.
        return (uniform.double()[:, None] >= upper[:, :-1]).sum(dim=1)
