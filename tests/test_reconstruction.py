"""Figures: written whole, of the expected size, and showing what they should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining, C2FMAEImageProcessor
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.pictures import reconstruction
from c2fmae_hf.pictures.colours import colour_classes, colour_instances
from c2fmae_hf.pictures.figures import LegendEntry, new_grid, save_figure
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
    assert image.shape[1] == round(max(1.4 * panels, 8) * 120)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    assert model.training  # as it was


def test_curves(tmp_path):
    history = [
        {"step": s, "loss": 3.0, "semantic_loss": 2 / s, "image_loss": 1 / s, "masked_semantic": 1 - s / 10}
        for s in range(1, 10)
    ]
    history.append({"step": 9, "eval_semantic_loss": 0.4, "eval_image_loss": 0.2})
    draw_curves(history, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (960, 900)  # two lines of two
    with pytest.raises(ValueError, match="log_history: expected entries with losses"):
        draw_curves([{"step": 1}], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_colours():
    ids = np.array([[0, 1, -100], [8, 16, 47]])
    colours = colour_instances(ids)
    assert colours[0, 0].tolist() == [30, 30, 30]
    assert colours[0, 2].tolist() == [222, 222, 222]
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 6


@pytest.mark.parametrize("colour", [colour_classes, colour_instances])
def test_as_many_colours_as_classes(colour):
    """COCO's panoptic maps have 133 classes, ADE20K's 150."""
    assert len(np.unique(colour(np.arange(1, 151)), axis=0)) == 150


def read_by_line(figure) -> list[str]:
    """A legend's names as they are read: line by line, from left to right."""
    figure.draw_without_rendering()
    places = [
        (-round(text.get_window_extent().y0), text.get_window_extent().x0, text.get_text())
        for text in figure.legends[0].get_texts()
    ]
    return [name for _, _, name in sorted(places)]


def test_the_legend_lies_below_the_pictures():
    picture = np.zeros((20, 20, 3), dtype=np.uint8)
    legend = {f"class {i}": LegendEntry(np.full(3, 7 * i)) for i in range(17)}
    figure = new_grid([[picture, picture]], legend=legend, note="a note")
    assert read_by_line(figure) == list(legend)
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    axes = figure.axes[0]
    bottom = axes.transData.transform((0, min(image.get_extent()[2] for image in axes.images)))[1]
    assert box.y1 <= bottom
    (note,) = [text for text in axes.texts if text.get_text() == "a note"]
    assert note.get_window_extent().y1 <= box.y0 + 2


def test_legends_of_curves_cover_no_line(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(reconstruction, "save_figure", lambda figure, path: drawn.append(figure))
    losses = [f"{prefix}{name}_loss" for prefix in ("", "eval_") for name in ("semantic", "instance", "image")]
    history = [{"step": step, "knn_accuracy": 0.1, **dict.fromkeys(losses, 1 / step)} for step in range(1, 5)]
    draw_curves(history, tmp_path / "curves.png", "a title")
    (figure,) = drawn
    figure.draw_without_rendering()
    titles = [axis.get_title() for axis in figure.axes if axis.axison]
    assert titles == ["semantic loss", "instance loss", "image loss", "masking, share of images", "k-NN accuracy"]
    legends = [axis.get_legend().get_window_extent() for axis in figure.axes if axis.axison]
    for legend in legends:
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert not any(legend.overlaps(axis.bbox) for axis in figure.axes if axis.axison)


def test_grid(tmp_path):
    red, blue = (np.full((10, 20, 3), colour, dtype=np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    legend = {f"a class, number {i:2}": LegendEntry(np.zeros(3), area=i % 20) for i in range(40)}
    figure = new_grid([[red, None], [None, blue]], ["one", "two"], legend=legend)
    shown = read_by_line(figure)
    # Four lines of three, in the legend's order, without those that cover least.
    assert [int(name[-2:]) for name in shown[:-1]] == [15, 16, 17, 18, 19, 34, 35, 36, 37, 38, 39]
    assert shown[-1] == "and 29 more"
    save_figure(figure, tmp_path / "grid.png")
    image = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    rows = np.flatnonzero((image[:, 240] == [255, 0, 0]).all(axis=-1))
    assert len(rows) == pytest.approx(235, abs=3)  # half as high as wide
    assert (image[rows, 720] == 255).all()  # an empty place
    assert (image[rows[20:-20] + 242, 720] == [0, 0, 255]).all()
    assert (image[rows[-1] + 100, 240] == 255).all()
