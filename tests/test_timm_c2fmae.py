"""One checkpoint for transformers and timm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoModel

from c2fmae_hf import (
    SIZES,
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEImageProcessor,
    C2FMAEModel,
)
from c2fmae_hf.timm_c2fmae import tell_timm
from testing_utils import require_timm_local_dir


def tiny(**fields) -> C2FMAEConfig:
    return C2FMAEConfig.from_size("tiny", num_hidden_layers=2, num_semantic_classes=4, **fields)


def registered(file, file_classes=0, **options):
    name = "c2fmae_vit_tiny_patch16_224"
    overlay = {"file": str(file), "num_classes": file_classes}
    return timm.create_model(name, pretrained=True, depth=2, pretrained_cfg_overlay=overlay, **options).eval()


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_registered(size):
    config = C2FMAEConfig.from_size(size)
    name = f"c2fmae_{config.timm_keys()['architecture']}"
    assert name in timm.list_models("c2fmae*")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
        encoder = C2FMAEModel(config)
        stock = timm.create_model(config.timm_keys()["architecture"], num_classes=0)
    shapes = {key: value.shape for key, value in encoder.state_dict().items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in stock.state_dict().items()}


def test_no_weights_are_claimed():
    for name in timm.list_models("c2fmae*"):
        assert name not in timm.list_pretrained()


@require_timm_local_dir
@pytest.mark.parametrize("fields", [{}, {"pooling": "cls"}, {"image_size": (96, 160)}, {"qkv_bias": False}], ids=str)
def test_the_same_features(tmp_path, fields):
    model = C2FMAEModel(tiny(**fields)).eval()
    model.save_pretrained(tmp_path)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    pixels = torch.randn(2, 3, *model.config.image_height_width)
    with torch.no_grad():
        outputs = model(pixels)
        assert torch.allclose(outputs.last_hidden_state, other.forward_features(pixels), atol=1e-5)
        assert torch.allclose(outputs.pooler_output, other(pixels), atol=1e-5)


def test_a_processor_without_a_filter_is_no_reason_to_lose_a_model(tmp_path):
    C2FMAEModel(tiny()).save_pretrained(tmp_path)
    tell_timm(tmp_path, C2FMAEImageProcessor(resample=None, crop_pct=1.0))
    saved = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert (saved["interpolation"], saved["crop_pct"]) == ("bicubic", 1.0)


@require_timm_local_dir
@pytest.mark.parametrize("model_class", [C2FMAEModel, C2FMAEForPreTraining])
def test_timm_does_not_load_a_part_of_the_weights(tmp_path, model_class):
    model = model_class(tiny())
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with pytest.raises((RuntimeError, KeyError)):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    again = model_class.from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), again.state_dict().values()))
    model.save_pretrained(tmp_path)  # in one file, where the shards were
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)


@require_timm_local_dir
@pytest.mark.parametrize("size", [(224, 320), (112, 96)])
def test_the_same_features_at_other_sizes(tmp_path, size):
    """Both resample positions alike."""
    model = C2FMAEModel(tiny()).eval()
    model.save_pretrained(tmp_path)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0, img_size=size).eval()
    pixels = torch.randn(1, 3, *size)
    with torch.no_grad():
        features = model(pixels, interpolate_pos_encoding=True).last_hidden_state
        assert torch.allclose(features, other.forward_features(pixels), atol=1e-5)


@require_timm_local_dir
def test_timm_s_own_preprocessing_is_the_processor_s(tmp_path):
    C2FMAEModel(tiny()).save_pretrained(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", num_classes=0)
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["input_size"]) == (3, 224, 224)
    assert data["crop_pct"] == 0.875
    assert data["interpolation"] == "bicubic"
    assert tuple(data["mean"]) == (0.485, 0.456, 0.406)


@require_timm_local_dir
@pytest.mark.parametrize("side", [64, 96, 112, 144, 224])
def test_an_image_is_resized_and_cropped_alike(tmp_path, side):
    """Also for sizes that 7 does not divide: one pixel more or less would change all features."""
    config = tiny(image_size=side)
    C2FMAEModel(config).save_pretrained(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    rows, columns = np.mgrid[:230, :307] / 20
    waves = np.stack([np.sin(rows), np.sin(columns), np.sin(rows + columns)], axis=-1)
    image = Image.fromarray((128 + 100 * waves).astype(np.uint8))
    ours = C2FMAEImageProcessor.from_config(config)(image, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == (3, side, side)
    assert (ours - transform(image)).abs().max() < 0.04  # two of 255 levels


@pytest.mark.parametrize(
    "model_class",
    [C2FMAEModel, C2FMAEForPreTraining, C2FMAEForImageClassification, C2FMAEForSemanticSegmentation, C2FMAEBackbone],
)
def test_registered_models_take_every_checkpoint(tmp_path, model_class):
    model = model_class(tiny(num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    classes = 3 if model_class is C2FMAEForImageClassification else 0
    other = registered(tmp_path / "model.safetensors", file_classes=classes, num_classes=classes)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        encoder = AutoModel.from_pretrained(tmp_path) if model_class is C2FMAEBackbone else model
        features = getattr(encoder, "c2fmae", encoder)(pixels).last_hidden_state
        assert torch.allclose(features, other.forward_features(pixels), atol=1e-5)
        if classes:
            assert torch.allclose(model(pixels).logits, other(pixels), atol=1e-5)


def test_the_file_loads_as_a_checkpoint_path(tmp_path):
    model = C2FMAEModel(tiny()).eval()
    model.save_pretrained(tmp_path)
    path = str(tmp_path / "model.safetensors")
    other = timm.create_model("c2fmae_vit_tiny_patch16_224", depth=2, num_classes=0, checkpoint_path=path).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(model(pixels).last_hidden_state, other.forward_features(pixels), atol=1e-5)


def test_features_only_and_a_new_head(tmp_path):
    C2FMAEModel(tiny()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    features = registered(file, features_only=True, out_indices=(0, 1))(torch.randn(1, 3, 224, 224))
    assert [tuple(f.shape) for f in features] == [(1, 192, 14, 14)] * 2
    assert registered(file, num_classes=7)(torch.randn(1, 3, 224, 224)).shape == (1, 7)


@pytest.mark.parametrize(
    "options", [{"out_indices": [1, 2]}, {"out_indices": [1, 2], "features_only": True}, {}], ids=str
)
def test_out_indices_are_taken_as_timm_s_own_vit_takes_them(options):
    ours, peers = (
        timm.create_model(name, **options) for name in ("c2fmae_vit_tiny_patch16_224", "vit_tiny_patch16_224")
    )
    assert type(ours) is type(peers)
    if options.get("features_only"):
        shapes = [[tuple(one.shape) for one in model(torch.randn(1, 3, 224, 224))] for model in (ours, peers)]
        assert shapes[0] == shapes[1] == [(1, 192, 14, 14)] * 2


def test_use_naflex_reads_our_files_as_timm_s_own_models_do(tmp_path):
    model = C2FMAEForPreTraining(tiny()).eval()
    model.save_pretrained(tmp_path)
    overlay = {"file": str(tmp_path / "model.safetensors"), "num_classes": 0}
    options = {"depth": 2, "num_classes": 0, "pretrained_cfg_overlay": overlay, "use_naflex": True}
    flexible = timm.create_model("c2fmae_vit_tiny_patch16_224", pretrained=True, **options).eval()
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = model.c2fmae(pixels).last_hidden_state
        assert torch.allclose(tokens, flexible.forward_features(pixels), atol=1e-4)
