"""Encoder weights from and to timm, ViT, ViTMAE and MAE's files: the same features, or an error."""

from __future__ import annotations

import argparse
import json
import os
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
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
from c2fmae_hf.interop.conversion import FORMATS, convert_from_c2fmae, convert_to_c2fmae, read_state_dict
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
    assert_equal_weights(
        convert_to_c2fmae(source.state_dict(), num_attention_heads=4, pooling=pooling).state_dict(),
        model.state_dict(),
    )
    encoder = convert_to_c2fmae(source, encoder_only=True)
    assert type(encoder) is C2FMAEModel
    assert_same(tokens(source, images), tokens(encoder, images))


@pytest.mark.parametrize("options", [{}, {"num_classes": 5}, {"img_size": (16, 64)}, {"qkv_bias": False}], ids=str)
def test_timm_round_trips_are_equal_to_the_bit(options):
    source = timm_vit(**options)
    state = convert_from_c2fmae(convert_to_c2fmae(source), "timm")
    assert_equal_weights(state, source.state_dict())


def test_the_result_has_weights_of_its_own():
    source = timm_vit()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    model = convert_to_c2fmae(source)
    noisy(convert_from_c2fmae(model, "vit"))
    noisy(model)
    assert_equal_weights(before, source.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_heads_come_from_the_table_of_sizes():
    keys = C2FMAEConfig.from_size("tiny").timm_keys()["model_args"]
    source = noisy(VisionTransformer(**{**keys, "img_size": 64, "num_classes": 0}))
    model = convert_to_c2fmae(source.state_dict())
    assert model.config.num_attention_heads == SIZES["tiny"]["num_attention_heads"]
    assert model.config.image_height_width == (64, 64)
    images = pixels(64, 64)
    assert_same(tokens(source, images), tokens(model, images), 2e-5)


def test_the_epsilon_of_a_state_dict_is_the_library_s():
    assert convert_to_c2fmae(timm_vit().state_dict(), num_attention_heads=4).config.layer_norm_eps == 1e-6
    assert convert_to_c2fmae(vit().state_dict(), num_attention_heads=4).config.layer_norm_eps == 1e-12
    assert convert_to_c2fmae(vit(), layer_norm_eps=1e-6).config.layer_norm_eps == 1e-6


def test_wide_patches_have_a_label_stride():
    model = convert_to_c2fmae(timm_vit(img_size=28, patch_size=14))
    assert model.config.label_stride == 7


def test_dtypes():
    state = {name: value.half() for name, value in timm_vit().state_dict().items()}
    assert {v.dtype for v in convert_to_c2fmae(state, num_attention_heads=4).state_dict().values()} == {torch.float32}
    kept = convert_to_c2fmae(state, num_attention_heads=4, dtype=torch.float16)
    assert_equal_weights(kept.state_dict(), state)
    assert convert_from_c2fmae(kept, "vit").dtype == torch.float16


# From transformers


def saved(model, folder: Path) -> dict[str, torch.Tensor]:
    """What the library writes, whose names are not those of the module."""
    model.save_pretrained(folder)
    return read_state_dict(folder)


@pytest.mark.parametrize(
    "fields", [{}, {"qkv_bias": False}, {"image_size": (32, 64)}, {"hidden_act": "relu"}], ids=str
)
@pytest.mark.parametrize("from_file", [False, True])
def test_vit_encoders(tmp_path, caplog, fields, from_file):
    source = vit(**fields)
    model = convert_to_c2fmae(saved(source, tmp_path), source.config) if from_file else convert_to_c2fmae(source)
    images = pixels(*model.config.image_height_width)
    assert_same(tokens(source, images), tokens(model, images))
    assert "encoder: pooler (2 weights)" in caplog.text
    assert model.config.layer_norm_eps == 1e-2


def test_vit_without_pooler_leaves_nothing_out(caplog):
    model = convert_to_c2fmae(noisy(ViTModel(ViTConfig(**SIZE, **IMAGES), add_pooling_layer=False)))
    assert type(model) is C2FMAEModel
    assert "Left out" not in caplog.text


@pytest.mark.parametrize("from_file", [False, True])
def test_vit_classifiers(tmp_path, from_file):
    source = vit(ViTForImageClassification, id2label={0: "cat", 1: "dog", 2: "owl"})
    model = convert_to_c2fmae(saved(source, tmp_path), source.config) if from_file else convert_to_c2fmae(source)
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
    assert "encoder: decoder, vit.embeddings.mask_token (3 weights)" in caplog.text


@pytest.mark.parametrize("model_class", [ViTMAEModel, ViTMAEForPreTraining])
@pytest.mark.parametrize("from_file", [False, True])
def test_vit_mae(tmp_path, caplog, model_class, from_file):
    source = vit(model_class, ViTMAEConfig)
    model = convert_to_c2fmae(saved(source, tmp_path), source.config) if from_file else convert_to_c2fmae(source)
    images = pixels()
    assert_same(tokens(source, images), tokens(model, images))
    assert ("decoder.decoder_embed" in caplog.text) is (model_class is ViTMAEForPreTraining)
    back = convert_from_c2fmae(model, "vit_mae")
    assert type(back) is ViTMAEModel
    assert_equal_weights(back.state_dict(), source.base_model.state_dict())


# To the others


@pytest.mark.parametrize(
    ("format", "fields"),
    # MAE's code has square images and biases alone.
    [("mae", {})]
    + [(f, v) for f in FORMATS if f != "mae" for v in ({}, {"qkv_bias": False}, {"image_size": (32, 64)})],
    ids=str,
)
def test_the_same_features_everywhere(tmp_path, format, fields):
    source = c2fmae(**fields)
    target = convert_from_c2fmae(source, format)
    if format in ("timm", "mae"):
        model = VisionTransformer(**source.config.timm_keys()["model_args"], num_classes=0)
        model.load_state_dict(target["model"] if format == "mae" else target)
        back = convert_to_c2fmae(target, num_attention_heads=4, image_size=fields.get("image_size"))
    else:
        back = convert_to_c2fmae(target)
        target.save_pretrained(tmp_path)
        model = type(target).from_pretrained(tmp_path, **({"add_pooling_layer": False} if format == "vit" else {}))
    images = pixels(*source.config.image_height_width)
    assert_same(tokens(source, images), tokens(model.eval(), images))
    assert_equal_weights(back.state_dict(), source.state_dict())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_classifiers_for_timm(pooling):
    source = c2fmae(C2FMAEForImageClassification, pooling=pooling, num_labels=3)
    model = VisionTransformer(**source.config.timm_keys()["model_args"], num_classes=3).eval()
    model.load_state_dict(convert_from_c2fmae(source, "timm"))
    images = pixels()
    with torch.no_grad():
        assert_same(source(images).logits, model(images))


@pytest.mark.parametrize("format", FORMATS)
def test_a_pre_training_model_converts_by_its_encoder(format):
    source = c2fmae(C2FMAEForPreTraining, input_granularities=("semantic", "image"))
    target = convert_from_c2fmae(source, format)
    back = convert_to_c2fmae(target, **({"num_attention_heads": 4} if isinstance(target, dict) else {}))
    images = pixels()
    assert_same(tokens(source, images), tokens(back, images))


# MAE's files


def mae_state() -> tuple[VisionTransformer, dict[str, torch.Tensor]]:
    """timm's model of an encoder, and what MAE's pre-training would save: the decoder's names too."""
    source = timm_vit()
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
    model = convert_to_c2fmae(read_state_dict(path), num_attention_heads=4)
    images = pixels()
    assert_same(tokens(source, images), tokens(model, images))
    assert "decoder_blocks, decoder_embed, decoder_norm, decoder_pos_embed, decoder_pred, mask_token" in caplog.text


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
def test_files_of_pytorch(tmp_path, wrapper, suffix):
    state = timm_vit().state_dict()
    path = tmp_path / f"weights{suffix}"
    torch.save({wrapper: state} if wrapper else state, path)
    assert_equal_weights(read_state_dict(path), state)


def test_files_of_safetensors(tmp_path):
    model = c2fmae()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for source in (tmp_path / "one", tmp_path / "one/model.safetensors", tmp_path / "shards"):
        assert_equal_weights(read_state_dict(source), model.state_dict())


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
    with pytest.raises(ValueError, match=r"evil\.pth: expected .* got one that calls for \w+\.mkdir.*weights_only"):
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
    with pytest.raises(ValueError, match=r"with model\.safetensors"):
        read_state_dict(tmp_path)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg_tokens": 4}, "reg_token"),
        ({"qk_norm": True}, "blocks.0.attn.k_norm.bias"),
        ({"init_values": 0.1}, "blocks.0.ls1.gamma"),
        ({"class_token": False, "global_pool": ""}, r"missing \['cls_token'\]"),
        ({"global_pool": "avg"}, "fc_norm.bias"),
        ({"pre_norm": True}, "norm_pre.bias"),
        ({"global_pool": "map"}, "attn_pool"),
        ({"final_norm": False}, r"missing \['norm.bias', 'norm.weight'\]"),
        ({"pos_embed": "none"}, r"missing \['pos_embed'\]"),
        ({"proj_bias": False}, "missing .*blocks.0.attn.proj.bias"),
        ({"patch_size": (8, 16)}, "patch_size"),
        ({"depth": 0}, "0 blocks"),
    ],
    ids=str,
)
def test_weights_that_a_plain_vit_lacks_or_has_not(options, message):
    with pytest.raises(ValueError, match=message):
        convert_to_c2fmae(timm_vit(**options).state_dict(), num_attention_heads=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_fn": ResPostBlock}, "ResPostBlock"),
        ({"act_layer": nn.ReLU}, "hidden_act"),
        ({"act_layer": partial(nn.GELU, approximate="tanh")}, "hidden_act"),
        ({"num_classes": 3, "global_pool": "max", "fc_norm": False}, "pooling.*'max'"),
        ({"num_classes": 3, "global_pool": ""}, "pooling.*''"),
        (
            {"num_classes": 3, "global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
            "pooling.*'mean of all tokens'",
        ),
    ],
    ids=str,
)
def test_models_that_compute_something_else_under_the_same_names(options, message):
    for pooling in (None, "mean"):
        with pytest.raises(ValueError, match=message):
            convert_to_c2fmae(timm_vit(**options), pooling=pooling)


