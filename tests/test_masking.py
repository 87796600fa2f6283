"""Masks: exact counts, worked examples, shares of regions, fall-backs; the curriculum."""

from __future__ import annotations

import pytest
import torch

from c2fmae_hf.masking import (
    INSTANCE,
    RANDOM,
    SEMANTIC,
    MaskingCurriculum,
    combine_regions,
    mask_by_strategy,
    mask_regions,
    patch_regions,
    rank_regions,
)


def grid(text: str) -> torch.Tensor:
    """Convert rows of numbers to a batch with one map."""
    return torch.tensor([[int(value) for value in row.split()] for row in text.strip().splitlines()])[None]


# Worked examples: a photograph of 4 x 4 patches with one label cell each, 75 % masked. Left half class 7, right half
# class 2; instance 5 is the lower right quarter. Regions are ranked by id, so the keys below are for rank 0, 1, ...

SEMANTIC_MAP = grid("7 7 2 2\n7 7 2 2\n7 7 2 2\n7 7 2 2")
INSTANCE_MAP = grid("0 0 0 0\n0 0 0 0\n0 0 5 5\n0 0 5 5")
# Within a region the patches' own keys decide; here they fall from the first patch to the last.
PATCH_KEYS = torch.arange(15, -1, -1).float()[None] / 16


def worked_example(
    strategy: int, region_keys: list[float], num_masked: int = 12, region_masking: str = "balanced"
) -> list[list[int]]:
    keys = torch.ones(1, 16) * 0.99
    keys[0, : len(region_keys)] = torch.tensor(region_keys)
    mask, applied = mask_by_strategy(
        SEMANTIC_MAP,
        INSTANCE_MAP,
        torch.tensor([strategy]),
        torch.cat([keys, PATCH_KEYS], dim=1),
        num_masked=num_masked,
        cells_per_side=1,
        region_masking=region_masking,
    )
    assert applied.tolist() == [strategy]
    return mask.view(4, 4).int().tolist()


def test_worked_example_of_semantic_masking():
    """Each class shows its first two patches; of three visible patches, the class with the lower key shows two."""
    assert worked_example(SEMANTIC, [0.1, 0.9]) == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    # Ids of semantic regions fall with the class: class 7 is rank 0, class 2 rank 1.
    assert worked_example(SEMANTIC, [0.1, 0.9], 13) == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0]]
    assert worked_example(SEMANTIC, [0.9, 0.1], 13) == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_worked_example_of_instance_masking():
    """The instance is a region of its own; patches without an instance fall back to their class."""
    # Ranks: class 7, class 2 without the instance, instance 5. One patch each, and one more for the lowest key.
    assert worked_example(INSTANCE, [0.9, 0.5, 0.1]) == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert worked_example(INSTANCE, [0.1, 0.9, 0.5]) == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]]


def test_worked_example_of_whole_regions():
    """Class 7 has the lowest key: its last four patches stay visible, class 2 is hidden as a whole."""
    shown = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert worked_example(SEMANTIC, [0.1, 0.9], region_masking="whole") == shown
    shown = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert worked_example(INSTANCE, [0.9, 0.5, 0.1], region_masking="whole") == shown


def test_worked_example_of_random_masking():
    """Every patch is its own region: those with the four lowest keys stay visible."""
    keys = [0.9, 0.1, 0.8, 0.7, 0.6, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9, 0.3, 0.4, 0.9, 0.9, 0.9]
    assert worked_example(RANDOM, keys) == [[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1]]


# Counts

