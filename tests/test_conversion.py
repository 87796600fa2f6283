"""Encoders from timm, ViT, ViTMAE and MAE's files, and to timm and ViT: the same features, or an error."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from c2fmae_hf import (
    SIZES,
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEImageProcessor,
    C2FMAEModel,
)
from c2fmae_hf.interop.conversion import (
    FORMATS,
    build_timm,
    convert_from_c2fmae,
    convert_to_c2fmae,
    read_state_dict,
)
from testing_utils import load_command, require_timm_local_dir


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGES = {"image_size": 32, "patch_size": 8}


def noisy(model: nn.Module) -> nn.Module:
    """Every weight random, biases, norms and position tables too, so that none can be swapped unseen."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                value.add_(1)
    return model.eval()


def timm_vit(**options) -> VisionTransformer:
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    return noisy(VisionTransformer(**{**defaults, "num_classes": 0, **options}))


def c2fmae(model_class=C2FMAEModel, **fields):
    return noisy(model_class(C2FMAEConfig(**{**SIZE, **IMAGES, "num_semantic_classes": 4, **fields})))


def vit(model_class=ViTModel, config_class=ViTConfig, **fields):
    # An epsilon that a wrong one would be seen against.
    options = {**SIZE, **IMAGES, "layer_norm_eps": 1e-2, **fields}
    if config_class is ViTMAEConfig:
        decoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        options.update({f"decoder_{name}": value for name, value in decoder.items()})
    return noisy(model_class(config_class(**options)))


def pixels(height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width)


@torch.no_grad()
def tokens(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    if isinstance(model, VisionTransformer):
        return model.forward_features(images)
    if isinstance(model, (ViTMAEModel, ViTMAEForPreTraining)):
        model.config.mask_ratio = 0.0
        model = getattr(model, "vit", model)
        noise = torch.arange(model.embeddings.patch_embeddings.num_patches).float().repeat(len(images), 1)
        return model(images, noise=noise).last_hidden_state
    return getattr(model, "base_model", model)(images).last_hidden_state


def assert_same(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-5) -> None:
    assert one.shape == other.shape
    assert one.std() > 0.1  # not the agreement of constants
    assert torch.allclose(one, other, atol=atol, rtol=0)


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# From timm


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False},
        {"img_size": (32, 64)},
        {"in_chans": 4},
        {"no_embed_class": True},
        {"global_pool": "avg", "fc_norm": False},
        {"norm_layer": partial(nn.LayerNorm, eps=1e-2)},
    ],
    ids=str,
)
def test_timm_encoders(options):
    source = timm_vit(**options)
    model = convert_to_c2fmae(source)
    images = pixels(*model.config.image_height_width, source.patch_embed.proj.in_channels)
    assert type(model) is C2FMAEModel
    assert not model.training
    assert_same(tokens(source, images), tokens(model, images))
    with torch.no_grad():
        assert_same(source(images), model(images).pooler_output)


@pytest.mark.parametrize(("pool", "pooling"), [("token", "cls"), ("avg", "mean")])
def test_timm_classifiers(pool, pooling):
    source = timm_vit(num_classes=5, global_pool=pool, fc_norm=False)
    model = convert_to_c2fmae(source)
    images = pixels()
    assert type(model) is C2FMAEForImageClassification
    assert (model.config.pooling, model.config.num_labels) == (pooling, 5)
    with torch.no_grad():
        assert_same(source(images), model(images).logits)
    encoder = convert_to_c2fmae(source, encoder_only=True)
    assert type(encoder) is C2FMAEModel
    assert_same(tokens(source, images), tokens(encoder, images))


@pytest.mark.parametrize("options", [{}, {"num_classes": 5}, {"img_size": (16, 64)}, {"qkv_bias": False}], ids=str)
def test_timm_round_trips_are_equal_to_the_bit(options):
    source = timm_vit(**options)
    target = convert_from_c2fmae(convert_to_c2fmae(source), "timm")
    assert type(target) is VisionTransformer
    assert_equal_weights(target.state_dict(), source.state_dict())


def test_the_result_has_weights_of_its_own():
    source = timm_vit()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    model = convert_to_c2fmae(source)
    for format in FORMATS:
        noisy(convert_from_c2fmae(model, format))
        assert torch.equal(model.cls_token, before["cls_token"])
    noisy(model)
    assert_equal_weights(before, source.state_dict())
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["pos_embed"]