def test_weights_of_other_shapes():
    state = timm_vit().state_dict()
    state["blocks.1.mlp.fc2.bias"] = torch.zeros(33)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc2\.bias"):
        convert_to_c2fmae(state, num_attention_heads=4)


def test_missing_and_double_weights_of_vit():
    state = vit().state_dict()
    short = {name: value for name, value in state.items() if "1.attention.k_proj.bias" not in name}
    with pytest.raises(ValueError, match=r"missing \['blocks.1.attn.qkv.bias'\].*blocks.1.attn.q.bias"):
        convert_to_c2fmae(short, num_attention_heads=4)
    with pytest.raises(ValueError, match="under two names"):
        convert_to_c2fmae({**state, "vit.layernorm.bias": torch.ones(32)}, num_attention_heads=4)
    with pytest.raises(ValueError, match="relative"):
        convert_to_c2fmae({**state, "layers.0.attention.relative": torch.ones(32)}, num_attention_heads=4)


def test_unknown_sources():
    with pytest.raises(ValueError, match=r"expected the names of .* got \['c2fmae\."):
        convert_to_c2fmae(c2fmae(C2FMAEForImageClassification).state_dict())
    with pytest.raises(ValueError, match="got Linear"):
        convert_to_c2fmae(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got C2FMAEConfig"):
        convert_to_c2fmae(c2fmae())
    with pytest.raises(ValueError, match="floating-point"):
        convert_to_c2fmae({"patch_embed.proj.weight": torch.zeros(1, dtype=torch.int8)})


def test_what_shapes_do_not_tell_must_be_told():
    state = timm_vit(num_classes=3).state_dict()
    with pytest.raises(ValueError, match="num_attention_heads"):
        convert_to_c2fmae(state, pooling="cls")
    with pytest.raises(ValueError, match="pooling"):
        convert_to_c2fmae(state, num_attention_heads=4)
    with pytest.raises(ValueError, match=r"image_size.*9 positions"):
        convert_to_c2fmae(timm_vit(img_size=(16, 32)).state_dict(), num_attention_heads=4)
    source = timm_vit(no_embed_class=True)
    with pytest.raises(ValueError, match=r"image_size.*16 positions"):
        convert_to_c2fmae(source.state_dict(), num_attention_heads=4)
    images = pixels()
    model = convert_to_c2fmae(source.state_dict(), num_attention_heads=4, image_size=32)
    assert_same(tokens(source, images), tokens(model, images))


def test_what_contradicts_the_source():
    with pytest.raises(ValueError, match="num_attention_heads: expected the source's 4, got 8"):
        convert_to_c2fmae(timm_vit(), num_attention_heads=8)
    with pytest.raises(ValueError, match="image_size: expected the source's"):
        convert_to_c2fmae(vit(), image_size=64)
    with pytest.raises(ValueError, match="image_size: expected one of 17 positions"):
        convert_to_c2fmae(timm_vit().state_dict(), num_attention_heads=4, image_size=64)
    with pytest.raises(ValueError, match="pooling"):
        convert_to_c2fmae(vit(ViTForImageClassification), pooling="mean")
    with pytest.raises(ValueError, match="pooling"):
        convert_to_c2fmae(vit(), pooling="max")
    assert convert_to_c2fmae(vit(), image_size=(32, 32), pooling="cls").config.pooling == "cls"


@pytest.mark.parametrize(
    ("formats", "model_class", "fields", "message"),
    [
        (("vit", "mae"), C2FMAEForImageClassification, {"pooling": "mean"}, "pooling"),
        (("vit_mae",), C2FMAEForImageClassification, {"pooling": "cls"}, "num_labels"),
        (FORMATS, C2FMAEModel, {"input_granularities": ("semantic", "image")}, "input_granularities"),
        (("timm", "mae"), C2FMAEModel, {"hidden_act": "relu"}, "hidden_act"),
        (("timm", "mae"), C2FMAEModel, {"layer_norm_eps": 1e-12}, "layer_norm_eps"),
        (("mae",), C2FMAEModel, {"qkv_bias": False}, "qkv_bias"),
        (("mae",), C2FMAEModel, {"image_size": (32, 64)}, "image_size"),
        (FORMATS, C2FMAEBackbone, {}, "model: expected .* C2FMAEBackbone"),
        (("jax",), C2FMAEModel, {}, "format: expected"),
    ],
    ids=str,
)
def test_what_a_format_cannot_express(formats, model_class, fields, message):
    for name in formats:
        with pytest.raises(ValueError, match=message):
            convert_from_c2fmae(c2fmae(model_class, **fields), name)


# The example


@pytest.fixture(scope="module")
def example():
    return load_command("convert")


STATISTICS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification, ViTMAEModel, ViTMAEForPreTraining])
def test_the_example_on_folders_of_transformers(example, tmp_path, model_class):
    config_class = ViTMAEConfig if model_class.__name__.startswith("ViTMAE") else ViTConfig
    source = vit(model_class, config_class, layer_norm_eps=1e-6)
    source.save_pretrained(tmp_path / "source")
    ViTImageProcessor(**STATISTICS).save_pretrained(tmp_path / "source")
    assert example.main([str(tmp_path / "source"), str(tmp_path / "c2fmae")]) < 1e-5
    loader = AutoModelForImageClassification if model_class is ViTForImageClassification else AutoModel
    model = loader.from_pretrained(tmp_path / "c2fmae").eval()
    images = pixels()
    assert_same(tokens(source, images), tokens(model, images))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "c2fmae")
    assert {name: list(getattr(processor, name)) for name in STATISTICS} == STATISTICS

    for name in ("vit", "vit_mae"):
        if name == "vit_mae" and model_class is ViTForImageClassification:
            continue
        assert example.main([str(tmp_path / "c2fmae"), str(tmp_path / name), "--format", name]) == pytest.approx(
            0, abs=1e-5
        )
        assert_same(tokens(source, images), tokens(AutoModel.from_pretrained(tmp_path / name).eval(), images))
        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        assert {field: list(getattr(processor, field)) for field in STATISTICS} == STATISTICS
    # Straight from one to another
    if model_class is not ViTForImageClassification:
        assert example.main([str(tmp_path / "source"), str(tmp_path / "mae.pth"), "--format", "mae"]) < 1e-5
        assert_equal_weights(
            read_state_dict(tmp_path / "mae.pth"), AutoModel.from_pretrained(tmp_path / "c2fmae").state_dict()
        )


