"""The model: shapes, masking, the cascade, losses, initialisation, saving, backends."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from c2fmae_hf import (
    C2FMAEBackbone,
    C2FMAEConfig,
    C2FMAEForImageClassification,
    C2FMAEForPreTraining,
    C2FMAEForSemanticSegmentation,
    C2FMAEImageProcessor,
    C2FMAEModel,
)
from c2fmae_hf.input_checks import count_masked
from c2fmae_hf.modeling_c2fmae import sincos_position_table
from testing_utils import with_fields


ALL_CLASSES = [
    C2FMAEModel,
    C2FMAEForPreTraining,
    C2FMAEForImageClassification,
    C2FMAEForSemanticSegmentation,
    C2FMAEBackbone,
]


def losses_of(outputs) -> dict[str, float]:
    return {name: value.item() for name, value in outputs.items() if name.endswith("loss")}


# Shapes and masks


def test_pretraining_output_shapes(model, batch):
    outputs = model(**batch)
    assert outputs.semantic_logits.shape == (8, 12, 4, 5)
    assert outputs.instance_logits.shape == (8, 12, 4, 3)
    assert outputs.image_logits.shape == (8, 12, 64, 3)
    assert torch.equal(outputs.patch_ids, batch["bool_masked_pos"].nonzero()[:, 1].view(8, 12))
    expected = outputs.semantic_loss / 3 + outputs.instance_loss / 3 + outputs.image_loss
    assert torch.allclose(outputs.loss, expected)


def test_encoder_computes_visible_patches_only(model, batch):
    encoder = model.c2fmae.eval()
    visible = encoder(batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"]).last_hidden_state
    assert visible.shape == (8, 1 + 4, 32)
    # What is masked cannot matter.
    noise = torch.randn_like(batch["pixel_values"])
    pixel_mask = batch["bool_masked_pos"].view(8, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(pixel_mask, noise, batch["pixel_values"])
    again = encoder(changed, bool_masked_pos=batch["bool_masked_pos"]).last_hidden_state
    assert torch.equal(visible, again)


def test_encoder_is_deterministic_and_in_raster_order(model, batch):
    encoder = model.c2fmae.eval()
    first, second = (encoder(batch["pixel_values"]).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (8, 17, 32)
    nothing_masked = torch.zeros(8, 16, dtype=torch.bool)
    assert torch.allclose(encoder(batch["pixel_values"], bool_masked_pos=nothing_masked).last_hidden_state, first)


def test_positions_matter(model, batch):
    """Exchanging two patches changes more than the order of the features."""
    pixels = batch["pixel_values"][:1]
    exchanged = pixels.clone()
    exchanged[..., :8, :8], exchanged[..., :8, 8:16] = pixels[..., :8, 8:16], pixels[..., :8, :8]
    encoder = model.c2fmae.eval()
    original, other = (encoder(p).last_hidden_state[0, 1:] for p in (pixels, exchanged))
    assert not torch.allclose(original[0], other[1], atol=1e-3)


def test_without_a_mask_pretraining_draws_one(model, batch):
    del batch["bool_masked_pos"]
    outputs = model(**batch)
    assert outputs.patch_ids.shape == (8, 12)
    assert all(len(ids.unique()) == 12 for ids in outputs.patch_ids)
    assert not torch.equal(outputs.patch_ids, model(**batch).patch_ids)


@pytest.mark.parametrize("num_masked", [0, 1, 15, 16])
def test_any_count_of_masked_patches_gives_finite_losses_and_gradients(model, batch, num_masked):
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:, :num_masked] = True
    outputs = model(**{**batch, "bool_masked_pos": mask})
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert (outputs.loss == 0) == (num_masked == 0)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [(32, 32), (40, 32), (16, 64), (8, 8), (64, 64)])
def test_any_image_size_with_interpolated_positions(config, size):
    model = C2FMAEForPreTraining(config).eval()
    height, width = size
    outputs = model(
        torch.randn(2, 3, height, width),
        semantic_labels=torch.zeros(2, height // 4, width // 4, dtype=torch.long),
        instance_labels=torch.zeros(2, 3, height // 4, width // 4),
        interpolate_pos_encoding=True,
    )
    assert torch.isfinite(outputs.loss)
    features = model.c2fmae(torch.randn(2, 3, height, width), interpolate_pos_encoding=True)
    assert features.last_hidden_state.shape == (2, 1 + height * width // 64, 32)


def test_non_square_configuration(config):
    config = with_fields(config, image_size=(32, 64))
    model = C2FMAEForPreTraining(config)
    assert model.c2fmae.pos_embed.shape == (1, 33, 32)
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 32, 64)).loss)


def test_losses_are_weighted(config, batch):
    """In the sum, and in the gradients of every stage's head."""
    config.loss_weights = {"semantic": 0.5, "instance": 3.0, "image": 0.0}
    model = C2FMAEForPreTraining(config)
    outputs = model(**batch)
    assert torch.allclose(outputs.loss, 0.5 * outputs.semantic_loss + 3 * outputs.instance_loss)
    outputs.loss.backward()
    assert not model.decoder.stages["image"].head.weight.grad.any()
    weighted = model.decoder.stages["instance"].head.weight.grad.clone()
    model.zero_grad()
    model(**batch).instance_loss.backward()
    assert torch.allclose(weighted, 3 * model.decoder.stages["instance"].head.weight.grad, atol=1e-6)


