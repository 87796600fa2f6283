"""Continued pre-training: what is taken over from a model, what is new, and what does not fit."""

from __future__ import annotations

import json

import datasets
import pytest
import timm
import torch
from transformers import (
    AutoModel,
    BeitConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from c2fmae_hf import C2FMAEConfig, C2FMAEForImageClassification, C2FMAEForPreTraining, C2FMAEModel
from c2fmae_hf.data.rows import count_semantic_classes
from c2fmae_hf.interop.conversion import convert_to_c2fmae
from c2fmae_hf.interop.starting_point import load_starting_point
from c2fmae_hf.publishing.repository import save_repository
from testing_utils import load_command, make_rows


NAMES = {0: "ground", 1: "red", 2: "green", 3: "blue", 4: "white"}
HEAD = "decoder.stages.semantic.head.weight"


@pytest.fixture
def start(config, tmp_path) -> tuple[str, C2FMAEForPreTraining]:
    """A pre-training checkpoint with positions that no formula gives."""
    config.semantic_id2label = NAMES
    model = C2FMAEForPreTraining(config).eval()
    for part in (model.c2fmae, model.decoder):
        part.pos_embed += torch.randn_like(part.pos_embed)
    model.save_pretrained(tmp_path / "start")
    return str(tmp_path / "start"), model


@pytest.fixture
def said(caplog):
    caplog.set_level("INFO")

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name.endswith("starting_point")]
        caplog.clear()
        return found

    return lines


def same(one: C2FMAEForPreTraining, other: C2FMAEForPreTraining) -> set[str]:
    """Parts of two models that are equal."""
    mine, others = one.state_dict(), other.state_dict()
    names = [name for name in mine if name in others and mine[name].shape == others[name].shape]
    return {name for name in names if torch.equal(mine[name], others[name])}


def test_the_same_settings_take_everything(start, said, batch):
    folder, model = start
    again = load_starting_point(folder, num_semantic_classes=5, semantic_id2label=NAMES)
    assert again.training
    assert len(same(model, again)) == len(model.state_dict())
    assert torch.equal(again.eval()(**batch).loss, model(**batch).loss)
    assert said() == [f"Starting from {folder}: its encoder and its decoder."]


ASSUMED = (
    "Kept: the semantic head; the dataset's unnamed classes are taken to be the first of its 5. For a new head, "
    "set another number with --num_semantic_classes."
)


@pytest.mark.parametrize(
    ("fields", "is_kept", "line"),
    [
        ({"num_semantic_classes": 5, "semantic_id2label": NAMES}, True, None),
        ({"num_semantic_classes": 5}, True, None),
        ({"num_semantic_classes": 5, "semantic_id2label": {**NAMES, 4: "black"}}, False, "for other names."),
        ({"num_semantic_classes": 7}, False, "for 7 classes instead of 5."),
        ({"num_semantic_classes": 3}, False, "for 3 classes instead of 5."),
        ({"num_semantic_classes": 2, "semantic_id2label": {0: "a", 1: "b"}}, False, "for 2 classes instead of 5."),
        ({"counted_classes": 7}, False, "for 7 classes instead of 5."),
        ({"counted_classes": 3}, True, ASSUMED),
    ],
    ids=str,
)
def test_other_classes_get_another_head(start, said, fields, is_kept, line):
    folder, model = start
    other = load_starting_point(folder, **fields)
    kept = same(model, other)
    lines = said()
    assert (HEAD in kept) is is_kept
    assert ("decoder.stages.semantic.prediction_embed.cell.weight" in kept) is is_kept
    new = set(model.state_dict()) - kept
    assert all(".semantic.head." in name or ".semantic.prediction_embed." in name for name in new)
    expected = [] if line is None else [line if line == ASSUMED else f"New: semantic head, {line}"]
    assert lines[1:] == expected
    number = fields.get("num_semantic_classes", fields.get("counted_classes"))
    assert other.config.num_semantic_classes == (5 if is_kept else number)
    assert other.config.semantic_id2label == (NAMES if is_kept else fields.get("semantic_id2label"))