@require_timm_local_dir
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_example_to_timm_and_back(example, tmp_path, pooling):
    source = c2fmae(C2FMAEForImageClassification, pooling=pooling, image_size=(32, 64), num_labels=3)
    source.save_pretrained(tmp_path / "source")
    assert example.main([str(tmp_path / "source"), str(tmp_path / "timm"), "--format", "timm"]) < 1e-5
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = pixels(32, 64)
    with torch.no_grad():
        assert_same(source(images).logits, model(images))
    assert example.main([str(tmp_path / "timm"), str(tmp_path / "back")]) < 1e-5
    back = C2FMAEForImageClassification.from_pretrained(tmp_path / "back")
    assert_equal_weights(back.state_dict(), source.state_dict())
    assert back.config.pooling == pooling
    assert example.main([str(tmp_path / "timm"), str(tmp_path / "encoder"), "--encoder_only"]) < 1e-5
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
def test_the_example_keeps_what_is_done_to_images(example, tmp_path, fields):
    source = vit(ViTForImageClassification, layer_norm_eps=1e-6, num_labels=3)
    source.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(**{"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **fields}).save_pretrained(tmp_path / "vit")
    expected = AutoImageProcessor.from_pretrained(tmp_path / "vit")(photograph(), return_tensors="pt").pixel_values
    example.main([str(tmp_path / "vit"), str(tmp_path / "c2fmae")])
    example.main([str(tmp_path / "c2fmae"), str(tmp_path / "back"), "--format", "vit"])
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
def test_the_example_keeps_what_timm_does_to_images(example, tmp_path, cfg):
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
    example.main([str(tmp_path / "timm"), str(tmp_path / "c2fmae")])
    example.main([str(tmp_path / "c2fmae"), str(tmp_path / "back"), "--format", "timm"])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "c2fmae")
    assert_same_images(processor(photograph(), return_tensors="pt").pixel_values, expected, 0.25)
    assert torch.equal(timm_transform(tmp_path / "back")(photograph())[None], expected)
    for folder in ("c2fmae", "back"):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / folder)
        assert list(model.config.id2label.values()) == names


