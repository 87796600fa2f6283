"""Figures as PNG files, drawn without pyplot: no global state, no display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import replace_file
from ..utils.packages import require


require("matplotlib", "drawing")
from matplotlib import colormaps  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402


# Readable at half their size, on a telephone: 960 pixels wide, with large letters.
GRID_WIDTH, GRID_DPI, GRID_FONT = 8.0, 120, 15
_GAP, _LINE, _MAX_LEGEND_LINES = 0.06, 0.27, 4


def heat_colours(weights: np.ndarray) -> np.ndarray:
    """
    Weights `(...)`, not negative, in cividis, from dark blue (0) to yellow (their maximum): `(..., 3)` uint8. By
    square roots: otherwise a single patch that draws most of the attention hides the others.
    """
    scaled = np.sqrt(weights / max(weights.max(), 1e-12))
    return (colormaps["cividis"](scaled)[..., :3] * 255).round().astype(np.uint8)


def new_figure(width: float, height: float, dpi: int = 100, **options: Any) -> Figure:
    """A figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=dpi, **options)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG; the folder is made if it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png")


def new_grid(
    cells: Sequence[Sequence[np.ndarray | None]],
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    cell_names: Sequence[Sequence[str]] = (),
    legend: Mapping[str, np.ndarray] | None = None,
    title: str = "",
    note: str = "",
    width: float = GRID_WIDTH,
    below: float = 0.0,
) -> Figure:
    """
    A figure of rows of pictures. A row is as high as its highest picture; lower ones stand in the middle.

    Args:
        cells: Rows of pictures `(height, width, 3)`, uint8, as many in each; `None` leaves a place empty.
        column_names, row_names, cell_names (*optional*): Above the first row, left of each row, below each picture.
        legend (*optional*): Colours `(3,)`, uint8, by name, the most important first; four lines are shown, and how
            many names were left out.
        title, note (`str`): In small letters, above and below all.
        width, below (`float`): Inches; `below` stays free at the bottom.
    """
    columns = len(cells[0])
    left = 0.42 if row_names else 0.02
    side = (width - left - 0.02 - _GAP * (columns - 1)) / columns
    heights = [side * max(one.shape[0] / one.shape[1] for one in row if one is not None) for row in cells]
    under = 0.26 if cell_names else 0.0
    font = min(GRID_FONT, 72 * side / (0.52 * max(map(len, column_names), default=1)))

    legend = dict(legend or {})
    per_line = max(int(width / (0.78 + 0.11 * max(map(len, legend), default=0))), 1)
    room = _MAX_LEGEND_LINES * per_line
    if len(legend) > room:
        hidden = len(legend) - room + 1
        legend = {**dict(list(legend.items())[:-hidden]), f"and {hidden} more": np.full(3, 255)}
    lines = -(-len(legend) // per_line)

    top = (0.08 + 0.2 * len(title.splitlines()) if title else 0.05) + (0.29 if column_names else 0)
    bottom = below + 0.05 + (0.2 if note else 0) + (0.12 + _LINE * lines if lines else 0)
    height = top + sum(heights) + under * len(cells) + _GAP * (len(cells) - 1) + bottom
    figure = new_figure(width, height, GRID_DPI)
    # One pair of axes in inches for all pictures: axes of their own would take most of the time.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    y = height - top
    for line, (row, row_height) in enumerate(zip(cells, heights)):
        y -= row_height
        for column, picture in enumerate(row):
            x = left + column * (side + _GAP)
            if picture is not None:
                own = side * picture.shape[0] / picture.shape[1]
                low = y + (row_height - own) / 2
                axes.imshow(picture, extent=(x, x + side, low, low + own), aspect="auto", interpolation="antialiased")
            if cell_names:
                axes.text(x + side / 2, y - 0.05, cell_names[line][column], fontsize=12, ha="center", va="top")
            if line == 0 and column_names:
                above = y + row_height + 0.05
                axes.text(x + side / 2, above, column_names[column], fontsize=font, ha="center", va="bottom")
        if row_names:
            middle = y + row_height / 2
            axes.text(0.2, middle, row_names[line], fontsize=GRID_FONT, rotation=90, ha="center", va="center")
        y -= under + _GAP
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    small: dict[str, Any] = {"x": 0.02, "fontsize": 11, "color": "#444444"}
    axes.text(y=height - 0.05, s=title, va="top", **small)
    axes.text(y=below + 0.05, s=note, va="bottom", **small)
    figure.legend(
        handles=[Patch(color=tuple(colour / 255), label=name) for name, colour in legend.items()],
        loc="lower left",
        bbox_to_anchor=(0.0, (below + (0.25 if note else 0.05)) / height),
        ncols=per_line,
        fontsize=GRID_FONT - 1,
        frameon=False,
        borderaxespad=0.0,
        columnspacing=1.2,
    )
    return figure


def draw_grid(cells: Sequence[Sequence[np.ndarray | None]], path: str | os.PathLike, **options: Any) -> None:
    """A PNG of [`new_grid`]."""
    save_figure(new_grid(cells, **options), path)


def draw_panels(
    panels: Mapping[str, Sequence[np.ndarray]],
    path: str | os.PathLike,
    legend: Mapping[str, np.ndarray] | None = None,
    note: str = "",
    title: str = "",
) -> None:
    """
    A PNG with a column for each name and a row for each picture.

    Args:
        panels: Pictures `(height, width, 3)`, uint8, by column; as many in each.
        path: Where to write.
        legend (*optional*): Colours `(3,)`, uint8, by name.
        note, title (`str`): Below and above.
    """
    options = {"legend": legend, "note": note, "title": title, "width": max(1.75 * len(panels), 9)}
    draw_grid(list(zip(*panels.values())), path, column_names=list(panels), **options)
