"""Figures: written whole, of the expected size, and showing what they should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining, C2FMAEImageProcessor
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.pictures.colours import colour_instances
from c2fmae_hf.pictures.figures import new_grid, save_figure
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
        {"step": s, "loss": 3.0, "semantic_loss": 2 / s, "image_loss": 1 / s, "masked_semantic": 1 - s / 10}
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
    colours = colour_instances(ids)
    assert colours[0, 0].tolist() == [30, 30, 30]
    assert colours[0, 2].tolist() == [222, 222, 222]
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 6


def test_grid(tmp_path):
    red, blue = (np.full((10, 20, 3), colour, dtype=np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    legend = {f"a class, number {i:2}": np.zeros(3) for i in range(40)}
    figure = new_grid([[red, None], [None, blue]], ["one", "two"], legend=legend)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (names[0], names[6:]) == ("a class, number  0", ["a class, number  6", "and 33 more"])  # four lines of two
    save_figure(figure, tmp_path / "grid.png")
    image = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    rows = np.flatnonzero((image[:, 240] == [255, 0, 0]).all(axis=-1))
    assert len(rows) == pytest.approx(235, abs=3)  # half as high as wide
    assert (image[rows, 720] == 255).all()  # an empty place
    assert (image[rows[20:-20] + 242, 720] == [0, 0, 255]).all()
    assert (image[rows[-1] + 100, 240] == 255).all()