def test_the_example_says_what_it_changes_or_does_not_know(example, tmp_path, caplog):
    vit(ViTModel).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 40, "width": 40}).save_pretrained(tmp_path / "vit")
    options = ["--format", "timm", "--layer_norm_eps", "1e-6"]
    with pytest.raises((OSError, ValueError), match="layer_norm_eps: expected 1e-06 for the format 'timm', got"):
        example.main([str(tmp_path / "vit"), str(tmp_path / "timm"), *options[:2]])
    assert example.main([str(tmp_path / "vit"), str(tmp_path / "timm"), *options]) < 1e-5
    printed = caplog.text
    assert "layer_norm_eps is 1e-06, as asked for, and not the source's 0.01: that alone changes features" in printed
    assert "size: the source's image processor has {'height': 40, 'width': 40}, the model" in printed
    assert "Images are resized to 32 x 32 (bilinear); normalised with mean 0.5, 0.5, 0.5" in printed
    assert "The pooled output is the mean of the patch tokens" in printed


def test_the_example_on_a_folder_of_pickled_weights(example, tmp_path):
    source = vit(ViTModel)
    source.config.architectures = ["ViTModel"]
    source.config.save_pretrained(tmp_path / "vit")
    torch.save(source.state_dict(), tmp_path / "vit/pytorch_model.bin")
    assert example.main([str(tmp_path / "vit"), str(tmp_path / "c2fmae")]) < 1e-5
    names = sorted(source.state_dict())
    shards = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
    for shard in set(shards.values()):
        part = {name: value for name, value in source.state_dict().items() if shards[name] == shard}
        torch.save(part, tmp_path / "vit" / shard)
    (tmp_path / "vit/pytorch_model.bin").unlink()
    (tmp_path / "vit/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_equal_weights(read_state_dict(tmp_path / "vit"), source.state_dict())
    (tmp_path / "vit" / shards[names[0]]).unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin\.index\.json names, found 1"):
        read_state_dict(tmp_path / "vit")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("not/there/at all", "expected a folder or a name on the Hub, found no such folder"),
        ("{}/photos", r"config\.json: expected a saved model, found nothing"),
        ("{}/nothing.pth", r"nothing\.pth"),
    ],
)
def test_the_example_on_mistakes(example, tmp_path, source, message):
    (tmp_path / "photos").mkdir()
    with pytest.raises((OSError, ValueError), match=message):
        example.main([source.format(tmp_path), str(tmp_path / "c2fmae")])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_example_on_files(example, tmp_path, capsys):
    source, state = mae_state()
    torch.save({"model": state}, tmp_path / "mae.pth")
    images = pixels()
    options = ["--num_attention_heads", "4", "--pooling", "cls"]
    assert example.main([str(tmp_path / "mae.pth"), str(tmp_path / "c2fmae"), *options]) < 1e-5
    model = C2FMAEModel.from_pretrained(tmp_path / "c2fmae")
    assert model.config.pooling == "cls"
    assert_same(tokens(source, images), tokens(model, images))

    large = noisy(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=2))
    save_file(large.state_dict(), tmp_path / "tiny.safetensors")
    options = ["--architecture", "vit_tiny_patch16_224", "--image_size", "64", "64"]
    assert example.main([str(tmp_path / "tiny.safetensors"), str(tmp_path / "tiny"), *options]) < 1e-3
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tiny")
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]  # of timm's configuration

    vit(ViTModel).save_pretrained(tmp_path / "vit")
    options = ["--num_attention_heads", "4", "--image_mean", "0", "0", "0", "--layer_norm_eps", "1e-2"]
    assert example.main([str(tmp_path / "vit/model.safetensors"), str(tmp_path / "from-vit"), *options]) is None


