"""Configuration: types, values, sizes, saving, timm's keys."""

from __future__ import annotations

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from c2fmae_hf import SIZES, C2FMAEConfig
from c2fmae_hf.configuration_c2fmae import TIMM_KEYS


def test_defaults_are_the_base_size():
    assert C2FMAEConfig().to_dict() == C2FMAEConfig.from_size("base").to_dict()


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    config = C2FMAEConfig.from_size(size, mask_ratio=0.5)
    assert {name: getattr(config, name) for name in SIZES[size]} == SIZES[size]
    assert config.mask_ratio == 0.5
    assert config.num_masked_patches(config.num_patches) == config.num_patches // 2


def test_unknown_size():
    with pytest.raises(ValueError, match=r"size: expected one of \['tiny', .*got 'giant'"):
        C2FMAEConfig.from_size("giant")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "768"),
        ("qkv_bias", "yes"),
        ("pooling", "max"),
        ("decoder_type", "serial"),
        ("granularities", "image"),
        ("image_size", [224, "224"]),
        ("mask_ratio", None),
        ("loss_weights", [1, 1, 1]),
    ],
)
def test_wrong_types_are_named(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=rf"(?s){field}.*expected"):
        C2FMAEConfig(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio: expected a number in \(0, 1\), got 1.0"),
        ({"mask_ratio": 0.0}, r"mask_ratio: expected a number in \(0, 1\), got 0.0"),
        ({"decoder_prediction_ratio": 0}, r"decoder_prediction_ratio: expected a number in \(0, 1\], got 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer, got 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate: expected a number in \[0, 1\), got 1.0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps: expected a positive number, got 0.0"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: expected an integer up to 4096, got 1000000"),
        ({"decoder_num_hidden_layers": 10**6}, "decoder_num_hidden_layers: expected an integer up to 4096"),
        ({"intermediate_size": 10**9}, "intermediate_size: expected an integer up to 1048576, got 1000000000"),
        ({"num_semantic_classes": 10**9}, "num_semantic_classes: expected an integer up to 1048576"),
        ({"image_size": 16 * 10**6}, "image_size: expected at most 65536 pixels"),
        ({"patch_size": 0}, "patch_size: expected a positive integer, got 0"),
        ({"decoder_num_attention_heads": 0}, "decoder_num_attention_heads: expected a positive integer, got 0"),
        ({"instance_offset_weight": float("inf")}, "instance_offset_weight: expected a finite number >= 0, got inf"),
        ({"image_size": 225}, "image_size: expected multiples of patch_size=16, got 225"),
        ({"image_size": (224, 8)}, "image_size: expected multiples of patch_size=16"),
        ({"image_size": [224]}, r"image_size: expected an integer or \(height, width\), got \[224\]"),
        ({"label_stride": 5}, "label_stride: expected a divisor of patch_size=16, got 5"),
        ({"num_attention_heads": 7}, "num_attention_heads: expected a divisor of hidden_size=768, got 7"),
        ({"hidden_size": 6, "num_attention_heads": 3}, "hidden_size: expected a multiple of 4, got 6"),
        ({"granularities": []}, r"granularities: expected a non-empty part of .*got \[\]"),
        ({"granularities": ["image", "semantic"]}, "granularities: expected a non-empty part of .* in that order"),
        ({"input_granularities": ["semantic"]}, "input_granularities: expected 'image' among them"),
        ({"loss_weights": {"image": 1.0}}, r"loss_weights: expected a finite weight >= 0 for each of \['semantic'"),
        ({"loss_weights": {"semantic": 1, "instance": 1, "image": -1}}, "loss_weights: expected a finite weight >= 0"),
        (
            {"supervise_visible_labels": True, "input_granularities": ["semantic", "image"]},
            "supervise_visible_labels: expected False",
        ),
        (
            {"semantic_id2label": {134: "sky"}},
            r"semantic_id2label: expected class ids in \[0, num_.*=134\), got \[134\]",
        ),
    ],
)
def test_wrong_values_are_named(fields, message):
    with pytest.raises(ValueError, match=f"C2FMAEConfig.{message}"):
        C2FMAEConfig(**fields)


def test_every_validator_runs_at_construction(monkeypatch):
    own = [name for name in vars(C2FMAEConfig) if name.startswith("validate_")]
    ran = []
    for name in own:
        monkeypatch.setattr(C2FMAEConfig, name, lambda self, name=name: ran.append(name))
    C2FMAEConfig().check_values()
    assert sorted(set(ran)) == sorted(own)


def test_what_became_wrong_is_not_saved(tmp_path):
    config = C2FMAEConfig.from_size("tiny")
    config.mask_ratio = 2.0
    with pytest.raises(StrictDataclassClassValidationError, match="mask_ratio: expected a number in"):
        config.save_pretrained(tmp_path)