@pytest.mark.parametrize("options", [{}, {"in_chans": 1, "patch_size": 8}], ids=str)
def test_a_file_s_architecture_comes_from_the_table_of_sizes(options):
    keys = C2FMAEConfig.from_size("tiny").timm_keys()["model_args"]
    source = noisy(VisionTransformer(**{**keys, "img_size": 64, "num_classes": 0, **options}))
    model = convert_to_c2fmae(build_timm(source.state_dict()))
    assert model.config.num_attention_heads == SIZES["tiny"]["num_attention_heads"]
    assert model.config.image_height_width == (64, 64)
    assert model.config.pooling == "mean"
    images = pixels(64, 64, options.get("in_chans", 3))
    assert_same(tokens(source, images), tokens(model, images), 2e-5)


def test_the_epsilon_is_the_source_s_unless_chosen():
    assert convert_to_c2fmae(timm_vit()).config.layer_norm_eps == 1e-6
    assert convert_to_c2fmae(vit()).config.layer_norm_eps == 1e-2
    assert convert_to_c2fmae(vit(), layer_norm_eps=1e-6).config.layer_norm_eps == 1e-6


def test_wide_patches_have_a_label_stride():
    model = convert_to_c2fmae(timm_vit(img_size=28, patch_size=14))
    assert model.config.label_stride == 7


def test_dtypes():
    source = timm_vit().half()
    model = convert_to_c2fmae(source)
    assert model.dtype == torch.float32
    assert_equal_weights({name: value.half() for name, value in model.state_dict().items()}, source.state_dict())
    for format in FORMATS:
        target = convert_from_c2fmae(model.half(), format)
        assert {value.dtype for value in target.state_dict().values()} == {torch.float16}


# From transformers


@pytest.mark.parametrize(
    "fields", [{}, {"qkv_bias": False}, {"image_size": (32, 64)}, {"hidden_act": "relu"}], ids=str
)
def test_vit_encoders(caplog, fields):
    source = vit(**fields)
    model = convert_to_c2fmae(source)
    images = pixels(*model.config.image_height_width)
    assert_same(tokens(source, images), tokens(model, images))
    assert "encoder: pooler (2 weights)" in caplog.text
    assert model.config.layer_norm_eps == 1e-2


def test_vit_without_pooler_leaves_nothing_out(caplog):
    model = convert_to_c2fmae(noisy(ViTModel(ViTConfig(**SIZE, **IMAGES), add_pooling_layer=False)))
    assert type(model) is C2FMAEModel
    assert "Left out" not in caplog.text


def test_vit_classifiers():
    source = vit(ViTForImageClassification, id2label={0: "cat", 1: "dog", 2: "owl"})
    model = convert_to_c2fmae(source)
    images = pixels()
    with torch.no_grad():
        assert_same(source(images).logits, model(images).logits)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    back = convert_from_c2fmae(model, "vit")
    assert type(back) is ViTForImageClassification
    assert back.config.id2label == source.config.id2label
    assert_equal_weights(back.state_dict(), source.state_dict())


def test_vit_for_masked_images(caplog):
    source = vit(ViTForMaskedImageModeling, encoder_stride=8)
    images = pixels()
    assert_same(tokens(source, images), tokens(convert_to_c2fmae(source), images))
    assert "encoder: decoder, embeddings.mask_token (3 weights)" in caplog.text


@pytest.mark.parametrize("model_class", [ViTMAEModel, ViTMAEForPreTraining])
def test_vit_mae(caplog, model_class):
    source = vit(model_class, ViTMAEConfig)
    model = convert_to_c2fmae(source)
    images = pixels()
    assert_same(tokens(source, images), tokens(model, images))
    assert ("decoder.decoder_embed" in caplog.text) is (model_class is ViTMAEForPreTraining)


# To the others


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}, {"image_size": (32, 64)}], ids=str)
def test_the_same_features_everywhere(tmp_path, format, fields):
    source = c2fmae(**fields)
    target = convert_from_c2fmae(source, format)
    images = pixels(*source.config.image_height_width)
    assert_same(tokens(source, images), tokens(target, images))
    assert_equal_weights(convert_to_c2fmae(target).state_dict(), source.state_dict())
    if format == "vit":
        target.save_pretrained(tmp_path)
        model = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
        assert_same(tokens(source, images), tokens(model.eval(), images))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_classifiers_for_timm(pooling):
    source = c2fmae(C2FMAEForImageClassification, pooling=pooling, num_labels=3)
    model = convert_from_c2fmae(source, "timm")
    images = pixels()
    with torch.no_grad():
        assert_same(source(images).logits, model(images))


