"""A contact sheet: photographs of a dataset with their label maps."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..constants import IGNORE_INDEX, NO_INSTANCE
from .figures import colour_ids, draw_legend, new_figure, save_figure


def draw_contact_sheet(
    samples: list[dict[str, Any]],
    path: str | Path,
    id2label: Mapping[int, str] | None = None,
    title: str = "",
    columns: int = 3,
) -> None:
    """
    A PNG of rows of a dataset: photograph, coloured semantic map, coloured instance map.

    Args:
        samples: From [`validate_dataset`].
        path: Where to write.
        id2label (`dict[int, str]`, *optional*): Names for the legend.
        title (`str`): Head line.
        columns (`int`): Samples side by side.
    """
    lines = -(-len(samples) // columns)
    figure = new_figure(4.8 * columns, 1.75 * lines + 1.0)
    height = figure.get_figheight()
    # Three panels and a gap for each sample.
    grid = figure.subplots(lines, 4 * columns, squeeze=False, width_ratios=[1, 1, 1, 0.12] * columns)
    area: collections.Counter[int] = collections.Counter()
    for axes in grid.flat:
        axes.set_axis_off()
    for number, sample in enumerate(samples):
        line, column = divmod(number, columns)
        panels = [sample["image"]]
        for name, background in (("semantic", None), ("instance", NO_INSTANCE)):
            ids = sample.get(name, np.full(sample["image"].shape[:2], IGNORE_INDEX))
            panels.append(colour_ids(ids, background=background))
            if name == "semantic":
                area.update(dict(zip(*(part.tolist() for part in np.unique(ids[ids >= 0], return_counts=True)))))
        for axes, panel in zip(grid[line, 4 * column : 4 * column + 3], panels):
            thumbnail = Image.fromarray(panel)
            thumbnail.thumbnail(
                (320, 320), Image.Resampling.NEAREST if panel is not panels[0] else Image.Resampling.BOX
            )
            axes.imshow(np.asarray(thumbnail), interpolation="nearest")
        name = sample["image_id"]
        name = name if len(name) <= 40 else f"...{name[-37:]}"
        grid[line, 4 * column].set_title(name, fontsize=8, loc="left")
    if id2label and area:
        commonest = [index for index, _ in area.most_common() if index in id2label]
        legend = {id2label[index]: colour_ids(np.array([[index]]))[0, 0] for index in commonest}
        draw_legend(figure, legend, bottom=0.27 / height)
    figure.text(
        0.01,
        0.08 / height,
        "Photograph, semantic map, instance map. Light grey: ignored; nearly black: no instance. "
        "Legend: the commonest classes.",
        fontsize=9,
        va="bottom",
    )
    if title:
        figure.suptitle(title, fontsize=12, x=0.01, y=1 - 0.08 / height, ha="left", va="top")
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.55 / height, bottom=0.6 / height, wspace=0.03, hspace=0.18)
    save_figure(figure, path)