def test_the_decoder_knows_where_visible_patches_are(config):
    """The decoder gets the same tokens with other patch positions, and must predict something else."""
    decoder = C2FMAEForPreTraining(config).decoder.eval()
    tokens, query_ids = torch.randn(1, 5, config.hidden_size), torch.tensor([[12, 13, 14]])

    def decode(*visible: int) -> torch.Tensor:
        return decoder(tokens, torch.tensor([visible]), query_ids, 3, config.grid_size)["image"]

    assert torch.equal(decode(0, 1, 2, 3), decode(0, 1, 2, 3))
    assert not torch.allclose(decode(0, 1, 2, 3), decode(3, 1, 2, 0), atol=1e-3)
    assert not torch.allclose(decode(0, 1, 2, 3), decode(8, 9, 10, 11), atol=1e-3)


def test_drop_path_grows_with_depth(config):
    model = C2FMAEModel(with_fields(config, num_hidden_layers=5, drop_path_rate=0.4))
    assert [block.drop_path.p for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


# The cascade and its ablations


@pytest.mark.parametrize(("decoder_type", "depends"), [("cascaded", True), ("parallel", False)])
def test_image_stage_depends_on_the_semantic_stage(config, batch, decoder_type, depends):
    model = C2FMAEForPreTraining(with_fields(config, decoder_type=decoder_type))
    model(**batch).image_loss.backward()
    for part in ("semantic", "instance"):
        stage = model.decoder.stages[part]
        gradients = [p.grad for p in (stage.head.weight, stage.blocks[0].mlp.fc1.weight)]
        assert all((g is not None and g.abs().sum() > 0) == depends for g in gradients), part
    assert model.decoder.stages["image"].head.weight.grad.abs().sum() > 0


def test_predictions_of_a_stage_reach_the_next(model, batch):
    """Not only the refined queries: changing the semantic head alone changes the pixels."""
    before = model.eval()(**batch).image_logits
    torch.nn.init.normal_(model.decoder.stages["semantic"].head.weight)
    assert not torch.allclose(before, model(**batch).image_logits, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decoder_type": "parallel"},
        {"granularities": ["image"]},
        {"granularities": ["semantic", "image"]},
        {"granularities": ["semantic", "instance"]},
        {"input_granularities": ["semantic", "instance", "image"]},
        {"decoder_prediction_ratio": 0.5},
        {"supervise_visible_labels": True},
        {"norm_pix_loss": False, "pooling": "cls", "qkv_bias": False},
    ],
    ids=str,
)
def test_every_parameter_learns(config, batch, fields):
    config = with_fields(config, **fields)
    model = C2FMAEForPreTraining(config)
    model(**batch).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert fixed == ["c2fmae.pos_embed", "decoder.pos_embed"]


