"""Layer-wise learning rates."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, ViTConfig, ViTForImageClassification

from c2fmae_hf import C2FMAEForImageClassification
from c2fmae_hf.transfer.fine_tuning import layer_decay_groups, layer_indices


def models(config):
    config.num_labels = 3
    yield C2FMAEForImageClassification(config), 2
    yield (
        ViTForImageClassification(
            ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
        ),
        3,
    )
    yield TimmWrapperForImageClassification(TimmWrapperConfig(architecture="vit_tiny_patch16_224", num_labels=3)), 12


def test_every_parameter_has_its_layer(config):
    for model, blocks in models(config):
        indices = layer_indices(model)
        assert set(indices) == {name for name, _ in model.named_parameters()}
        assert set(indices.values()) == set(range(blocks + 2))
        for name, index in indices.items():
            if "embed" in name or "cls_token" in name:
                assert index == 0
            if "classifier" in name or "head" in name.split("."):
                assert index == blocks + 1


def test_rates_fall_towards_the_first_layers(config):
    for model, blocks in models(config):
        groups = layer_decay_groups(model, learning_rate=1.0, weight_decay=0.05, layer_decay=0.5)
        seen = [parameter for group in groups for parameter in group["params"]]
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert len(seen) == len({id(parameter) for parameter in seen}) == len(trained)
        rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        for name, parameter in trained.items():
            assert rate[id(parameter)] == 0.5 ** (blocks + 1 - layer_indices(model)[name])
            is_table = "pos_embed" in name or "position_embeddings" in name or "token" in name
            assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 and not is_table else 0)
        torch.optim.AdamW(groups)


def test_the_rates_are_timms():
    """But for the final norm, which timm counts to the last block, and MAE to the head."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    theirs = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    scale = {id(parameter): group["lr_scale"] for group in theirs for parameter in group["params"]}
    norm = {id(parameter) for parameter in model.norm.parameters()}
    for group in layer_decay_groups(model, 1.0, 0.05, 0.7):
        for parameter in group["params"]:
            shift = 0.7 if id(parameter) in norm else 1
            assert group["lr"] * shift == pytest.approx(scale[id(parameter)])


def test_frozen_parameters_and_errors(config):
    model = next(models(config))[0]
    model.c2fmae.requires_grad_(False)
    groups = layer_decay_groups(model, 1.0, 0.05, 0.5)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.classifier.parameters()}
    assert len(layer_decay_groups(nn.Linear(2, 2), 1.0, 0.05)) == 2
    with pytest.raises(ValueError, match="layer_decay: expected a model with blocks"):
        layer_decay_groups(nn.Linear(2, 2), 1.0, 0.05, 0.5)
    with pytest.raises(ValueError, match=r"layer_decay: expected a value in \(0, 1\], got 0"):
        layer_decay_groups(model, 1.0, 0.05, 0)