@pytest.mark.parametrize("format", FORMATS)
def test_a_pre_training_model_converts_by_its_encoder(format):
    source = c2fmae(C2FMAEForPreTraining, input_granularities=("semantic", "image"))
    images = pixels()
    assert_same(tokens(source, images), tokens(convert_from_c2fmae(source, format), images))


# MAE's files


def mae_state() -> tuple[VisionTransformer, dict[str, torch.Tensor]]:
    """timm's model of an encoder, and what MAE's pre-training would save: the decoder's names too."""
    source = noisy(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0))
    block = {f"decoder_blocks.0.{n.removeprefix('blocks.0.')}": v for n, v in source.blocks.state_dict().items()}
    decoder = {name: torch.randn(3) for name in ("mask_token", "decoder_pos_embed", "decoder_embed.weight")}
    others = {name: torch.randn(3) for name in ("decoder_norm.bias", "decoder_pred.weight")}
    return source, {**source.state_dict(), **decoder, **block, **others}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_mae_checkpoints(tmp_path, caplog, prefix):
    source, state = mae_state()
    path = tmp_path / "checkpoint-799.pth"
    wrapped = OrderedDict((prefix + name, value) for name, value in state.items())
    args = argparse.Namespace(model="mae_vit_base_patch16", blr=1.5e-4)
    torch.save({"model": wrapped, "epoch": 799, "scaler": {"scale": 1.0}, "args": args}, path)
    model = convert_to_c2fmae(build_timm(read_state_dict(path)))
    assert re.search(r"Left out, not part of the encoder: decoder \(\d+ weights\)", caplog.text)
    images = pixels(64, 64)
    assert_same(tokens(source, images), tokens(model, images), 1e-3)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
def test_files_of_pytorch(tmp_path, wrapper, suffix):
    state = timm_vit().state_dict()
    path = tmp_path / f"weights{suffix}"
    torch.save({wrapper: state} if wrapper else state, path)
    assert_equal_weights(read_state_dict(path), state)


def test_files_of_safetensors(tmp_path):
    model = c2fmae()
    model.save_pretrained(tmp_path)
    assert_equal_weights(read_state_dict(tmp_path / "model.safetensors"), model.state_dict())


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, zipped):
    path = tmp_path / "evil.pth"
    content = {"model": timm_vit().state_dict(), "args": Payload(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pth: expected .* got one that fails .*weights_only"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # the payload is a real one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.npz"])
def test_broken_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"expected .* got .*|{name}"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [{}, [1], {"model": {}}, {"a": 1}, {"model": {"a": "b"}}], ids=str)
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: expected"):
        read_state_dict(tmp_path / "weights.pth")


