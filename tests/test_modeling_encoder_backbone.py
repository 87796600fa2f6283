"""Any vision transformer as a backbone with a feature pyramid."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoBackbone, AutoModel

from c2fmae_hf import C2FMAEBackbone, C2FMAEModel, EncoderBackboneConfig, MaskRCNNConfig
from c2fmae_hf.transfer.classification import build_classifier
from c2fmae_hf.transfer.encoders import load_encoder
from c2fmae_hf.transfer.modeling_encoder_backbone import EncoderBackbone, build_backbone
from c2fmae_hf.transfer.segmentation import build_segmenter
from transfer_utils import save_encoders


TIMM = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.mark.parametrize("kind", ["c2fmae", "vit", "dinov2"])
@pytest.mark.parametrize("out_indices", [None, [-1]])
def test_pyramid_of_saved_encoders(encoders, kind, out_indices):
    backbone = build_backbone(encoders[kind], out_indices=out_indices)
    assert isinstance(backbone, C2FMAEBackbone if kind == "c2fmae" else EncoderBackbone)
    maps = backbone(torch.randn(2, 3, 48, 32)).feature_maps  # neither square nor the size of pre-training
    assert [tuple(level.shape) for level in maps] == [(2, 32, 24, 16), (2, 32, 12, 8), (2, 32, 6, 4), (2, 32, 3, 2)]
    assert backbone.channels == [32] * 4
    sum(level.square().mean() for level in maps).backward()
    assert all(parameter.grad is not None for parameter in backbone.fpn.parameters())


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_the_map_of_the_grid_is_the_encoders_own(encoders, kind):
    """The third level is the last block's patches after the final norm, which the encoder itself returns."""
    backbone = build_backbone(encoders[kind], out_indices=[-1]).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        level = backbone(pixel_values).feature_maps[2]
        tokens = AutoModel.from_pretrained(encoders[kind]).eval()(pixel_values).last_hidden_state
    assert torch.allclose(level.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5)


def test_hidden_states_on_request(encoders):
    backbone = build_backbone(encoders["vit"]).eval()
    encoder = AutoModel.from_pretrained(encoders["vit"]).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert backbone(pixel_values).hidden_states is None
        found = backbone(pixel_values, output_hidden_states=True).hidden_states
        expected = encoder(pixel_values, output_hidden_states=True).hidden_states
        assert isinstance(backbone(pixel_values, return_dict=False), tuple)
    assert len(found) == len(expected) == 5
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected))


def test_timm_architecture(tmp_path):
    backbone = build_backbone(TIMM, from_scratch=True, image_size=64, drop_path_rate=0.1).eval()
    pixel_values = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        maps = backbone(pixel_values).feature_maps
        own = backbone.encoder(pixel_values, do_pooling=False).last_hidden_state[:, 1:]
        alone = build_backbone(TIMM, from_scratch=True, image_size=64, out_indices=[12]).eval()
        alone.encoder.load_state_dict(backbone.encoder.state_dict())
        grid = alone(pixel_values).feature_maps[2]
    assert [level.shape[2:] for level in maps] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    assert torch.allclose(grid.flatten(2).transpose(1, 2), own, atol=1e-5)
    backbone.save_pretrained(tmp_path)
    again = AutoBackbone.from_config(EncoderBackbone.from_pretrained(tmp_path).config)
    again.load_state_dict(EncoderBackbone.from_pretrained(tmp_path).state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pixel_values).feature_maps[0], maps[0])


def test_saved_weights_are_used_unless_told_otherwise(encoders):
    saved = AutoModel.from_pretrained(encoders["vit"]).state_dict()
    loaded = build_backbone(encoders["vit"]).encoder.state_dict()
    scratch = build_backbone(encoders["vit"], from_scratch=True).encoder.state_dict()
    name = next(name for name in saved if name.endswith("layers.0.attention.q_proj.weight") or "query.weight" in name)
    assert torch.equal(saved[name], loaded[name])
    assert not torch.equal(saved[name], scratch[name])


def test_mistakes(encoders):
    with pytest.raises(ValueError, match=r"out_indices: expected one block or four in \[1, 4\], got \[1, 2, 3, 9\]"):
        build_backbone(encoders["vit"], out_indices=[1, 2, 3, 9])
    with pytest.raises(ValueError, match=r"out_indices: expected one block or four in \[1, 4\], got \[1, 2\]"):
        build_backbone(encoders["c2fmae"], out_indices=[1, 2])
    with pytest.raises(ValueError, match="an architecture without weights"):
        build_backbone(TIMM)
    with pytest.raises(ValueError, match="model: expected a plain vision transformer, got 'resnet18'"):
        build_backbone("resnet18", from_scratch=True)


def test_drop_path_where_the_model_has_it(encoders, caplog):
    assert build_backbone(encoders["dinov2"], drop_path_rate=0.1).config.encoder_config.drop_path_rate == 0.1
    assert build_backbone(encoders["c2fmae"], drop_path_rate=0.1).config.drop_path_rate == 0.1
    assert "drop_path_rate ignored" not in caplog.text
    build_backbone(encoders["vit"], drop_path_rate=0.1)
    assert "drop_path_rate ignored, since a vit has none" in caplog.text


def test_a_saved_rate_of_drop_path_does_not_stay(encoders, tmp_path):
    """Every head has the rate that was asked for, 0 by default, whatever the encoder was saved with."""
    C2FMAEModel.from_pretrained(encoders["c2fmae"], drop_path_rate=0.2).save_pretrained(tmp_path / "c2fmae")
    load_encoder(TIMM, from_scratch=True, image_size=32, drop_path_rate=0.2).save_pretrained(tmp_path / "timm")
    for rate in (0.0, 0.1):
        options = {"drop_path_rate": rate}
        for head in ("light", "upernet"):
            config = build_segmenter(str(tmp_path / "c2fmae"), {0: "a", 1: "b"}, head, **options).config
            assert getattr(config, "backbone_config", config).drop_path_rate == rate
        assert build_classifier(str(tmp_path / "c2fmae"), {0: "a", 1: "b"}, **options).config.drop_path_rate == rate
        assert load_encoder(str(tmp_path / "timm"), **options).config.model_args["drop_path_rate"] == rate


def test_configurations_check_types():
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        EncoderBackboneConfig(hidden_size="wide")
    with pytest.raises(StrictDataclassFieldValidationError, match="image_size"):
        MaskRCNNConfig(image_size="large")
