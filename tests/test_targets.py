"""Targets: patches, the label grid, centre offsets and their decoding; losses; positions; randomness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae_hf.data.randomness import _mix, sample_seeds, sample_uniform
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.losses import image_loss, instance_loss, semantic_loss
from c2fmae_hf.modeling_c2fmae import resize_position_table, sincos_position_table
from c2fmae_hf.targets import (
    instance_labels_from_map,
    instance_map_from_labels,
    patchify,
    reduce_label_map,
    unpatchify,
)


def same_partition(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two maps are equal but for the names of their ids; 0 is no name."""
    if not torch.equal(first == 0, second == 0):
        return False
    pairs = torch.stack([first.flatten(), second.flatten()], dim=1).unique(dim=0)
    return len(pairs) == len(first.unique()) == len(second.unique())


def discs(number: int, seed: int, size: int = 56) -> torch.Tensor:
    """Discs that do not touch, so that their centres are apart."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    label_map = np.zeros((size, size), dtype=np.int64)
    placed: list[tuple[float, float, float]] = []
    while len(placed) < number:
        cy, cx, r = *generator.uniform(5, size - 5, 2), generator.uniform(2, 6)
        if all((cy - a) ** 2 + (cx - b) ** 2 > (r + c + 1) ** 2 for a, b, c in placed):
            placed.append((cy, cx, r))
            label_map[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = generator.integers(1, 60_000)
    return torch.from_numpy(label_map)


# Patches and the label grid


def test_patchify_is_row_major_and_invertible():
    values = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    patches = patchify(values, 4)
    assert patches.shape == (2, 6, 16, 3)
    assert torch.equal(patches[1, 4, 5], values[1, :, 4 + 1, 4 + 1])
    assert torch.equal(unpatchify(patches, (2, 3)), values)


def test_the_label_grid_takes_the_pixel_at_the_centre():
    pixels = torch.arange(64).view(8, 8)
    assert reduce_label_map(pixels, 4).tolist() == [[18, 22], [50, 54]]
    assert torch.equal(reduce_label_map(pixels, 1), pixels)
    assert reduce_label_map(torch.zeros(2, 14, 21), 7).shape == (2, 2, 3)


# Instances


def test_offsets_by_hand():
    label_map = torch.tensor([[[4, 4, 0, 0], [4, 4, 0, -100]]])
    labels = instance_labels_from_map(label_map)
    assert labels.shape == (1, 3, 2, 4)
    assert labels.dtype == torch.float32
    # Instance 4 covers 2 x 2 cells; its centre is half a cell from each, a quarter of 2 rows, an eighth of 4 columns.
    assert labels[0, 0].tolist() == [[0.25, 0.25, 0, 0], [-0.25, -0.25, 0, 0]]
    assert labels[0, 1].tolist() == [[0.125, -0.125, 0, 0], [0.125, -0.125, 0, 0]]
    assert labels[0, 2].tolist() == [[1, 1, 0, 0], [1, 1, 0, -100]]


def test_offsets_do_not_depend_on_the_names_of_ids():
    label_map = torch.stack([discs(6, seed) for seed in range(4)])
    renamed = torch.where(label_map > 0, (label_map * 31 + 7) % 65_521 + 1, 0)
    assert torch.equal(instance_labels_from_map(label_map), instance_labels_from_map(renamed))


def test_rows_of_a_batch_do_not_mix():
    label_map = torch.stack(
        [discs(5, 0), discs(5, 1), torch.zeros(56, 56, dtype=torch.long), torch.full((56, 56), -100)]
    )
    label_map[1][label_map[1] > 0] = label_map[0].max()
    together = instance_labels_from_map(label_map)
    apart = torch.cat([instance_labels_from_map(row[None]) for row in label_map])
    assert torch.equal(together, apart)
    assert not together[2].any()
    assert together[3, 2].unique().tolist() == [-100]
    assert not together[3, :2].any()


@pytest.mark.parametrize("number", [0, 1, 3, 8, 12])
@pytest.mark.parametrize("radius", [0.001, 0.01, 0.02, 0.03])
def test_targets_decode_to_the_map_they_came_from(number, radius):
    label_map = torch.stack([discs(number, seed) for seed in range(6)])
    decoded = instance_map_from_labels(instance_labels_from_map(label_map), radius=radius, min_cells=1)
    for one, other in zip(label_map, decoded):
        assert same_partition(one, other)


def test_decoding_stands_noise():
    label_map = torch.stack([discs(4, seed) for seed in range(4)])
    labels = instance_labels_from_map(label_map)
    labels[:, :2] += torch.randn(4, 2, 56, 56) * 0.01
    decoded = instance_map_from_labels(labels)
    for one, other in zip(label_map, decoded):
        assert other.max() == 4
        wrong = 0
        for instance_id in one.unique()[1:]:
            found = other[one == instance_id]
            wrong += (found != found.mode().values).sum().item()
        assert wrong < 0.05 * (one > 0).sum()


def test_centres_in_neighbouring_cells_do_not_stop_the_search():
    """The densest place may lie between two centres, on neither."""
    label_map = torch.zeros(1, 56, 56, dtype=torch.long)
    label_map[0, 10:30, 10:30], label_map[0, 18:24, 18:24] = 1, 2  # a frame around a square, centres a cell apart
    for index, top in enumerate(range(2, 50, 10)):
        label_map[0, top : top + 4, 40:50] = index + 3
    decoded = instance_map_from_labels(instance_labels_from_map(label_map), radius=0.02, min_cells=4)
    assert decoded.max() >= 6
    for instance_id in range(3, 8):
        found = decoded[label_map == instance_id].unique()
        assert len(found) == 1
        assert (decoded == found).sum() == 40


def test_decoding_leaves_out_small_instances():
    label_map = torch.zeros(1, 20, 20, dtype=torch.long)
    label_map[0, :6, :6], label_map[0, 15:16, 15:17] = 1, 2
    labels = instance_labels_from_map(label_map)
    assert instance_map_from_labels(labels, radius=0.05, min_cells=4).unique().tolist() == [0, 1]
    assert instance_map_from_labels(labels, radius=0.05, min_cells=1).max() == 2


def test_real_maps_decode(shared_data):
    """Instances with a common centre cannot be told apart, so that not every map comes back."""
    exact, rows = 0, load_splits(str(shared_data / "pennfudan_val.parquet"))["validation"]
    for row in rows:
        label_map = np.array(row["instance"].resize((56, 56), Image.Resampling.NEAREST)).astype(np.int64)
        label_map = torch.from_numpy(label_map)[None]
        decoded = instance_map_from_labels(instance_labels_from_map(label_map), radius=0.01, min_cells=1)
        exact += same_partition(label_map[0], decoded[0])
    assert exact >= 0.9 * len(rows)


# Losses


def test_semantic_loss_by_hand():
    logits = torch.zeros(2, 1, 2, 4)
    logits[0, 0, 0, 1] = math.log(3.0)
    labels = torch.tensor([[[[1], [-100]]], [[[2], [3]]]])
    # First image: one valid cell with probability 3 / 6; second: two with 1 / 4.
    assert semantic_loss(logits, labels).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_instance_loss_by_hand():
    logits = torch.zeros(1, 1, 3, 3)
    labels = torch.tensor([[[[0.25, -0.5, 1.0], [0.0, 0.0, 0.0], [9.0, 9.0, -100.0]]]])
    # One foreground cell that is off by 0.75; two cells with a flag, each at even odds.
    assert instance_loss(logits, labels, offset_weight=2.0).item() == pytest.approx(1.5 + math.log(2))


def test_image_loss_by_hand():
    pixels = torch.tensor([[[[1.0], [3.0]]]])
    assert image_loss(torch.zeros(1, 1, 2, 1), pixels, norm_pix_loss=False).item() == pytest.approx(5.0)
    # Normalised, the two pixels are -1 and 1 over the square root of 2 (the variance is that of a sample).
    assert image_loss(torch.zeros(1, 1, 2, 1), pixels, norm_pix_loss=True).item() == pytest.approx(0.5, rel=1e-4)


def test_an_image_without_labels_gives_a_zero_that_can_be_differentiated():
    logits = torch.randn(1, 4, 4, 3, requires_grad=True)
    for loss in (
        semantic_loss(logits, torch.full((1, 4, 4, 1), -100)),
        instance_loss(logits, torch.full((1, 4, 4, 3), -100.0), 1.0),
    ):
        assert loss.item() == 0
        loss.backward()
    assert not logits.grad.any()


def test_losses_are_computed_in_fp32():
    logits = torch.randn(2, 4, 4, 3).bfloat16()
    labels = torch.randint(0, 3, (2, 4, 4, 1))
    assert semantic_loss(logits, labels).dtype == torch.float32
    assert torch.equal(semantic_loss(logits, labels), semantic_loss(logits.float(), labels))
    assert image_loss(logits, torch.randn(2, 4, 4, 3), True).dtype == torch.float32


# Positions


def test_positions_follow_their_formula():
    table = sincos_position_table(16, (3, 5))
    assert table.shape == (1, 15, 16)
    for row in range(3):
        for column in range(5):
            expected = []
            for position in (row, column):
                angles = [position / 10000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[0, row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_positions_differ_and_resize():
    table = sincos_position_table(32, (14, 14))
    assert len(table[0].unique(dim=0)) == 196
    assert resize_position_table(table, (14, 14), (14, 14)) is table
    resized = resize_position_table(table, (14, 14), (7, 10))
    assert resized.shape == (1, 70, 32)
    assert len(resized[0].unique(dim=0)) == 70
    assert resize_position_table(table.bfloat16(), (14, 14), (7, 7)).dtype == torch.bfloat16


# Randomness


def test_the_generator_is_splitmix64():
    """Its first outputs from state 0, as published."""
    counters = np.arange(1, 3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(value) for value in _mix(counters)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_streams_are_uniform_and_their_own():
    seeds = sample_seeds(0, [0] * 500, range(500))
    assert len(np.unique(seeds)) == 500
    uniform = sample_uniform(seeds, 400)
    assert uniform.shape == (500, 400)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.003
    assert abs(uniform.var() - 1 / 12) < 0.001
    correlation = torch.corrcoef(uniform[:50])[~torch.eye(50, dtype=torch.bool)]
    assert correlation.abs().max() < 0.25


def test_a_stream_is_a_function_of_seed_epoch_and_index():
    one = sample_seeds(3, [1], [7])
    assert one == sample_seeds(3, [0, 1], [7, 7])[1]
    others = [
        sample_seeds(*key)[0] for key in [(4, [1], [7]), (3, [2], [7]), (3, [1], [8]), (3, [7], [1]), (3, [1], [-1])]
    ]
    assert len({int(one[0]), *map(int, others)}) == 6
    assert torch.equal(sample_uniform(one, 5), sample_uniform(one, 9)[:, :5])


def test_any_ids_will_do():
    """Ids that no table could hold, as encodings of colours or hashes are, give what small ones give."""
    small = torch.randint(0, 4, (3, 12, 16))
    small[0, :2] = -100
    large = torch.where(small > 0, small * 2**40 + 7, small)
    assert torch.equal(instance_labels_from_map(large), instance_labels_from_map(small))