def test_saving_and_loading(tmp_path):
    config = C2FMAEConfig.from_size(
        "tiny",
        image_size=(96, 128),
        granularities=("semantic", "image"),
        semantic_id2label={0: "ground", 3: "sky"},
        out_features=["stage3", "stage12"],
        num_labels=7,
    )
    config.save_pretrained(tmp_path)
    loaded = C2FMAEConfig.from_pretrained(tmp_path)
    assert loaded.image_size == [96, 128]
    assert loaded.grid_size == (6, 8)
    assert loaded.granularities == ["semantic", "image"]
    assert loaded.loss_weights == {"semantic": 1 / 3, "image": 1.0}
    assert loaded.semantic_id2label == {0: "ground", 3: "sky"}
    assert loaded.out_indices == [3, 12]
    assert loaded.num_labels == 7
    first, second = config.to_dict(), loaded.to_dict()
    assert {**first, "transformers_version": None} == {**second, "transformers_version": None}


@pytest.mark.parametrize(
    ("architecture", "num_classes", "is_all_timms"),
    [("C2FMAEModel", 0, True), ("C2FMAEForPreTraining", 0, False), ("C2FMAEForImageClassification", 3, True)],
)
def test_timm_keys_say_what_the_weights_are(tmp_path, architecture, num_classes, is_all_timms):
    config = C2FMAEConfig.from_size("tiny", num_labels=3, image_mean=(0.1, 0.2, 0.3), image_std=[1, 2, 3])
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architecture"] == "vit_tiny_patch16_224"
    assert saved["model_args"].get("pretrained_strict", True) is is_all_timms
    assert saved["num_classes"] == saved["pretrained_cfg"]["num_classes"] == num_classes
    assert saved["pretrained_cfg"].get("label_names", []) == [f"LABEL_{i}" for i in range(num_classes)]
    assert saved["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert saved["pretrained_cfg"]["std"] == [1, 2, 3]
    loaded = C2FMAEConfig.from_pretrained(tmp_path)
    assert not any(hasattr(loaded, key) for key in TIMM_KEYS)
    assert (loaded.image_mean, loaded.image_std) == ([0.1, 0.2, 0.3], [1, 2, 3])


@pytest.mark.parametrize("widths", [(448, 488), (896, 1952), (1408, 3136), (1408, 6144), (192, 768)])
def test_timm_computes_the_same_mlp_width(widths):
    hidden, intermediate = widths
    config = C2FMAEConfig(hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=2)
    assert int(hidden * config.timm_keys()["model_args"]["mlp_ratio"]) == intermediate


def test_inputs_may_be_a_tuple(tmp_path):
    C2FMAEConfig.from_size("tiny").save_pretrained(tmp_path)
    config = C2FMAEConfig.from_pretrained(tmp_path, input_granularities=("image",))
    config.check_values()
    assert config.timm_keys() is not None


def test_a_bare_configuration_has_no_timm_keys(tmp_path):
    C2FMAEConfig.from_size("tiny").save_pretrained(tmp_path)
    assert not set(TIMM_KEYS) & set(json.loads((tmp_path / "config.json").read_text()))


def test_pixel_statistics_fit_the_channels():
    assert C2FMAEConfig(num_channels=1).image_mean == [0.5]
    with pytest.raises(ValueError, match=r"image_mean: expected a finite number for .* 1 channels, got \[0.1, 0.2\]"):
        C2FMAEConfig(num_channels=1, image_mean=[0.1, 0.2])
    with pytest.raises(ValueError, match="image_std: expected numbers > 0"):
        C2FMAEConfig(image_std=[0.5, 0, 0.5])


@pytest.mark.parametrize(
    "fields",
    [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}, {"input_granularities": ["instance", "image"]}],
    ids=str,
)
def test_no_timm_keys_for_what_timm_cannot_build(fields):
    assert C2FMAEConfig(**fields).timm_keys() is None


@pytest.mark.parametrize(
    ("ratio", "patches", "masked"), [(0.75, 196, 147), (0.5, 3, 2), (0.01, 16, 1), (0.99, 16, 15)]
)
def test_number_of_masked_patches(ratio, patches, masked):
    assert C2FMAEConfig(mask_ratio=ratio).num_masked_patches(patches) == masked


def test_stages_follow_the_number_of_blocks(config):
    fields = {**config.to_dict(), "num_hidden_layers": 4, "out_features": ["stage4"], "out_indices": None}
    assert C2FMAEConfig(**fields).stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_the_script_for_masked_image_modeling_is_told_what_pre_trains_this_model():
    config = C2FMAEConfig.from_size("tiny")
    with pytest.raises(
        StrictDataclassFieldValidationError, match="got 'simmim'; to pre-train this model: c2fmae pretr"
    ):
        config.decoder_type = "simmim"
    assert config.decoder_type == "cascaded"