MAPS = {
    "blocks": (torch.arange(4).repeat_interleave(64).view(1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long)),
    "one class": (torch.zeros(1, 16, 16, dtype=torch.long), torch.zeros(1, 16, 16, dtype=torch.long)),
    "all ignored": (torch.full((1, 16, 16), -100), torch.full((1, 16, 16), -100)),
    "every cell a class": (torch.arange(256).view(1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long)),
    "one instance": (torch.zeros(1, 16, 16, dtype=torch.long), torch.ones(1, 16, 16, dtype=torch.long)),
    "large ids": (torch.full((1, 16, 16), 65534), torch.arange(256).view(1, 16, 16) * 255 + 1),
    "instances without classes": (torch.full((1, 16, 16), -100), torch.arange(256).view(1, 16, 16) // 40),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("strategy", [SEMANTIC, INSTANCE, RANDOM])
@pytest.mark.parametrize("num_masked", [0, 1, 16, 32, 48, 63, 64])
def test_counts_are_exact(name, strategy, num_masked):
    semantic, instance = (m.expand(3, -1, -1) for m in MAPS[name])
    mask, _ = mask_by_strategy(semantic, instance, torch.full((3,), strategy), torch.rand(3, 128), num_masked, 2)
    assert mask.shape == (3, 64)
    assert mask.sum(dim=1).tolist() == [num_masked] * 3


def test_a_batch_may_mix_strategies():
    semantic = torch.cat([MAPS["blocks"][0]] * 3)
    instance = torch.zeros_like(semantic)
    uniform = torch.rand(3, 128)
    strategies = torch.tensor([RANDOM, SEMANTIC, INSTANCE])
    together, applied = mask_by_strategy(semantic, instance, strategies, uniform, 48, 2)
    assert applied.tolist() == strategies.tolist()
    for index in range(3):
        row = slice(index, index + 1)
        alone, _ = mask_by_strategy(semantic[row], instance[row], strategies[row], uniform[row], 48, 2)
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize(("num_masked", "got"), [(-1, -1), (65, 65)])
def test_impossible_counts_are_refused(num_masked, got):
    with pytest.raises(ValueError, match=rf"num_masked: expected an integer in \[0, 64\], got {got}"):
        mask_regions(torch.zeros(1, 64, dtype=torch.long), num_masked, torch.rand(1, 64), torch.rand(1, 64))


def test_rows_without_usable_maps_are_masked_at_random():
    nothing, classes, things = (
        torch.full((16, 16), -100),
        torch.zeros(16, 16, dtype=torch.long),
        torch.ones(16, 16).long(),
    )
    semantic = torch.stack([nothing, nothing, classes, nothing])
    instance = torch.stack([nothing, things, nothing, things])
    strategies = torch.tensor([INSTANCE, SEMANTIC, INSTANCE, INSTANCE])
    _, applied = mask_by_strategy(semantic, instance, strategies, torch.rand(4, 128), 48, 2)
    assert applied.tolist() == [RANDOM, RANDOM, INSTANCE, INSTANCE]


# Regions


@pytest.mark.parametrize("num_regions", [1, 3, 9, 49, 60])
@pytest.mark.parametrize("num_masked", [0, 98, 147, 190, 196])
def test_shares_of_regions_differ_by_one_patch_at_most(num_regions, num_masked):
    """Unless a region is used up. With enough visible patches, every region is seen."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(0, num_regions, (100, 196), generator=generator) * 1000 - 4000
    regions[:, :2] = 5  # a region of two patches
    uniform = torch.rand(2, 100, 196, generator=generator)
    mask = mask_regions(regions, num_masked, *uniform)
    assert mask.sum(dim=1).tolist() == [num_masked] * 100
    for row, ids in zip(mask, regions):
        sizes = torch.stack([(ids == region).sum() for region in ids.unique()])
        shown = torch.stack([((ids == region) & ~row).sum() for region in ids.unique()])
        most = shown.max()
        assert ((shown >= most - 1) | (shown == sizes)).all()
        if 196 - num_masked >= len(sizes):
            assert (shown >= 1).all()


def test_which_patches_and_regions_come_first_is_random():
    regions = torch.arange(4).repeat_interleave(49).expand(4000, -1)
    uniform = torch.rand(2, 4000, 196, generator=torch.Generator().manual_seed(0))
    visible = ~mask_regions(regions, 195, *uniform)  # one patch of all
    share = visible.float().mean(dim=0)
    assert (share - 1 / 196).abs().max() < 5 * (1 / 196 / 4000) ** 0.5
    assert (share.view(4, 49).sum(dim=1) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_whole_regions_are_shown_or_hidden():
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(0, 9, (200, 196), generator=generator) * 1000 - 4000
    uniform = torch.rand(2, 200, 196, generator=generator)
    mask = mask_regions(regions, 147, uniform[0], uniform[1], "whole")
    assert mask.sum(dim=1).tolist() == [147] * 200
    for row, ids in zip(mask, regions):
        cut = [i for i in ids.unique() if 0 < row[ids == i].sum() < (ids == i).sum()]
        assert len(cut) <= 1


def test_random_masks_are_the_same_either_way():
    regions, uniform = torch.arange(196).expand(8, 196), torch.rand(2, 8, 196)
    masks = [mask_regions(regions, 147, *uniform, region_masking=name) for name in ("balanced", "whole")]
    assert torch.equal(*masks)


def test_random_masking_is_uniform():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, 32, generator=generator)
    nothing = torch.zeros(4000, 4, 4, dtype=torch.long)
    mask, _ = mask_by_strategy(nothing, nothing, torch.full((4000,), RANDOM), uniform, 12, 1)
    share = mask.float().mean(dim=0)
    assert (share - 0.75).abs().max() < 4 * (0.75 * 0.25 / 4000) ** 0.5
    # Pairs too: with 12 of 16 patches masked, both patches of a pair are with probability 12 * 11 / (16 * 15).
    pairs = (mask[:, :, None] & mask[:, None]).float().mean(dim=0)[~torch.eye(16, dtype=torch.bool)]
    assert (pairs - 0.55).abs().max() < 0.04


def test_a_patch_belongs_to_the_region_that_covers_most_of_it():
    cells = grid("1 1 2 3\n1 4 3 3\n5 5 6 6\n5 5 6 6")
    assert patch_regions(cells, 2).tolist() == [[1, 3, 5, 6]]
    assert patch_regions(grid("1 2 3 4\n5 6 7 8\n1 1 1 1\n1 1 1 1"), 1).shape == (1, 16)


def test_instances_before_classes():
    regions = combine_regions(grid("3 3 -100 -100"), grid("0 9 9 0"))[0, 0].tolist()
    assert regions[1] == regions[2] == 9
    assert len({regions[0], regions[1], regions[3]}) == 3
    assert regions[0] < 0
    assert regions[3] < 0


def test_ranks():
    assert rank_regions(torch.tensor([[50, -3, 50, 7], [1, 1, 1, 1]])).tolist() == [[2, 0, 2, 1], [0, 0, 0, 0]]


# The curriculum


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: (1, 0, 0), 0.25: (0.5, 0.5, 0), 0.5: (0, 1, 0), 0.75: (0, 0.5, 0.5), 1: (0, 0, 1)}),
        ("step", {0: (1, 0, 0), 0.33: (1, 0, 0), 0.34: (0, 1, 0), 0.67: (0, 0, 1), 1: (0, 0, 1)}),
        ("constant", {0: (0.25, 0, 0.75), 1: (0.25, 0, 0.75)}),
    ],
)
def test_probabilities(schedule, expected):
    curriculum = MaskingCurriculum(schedule, weights=(1, 0, 3) if schedule == "constant" else (1, 1, 1))
    got = curriculum.probabilities(torch.tensor(list(expected)))
    assert torch.allclose(got, torch.tensor(list(expected.values()), dtype=torch.double), atol=1e-6)
    everywhere = curriculum.probabilities(torch.linspace(-0.5, 1.5, 101))
    assert torch.allclose(everywhere.sum(dim=1), torch.ones(101, dtype=torch.double))
    assert (everywhere >= 0).all()


def test_weights_without_a_constant_schedule_are_refused():
    with pytest.raises(ValueError, match=r"weights: expected schedule='constant' with \(0, 0, 1\), got 'linear'"):
        MaskingCurriculum(weights=(0, 0, 1))


def test_reversed_order():
    curriculum = MaskingCurriculum(order=("random", "instance", "semantic"))
    assert curriculum.probabilities(torch.tensor([0.0, 1.0])).tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("schedule", ["linear", "step"])
def test_a_shorter_curriculum_ends_earlier_and_stays(schedule):
    whole, half = MaskingCurriculum(schedule), MaskingCurriculum(schedule, length=0.5)
    t = torch.linspace(0, 1, 21)
    assert torch.allclose(half.probabilities(t / 2), whole.probabilities(t))
    assert half.probabilities(torch.tensor([0.5, 0.7, 1.0])).tolist() == [[0, 0, 1]] * 3


def test_draws_follow_the_probabilities():
    uniform = torch.linspace(0, 1, 10_001)[:-1]
    drawn = MaskingCurriculum().draw(torch.full((10_000,), 0.6), uniform)
    shares = torch.bincount(drawn, minlength=3) / 10_000
    assert torch.allclose(shares, torch.tensor([0.0, 0.8, 0.2]), atol=1e-3)
    assert MaskingCurriculum().draw(torch.tensor([1.0]), torch.tensor([0.0])).tolist() == [RANDOM]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "cosine"}, "schedule: expected"),
        ({"weights": (0, 0, 0)}, "weights: expected three numbers"),
        ({"weights": (1, -1, 1)}, "weights: expected"),
        ({"weights": (1, 1)}, "weights: expected"),
        ({"order": ("semantic", "random")}, "order: expected a permutation"),
        ({"region_masking": "part"}, r"region_masking: expected one of \('balanced', 'whole'\), got 'part'"),
        ({"length": 0}, r"length: expected a share in \(0, 1\], got 0"),
        ({"length": 1.5}, r"length: expected a share in \(0, 1\], got 1.5"),
    ],
)
def test_a_wrong_curriculum_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskingCurriculum(**arguments)