def test_missing_files(tmp_path):
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(FileNotFoundError):
            read_state_dict(tmp_path / name)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg_tokens": 4}, "reg_token"),
        ({"qk_norm": True}, "blocks.0.attn.k_norm.bias"),
        ({"init_values": 0.1}, "blocks.0.ls1.gamma"),
        ({"class_token": False, "global_pool": ""}, "Missing .*cls_token"),
        ({"global_pool": "avg"}, "fc_norm.bias"),
        ({"pre_norm": True}, "norm_pre.bias"),
        ({"global_pool": "map"}, "attn_pool"),
        ({"final_norm": False}, "Missing .*norm.weight.*norm.bias"),
        ({"pos_embed": "none"}, "Missing .*pos_embed"),
        ({"proj_bias": False}, "Missing .*blocks.0.attn.proj.bias"),
        ({"patch_size": (8, 16)}, "size mismatch for patch_embed"),
        ({"depth": 0}, "plain pre-norm blocks"),
    ],
    ids=str,
)
def test_weights_that_a_plain_vit_lacks_or_has_not(options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert_to_c2fmae(timm_vit(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_fn": ResPostBlock}, "ResPostBlock"),
        ({"act_layer": nn.ReLU}, "hidden_act"),
        ({"act_layer": partial(nn.GELU, approximate="tanh")}, "hidden_act"),
        ({"num_classes": 3, "global_pool": "max", "fc_norm": False}, "pooling.*'max'"),
        ({"num_classes": 3, "global_pool": ""}, "pooling.*''"),
    ],
    ids=str,
)
def test_models_that_compute_something_else_under_the_same_names(options, message):
    for pooling in (None, "mean"):
        with pytest.raises(ValueError, match=message):
            convert_to_c2fmae(timm_vit(**options), pooling=pooling)


def test_other_weights_than_the_architecture_s():
    _, state = mae_state()
    for change, message in (
        ({"blocks.1.mlp.fc2.bias": torch.zeros(33)}, r"mismatch for blocks\.1\.mlp\.fc2\.bias"),
        ({"blocks.12.norm1.bias": torch.zeros(192)}, r"Unexpected.*blocks\.12\.norm1\.bias"),
    ):
        with pytest.raises(ValueError, match=f"(?s)weights of timm's vit_tiny_patch16_224 .*{message}"):
            build_timm({**state, **change})
    with pytest.raises(ValueError, match=r"(?s)Missing .*blocks\.0\.attn\.qkv\.bias"):
        build_timm({name: value for name, value in state.items() if name != "blocks.0.attn.qkv.bias"})
    with pytest.raises(ValueError, match=r"timm's vit_gigantic .*Unknown model"):
        build_timm(state, "vit_gigantic")


def test_unknown_sources():
    for state in (timm_vit().state_dict(), vit().state_dict(), c2fmae(C2FMAEForImageClassification).state_dict()):
        with pytest.raises(ValueError, match=r"architecture: expected timm's name, .*, got None for \['"):
            build_timm(state)
    with pytest.raises(ValueError, match="got Linear"):
        convert_to_c2fmae(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got C2FMAEModel"):
        convert_to_c2fmae(c2fmae())


def test_the_pooling_of_a_head_is_the_source_s():
    with pytest.raises(ValueError, match="pooling"):
        convert_to_c2fmae(vit(ViTForImageClassification), pooling="mean")
    with pytest.raises(ValueError, match="pooling"):
        convert_to_c2fmae(timm_vit(num_classes=3), pooling="mean")
    _, state = mae_state()
    with_head = {**state, "head.weight": torch.ones(3, 192), "head.bias": torch.ones(3)}
    with pytest.raises(ValueError, match=r"pooling: expected 'mean' or 'cls', as the head reads \(''\), got None"):
        convert_to_c2fmae(build_timm(with_head))
    assert convert_to_c2fmae(build_timm(with_head, global_pool="avg")).config.pooling == "mean"
    assert convert_to_c2fmae(vit(), pooling="cls").config.pooling == "cls"


@pytest.mark.parametrize(
    ("formats", "model_class", "fields", "message"),
    [
        (("vit",), C2FMAEForImageClassification, {"pooling": "mean"}, "pooling"),
        (FORMATS, C2FMAEModel, {"input_granularities": ("semantic", "image")}, "input_granularities"),
        (("timm",), C2FMAEModel, {"hidden_act": "relu"}, "hidden_act"),
        (("timm",), C2FMAEModel, {"layer_norm_eps": 1e-12}, "layer_norm_eps"),
        (FORMATS, C2FMAEBackbone, {}, "model: expected .* C2FMAEBackbone"),
        (("mae", "vit_mae"), C2FMAEModel, {}, r"format: expected one of \('timm', 'vit'\), got '"),
    ],
    ids=str,
)
def test_what_a_format_cannot_express(formats, model_class, fields, message):
    for name in formats:
        with pytest.raises(ValueError, match=message):
            convert_from_c2fmae(c2fmae(model_class, **fields), name)


# The command


@pytest.fixture(scope="module")
def command():
    return load_command("convert")


STATISTICS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification, ViTMAEModel, ViTMAEForPreTraining])
def test_the_command_on_folders_of_transformers(command, tmp_path, model_class):
    config_class = ViTMAEConfig if model_class.__name__.startswith("ViTMAE") else ViTConfig
    source = vit(model_class, config_class, layer_norm_eps=1e-6)
    source.save_pretrained(tmp_path / "source")
    ViTImageProcessor(**STATISTICS).save_pretrained(tmp_path / "source")
    assert command.main([str(tmp_path / "source"), str(tmp_path / "c2fmae")]) < 1e-5
    loader = AutoModelForImageClassification if model_class is ViTForImageClassification else AutoModel
    model = loader.from_pretrained(tmp_path / "c2fmae").eval()
    images = pixels()
    assert_same(tokens(source, images), tokens(model, images))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "c2fmae")
    assert {name: list(getattr(processor, name)) for name in STATISTICS} == STATISTICS

    assert command.main([str(tmp_path / "c2fmae"), str(tmp_path / "vit"), "--format", "vit"]) < 1e-5
    assert_same(tokens(source, images), tokens(AutoModel.from_pretrained(tmp_path / "vit").eval(), images))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    assert {field: list(getattr(processor, field)) for field in STATISTICS} == STATISTICS