def test_the_example_on_a_pre_training_checkpoint(example, tmp_path, caplog):
    source = c2fmae(C2FMAEForPreTraining, input_granularities=("instance", "image"))
    source.save_pretrained(tmp_path / "source")
    assert example.main([str(tmp_path / "source"), str(tmp_path / "mae.pth"), "--format", "mae"]) < 1e-5
    model = convert_to_c2fmae(read_state_dict(tmp_path / "mae.pth"), num_attention_heads=4)
    images = pixels()
    assert_same(tokens(source, images), tokens(model, images))
    assert "Left out, as no part of the encoder: decoder." in caplog.text


def test_the_example_names_the_source(example, tmp_path):
    vit(ViTModel, layer_norm_eps=1e-6).save_pretrained(tmp_path / "vit-of-others")
    example.main([str(tmp_path / "vit-of-others"), str(tmp_path / "first")])
    example.main([str(tmp_path / "first"), str(tmp_path / "second"), "--pooling", "cls"])
    for folder in ("first", "second"):  # not the name of the copy
        assert C2FMAEConfig.from_pretrained(tmp_path / folder).converted_from == "vit-of-others"
    encoder = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    assert convert_to_c2fmae(encoder).config.converted_from == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert convert_to_c2fmae(timm_vit(num_classes=0).state_dict(), num_attention_heads=4).config.converted_from
    assert c2fmae(C2FMAEModel).config.converted_from is None


