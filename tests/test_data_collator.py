"""Batches: targets, the curriculum in every kind of worker, determinism."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from c2fmae_hf import C2FMAEConfig
from c2fmae_hf.data.data_collator import FALLBACK, DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.sampling import EpochSampler, SampleKey
from c2fmae_hf.data.transforms import evaluation_transform, training_transform
from c2fmae_hf.masking import INSTANCE, RANDOM, SEMANTIC, MaskingCurriculum, combine_regions, patch_regions
from c2fmae_hf.targets import instance_labels_from_map


def collate(config, **options) -> DataCollatorForC2FMAE:
    return DataCollatorForC2FMAE(config, return_diagnostics=True, **options)


def test_a_batch(config, dataset):
    samples = [dataset[i] for i in range(4)]
    batch = DataCollatorForC2FMAE(config)(samples)
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "pixel_values": ((4, 3, 32, 32), torch.float32),
        "bool_masked_pos": ((4, 16), torch.bool),
        "semantic_labels": ((4, 8, 8), torch.int64),
        "instance_labels": ((4, 3, 8, 8), torch.float32),
    }
    assert (batch["bool_masked_pos"].sum(dim=1) == 12).all()
    assert torch.equal(batch["semantic_labels"][2], samples[2]["semantic"])
    assert torch.equal(batch["instance_labels"][2], instance_labels_from_map(samples[2]["instance"][None])[0])


def test_targets_follow_the_granularities(config, dataset):
    config = C2FMAEConfig(**{**config.to_dict(), "granularities": ["image"], "loss_weights": None})
    assert set(DataCollatorForC2FMAE(config)([dataset[0]])) == {"pixel_values", "bool_masked_pos"}


def test_masks_do_not_depend_on_the_batch(config, dataset):
    collator = collate(config)
    samples = [dataset[SampleKey(i, 3, 0.4)] for i in range(8)]
    together = collator(samples)["bool_masked_pos"]
    apart = torch.cat([collator([sample])["bool_masked_pos"] for sample in reversed(samples)]).flip(0)
    assert torch.equal(together, apart)
    other_epoch = collator([dataset[SampleKey(i, 4, 0.4)] for i in range(8)])["bool_masked_pos"]
    assert not torch.equal(together, other_epoch)
    # The masks change from epoch to epoch even if the crops stay the same.
    same_crops = [{**sample, "sample_key": sample["sample_key"]._replace(epoch=4)} for sample in samples]
    assert not torch.equal(together, collator(same_crops)["bool_masked_pos"])
    other_seed = collate(config, seed=1)(samples)["bool_masked_pos"]
    assert not torch.equal(together, other_seed)


def test_a_bare_collator_has_the_papers_curriculum_and_shows_equal_shares(config):
    halves = torch.zeros(8, 8, dtype=torch.int64)
    halves[:, 4:] = 1
    for progress, strategy in [(0.0, SEMANTIC), (0.5, INSTANCE), (1.0, RANDOM)]:
        sample = {
            "pixel_values": torch.zeros(3, 32, 32),
            "semantic": halves,
            "instance": halves,
            "image_id": "halves",
            "num_skipped": 0,
        }
        batch = collate(config)([{**sample, "sample_key": SampleKey(i, 0, progress)} for i in range(8)])
        assert batch["mask_strategy"].tolist() == [strategy] * 8
        if strategy == SEMANTIC:  # four of 16 patches stay visible: two of each half
            visible = ~batch["bool_masked_pos"].reshape(8, 4, 4)
            assert visible[:, :, :2].sum(dim=(1, 2)).tolist() == [2] * 8


def test_the_curriculum_moves_with_progress(config, dataset):
    collator = collate(config, curriculum=MaskingCurriculum("step"))
    for progress, strategy in [(0.1, SEMANTIC), (0.5, INSTANCE), (0.9, RANDOM)]:
        samples = [dataset[SampleKey(i, 0, progress)] for i in range(8)]
        assert collator(samples)["mask_strategy"].tolist() == [strategy] * 8


def test_guided_masks_show_an_equal_share_of_every_region(config, dataset):
    collator = collate(config, curriculum=MaskingCurriculum("constant", weights=(1, 0, 0)))
    samples = [dataset[SampleKey(i, 0, 0.0)] for i in range(12)]
    batch = collator(samples)
    regions = patch_regions(combine_regions(batch["semantic_labels"], torch.zeros(1, dtype=torch.long)), 2)
    assert min(len(classes.unique()) for classes in regions) >= 2
    for classes, mask in zip(regions, batch["bool_masked_pos"]):
        shown = torch.stack([((classes == c) & ~mask).sum() for c in classes.unique()])
        sizes = torch.stack([(classes == c).sum() for c in classes.unique()])
        assert ((shown >= shown.max() - 1) | (shown == sizes)).all()


def test_evaluation_masks_are_fixed(config, rows):
    dataset = C2FMAEDataset(rows, evaluation_transform((32, 32)))
    collator = collate(config, curriculum=MaskingCurriculum("constant", weights=(1, 0, 0)))
    first, second = (collator([dataset[i] for i in range(8)]) for _ in range(2))
    assert torch.equal(first["bool_masked_pos"], second["bool_masked_pos"])
    assert first["mask_strategy"].tolist() == [RANDOM] * 8
    semantic = collate(config, evaluation_masking="semantic")([dataset[i] for i in range(8)])
    assert semantic["mask_strategy"].tolist() == [SEMANTIC] * 8


def test_rows_without_labels_fall_back_to_random_masking_and_are_counted(config, dataset):
    collator = collate(config, curriculum=MaskingCurriculum("constant", weights=(1, 1, 0)))
    samples = [dataset[SampleKey(i, 0, 0.0)] for i in range(8)]
    for sample in samples[:3]:
        sample["semantic"] = torch.full_like(sample["semantic"], -100)
        sample["instance"] = torch.full_like(sample["instance"], -100)
    batch = collator(samples)
    assert (batch["mask_strategy"][:3] == FALLBACK).all()
    assert (batch["mask_strategy"][3:] < RANDOM).all()
    assert (batch["bool_masked_pos"].sum(dim=1) == 12).all()


def test_missing_fields_are_named(config):
    with pytest.raises(ValueError, match=r"missing \['semantic', 'instance', 'sample_key'\].*remove_unused_columns"):
        DataCollatorForC2FMAE(config)([{"pixel_values": torch.zeros(3, 32, 32)}])
    with pytest.raises(ValueError, match="evaluation_masking: expected one of"):
        DataCollatorForC2FMAE(config, evaluation_masking="none")


# Workers


def epochs(config, rows, num_workers, context=None, persistent=False, start=0) -> list[list[dict]]:
    """Three epochs of a run as the trainer drives them, from a given epoch on; a third of the curriculum each."""
    progress = SharedProgress()
    transform = training_transform((32, 32))
    dataset = C2FMAEDataset(rows, transform, num_semantic_classes=5, progress=progress)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=EpochSampler(len(dataset), progress, seed=0),
        collate_fn=collate(config, curriculum=MaskingCurriculum("step")),
        num_workers=num_workers,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    result = []
    for epoch in range(start, 3):
        progress.start_epoch(epoch, start=epoch / 3, per_sample=1 / 36)
        result.append(list(loader))
    return result


@pytest.mark.parametrize(
    ("num_workers", "context", "persistent"),
    [
        (0, None, False),
        (2, "fork", False),
        (2, "fork", True),
        pytest.param(1, "spawn", True, marks=pytest.mark.slow),
        pytest.param(1, "spawn", False, marks=pytest.mark.slow),
    ],
)
def test_the_curriculum_reaches_every_kind_of_worker(config, rows, num_workers, context, persistent):
    expected = epochs(config, rows, 0)
    got = epochs(config, rows, num_workers, context, persistent)
    strategies = [torch.cat([batch["mask_strategy"] for batch in epoch]).unique().tolist() for epoch in got]
    assert strategies == [[SEMANTIC], [INSTANCE], [RANDOM]]
    for batches, others in zip(expected, got):
        for batch, other in zip(batches, others):
            assert all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_starts_later_sees_the_same(config, rows, num_workers):
    whole = epochs(config, rows, 0)
    resumed = epochs(config, rows, num_workers, start=1)
    for batch, other in zip(whole[1] + whole[2], resumed[0] + resumed[1]):
        assert all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loop_without_our_sampler_can_move_the_curriculum(config, rows, num_workers):
    progress = SharedProgress()
    dataset = C2FMAEDataset(rows, training_transform((32, 32)), progress=progress)
    collator = collate(config, curriculum=MaskingCurriculum("step"))
    loader = DataLoader(
        dataset, batch_size=4, collate_fn=collator, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    seen = []
    for current in (0.0, 0.5, 1.0):
        progress.set_current(current)
        seen.append(torch.cat([batch["mask_strategy"] for batch in loader]).unique().tolist())
    assert seen == [[SEMANTIC], [INSTANCE], [RANDOM]]