@require_timm_local_dir
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_command_to_timm_and_back(command, tmp_path, pooling):
    source = c2fmae(C2FMAEForImageClassification, pooling=pooling, image_size=(32, 64), num_labels=3)
    source.save_pretrained(tmp_path / "source")
    assert command.main([str(tmp_path / "source"), str(tmp_path / "timm"), "--format", "timm"]) < 1e-5
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = pixels(32, 64)
    with torch.no_grad():
        assert_same(source(images).logits, model(images))
    assert command.main([str(tmp_path / "timm"), str(tmp_path / "back")]) < 1e-5
    back = C2FMAEForImageClassification.from_pretrained(tmp_path / "back")
    assert_equal_weights(back.state_dict(), source.state_dict())
    assert back.config.pooling == pooling
    assert command.main([str(tmp_path / "timm"), str(tmp_path / "encoder"), "--encoder_only"]) < 1e-5
    assert type(AutoModel.from_pretrained(tmp_path / "encoder")) is C2FMAEModel


def photograph(height: int = 90, width: int = 120) -> Image.Image:
    """Smooth, as photographs are, so that libraries' roundings matter no more than there."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def assert_same_images(one: torch.Tensor, other: torch.Tensor, std: float) -> None:
    """Resized alike, to a level or two of 255; another crop or filter is further away."""
    assert one.shape == other.shape
    assert (one - other).abs().max() <= 2.5 / 255 / std


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"height": 32, "width": 32}, "resample": 2},
        {"size": {"shortest_edge": 37}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 32, "width": 32}, "resample": 3, "do_normalize": False},
        {
            "size": {"height": 32, "width": 32},
            "image_mean": [127.5] * 3,
            "image_std": [63.75] * 3,
            "do_rescale": False,
        },
    ],
    ids=["squashed", "cropped", "not normalised", "not rescaled"],
)
def test_the_command_keeps_what_is_done_to_images(command, tmp_path, fields):
    source = vit(ViTForImageClassification, layer_norm_eps=1e-6, num_labels=3)
    source.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(**{"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **fields}).save_pretrained(tmp_path / "vit")
    expected = AutoImageProcessor.from_pretrained(tmp_path / "vit")(photograph(), return_tensors="pt").pixel_values
    command.main([str(tmp_path / "vit"), str(tmp_path / "c2fmae")])
    command.main([str(tmp_path / "c2fmae"), str(tmp_path / "back"), "--format", "vit"])
    for name, kind in (("c2fmae", C2FMAEImageProcessor), ("back", ViTImageProcessor)):
        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        assert isinstance(processor, kind)
        assert torch.equal(processor(photograph(), return_tensors="pt").pixel_values, expected)
    deviation = 0.25 if fields.get("do_normalize", True) else 1
    assert_same_images(timm_transform(tmp_path / "c2fmae")(photograph())[None], expected, deviation)


def timm_transform(folder: Path):
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    return timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)


@require_timm_local_dir
@pytest.mark.parametrize(
    "cfg",
    [
        {"crop_pct": 0.888, "interpolation": "bicubic"},  # from 36; of an odd margin the libraries cut halves unlike
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_pct": 0.8, "crop_mode": "squash"},
    ],
    ids=str,
)
def test_the_command_keeps_what_timm_does_to_images(command, tmp_path, cfg):
    source = timm_vit(num_classes=3, global_pool="avg", fc_norm=False)
    names = ["cat", "dog", "owl"]
    (tmp_path / "timm").mkdir()
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "label_names": names,
        "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2},
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.25] * 3, "num_classes": 3, **cfg},
    }
    config["model_args"].update(global_pool="avg", fc_norm=False)
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    save_file(source.state_dict(), tmp_path / "timm/model.safetensors", metadata={"format": "pt"})
    expected = timm_transform(tmp_path / "timm")(photograph())[None]
    command.main([str(tmp_path / "timm"), str(tmp_path / "c2fmae")])
    command.main([str(tmp_path / "c2fmae"), str(tmp_path / "back"), "--format", "timm"])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "c2fmae")
    assert_same_images(processor(photograph(), return_tensors="pt").pixel_values, expected, 0.25)
    assert torch.equal(timm_transform(tmp_path / "back")(photograph())[None], expected)
    for folder in ("c2fmae", "back"):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / folder)
        assert list(model.config.id2label.values()) == names


def test_the_command_says_what_it_changes_or_does_not_know(command, tmp_path, caplog, capsys):
    vit(ViTModel).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 40, "width": 40}).save_pretrained(tmp_path / "vit")
    options = ["--format", "timm", "--layer_norm_eps", "1e-6"]
    with pytest.raises((OSError, ValueError), match="layer_norm_eps: expected 1e-06 for 'timm', got"):
        command.main([str(tmp_path / "vit"), str(tmp_path / "timm"), *options[:2]])
    assert command.main([str(tmp_path / "vit"), str(tmp_path / "timm"), *options]) < 1e-5
    printed = caplog.text
    assert "layer_norm_eps is 1e-06 instead of the source's 0.01: features change slightly" in printed
    assert "size: the source's image processor has {'height': 40, 'width': 40}, the model" in printed
    assert f"Results:\n  {tmp_path}/timm: VisionTransformer\n" in capsys.readouterr().out
    command.main([str(tmp_path / "vit"), str(tmp_path / "c2fmae")])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "c2fmae")
    assert {side: number for side, number in dict(processor.size).items() if number} == {"height": 32, "width": 32}


def test_the_command_on_a_folder_of_pickled_weights(command, tmp_path):
    source = vit(ViTModel)
    source.config.architectures = ["ViTModel"]
    source.config.save_pretrained(tmp_path / "vit")
    torch.save(source.state_dict(), tmp_path / "vit/pytorch_model.bin")
    assert command.main([str(tmp_path / "vit"), str(tmp_path / "c2fmae")]) < 1e-5
    names = sorted(source.state_dict())
    shards = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
    for shard in set(shards.values()):
        part = {name: value for name, value in source.state_dict().items() if shards[name] == shard}
        torch.save(part, tmp_path / "vit" / shard)
    (tmp_path / "vit/pytorch_model.bin").unlink()
    (tmp_path / "vit/pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert command.main([str(tmp_path / "vit"), str(tmp_path / "shards")]) < 1e-5


@pytest.mark.parametrize("options", [[], ["--encoder_only"]])
def test_the_command_on_folders_of_other_weights(command, tmp_path, options):
    source = vit(ViTForImageClassification)
    source.save_pretrained(tmp_path / "vit")
    state = load_file(tmp_path / "vit/model.safetensors")
    name = next(name for name in state if "layer.1" in name or "layers.1" in name)
    for content, message in (
        ({key: value for key, value in state.items() if key != name}, r"without \['[^\]]+'\] and with \[\]"),
        ({**state, "vit.adapter.weight": torch.ones(1)}, r"without \[\] and with \['[^']*adapter.weight'\]"),
    ):
        save_file(content, tmp_path / "vit/model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"expected a ViT\\w+, got one {message}"):
            command.main([str(tmp_path / "vit"), str(tmp_path / "c2fmae"), *options])
    assert not (tmp_path / "c2fmae").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("not/there/at all", "expected a folder or a name on the Hub, found no such folder"),
        ("{}/photos", r"config\.json: expected a saved model, found nothing"),
        ("{}/nothing.pth", r"nothing\.pth"),
    ],
)
def test_the_command_on_mistakes(command, tmp_path, source, message):
    (tmp_path / "photos").mkdir()
    with pytest.raises((OSError, ValueError), match=message):
        command.main([source.format(tmp_path), str(tmp_path / "c2fmae")])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_command_on_files(command, tmp_path):
    source, state = mae_state()
    torch.save({"model": state}, tmp_path / "mae.pth")
    images = pixels(64, 64)
    assert command.main([str(tmp_path / "mae.pth"), str(tmp_path / "c2fmae"), "--pooling", "cls"]) < 1e-3
    model = C2FMAEModel.from_pretrained(tmp_path / "c2fmae")
    assert (model.config.pooling, model.config.converted_from) == ("cls", "mae.pth")
    assert_same(tokens(source, images), tokens(model, images), 1e-3)
    options = ["--num_attention_heads", "6", "--format", "vit"]
    assert command.main([str(tmp_path / "mae.pth"), str(tmp_path / "heads"), *options]) < 1e-3
    assert AutoModel.from_pretrained(tmp_path / "heads").config.num_attention_heads == 6

    large = noisy(timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), num_classes=2))
    save_file(large.state_dict(), tmp_path / "tiny.safetensors")
    options = ["--architecture", "vit_tiny_patch16_224", "--image_size", "64", "32"]
    assert command.main([str(tmp_path / "tiny.safetensors"), str(tmp_path / "tiny"), *options]) < 1e-3
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tiny")
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]  # of timm's configuration
    options = ["--image_size", "64", "32", "--pooling", "cls", "--image_mean", "0", "0", "0"]
    assert command.main([str(tmp_path / "tiny.safetensors"), str(tmp_path / "bare"), *options]) < 1e-3
    back = C2FMAEForImageClassification.from_pretrained(tmp_path / "bare")
    assert_equal_weights(back.state_dict(), convert_to_c2fmae(large).state_dict())
    assert back.config.image_mean == [0, 0, 0]
    for name in ("--num_attention_heads", "--architecture"):
        with pytest.raises(ValueError, match=f"{name}.*: expected none"):
            command.main([str(tmp_path / "tiny"), str(tmp_path / "no"), name, "6"])


def test_the_command_on_a_pre_training_checkpoint(command, tmp_path, caplog):
    source = c2fmae(C2FMAEForPreTraining, input_granularities=("instance", "image"))
    source.save_pretrained(tmp_path / "source")
    assert command.main([str(tmp_path / "source"), str(tmp_path / "vit"), "--format", "vit"]) < 1e-5
    images = pixels()
    assert_same(tokens(source, images), tokens(ViTModel.from_pretrained(tmp_path / "vit").eval(), images))
    assert "Left out, not part of the encoder: the rest of C2FMAEForPreTraining." in caplog.text


def test_the_command_names_the_source(command, tmp_path):
    vit(ViTModel, layer_norm_eps=1e-6).save_pretrained(tmp_path / "vit-of-others")
    command.main([str(tmp_path / "vit-of-others"), str(tmp_path / "first")])
    command.main([str(tmp_path / "first"), str(tmp_path / "second"), "--pooling", "cls"])
    for folder in ("first", "second"):  # not the name of the copy
        assert C2FMAEConfig.from_pretrained(tmp_path / folder).converted_from == "vit-of-others"
    encoder = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    assert convert_to_c2fmae(encoder).config.converted_from == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert convert_to_c2fmae(timm_vit(num_classes=0)).config.converted_from
    assert c2fmae(C2FMAEModel).config.converted_from is None


def test_the_command_asks_for_the_statistics_of_other_channels(command, tmp_path):
    tiny = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=4, num_classes=0)
    torch.save(tiny.state_dict(), tmp_path / "a.pth")
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b")]
    with pytest.raises((OSError, ValueError), match="image_mean: expected a number for each of 4 channels"):
        command.main(arguments)
    assert not (tmp_path / "b").exists()


def test_the_command_overwrites_only_when_told_and_only_its_own(command, tmp_path):
    c2fmae().save_pretrained(tmp_path / "source")
    run = partial(command.main)
    source, output = str(tmp_path / "source"), tmp_path / "vit"
    run([source, str(output), "--format", "vit"])
    (output / "old").touch()
    with pytest.raises(SystemExit):
        run([source, str(output), "--format", "vit"])
    assert (output / "old").exists()
    run([source, str(output), "--format", "vit", "--overwrite"])
    assert not (output / "old").exists()
    (tmp_path / "photos").mkdir()
    for wrong in (tmp_path / "photos", tmp_path / "source"):
        with pytest.raises(SystemExit):
            run([source, str(wrong), "--format", "vit", "--overwrite"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "source", "vit"]


def not_a_number(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.layernorm.bias[0] = torch.nan
    return model


@pytest.mark.parametrize("change", [noisy, not_a_number])
def test_the_command_writes_nothing_where_features_differ(command, tmp_path, monkeypatch, change):
    c2fmae().save_pretrained(tmp_path / "source")
    convert = command.convert_from_c2fmae
    monkeypatch.setattr(command, "convert_from_c2fmae", lambda *args: change(convert(*args)))
    with pytest.raises(ValueError, match="got a difference of"):
        command.main([str(tmp_path / "source"), str(tmp_path / "vit"), "--format", "vit"])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