def test_the_example_asks_for_the_statistics_of_other_channels(example, tmp_path):
    torch.save(timm_vit(in_chans=4).state_dict(), tmp_path / "a.pth")
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b"), "--num_attention_heads", "4"]
    with pytest.raises((OSError, ValueError), match="image_mean: expected a number for each of 4 channels"):
        example.main(arguments)
    assert not (tmp_path / "b").exists()


def test_the_example_overwrites_only_when_told_and_only_its_own(example, tmp_path):
    c2fmae().save_pretrained(tmp_path / "source")
    run = partial(example.main)
    source, output = str(tmp_path / "source"), tmp_path / "vit"
    run([source, str(output), "--format", "vit"])
    (output / "old").touch()
    with pytest.raises(SystemExit):
        run([source, str(output), "--format", "vit"])
    assert (output / "old").exists()
    run([source, str(output), "--format", "vit", "--overwrite"])
    assert not (output / "old").exists()
    (tmp_path / "photos").mkdir()
    for wrong in (tmp_path / "photos", tmp_path / "source", tmp_path / "a.pth"):
        with pytest.raises(SystemExit):
            run([source, str(wrong), "--format", "vit", "--overwrite"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "source", "vit"]


def test_the_example_writes_nothing_where_features_differ(example, tmp_path, monkeypatch):
    c2fmae().save_pretrained(tmp_path / "source")
    convert = example.convert_from_c2fmae
    monkeypatch.setattr(example, "convert_from_c2fmae", lambda *args: noisy(convert(*args)))
    with pytest.raises((OSError, ValueError), match="got a difference of"):
        example.main([str(tmp_path / "source"), str(tmp_path / "vit"), "--format", "vit"])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
