"""What holds for all masks, maps and configurations: hypothesis looks for one for which it does not."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from c2fmae_hf import C2FMAEConfig, C2FMAEImageProcessor
from c2fmae_hf.constants import IGNORE_INDEX, MASKING_STRATEGIES
from c2fmae_hf.data.randomness import sample_seeds, sample_uniform
from c2fmae_hf.data.transforms import training_transform
from c2fmae_hf.images import expand_label_map, to_label_map
from c2fmae_hf.labelling.records import encode_label_map, resample_label_map
from c2fmae_hf.masking import MaskingCurriculum, mask_by_strategy
from c2fmae_hf.targets import instance_labels_from_map, instance_map_from_labels


quick = settings(max_examples=60, deadline=None, derandomize=True)
SIDES = st.integers(2, 6)


@st.composite
def label_maps(draw, highest: int = 6, lowest: int = 0) -> np.ndarray:
    """Blocks of ids, with what is ignored among them."""
    rows, columns, block = draw(SIDES), draw(SIDES), draw(st.sampled_from([1, 2, 4]))
    ids = st.one_of(st.integers(lowest, highest), st.just(IGNORE_INDEX))
    cells = draw(st.lists(ids, min_size=rows * columns, max_size=rows * columns))
    return np.array(cells, np.int32).reshape(rows, columns).repeat(block, 0).repeat(block, 1)


# Masks


@quick
@given(
    data=st.data(),
    rows=SIDES,
    columns=SIDES,
    cells=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**40),
    region_masking=st.sampled_from(["balanced", "whole"]),
)
def test_masks(data, rows, columns, cells, seed, region_masking):
    num_patches = rows * columns
    shape = (4, rows * cells, columns * cells)
    generator = torch.Generator().manual_seed(seed % 2**31)
    semantic = torch.randint(-1, 4, shape, generator=generator)
    instance = torch.randint(-1, 5, shape, generator=generator)
    semantic[semantic < 0], instance[instance < 0] = IGNORE_INDEX, IGNORE_INDEX
    num_masked = data.draw(st.integers(0, num_patches))
    strategy = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)))
    uniform = sample_uniform(sample_seeds(seed, [0] * 4, range(4)), 2 * num_patches)
    arguments = {"num_masked": num_masked, "cells_per_side": cells, "region_masking": region_masking}
    mask, applied = mask_by_strategy(semantic, instance, strategy, uniform, **arguments)
    assert (mask.sum(dim=1) == num_masked).all()
    assert ((applied == strategy) | (applied == len(MASKING_STRATEGIES) - 1)).all()
    # A row does not depend on the others, nor on what its instances are called, as long as their order stays.
    inputs = (semantic, instance, strategy, uniform)
    alone = [mask_by_strategy(*(one[row : row + 1] for one in inputs), **arguments)[0] for row in range(4)]
    assert torch.equal(torch.cat(alone), mask)
    renamed = torch.where(instance > 0, instance * 7 + 1, instance)
    assert torch.equal(mask_by_strategy(semantic, renamed, strategy, uniform, **arguments)[0], mask)


@quick
@given(
    t=st.floats(-1, 2),
    schedule=st.sampled_from(["linear", "step", "constant"]),
    weights=st.tuples(*[st.floats(0, 1e6)] * 3),
    order=st.permutations(MASKING_STRATEGIES),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_curricula(t, schedule, weights, order, uniform):
    if sum(weights) <= 0:
        with pytest.raises(ValueError, match="weights: expected three numbers"):
            MaskingCurriculum(schedule, weights, tuple(order))
        return
    if schedule != "constant" and len(set(weights)) > 1:
        with pytest.raises(ValueError, match="weights: expected schedule='constant'"):
            MaskingCurriculum(schedule, weights, tuple(order))
        weights = (1.0, 1.0, 1.0)
    curriculum = MaskingCurriculum(schedule, weights, tuple(order))
    probabilities = curriculum.probabilities(torch.tensor([t]))
    assert probabilities.sum().item() == pytest.approx(1)
    assert (probabilities >= 0).all()
    drawn = curriculum.draw(torch.tensor([t]), torch.tensor([uniform]))
    assert probabilities[0, drawn].item() > 0 or uniform > 1 - 1e-6


# Targets and maps


@quick
@given(label_map=label_maps())
def test_instance_targets(label_map):
    ids = torch.from_numpy(label_map).long()[None]
    labels = instance_labels_from_map(ids)
    flag = labels[:, 2]
    assert torch.equal(flag == IGNORE_INDEX, ids == IGNORE_INDEX)
    assert torch.equal(flag == 1, ids > 0)
    assert (labels[:, :2].abs() <= 1).all()
    assert (labels[:, :2].permute(0, 2, 3, 1)[ids <= 0] == 0).all()
    for name in ids.unique().tolist():
        if name > 0:  # offsets of an instance cancel
            for channel in range(2):
                assert abs(labels[:, channel][ids == name].double().sum().item()) < 1e-3
    decoded = instance_map_from_labels(labels, min_cells=1)
    assert torch.equal(decoded > 0, ids > 0)


@quick
@given(label_map=label_maps(highest=400))
def test_label_maps_are_stored_without_losses(label_map):
    stored = to_label_map(Image.open(io.BytesIO(encode_label_map(label_map))))
    assert (stored == label_map).all()


@quick
@given(label_map=label_maps(), stride=st.integers(1, 8))
def test_maps_at_a_stride_belong_to_their_image(label_map, stride):
    height, width = label_map.shape
    small = resample_label_map(label_map, (height, width), stride)
    assert small.shape == (-(-height // stride), -(-width // stride))
    assert set(np.unique(small)) <= set(np.unique(label_map))
    expanded = expand_label_map(small, (height, width))
    assert expanded.shape == label_map.shape


@quick
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    seed=st.integers(0, 2**62),
    stride=st.sampled_from([2, 4, 8]),
)
def test_crops(width, height, seed, stride):
    """Whatever the image's size: finite pixels, maps at the label grid, ids of the map alone; the same every time."""
    generator = np.random.default_rng(seed % 2**32)
    image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    label_map = generator.integers(0, 5, (height, width)).astype(np.int32)
    transform = training_transform((32, 16), label_stride=stride)
    sample, again = (transform(image, label_map, label_map, seed) for _ in range(2))
    assert sample["pixel_values"].shape == (3, 32, 16)
    assert sample["pixel_values"].isfinite().all()
    for name in ("semantic", "instance"):
        assert sample[name].shape == (32 // stride, 16 // stride)
        assert set(sample[name].unique().tolist()) <= set(np.unique(label_map).tolist())
    assert all(torch.equal(sample[name], again[name]) for name in ("pixel_values", "semantic", "instance"))


# Processor and configuration


@quick
@given(
    sizes=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=3),
    edge=st.integers(16, 50),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "1", "LA"]),
)
def test_the_processor_takes_any_image(sizes, edge, mode):
    processor = C2FMAEImageProcessor(size={"shortest_edge": edge}, crop_size={"height": 16, "width": 32}, patch_size=8)
    images = [Image.effect_noise(size, 50).convert(mode) for size in sizes]
    maps = [np.zeros((height, width), np.int64) for width, height in sizes]
    batch = processor(images, segmentation_maps=maps, return_tensors="pt")
    assert batch["pixel_values"].shape == (len(sizes), 3, 16, 32)
    assert batch["pixel_values"].isfinite().all()
    assert batch["semantic_labels"].shape == (len(sizes), 4, 8)
    assert set(batch["semantic_labels"].unique().tolist()) <= {0, IGNORE_INDEX}


@quick
@given(
    patch_size=st.sampled_from([8, 14, 16]),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ratio=st.floats(0.01, 0.99),
    granularities=st.sampled_from(
        [("image",), ("semantic", "image"), ("semantic", "instance", "image"), ("instance",)]
    ),
    heads=st.integers(1, 4),
)
def test_configurations_survive_json(patch_size, grid, ratio, granularities, heads):
    config = C2FMAEConfig(
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        patch_size=patch_size,
        label_stride=patch_size // 2,
        mask_ratio=ratio,
        granularities=granularities,
        num_attention_heads=heads,
        hidden_size=8 * heads,
    )
    again = C2FMAEConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()
    masked = config.num_masked_patches(config.num_patches)
    assert 1 <= masked <= max(config.num_patches - 1, 1)