@pytest.mark.parametrize("size", [64, (24, 48)])
def test_another_image_size_resamples_positions(start, said, size):
    folder, model = start
    larger = load_starting_point(folder, image_size=size).eval()
    height, width = (size, size) if isinstance(size, int) else size
    assert larger.config.image_height_width == (height, width)
    inputs = {
        "pixel_values": torch.randn(2, 3, height, width),
        "semantic_labels": torch.randint(0, 5, (2, height // 4, width // 4)),
        "instance_labels": torch.rand(2, 3, height // 4, width // 4),
        "bool_masked_pos": torch.arange(height * width // 64)[None].repeat(2, 1) % 4 > 0,
    }
    expected = model(**inputs, interpolate_pos_encoding=True)
    assert torch.allclose(larger(**inputs).loss, expected.loss, atol=1e-6)
    assert f"Resampled: positions, from 32 x 32 to {width} x {height} pixels." in said()


def test_other_granularities_leave_stages_out_or_add_them(start, said, tmp_path):
    folder, model = start
    image = load_starting_point(folder, granularities=["image"])
    lines = said()
    assert "Left out: semantic stage." in lines
    assert "Left out: instance stage." in lines
    assert set(same(model, image)) == set(image.state_dict())
    assert list(image.config.loss_weights) == ["image"]
    image.save_pretrained(tmp_path / "image")
    whole = load_starting_point(str(tmp_path / "image"), granularities=["semantic", "instance", "image"])
    assert whole.config.loss_weights == {"semantic": 1 / 3, "instance": 1 / 3, "image": 1.0}  # the defaults
    lines = said()
    assert "New: semantic stage." in lines
    assert "New: instance stage." in lines
    missing = set(whole.state_dict()) - same(image, whole)
    assert {name.split(".")[2] for name in missing} == {"semantic", "instance"}


@pytest.mark.parametrize(
    "fields", [{"decoder_hidden_size": 48}, {"decoder_num_attention_heads": 2}], ids=lambda fields: next(iter(fields))
)
def test_another_decoder_is_new_as_a_whole(start, said, fields):
    folder, model = start
    with torch.no_grad():  # so that nothing is as it began
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.01)
    model.save_pretrained(folder)
    other = load_starting_point(folder, **fields)
    # But for what every decoder begins with: zeros, ones, and positions by their formula.
    fresh = C2FMAEForPreTraining(other.config).state_dict()
    constant = {name for name, value in fresh.items() if torch.equal(value, other.state_dict()[name])}
    assert {name for name in same(model, other) if name.startswith("decoder.")} <= constant
    assert {name for name in model.state_dict() if name.startswith("c2fmae.")} <= same(model, other)
    lines = said()
    assert lines[0] == f"Starting from {folder}: its encoder, with a new decoder."
    assert lines[1].startswith(f"Changed: {next(iter(fields))} ")
    assert len(lines) == 2


def test_settings_of_training_are_changed_and_said(start, said):
    folder, model = start
    other = load_starting_point(folder, mask_ratio=0.5, norm_pix_loss=False)
    assert len(same(model, other)) == len(model.state_dict())
    assert (other.config.mask_ratio, other.config.norm_pix_loss) == (0.5, False)
    assert "Changed: mask_ratio 0.75 -> 0.5, norm_pix_loss True -> False." in said()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, "hidden_size: expected 32, as in the encoder of .*, got 64"),
        ({"patch_size": 16}, "patch_size: expected 8"),
        ({"num_channels": 4}, "num_channels: expected 3"),
        ({"image_size": 36}, "image_size"),
        ({"label_stride": 3}, "label_stride"),
    ],
)
def test_what_does_not_fit_is_an_error(start, fields, message):
    with pytest.raises(ValueError, match=message):
        load_starting_point(start[0], **fields)


SIZES = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384}


def save_encoder(kind: str, folder) -> tuple[str, dict[str, torch.Tensor]]:
    """An encoder's folder or file, and its weights as C2FMAE has them."""
    shape = {"image_size": 32, "patch_size": 16}
    own = C2FMAEConfig(**SIZES, **shape)
    if kind == "c2fmae":
        model = C2FMAEModel(own)
        model.save_pretrained(folder)
        return str(folder), model.state_dict()
    if kind == "classifier":
        model = C2FMAEForImageClassification(own)
        model.save_pretrained(folder)
        return str(folder), model.c2fmae.state_dict()
    if kind == "published":
        model = C2FMAEModel(own)
        save_repository(model, folder)
        return str(folder), model.state_dict()
    if kind in ("timm", "pth"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0, mlp_ratio=2.0)
        if kind == "pth":
            torch.save({"model": model.state_dict()}, folder.with_suffix(".pth"))
            model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
            torch.save({"model": model.state_dict()}, folder.with_suffix(".pth"))
            return str(folder.with_suffix(".pth")), convert_to_c2fmae(model).state_dict()
        timm.models.save_for_hf(
            model,
            folder,
            model_config={"num_features": 192},
            safe_serialization=True,
            model_args={"img_size": 32, "depth": 2, "mlp_ratio": 2.0},
        )
        return str(folder), convert_to_c2fmae(model).state_dict()
    model_class, config_class = {"vit": (ViTModel, ViTConfig), "vit_mae": (ViTMAEForPreTraining, ViTMAEConfig)}[kind]
    model = model_class(config_class(**SIZES, **shape))
    model.save_pretrained(folder)
    if kind == "vit":
        ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    encoder = model if kind == "vit" else model.vit
    return str(folder), convert_to_c2fmae(model if kind == "vit" else encoder, encoder_only=True).state_dict()