def test_mae_is_a_special_case(config, batch):
    model = C2FMAEForPreTraining(with_fields(config, granularities=["image"]))
    outputs = model(batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"])
    assert outputs.semantic_loss is None
    assert outputs.instance_loss is None
    assert torch.equal(outputs.loss, outputs.image_loss)


def test_labels_of_visible_patches_change_no_loss(model, batch):
    model.eval()
    before = losses_of(model(**batch))
    cells = ~batch["bool_masked_pos"].view(8, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
    semantic = torch.where(cells, torch.randint(0, 5, cells.shape), batch["semantic_labels"])
    instance = torch.where(cells[:, None], torch.rand(8, 3, 8, 8), batch["instance_labels"])
    changed = {**batch, "semantic_labels": semantic, "instance_labels": instance}
    assert losses_of(model(**changed)) == before
    # Those of masked patches do.
    masked = {**batch, "semantic_labels": torch.where(cells, batch["semantic_labels"], 1)}
    assert losses_of(model(**masked))["semantic_loss"] != before["semantic_loss"]


def test_supervising_visible_labels_adds_them_but_no_pixels(config, batch):
    model = C2FMAEForPreTraining(with_fields(config, supervise_visible_labels=True)).eval()
    outputs = model(**batch)
    assert outputs.semantic_logits.shape[1] == 16
    assert outputs.image_logits.shape[1] == 12
    visible = ~batch["bool_masked_pos"].view(8, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
    changed = {**batch, "semantic_labels": torch.where(visible, 2, batch["semantic_labels"])}
    assert losses_of(model(**changed))["semantic_loss"] != losses_of(outputs)["semantic_loss"]


def test_decoder_prediction_ratio_decodes_a_part_in_training_only(config, batch):
    model = C2FMAEForPreTraining(with_fields(config, decoder_prediction_ratio=0.5))
    training = model.train()(**batch)
    assert training.patch_ids.shape == (8, 6)
    assert all(
        set(ids.tolist()) <= set(mask.nonzero()[:, 0].tolist())
        for ids, mask in zip(training.patch_ids, batch["bool_masked_pos"])
    )
    assert model.eval()(**batch).patch_ids.shape == (8, 12)


def test_labels_as_input_are_used_on_visible_patches(config, batch):
    model = C2FMAEForPreTraining(with_fields(config, input_granularities=["semantic", "instance", "image"])).eval()
    encode = model.c2fmae
    arguments = {name: batch[name] for name in ("pixel_values", "bool_masked_pos")}
    labels = {name: batch[name] for name in ("semantic_labels", "instance_labels")}
    with_labels = encode(**arguments, **labels).last_hidden_state
    assert with_labels.shape == (8, 1 + 3 * 4, 32)
    assert encode(**arguments).last_hidden_state.shape == (8, 1 + 4, 32)
    masked = batch["bool_masked_pos"].view(8, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
    hidden = {**labels, "semantic_labels": torch.where(masked, 0, labels["semantic_labels"])}
    assert torch.equal(encode(**arguments, **hidden).last_hidden_state, with_labels)
    shown = {**labels, "semantic_labels": torch.where(masked, labels["semantic_labels"], 0)}
    assert not torch.equal(encode(**arguments, **shown).last_hidden_state, with_labels)
    # The encoder for transfer takes only images and gives the same features.
    alone = model.image_encoder()
    assert alone.config.timm_keys() is not None
    pixels = batch["pixel_values"]
    assert torch.equal(alone(pixels).last_hidden_state, encode(pixels).last_hidden_state)


# Training


def test_one_batch_can_be_overfitted_on_all_three_losses(config, batch):
    model = C2FMAEForPreTraining(with_fields(config, hidden_size=64, decoder_hidden_size=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    first = None
    for _ in range(250):
        outputs = model(**batch)
        first = first or losses_of(outputs)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    last = losses_of(outputs)
    assert last["semantic_loss"] < 0.25 * first["semantic_loss"], (first, last)
    assert last["instance_loss"] < 0.35 * first["instance_loss"], (first, last)
    assert last["image_loss"] < 0.6 * first["image_loss"], (first, last)


def test_a_batch_of_8_is_the_mean_of_8_batches_of_1(model, batch):
    batch["semantic_labels"][0] = -100  # a row without labels counts like the others
    whole = model(**batch)
    whole.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = 0.0
    for index in range(8):
        loss = model(**{name: value[index : index + 1] for name, value in batch.items()}).loss / 8
        loss.backward()
        total += loss.item()
    assert math.isclose(total, whole.loss.item(), rel_tol=1e-5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(p.grad, expected[name], atol=1e-5), name


def test_losses_start_at_not_knowing(batch, config):
    """Losses start at the values of uninformed predictions, so that none dominates."""
    losses = losses_of(C2FMAEForPreTraining(config)(**batch))
    assert abs(losses["semantic_loss"] - math.log(5)) < 0.3
    assert abs(losses["image_loss"] - 1.0) < 0.2
    assert 0.3 < losses["instance_loss"] < 3


def test_gradient_checkpointing_changes_nothing(model, batch):
    model.train()
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    assert all(torch.allclose(p.grad, expected[name]) for name, p in model.named_parameters() if p.grad is not None)


# Initialisation


def assert_tables(model) -> None:
    config = model.config
    encoder = getattr(model, "c2fmae", model)
    expected = sincos_position_table(config.hidden_size, config.grid_size)
    assert torch.equal(encoder.pos_embed[:, 1:], expected)
    assert not encoder.pos_embed[:, 0].any()
    assert not encoder.pos_embed.requires_grad, "the table must stay fixed"
    assert encoder.cls_token.any()
    if hasattr(model, "decoder"):
        assert torch.equal(
            model.decoder.pos_embed, sincos_position_table(config.decoder_hidden_size, config.grid_size)
        )
        assert model.decoder.mask_token.any()


@pytest.mark.parametrize("model_class", ALL_CLASSES)
def test_fixed_tables_are_right_however_the_model_was_built(config, model_class, tmp_path):
    model = model_class(config)
    assert_tables(model)
    assert_tables(model_class._from_config(config))
    model.save_pretrained(tmp_path)
    assert_tables(model_class.from_pretrained(tmp_path))
    with torch.device("meta"):
        empty = model_class(config)
    empty.to_empty(device="cpu")
    for value in empty.state_dict().values():
        value.fill_(float("nan"))
    empty.init_weights()
    assert_tables(empty)
    assert all(torch.isfinite(p).all() for p in empty.parameters())


def test_a_checkpoint_without_tables_still_gets_them(config, tmp_path):
    """Missing weights are an error and never become zero silently."""
    C2FMAEModel(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["pos_embed"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['pos_embed'\]"):
        C2FMAEModel.from_pretrained(tmp_path)


def test_patch_projection_is_initialised_as_a_linear_layer(config):
    weight = C2FMAEModel(config).patch_embed.proj.weight
    bound = math.sqrt(6 / (8 * 8 * 3 + 32))
    assert bound * 0.95 < weight.abs().max() <= bound


# Saving and loading


def test_auto_classes_know_every_class(config, tmp_path):
    for auto_class, model_class in [
        (AutoModel, C2FMAEModel),
        (AutoModelForPreTraining, C2FMAEForPreTraining),
        (AutoModelForImageClassification, C2FMAEForImageClassification),
        (AutoModelForSemanticSegmentation, C2FMAEForSemanticSegmentation),
    ]:
        folder = tmp_path / model_class.__name__
        model_class(config).save_pretrained(folder)
        assert type(auto_class.from_pretrained(folder)) is model_class
    assert type(AutoConfig.from_pretrained(folder)) is C2FMAEConfig
    assert type(AutoBackbone.from_config(config)) is C2FMAEBackbone


@pytest.mark.parametrize("model_class", ALL_CLASSES)
def test_saved_weights_come_back(config, model_class, tmp_path, batch):
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded = model_class.from_pretrained(tmp_path).eval()
    for (name, value), other in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(value, other), name


def test_encoder_comes_out_of_every_checkpoint(config, tmp_path, batch):
    for model_class in (C2FMAEForPreTraining, C2FMAEForImageClassification, C2FMAEForSemanticSegmentation):
        model = model_class(config).eval()
        model.save_pretrained(tmp_path / model_class.__name__)
        for target in (C2FMAEModel, C2FMAEBackbone):
            loaded = target.from_pretrained(tmp_path / model_class.__name__)
            encoder = getattr(loaded, "c2fmae", loaded)
            pixels = batch["pixel_values"]
            assert torch.equal(encoder(pixels).last_hidden_state, model.c2fmae(pixels).last_hidden_state)


def test_a_head_may_be_new_but_a_decoder_may_not(config, tmp_path):
    C2FMAEModel(config).save_pretrained(tmp_path / "encoder")
    classifier = C2FMAEForImageClassification.from_pretrained(tmp_path / "encoder", num_labels=7)
    assert classifier.classifier.out_features == 7
    with pytest.raises(ValueError, match="not a pre-training checkpoint"):
        C2FMAEForPreTraining.from_pretrained(tmp_path / "encoder")


def test_unknown_weights_are_an_error(config, tmp_path):
    C2FMAEModel(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "blocks.7.norm1.weight": torch.ones(32)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected \['blocks\.7\.norm1\.weight'\]"):
        C2FMAEModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("extra", ["decoder.junk", "classifier.weight", "c2fmae.junk"])
def test_surplus_weights_of_a_pretraining_checkpoint_are_an_error(config, tmp_path, extra):
    C2FMAEForPreTraining(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, extra: torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected \['.*(junk|classifier\.weight)'\]"):
        C2FMAEForPreTraining.from_pretrained(tmp_path)


def test_a_classifier_does_not_lose_weights_of_its_own(config, tmp_path):
    C2FMAEForImageClassification(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "classifier.junk": torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier\.junk"):
        C2FMAEForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("fields", [{"mask_ratio": 2.0}, {"label_stride": 3}, {"granularities": ["image"]}], ids=str)
def test_overridden_fields_are_checked(config, tmp_path, fields):
    C2FMAEForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="C2FMAEConfig"):
        C2FMAEForPreTraining.from_pretrained(tmp_path, **fields)


def test_a_folder_without_weights_is_an_error(config, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        C2FMAEModel.from_pretrained(tmp_path)


# Downstream heads


def test_classification(config, batch):
    config = with_fields(config, num_labels=3)
    model = C2FMAEForImageClassification(config)
    outputs = model(batch["pixel_values"], labels=torch.randint(0, 3, (8,)))
    outputs.loss.backward()
    assert outputs.logits.shape == (8, 3)
    assert model.c2fmae.patch_embed.proj.weight.grad.any()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling(config, batch, pooling):
    outputs = C2FMAEModel(with_fields(config, pooling=pooling)).eval()(batch["pixel_values"])
    tokens = outputs.last_hidden_state
    expected = tokens[:, 1:].mean(dim=1) if pooling == "mean" else tokens[:, 0]
    assert torch.allclose(outputs.pooler_output, expected)


def test_semantic_segmentation(config, batch):
    model = C2FMAEForSemanticSegmentation(with_fields(config, num_labels=4))
    labels = torch.randint(0, 4, (8, 32, 32))
    labels[:, :5] = 255
    outputs = model(batch["pixel_values"], labels=labels)
    outputs.loss.backward()
    assert outputs.logits.shape == (8, 4, 16, 16)
    # The loss resizes logits to the labels and leaves out ignored pixels.
    resized = torch.nn.functional.interpolate(outputs.logits, size=(32, 32), mode="bilinear")[:, :, 5:]
    assert torch.allclose(torch.nn.functional.cross_entropy(resized, labels[:, 5:]), outputs.loss)
    assert model(batch["pixel_values"], labels=torch.full_like(labels, 255)).loss == 0
    as_processed = labels.masked_fill(labels == 255, -100)
    assert torch.equal(model(batch["pixel_values"], labels=as_processed).loss, outputs.loss)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_backbone(config, batch):
    model = C2FMAEBackbone(with_fields(config, out_features=["stage1", "stage2"])).eval()
    outputs = model(batch["pixel_values"])
    assert [tuple(f.shape) for f in outputs.feature_maps] == [(8, 32, 4, 4)] * 2
    assert model.channels == [32, 32]
    tokens = model.c2fmae(batch["pixel_values"]).last_hidden_state
    assert torch.allclose(outputs.feature_maps[-1].flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-6)
    assert model(torch.randn(1, 3, 40, 64)).feature_maps[0].shape == (1, 32, 5, 8)


# Attention backends, compilation, export


def test_eager_and_sdpa_agree(config, batch):
    eager = C2FMAEForPreTraining._from_config(config, attn_implementation="eager").eval()
    sdpa = C2FMAEForPreTraining._from_config(config, attn_implementation="sdpa").eval()
    sdpa.load_state_dict(eager.state_dict())
    first, second = eager(**batch), sdpa(**batch)
    for name in ("semantic_logits", "instance_logits", "image_logits"):
        assert torch.allclose(first[name], second[name], atol=1e-5), name
    pixels = batch["pixel_values"]
    assert torch.allclose(eager.c2fmae(pixels).last_hidden_state, sdpa.c2fmae(pixels).last_hidden_state, atol=1e-5)


def test_attentions_and_hidden_states(config, batch):
    model = C2FMAEForPreTraining._from_config(config, attn_implementation="eager").eval()
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in outputs.attentions] == [(8, 4, 5, 5)] * 2
    assert [h.shape for h in outputs.hidden_states] == [(8, 5, 32)] * 3
    unmasked = model.c2fmae(batch["pixel_values"], output_attentions=True)
    assert [a.shape for a in unmasked.attentions] == [(8, 4, 17, 17)] * 2
    assert torch.allclose(unmasked.attentions[0].sum(-1), torch.ones(8, 4, 17), atol=1e-5)


def test_encoder_compiles_without_graph_breaks(model, batch):
    encoder = model.c2fmae.eval()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, got = (m(batch["pixel_values"]).last_hidden_state for m in (encoder, compiled))
    assert torch.allclose(expected, got, atol=1e-5)


def test_a_compiled_step_refuses_a_mask_of_another_count(model, batch):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:, :3] = True
    with pytest.raises(RuntimeError, match="expected 12 masked in each row"):
        compiled(**{**batch, "bool_masked_pos": mask})


def test_the_encoder_keeps_the_attention_implementation(config, tmp_path):
    C2FMAEForPreTraining(config).save_pretrained(tmp_path)
    whole = C2FMAEForPreTraining.from_pretrained(tmp_path, attn_implementation="eager")
    encoder = whole.image_encoder()
    outputs = encoder(torch.zeros(1, 3, 32, 32), output_attentions=True)
    assert len(outputs.attentions) == config.num_hidden_layers
    assert whole.config.input_granularities == config.input_granularities


def test_weights_from_a_dictionary(config):
    model = C2FMAEModel(config)
    loaded = C2FMAEModel.from_pretrained(None, config=config, state_dict=model.state_dict())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_encoder_exports_with_a_dynamic_batch(model, batch):
    encoder = model.image_encoder().eval()
    batch_size = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        encoder, (), {"pixel_values": batch["pixel_values"]}, dynamic_shapes={"pixel_values": {0: batch_size}}
    )
    pixels = torch.randn(3, 3, 32, 32)
    expected = encoder(pixels).last_hidden_state
    assert torch.allclose(exported.module()(pixel_values=pixels).last_hidden_state, expected, atol=1e-5)


@pytest.mark.slow
def test_encoder_compiles_with_inductor(model, batch):
    encoder = model.c2fmae.eval()
    with torch.no_grad():
        expected = encoder(batch["pixel_values"]).last_hidden_state
        got = torch.compile(encoder, fullgraph=True)(batch["pixel_values"]).last_hidden_state
    assert torch.allclose(expected, got, atol=1e-5)


def test_losses_are_fp32_under_bf16(config, batch):
    model = C2FMAEForPreTraining(config)
    expected = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch)
    assert outputs.loss.dtype == torch.float32
    assert torch.allclose(outputs.loss, expected.loss, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision(config, batch, tmp_path, dtype):
    model = C2FMAEForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    half = C2FMAEForPreTraining.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {p.dtype for p in half.parameters()} == {dtype}
    assert not half.decoder.pos_embed.requires_grad
    assert torch.allclose(half(**batch).loss.float(), model(**batch).loss, rtol=0.03)
    features = half.c2fmae(batch["pixel_values"]).last_hidden_state
    assert features.dtype == dtype


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(8, 1, 32, 32)}, r"pixel_values: expected shape \(batch_size, 3.*got \(8, 1"),
        ({"pixel_values": torch.zeros(8, 3, 40, 32)}, r"expected images of \(32, 32\).*got \(40, 32\)"),
        ({"bool_masked_pos": torch.zeros(8, 9, dtype=torch.bool)}, r"bool_masked_pos: expected .*\(8, 16\)"),
        ({"bool_masked_pos": torch.zeros(8, 16)}, r"bool_masked_pos: expected a bool tensor.*got torch.float32"),
        ({"bool_masked_pos": torch.eye(8, 16).cumsum(0) > 0}, r"the same number of masked patches .* got 1 to 8"),
        ({"semantic_labels": torch.zeros(8, 32, 32, dtype=torch.long)}, r"semantic_labels: expected .*8, 8.*got"),
        (
            {"semantic_labels": torch.full((8, 8, 8), 5)},
            r"semantic_labels: expected class ids .*=5\).*got \[\d, 5\]",
        ),
        ({"semantic_labels": torch.full((8, 8, 8), -1)}, r"semantic_labels: expected class ids .*got \[-1, -1\]"),
        ({"instance_labels": torch.zeros(8, 8, 8)}, r"instance_labels: expected shape \(8, 3, 8, 8\)"),
        ({"semantic_labels": None}, r"semantic_labels: expected labels to train the semantic stage.*got None"),
    ],
)
def test_bad_input_is_named(model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        model.train()(**{**batch, **change})


@pytest.mark.parametrize(
    ("size", "message"), [((4, 64), "at least one patch"), ((36, 32), r"divisible by patch_size=8, got 36 x 32")]
)
def test_bad_size_is_named(model, size, message):
    with pytest.raises(ValueError, match=message):
        model.c2fmae(torch.zeros(1, 3, *size), interpolate_pos_encoding=True)


def test_segmentation_of_one_class_is_refused(config, batch):
    model = C2FMAEForSemanticSegmentation(with_fields(config, num_labels=1))
    with pytest.raises(ValueError, match="num_labels: expected at least 2"):
        model(batch["pixel_values"], labels=torch.zeros(8, 32, 32, dtype=torch.long))


# Pipelines


def test_pipelines_on_saved_folders(config, tmp_path, monkeypatch):
    errors = []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", errors.append)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    config = with_fields(config, num_labels=3)
    for model_class in (C2FMAEModel, C2FMAEForImageClassification, C2FMAEForSemanticSegmentation):
        model_class(config).save_pretrained(tmp_path / model_class.__name__)
        C2FMAEImageProcessor.from_config(config).save_pretrained(tmp_path / model_class.__name__)
    features = pipeline("image-feature-extraction", model=str(tmp_path / "C2FMAEModel"))(image)
    assert np.array(features).shape == (1, 17, 32)
    classes = pipeline("image-classification", model=str(tmp_path / "C2FMAEForImageClassification"))(image)
    assert sum(c["score"] for c in classes) == pytest.approx(1, abs=1e-3)
    segment = pipeline("image-segmentation", model=str(tmp_path / "C2FMAEForSemanticSegmentation"))
    masks = segment(image, subtask="semantic")
    assert {mask["mask"].size for mask in masks} == {(70, 50)}
    assert np.sum([np.asarray(mask["mask"]) > 0 for mask in masks]) == 50 * 70
    alike = segment(image)
    assert [part["label"] for part in alike] == [part["label"] for part in masks]
    assert all(np.array_equal(np.asarray(a["mask"]), np.asarray(b["mask"])) for a, b in zip(alike, masks))
    assert all(1 / 3 < part["score"] <= 1 for part in alike)
    assert not errors  # such as that the class is not supported


# The feature pyramid


def test_feature_pyramid(config):
    config = with_fields(config, num_hidden_layers=4, add_fpn=True, out_features=[f"stage{i}" for i in range(1, 5)])
    model = C2FMAEBackbone(config)
    for size in ((32, 32), (40, 24)):
        maps = model(torch.randn(2, 3, *size)).feature_maps
        rows, columns = size[0] // 8, size[1] // 8
        expected = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns)]
        expected.append((-(-rows // 2), -(-columns // 2)))
        assert [tuple(level.shape) for level in maps] == [(2, 32, *side) for side in expected]
    sum(level.square().mean() for level in maps).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == ["c2fmae.pos_embed"]


def test_feature_pyramid_needs_four_maps(config):
    with pytest.raises(ValueError, match=r"C2FMAEConfig.add_fpn: expected one or four out_features.*'stage2'"):
        C2FMAEBackbone(with_fields(config, add_fpn=True, out_features=["stage1", "stage2"]))


def test_upernet_on_a_pretrained_encoder(config, tmp_path):
    """UperNet of transformers over the pyramid, from a pre-training checkpoint, saved and loaded again."""
    pretrained = C2FMAEForPreTraining(with_fields(config, num_hidden_layers=4))
    pretrained.save_pretrained(tmp_path / "pretraining")
    backbone = C2FMAEConfig.from_pretrained(
        tmp_path / "pretraining", out_features=[f"stage{i}" for i in range(1, 5)], add_fpn=True
    )
    upernet = UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_in_channels=32, auxiliary_channels=16, num_labels=3
    )
    model = UperNetForSemanticSegmentation(upernet)
    model.backbone = C2FMAEBackbone.from_pretrained(tmp_path / "pretraining", config=backbone)
    weight = model.backbone.c2fmae.blocks[3].attn.qkv.weight
    assert torch.equal(weight, pretrained.c2fmae.blocks[3].attn.qkv.weight)
    pixel_values, labels = torch.randn(2, 3, 40, 32), torch.randint(0, 3, (2, 40, 32))
    outputs = model(pixel_values, labels=labels)
    assert outputs.logits.shape == (2, 3, 40, 32)
    outputs.loss.backward()
    unused = [name for name, parameter in model.backbone.named_parameters() if parameter.grad is None]
    assert unused == ["c2fmae.pos_embed"]
    model.save_pretrained(tmp_path / "upernet")
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "upernet")
    with torch.no_grad():
        assert torch.allclose(again.eval()(pixel_values).logits, model.eval()(pixel_values).logits, atol=1e-5)
    assert not again.backbone.c2fmae.pos_embed.requires_grad  # loading makes every other parameter trainable


# Speed


def test_embedding_visible_patches_alone_changes_nothing(model, batch):
    encoder = model.c2fmae.double()
    pixels = batch["pixel_values"].double()
    patch_ids = torch.rand(len(pixels), model.config.num_patches).argsort(dim=1)[:, :5]
    results = []
    for tokens in (
        encoder.patch_embed(pixels, patch_ids),
        encoder.patch_embed(pixels).gather(1, patch_ids[..., None].expand(-1, -1, model.config.hidden_size)),
    ):
        encoder.zero_grad()
        tokens.square().sum().backward()
        results.append([tokens.detach(), *(p.grad.clone() for p in encoder.patch_embed.parameters())])
    torch.testing.assert_close(*results)


def test_a_given_count_of_masked_patches_is_held_on_the_cpu_and_trusted_elsewhere(model, batch):
    mask = batch["bool_masked_pos"]
    number = int(mask[0].sum())
    assert losses_of(model(**batch, num_masked=number)) == losses_of(model(**batch))
    with pytest.raises(ValueError, match=f"expected num_masked={number - 1} in each row, got {number}"):
        model(**batch, num_masked=number - 1)
    # A meta tensor has no values: reading them fails.
    assert count_masked(model.config, mask.to("meta"), *mask.shape, number) == number


# Another image size at loading


@pytest.mark.parametrize("size", [64, (24, 48), [32, 32]], ids=str)
@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, C2FMAEModel),
        (AutoModelForPreTraining, C2FMAEForPreTraining),
        (AutoModelForImageClassification, C2FMAEForImageClassification),
        (AutoModelForSemanticSegmentation, C2FMAEForSemanticSegmentation),
        (C2FMAEBackbone, C2FMAEBackbone),
    ],
    ids=lambda one: one.__name__,
)
def test_positions_follow_the_image_size_at_loading(config, tmp_path, auto_class, model_class, size):
    """Positions equal those of interpolation, however the size is given, and are saved with the model."""
    config.id2label = {0: "a", 1: "b"}
    model = model_class(config).eval()
    for module in model.modules():
        if hasattr(module, "pos_embed"):
            module.pos_embed += torch.randn_like(module.pos_embed)  # positions unlike the formula's
    model.save_pretrained(tmp_path)
    height, width = (size, size) if isinstance(size, int) else size
    inputs = {"pixel_values": torch.randn(2, 3, height, width)}
    if model_class is C2FMAEForPreTraining:
        inputs["bool_masked_pos"] = torch.arange(height * width // 64)[None].repeat(2, 1) % 4 > 0

    def output(one, **options):
        outputs = one.eval()(**inputs, **options)
        if model_class is C2FMAEBackbone:
            return outputs.feature_maps[-1]
        return outputs.image_logits if model_class is C2FMAEForPreTraining else outputs[0]

    expected = output(model, interpolate_pos_encoding=True)
    other = copy.deepcopy(config)
    other.image_size = size
    loaded = [
        model_class.from_pretrained(tmp_path, image_size=size),
        auto_class.from_pretrained(str(tmp_path), image_size=size),
        model_class.from_pretrained(tmp_path, config=other),
        model_class.from_pretrained(tmp_path, config=config, image_size=size),
    ]
    loaded[0].save_pretrained(tmp_path / "again")
    for one in (*loaded, auto_class.from_pretrained(str(tmp_path / "again"))):
        assert type(one) is model_class
        assert one.config.image_height_width == (height, width)
        assert torch.allclose(output(one, interpolate_pos_encoding=False), expected, atol=1e-5)
    assert other.image_size == size  # the caller's is unchanged


def test_an_image_size_that_does_not_fit_is_named(config, tmp_path):
    model = C2FMAEForPreTraining(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image_size: expected multiples of patch_size=8, got 36"):
        C2FMAEForPreTraining.from_pretrained(tmp_path, image_size=36)
    for size in ((32, 20), 48.0, "48"):
        with pytest.raises(ValueError, match="image_size: expected"):
            model.resize_positions(size)
    assert model.config.image_size == 32


def test_offloaded_weights_are_named(config, tmp_path):
    C2FMAEForPreTraining(config).save_pretrained(tmp_path / "model")
    model = C2FMAEForPreTraining.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": "20KB"}, offload_folder=tmp_path / "offloaded"
    )
    for use in (model.image_encoder, lambda: model.resize_positions(64)):
        with pytest.raises(ValueError, match=r"device_map: expected weights in memory to .*, got offloaded ones"):
            use()
    assert model.config.image_size == 32


def test_other_granularities_name_the_way_out(config, tmp_path):
    C2FMAEForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Its decoder predicts other granularities.*--model_name_or_path"):
        AutoModelForPreTraining.from_pretrained(tmp_path, granularities=["image"], loss_weights={"image": 1.0})
    C2FMAEModel(config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"It has no decoder.*--model_name_or_path"):
        C2FMAEForPreTraining.from_pretrained(tmp_path / "encoder")


# Inputs and settings as in other people's scripts


def test_labels_as_json_has_them(config, tmp_path, batch):
    """Ids may be strings, as in transformers' classification example."""
    C2FMAEModel(config).save_pretrained(tmp_path / "encoder")
    names = {0: "cat", 1: "dog"}
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path / "encoder", num_labels=2, id2label={"0": "cat", "1": "dog"}, label2id={"cat": "0", "dog": "1"}
    )
    model.save_pretrained(tmp_path / "classifier")
    for one in (model.config, AutoConfig.from_pretrained(tmp_path / "classifier")):
        assert (one.id2label, one.label2id) == (names, {"cat": 0, "dog": 1})
    model.config.id2label = {"0": "left", "1": "right"}  # later
    model.save_pretrained(tmp_path / "later")
    saved = json.loads((tmp_path / "later/config.json").read_text())
    assert saved["label_names"] == ["left", "right"]
    model.config.id2label = {3: "three", 7: "seven"}  # not the numbers of outputs
    model.save_pretrained(tmp_path / "sparse")
    assert AutoConfig.from_pretrained(tmp_path / "sparse").id2label == {3: "three", 7: "seven"}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (
            "bool_masked_pos",
            r"bool_masked_pos: expected a bool tensor of shape \(8, 16\), got torch.bool of shape \(3, 16\)",
        ),
        ("semantic_labels", r"semantic_labels: expected shape \(8, 8, 8\), .* got \(3, 8, 8\)"),
        ("instance_labels", r"instance_labels: expected shape \(8, 3, 8, 8\), .* got \(3, 3, 8, 8\)"),
    ],
)
def test_another_number_of_rows_is_named(model, batch, field, expected):
    with pytest.raises(ValueError, match=expected):
        model(**{**batch, field: batch[field][:3]})
    with pytest.raises(ValueError, match=f"{field}: expected"):  # a single row would be repeated silently
        model(**{**batch, field: batch[field][:1]})


