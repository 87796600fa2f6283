"""The zoo's weights that are in this repository: whole, small, what their card says, the same in both libraries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from c2fmae_hf import C2FMAEForPreTraining
from c2fmae_hf.pictures.photographs import embedded_photographs
from testing_utils import require_timm_local_dir


CARDS = Path(__file__).resolve().parents[1] / "model_cards"
WEIGHTS = [CARDS / name for name in ("c2fmae-vit-small-patch8-128", "c2fmae-vit-tiny-stl10")]
of_weights = pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)


@pytest.fixture
def pixel_values(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    return processor(list(embedded_photographs().values()), return_tensors="pt")["pixel_values"]


def test_all_weights_are_tested():
    assert sorted(path.parent for path in CARDS.glob("*/config.json")) == WEIGHTS


@of_weights
def test_the_card_is_what_the_command_gives(folder):
    spec = importlib.util.spec_from_file_location("build_cards", CARDS / "build.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (folder / "README.md").read_text(encoding="utf-8") == str(script.build_of_weights(folder))
    assert f"({folder.name}/README.md)" in (CARDS / "README.md").read_text(encoding="utf-8")


@of_weights
def test_files(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".md", ".png", ""}  # no pickles
    assert sum(path.stat().st_size for path in files) < 50e6
    assert (folder / "predictions.png").stat().st_size < 150e3
    assert "non-commercial" in (folder / "LICENSE").read_text(encoding="utf-8")


@of_weights
@require_timm_local_dir
def test_the_same_features_in_both_libraries(folder, pixel_values):
    ours = AutoModel.from_pretrained(folder).eval()
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        expected = ours(pixel_values)
        torch.testing.assert_close(
            theirs.forward_features(pixel_values), expected.last_hidden_state, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(theirs(pixel_values), expected.pooler_output, atol=1e-5, rtol=0)


@of_weights
def test_they_were_trained(folder, pixel_values):
    """On unseen photographs, hidden pixels are predicted better than by the mean of each patch (loss 1)."""
    trained = AutoModelForPreTraining.from_pretrained(folder).eval()
    assert trained.dtype == torch.float32  # ready to fine-tune, however the file stores it
    assert {"cat", "dog"} <= set(trained.config.semantic_id2label.values())
    torch.manual_seed(0)
    untrained = C2FMAEForPreTraining(trained.config).eval()
    masks = (
        torch.rand(len(pixel_values), trained.config.num_patches).argsort(dim=1) < trained.config.num_patches * 3 // 4
    )
    with torch.no_grad():
        losses = [model(pixel_values, masks).image_loss for model in (trained, untrained)]
    assert losses[0] < 0.8
    assert losses[1] > 0.95