@pytest.mark.parametrize("kind", ["c2fmae", "classifier", "published", "vit", "vit_mae", "timm", "pth"])
def test_an_encoder_gets_a_new_decoder(kind, tmp_path, said):
    source, weights = save_encoder(kind, tmp_path / "encoder")
    model = load_starting_point(source, num_semantic_classes=4)
    assert f"Starting from {source}: its encoder, with a new decoder." in said()
    mine = model.c2fmae.state_dict()
    assert set(mine) == set(weights)
    assert all(torch.equal(mine[name], value) for name, value in weights.items())
    assert model.config.num_semantic_classes == 4
    # That of the size, or what a C2FMAE encoder's own configuration describes.
    is_own = kind in ("c2fmae", "classifier", "published")
    assert model.config.decoder_hidden_size == (512 if is_own else 192)
    assert model.config.image_mean == ([0.5] * 3 if kind in ("vit", "timm") else C2FMAEConfig().image_mean)


def test_another_kind_of_model_is_refused(tmp_path):
    AutoModel.from_config(BeitConfig(**SIZES, image_size=32, patch_size=16)).save_pretrained(tmp_path / "beit")
    with pytest.raises(ValueError, match="source: expected C2FMAE, timm, ViT or ViTMAE, got one of type 'beit'"):
        load_starting_point(str(tmp_path / "beit"))
    with pytest.raises(FileNotFoundError, match="expected a saved model"):
        load_starting_point(str(tmp_path))


def test_the_command_goes_on_with_another_dataset_at_another_size(start, tmp_path, said):
    folder, _ = start
    rows = make_rows(12, num_classes=3)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(4))}).save_to_disk(tmp_path / "rows")
    words = [
        *(str(tmp_path / "rows"), "--model_name_or_path", folder, "--image_size", "48", "--max_steps", "2"),
        *("--num_semantic_classes", "9", "--output_dir", str(tmp_path / "run"), "--use_cpu", "--num_drawn", "0"),
        *("--per_device_train_batch_size", "4", "--disable_tqdm", "true"),
    ]
    load_command("pretrain").main(words)
    lines = said()
    assert "Resampled: positions, from 32 x 32 to 48 x 48 pixels." in lines
    assert "New: semantic head, for 9 classes instead of 5." in lines
    config = C2FMAEForPreTraining.from_pretrained(tmp_path / "run/c2fmae-vit-custom-pretraining").config
    assert (config.image_size, config.num_semantic_classes, config.patch_size) == (48, 9, 8)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["starting_encoder"] != record["encoder"]
    with pytest.raises(ValueError, match="hidden_size: expected 32, as in the encoder of"):
        load_command("pretrain").main([*words, "--size", "base", "--output_dir", str(tmp_path / "other")])


def test_wrong_names_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: expected a file of weights, found nothing"):
        load_starting_point("nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"found no folder 'vit_tiny.* 'timm/vit_tiny_patch16_224"):
        load_starting_point("vit_tiny_patch16_224")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    torch.save(model.state_dict(), tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"expected the weights of timm's vit_tiny_patch16_224") as raised:
        load_starting_point(str(tmp_path / "short.pth"))
    assert len(str(raised.value)) < 700


def test_classes_of_held_out_rows_count_too(tmp_path):
    """A class that is in the held-out rows alone must not stop the run when it is evaluated."""
    rows = make_rows(8, num_classes=3)
    highest = make_rows(4, num_classes=9)
    datasets.DatasetDict({"train": rows, "validation": highest}).save_to_disk(tmp_path / "rows")
    words = [
        *(str(tmp_path / "rows"), "--size", "tiny", "--image_size", "32", "--max_steps", "1", "--use_cpu"),
        *("--num_drawn", "0", "--disable_tqdm", "true"),
    ]
    small = '"num_hidden_layers": 1, "patch_size": 8'
    trainer = load_command("pretrain").main(
        [*words, "--config_overrides", f"{{{small}}}", "--output_dir", str(tmp_path / "run")]
    )
    assert (
        trainer.model.config.num_semantic_classes == count_semantic_classes([highest]) > count_semantic_classes([rows])
    )
    overrides = f'{{{small}, "num_semantic_classes": 12}}'
    trainer = load_command("pretrain").main(
        [*words, "--config_overrides", overrides, "--output_dir", str(tmp_path / "other")]
    )
    assert trainer.model.config.num_semantic_classes == 12


def test_an_image_only_checkpoint_goes_on_without_maps(start, tmp_path):
    image = load_starting_point(start[0], granularities=["image"])
    image.save_pretrained(tmp_path / "image")
    rows = make_rows(8).select_columns(["image", "image_id"])
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(2))}).save_to_disk(tmp_path / "rows")
    trainer = load_command("pretrain").main(
        [
            *(str(tmp_path / "rows"), "--model_name_or_path", str(tmp_path / "image"), "--max_steps", "1"),
            *("--output_dir", str(tmp_path / "run"), "--use_cpu", "--num_drawn", "0", "--disable_tqdm", "true"),
        ]
    )
    assert trainer.model.config.granularities == ["image"]
    assert trainer.state.global_step == 1
