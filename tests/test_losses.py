"""Losses of a random part of the patches are unbiased estimates of those of all, whatever is ignored."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from c2fmae_hf import C2FMAEForPreTraining
from c2fmae_hf.losses import image_loss, instance_loss, masked_mean, semantic_loss
from testing_utils import with_fields


NUM_PATCHES, CELLS, CLASSES = 6, 4, 3


def labels_with_gaps() -> tuple[torch.Tensor, torch.Tensor]:
    """Semantic and instance labels of three images with very unequal shares of ignored cells, the last with none."""
    semantic = torch.randint(0, CLASSES, (3, NUM_PATCHES, CELLS, 1))
    semantic[0, 1:, 1:] = -100
    semantic[2] = -100
    instance = torch.randn(3, NUM_PATCHES, CELLS, 3)
    instance[..., 2] = (instance[..., 2] > 0.5).float()
    instance[1, 2:, :, 2] = -100
    instance[2, ..., 2] = 0
    return semantic, instance


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_the_mean_over_all_parts_is_the_loss_of_all(count):
    semantic, instance = labels_with_gaps()
    logits = {
        name: torch.randn(3, NUM_PATCHES, CELLS, channels).double()
        for name, channels in (("semantic", CLASSES), ("instance", 3), ("image", 3))
    }
    pixels = torch.randn(3, NUM_PATCHES, CELLS, 3)
    weights = torch.full((count,), NUM_PATCHES / count)
    parts = [
        [
            semantic_loss(logits["semantic"][:, part], semantic[:, part], weights, semantic),
            instance_loss(logits["instance"][:, part], instance[:, part], 2.0, weights, instance),
            image_loss(logits["image"][:, part], pixels[:, part], norm_pix_loss=True),
        ]
        for part in map(list, combinations(range(NUM_PATCHES), count))
    ]
    whole = [
        semantic_loss(logits["semantic"], semantic),
        instance_loss(logits["instance"], instance, 2.0),
        image_loss(logits["image"], pixels, norm_pix_loss=True),
    ]
    torch.testing.assert_close(torch.tensor(parts).mean(dim=0), torch.tensor(whole), atol=1e-5, rtol=0)
    if count == 2:
        # A mean over the valid cells of the part alone, as it is for a whole, would be biased.
        naive = [
            semantic_loss(logits["semantic"][:, part], semantic[:, part])
            for part in map(list, combinations(range(NUM_PATCHES), count))
        ]
        assert abs(torch.stack(naive).mean() - whole[0]) > 1e-2


@pytest.mark.parametrize("supervise_visible_labels", [False, True])
def test_a_model_s_losses_are_unbiased(config, batch, supervise_visible_labels):
    config = with_fields(
        config, decoder_prediction_ratio=0.3, supervise_visible_labels=supervise_visible_labels, mask_ratio=0.6
    )
    model = C2FMAEForPreTraining(config)
    batch = {name: value[:4] for name, value in batch.items()}
    batch["bool_masked_pos"] = torch.rand(4, config.num_patches).argsort(dim=1).argsort(dim=1) < round(
        0.6 * config.num_patches
    )
    batch["semantic_labels"][:, :3] = -100
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        whole = model.eval()(**batch)
        parts = [model.train()(**batch) for _ in range(400)]
    for name in ("semantic_loss", "instance_loss", "image_loss"):
        values = torch.stack([outputs[name] for outputs in parts])
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - whole[name]) < 4 * error, name


def test_masked_mean_by_hand():
    values = torch.tensor([[1.0, 2.0, 30.0], [5.0, 7.0, 9.0], [1.0, 1.0, 1.0]])
    valid = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    assert masked_mean(values, valid).item() == pytest.approx((1.5 + 7 + 0) / 3)
    # The first image has 2 valid cells of all, of which one was decoded; each stands for two.
    part, all_valid = valid[:, :1], valid
    assert masked_mean(values[:, :1], part, torch.tensor([2.0]), all_valid).item() == pytest.approx(
        (1 * 2 / 2 + 5 * 2 / 3 + 0) / 3
    )


def test_flat_patches_have_finite_losses_and_gradients():
    """Constant pixels have variance 0, so the normalised target is 0."""
    pixels = torch.full((1, 2, 4, 3), 0.7)
    pixels[0, 1] = torch.randn(4, 3)
    logits = torch.full((1, 2, 4, 3), 0.5, requires_grad=True)
    loss = image_loss(logits, pixels, norm_pix_loss=True)
    textured = pixels[0, 1].flatten()
    normalised = (textured - textured.mean()) / (textured.var() + 1e-6).sqrt()
    expected = (0.25 + (0.5 - normalised).square().mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_the_offset_weight_is_that_of_the_offsets_alone():
    _, labels = labels_with_gaps()
    logits = torch.randn_like(labels)
    flags_alone, once, three_times = (instance_loss(logits, labels, weight).item() for weight in (0.0, 1.0, 3.0))
    assert once > flags_alone
    assert three_times - flags_alone == pytest.approx(3 * (once - flags_alone), rel=1e-5)


def test_a_model_weighs_offsets_as_its_configuration_says(config, batch):
    losses = []
    for weight in (0.0, 1.0, 4.0):
        torch.manual_seed(0)
        model = C2FMAEForPreTraining(with_fields(config, instance_offset_weight=weight)).eval()
        losses.append(model(**batch).instance_loss.item())
    assert losses[2] - losses[0] == pytest.approx(4 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0]