def test_without_the_pooling_layer(config, tmp_path):
    C2FMAEModel(config).save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 32, 32)
    pooled, plain = (
        AutoModel.from_pretrained(tmp_path, **options).eval()(pixel_values)
        for options in ({}, {"add_pooling_layer": False})
    )
    assert plain.pooler_output is None
    assert pooled.pooler_output is not None
    assert torch.equal(plain.last_hidden_state, pooled.last_hidden_state)


@pytest.mark.parametrize("size", [(96, 133), (32, 33), (5, 40), (64, 64)], ids=str)
@pytest.mark.parametrize("add_fpn", [False, True])
def test_a_backbone_pads_to_whole_patches(config, size, add_fpn):
    """DETR passes images of any size; features equal those of an image padded by hand."""
    config = with_fields(config, num_hidden_layers=4, add_fpn=add_fpn, out_indices=[1, 2, 3, 4])
    backbone = C2FMAEBackbone(config).eval()
    height, width = size
    pixel_values = torch.randn(2, 3, height, width)
    padded = torch.zeros(2, 3, -(-height // 8) * 8, -(-width // 8) * 8)
    padded[..., :height, :width] = pixel_values
    maps, expected = (backbone(one).feature_maps for one in (pixel_values, padded))
    strides = (2, 4, 8, 16) if add_fpn else (8,) * 4
    for one, other, stride in zip(maps, expected, strides):
        shape = (-(-height // stride), -(-width // stride))
        assert one.shape == (2, 32, *shape)
        assert torch.equal(one, other[..., : shape[0], : shape[1]])


def test_detr_takes_the_backbone_at_any_size(config, tmp_path):
    config = with_fields(config, out_indices=[2])
    detr = DetrForObjectDetection(
        DetrConfig(
            backbone_config=config,
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=3,
        )
    )
    processor = DetrImageProcessor(size={"shortest_edge": 50, "longest_edge": 83})
    photos = [np.zeros((40, 70, 3), np.uint8), np.zeros((61, 47, 3), np.uint8)]
    batch = processor(photos, return_tensors="pt")
    assert detr.eval()(**batch).logits.shape[:2] == (2, 3)


@pytest.mark.parametrize(
    "model_class",
    [C2FMAEModel, C2FMAEForPreTraining, C2FMAEForImageClassification, C2FMAEForSemanticSegmentation, C2FMAEBackbone],
)
def test_weights_may_lie_on_the_disk(model_class, config, batch, tmp_path):
    """`device_map` places every weight, including positions and patch projection."""
    model = model_class(with_fields(config, num_labels=3)).eval()
    model.save_pretrained(tmp_path / "saved")
    where = {"device_map": "auto", "max_memory": {"cpu": "50KB"}, "offload_folder": str(tmp_path / "disk")}
    other = model_class.from_pretrained(tmp_path / "saved", **where).eval()
    assert "disk" in other.hf_device_map.values()
    inputs = {"pixel_values": batch["pixel_values"]}
    if model_class is C2FMAEForPreTraining:
        inputs["bool_masked_pos"] = batch["bool_masked_pos"]
    with torch.no_grad():
        expected, got = (one(**inputs).to_tuple() for one in (model, other))
    for first, second in zip(expected, got):
        if isinstance(first, torch.Tensor):
            assert torch.allclose(first, second, atol=1e-5)
    other.save_pretrained(tmp_path / "again")
    again = model_class.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("base", "name"), [(C2FMAEForImageClassification, "head"), (C2FMAEModel, "norm")])
def test_a_subclass_s_module_that_a_file_could_not_tell_from_ours_is_refused(config, tmp_path, base, name):
    """If two weights had one name, a file would keep only one of them."""

    class Around(C2FMAEForImageClassification if base is not C2FMAEModel else C2FMAEForSemanticSegmentation):
        def __init__(self, config, own):
            super().__init__(config)
            setattr(self, own, torch.nn.LayerNorm(7))
            if own == name:
                with pytest.raises(ValueError, match=rf"Around: expected modules with other names than \['{name}'\]"):
                    self.post_init()

    model = Around(with_fields(config, num_labels=3), name)
    with pytest.raises(ValueError, match="expected modules with other names"):  # also without `post_init`
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    fine = Around(with_fields(config, num_labels=3), "more")
    fine.save_pretrained(tmp_path)
    assert {"more.weight", "norm.weight"} <= set(load_file(tmp_path / "model.safetensors"))
    state = load_file(tmp_path / "model.safetensors")
    again = Around(with_fields(config, num_labels=3), "more")
    again.load_state_dict(state)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in fine.state_dict().items())
    again.load_state_dict(fine.state_dict())  # and its own names


def test_a_key_mapping_of_one_s_own_comes_before_ours(config, tmp_path):
    model = C2FMAEForImageClassification(with_fields(config, num_labels=3))
    model.save_pretrained(tmp_path)
    state = {f"student.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    again = C2FMAEForImageClassification.from_pretrained(tmp_path, key_mapping={r"^student\.": ""})
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    again.save_pretrained(tmp_path / "again")
    assert "head.weight" in load_file(tmp_path / "again/model.safetensors")


def test_fewer_granularities_than_a_checkpoint_s_get_a_hint(config, tmp_path):
    C2FMAEForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"loss_weights: expected .*to continue pre-training with other granularities: c2fmae"
    ):
        AutoModelForPreTraining.from_pretrained(tmp_path, granularities=["image"])
