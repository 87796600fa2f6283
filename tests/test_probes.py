"""Frozen features and the protocols on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from transformers import ViTConfig, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from c2fmae_hf import C2FMAEConfig, C2FMAEModel
from c2fmae_hf.transfer.classification import build_classifier
from c2fmae_hf.transfer.encoders import (
    encode_images,
    encoder_config,
    load_encoder,
    own_image_size,
    patch_size_of,
    pixel_statistics,
    pool_tokens,
)
from c2fmae_hf.transfer.modeling_encoder_backbone import build_backbone
from c2fmae_hf.transfer.probes import LinearProbe, extract_features, weighted_knn


def blobs(number: int, seed: int = 0, distance: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(7)) * distance
    labels = torch.randint(0, 4, (number,), generator=generator)
    return centres[labels] + torch.randn(number, 16, generator=generator), labels


@pytest.fixture
def folders(model, tmp_path):
    """The same protocols take all of these."""
    model.save_pretrained(tmp_path / "pretraining")
    C2FMAEModel(model.config).save_pretrained(tmp_path / "encoder")
    vit = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return {name: str(tmp_path / name) for name in ("pretraining", "encoder", "vit")}


@pytest.mark.parametrize("name", ["pretraining", "encoder", "vit"])
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_encoders_of_every_kind(folders, name, size):
    model = load_encoder(folders[name]).eval()
    assert patch_size_of(model) == 8
    pixel_values = torch.randn(5, 3, *size)
    batches = [{"pixel_values": part, "labels": torch.arange(len(part))} for part in pixel_values.split(3)]
    features, labels = extract_features(model, batches)
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert {key: tuple(value.shape) for key, value in features.items()} == {"cls": (5, 32), "mean": (5, 32)}
    with torch.no_grad():
        tokens = encode_images(model, pixel_values)
    assert torch.allclose(features["cls"], tokens[:, 0], atol=1e-5)
    assert torch.allclose(features["mean"], tokens[:, 1:].mean(dim=1), atol=1e-5)


def test_from_scratch(folders):
    saved, fresh = (load_encoder(folders["encoder"], from_scratch=value) for value in (False, True))
    assert not torch.equal(saved.blocks[0].attn.qkv.weight, fresh.blocks[0].attn.qkv.weight)
    model = load_encoder("vit_tiny_patch16_224", from_scratch=True)
    assert patch_size_of(model) == 16
    assert encode_images(model.eval(), torch.randn(1, 3, 224, 224)).shape == (1, 197, 192)
    with pytest.raises(ValueError, match=r"architecture without weights; pass 'timm/vit_tiny_patch16_224'"):
        load_encoder("vit_tiny_patch16_224")


def test_timm_without_class_token():
    model = load_encoder("vit_medium_patch16_gap_240", from_scratch=True)
    side = model.timm_model.patch_embed.img_size[0]
    batches = [{"pixel_values": torch.randn(1, 3, side, side), "labels": torch.zeros(1)}]
    assert set(extract_features(model, batches)[0]) == {"mean"}
    with pytest.raises(ValueError, match="no class token"):
        pool_tokens(torch.randn(1, 4, 8), 4, "cls")
    with pytest.raises(ValueError, match="pooling: expected one of"):
        pool_tokens(torch.randn(1, 4, 8), 4, "max")


def test_knn_agrees_with_scikit_learn():
    """On clusters that overlap, so that how neighbours are weighted tells."""
    train, train_labels = blobs(300, distance=0.5)
    features, _ = blobs(100, seed=1, distance=0.5)
    scores = weighted_knn(train, train_labels, features, 4, k=11, temperature=0.1, chunk=32)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.1)

    assert (scores.max(dim=1).values < 0.9).float().mean() > 0.5
    judge = KNeighborsClassifier(11, metric="cosine", weights=weights).fit(train, train_labels)
    assert torch.allclose(scores, torch.from_numpy(judge.predict_proba(features)).float(), atol=1e-4)
    assert weighted_knn(train[:3], train_labels[:3], features, 4, k=20).sum(dim=1).allclose(torch.ones(100))
    for wrong in ({"k": 0}, {"temperature": 0.0}, {"temperature": -0.1}):
        with pytest.raises(ValueError, match="k, temperature: expected at least 1 and above 0"):
            weighted_knn(train, train_labels, features, 4, **wrong)


def test_linear_probe_learns_and_folds():
    train, train_labels = blobs(400)
    features, labels = blobs(200, seed=1)
    # Features of very different scale, which the normalisation evens out.
    scale = torch.logspace(-3, 3, 16)
    probe = LinearProbe(16, 4).fit(train * scale + 5, train_labels, epochs=30, batch_size=64)
    logits = probe(features * scale + 5)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.9
    weight, bias = probe.fold()
    assert torch.allclose((features * scale + 5) @ weight.T + bias, logits, atol=1e-3)
    # One batch smaller than asked for.
    assert LinearProbe(16, 4).fit(train[:10], train_labels[:10], epochs=2)(features).shape == (200, 4)


def test_vit_mae_becomes_the_vit_that_it_trains(tmp_path):
    """AutoModel would give an encoder that masks its input."""
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        mask_ratio=0.0,
    )
    mae = ViTMAEForPreTraining(config).eval()
    mae.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path)).eval()
    pixel_values, noise = torch.randn(2, 3, 32, 32), torch.arange(16.0).expand(2, 16)
    with torch.no_grad():
        tokens = encode_images(encoder, pixel_values)
        expected = mae.vit(pixel_values, noise=noise).last_hidden_state  # nothing masked, nothing shuffled
    assert torch.allclose(tokens, expected, atol=1e-5)
    classifier = build_classifier(str(tmp_path), {0: "a", 1: "b"})
    assert torch.equal(classifier.vit.embeddings.cls_token, mae.vit.embeddings.cls_token)


def test_saved_timm_models_take_other_sizes(tmp_path):
    """At the size that they were saved with, and at another one."""
    saved = load_encoder("vit_tiny_patch16_224", from_scratch=True, image_size=32)
    saved.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), drop_path_rate=0.1)
    assert torch.equal(encoder.timm_model.pos_embed, saved.timm_model.pos_embed)
    for side in (32, 64):
        assert encode_images(encoder, torch.randn(1, 3, side, side)).shape == (1, 1 + (side // 16) ** 2, 192)
    assert build_classifier(str(tmp_path), {0: "a", 1: "b"}, image_size=64, pooling="mean", drop_path_rate=0.1)
    assert build_backbone(str(tmp_path), image_size=64)(torch.randn(1, 3, 64, 48)).feature_maps[2].shape[2:] == (4, 3)


def test_own_image_size(folders, tmp_path):
    """What evaluation takes unless told: an encoder of small images would refuse or misjudge those of 224 pixels."""
    assert [own_image_size(encoder_config(folder)) for folder in folders.values()] == [32, 32, 32]
    timm_names = ("vit_tiny_patch16_384", "c2fmae_vit_tiny_patch16_224")
    assert [own_image_size(encoder_config(name, from_scratch=True)) for name in timm_names] == [384, 224]
    load_encoder("vit_tiny_patch16_384", from_scratch=True, image_size=64).save_pretrained(tmp_path / "timm")
    assert own_image_size(encoder_config(str(tmp_path / "timm"))) == 64
    with pytest.raises(ValueError, match="expected a value, since the model's own size is not square: 32 x 48"):
        own_image_size(C2FMAEConfig(image_size=[32, 48], patch_size=8))


def test_pixel_statistics(folders, tmp_path):
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path / "own")
    assert pixel_statistics(str(tmp_path / "own")) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert pixel_statistics("vit_tiny_patch16_224") == ([0.5] * 3, [0.5] * 3)
    model = load_encoder("vit_tiny_patch16_224", from_scratch=True)
    model.config.pretrained_cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "input_size": [3, 224, 224]}
    model.save_pretrained(tmp_path / "timm")
    assert pixel_statistics(str(tmp_path / "timm")) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])
    (tmp_path / "empty").mkdir()
    assert pixel_statistics(str(tmp_path / "empty"))[0] == [0.485, 0.456, 0.406]
