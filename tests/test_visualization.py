"""Figures: written whole, of the expected size, and showing what they should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining, C2FMAEImageProcessor
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.pictures.colours import colour_ids
from c2fmae_hf.pictures.reconstruction import draw_curves, draw_reconstruction


@pytest.mark.parametrize("granularities", [["semantic", "instance", "image"], ["image"], ["semantic"]])
def test_reconstruction(config, dataset, tmp_path, granularities):
    config = C2FMAEConfig(
        **{
            **config.to_dict(),
            "granularities": granularities,
            "loss_weights": None,
            "semantic_id2label": {0: "ground", 3: "green"},
        }
    )
    model = C2FMAEForPreTraining(config).train()
    batch = DataCollatorForC2FMAE(config, return_diagnostics=True)([dataset[i] for i in range(3)])
    processor = C2FMAEImageProcessor.from_config(config)
    draw_reconstruction(model, batch, processor, tmp_path / "figures" / "reconstruction.png", title="three rows")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["reconstruction.png"]
    image = np.asarray(Image.open(tmp_path / "figures" / "reconstruction.png").convert("RGB"))
    panels = 2 + 2 * ("semantic" in granularities) + 2 * ("instance" in granularities) + ("image" in granularities)
    assert image.shape[1] == round(max(1.75 * panels, 9) * 120)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    assert model.training  # as it was


def test_curves(tmp_path):
    history = [
        {"step": s, "loss": 3.0, "semantic_loss": 2 / s, "image_loss": 1 / s, "curriculum_semantic": 1 - s / 10}
        for s in range(1, 10)
    ]
    history.append({"step": 9, "eval_semantic_loss": 0.4, "eval_image_loss": 0.2})
    draw_curves(history, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] == 360 * 3
    with pytest.raises(ValueError, match="log_history: expected entries with losses"):
        draw_curves([{"step": 1}], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_colours():
    ids = np.array([[0, 1, -100], [8, 16, 47]])
    colours = colour_ids(ids, background=0)
    assert colours[0, 0].tolist() == [30, 30, 30]
    assert colours[0, 2].tolist() == [222, 222, 222]
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 6
