"""Scores of the decoder's own maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from c2fmae_hf import C2FMAEForPreTrainingOutput, C2FMAEImageProcessor
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.transforms import evaluation_transform
from c2fmae_hf.targets import patchify
from c2fmae_hf.training.decoder_evaluation import evaluate_decoder


class Oracle(nn.Module):
    """Predicts the labels that it is given, or the reverse of them, in place of the network."""

    def __init__(self, config, right: bool) -> None:
        super().__init__()
        self.config, self.right, self.device = config, right, torch.device("cpu")

    def forward(self, pixel_values, bool_masked_pos, semantic_labels, instance_labels, **kwargs):
        ids = bool_masked_pos.nonzero()[:, 1].view(len(pixel_values), -1)

        def masked(values):
            patches = patchify(values, 2)
            return patches.gather(1, ids[..., None, None].expand(-1, -1, *patches.shape[2:]))

        classes = masked(semantic_labels[:, None])[..., 0].clamp(min=0)
        if not self.right:
            classes = (classes + 1) % 5
        field = masked(instance_labels)
        field[..., 2] = ((field[..., 2] == 1).float() - 0.5) * (20 if self.right else -20)
        return C2FMAEForPreTrainingOutput(
            semantic_logits=nn.functional.one_hot(classes, 5).float(),
            instance_logits=field,
            patch_ids=ids,
        )


@pytest.fixture
def held_out(config, rows):
    return C2FMAEDataset(rows, evaluation_transform((32, 32), label_stride=4), num_semantic_classes=5)


def scores(model, config, held_out, **options):
    return evaluate_decoder(
        model, held_out, DataCollatorForC2FMAE(config), C2FMAEImageProcessor.from_config(config), **options
    )


def test_perfect_and_wrong_predictions(config, held_out):
    right = scores(Oracle(config, True), config, held_out)
    assert right["semantic_mean_iou"] == right["semantic_accuracy"] == 1
    # Decoding merges centres of discs that lie within two cells: a grid of 8 x 8 tells few of them apart.
    assert right["instance_pq"] > 0.4
    assert right["instance_sq"] > 0.8
    wrong = scores(Oracle(config, False), config, held_out)
    assert wrong["semantic_accuracy"] == 0
    assert wrong["instance_pq"] < 0.2


def test_a_real_model_in_any_batches(model, config, held_out):
    model.train()
    one, all_at_once = (scores(model, config, held_out, batch_size=size) for size in (1, 50))
    assert set(one) == {"semantic_mean_iou", "semantic_accuracy", "instance_pq", "instance_sq", "instance_rq"}
    assert one == pytest.approx(all_at_once, nan_ok=True)
    assert model.training
    assert all(0 <= value <= 1 or math.isnan(value) for value in one.values())
