"""Figures as PNG files, drawn without pyplot: no global state, no display."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..utils.files import replace_file
from ..utils.packages import require


require("matplotlib", "drawing")
from matplotlib import colormaps  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402


# 960 pixels wide with large letters, to be readable on a phone.
GRID_WIDTH, GRID_DPI, GRID_FONT = 8.0, 120, 15
_GAP, _GROUP_GAP, _LINE, _MAX_LEGEND_LINES = 0.06, 0.2, 0.27, 4


class LegendEntry(NamedTuple):
    """A colour `(3,)`, uint8, and how many label cells have it."""

    colour: np.ndarray
    area: int = 0


def heat_colours(weights: np.ndarray) -> np.ndarray:
    """
    Colour weights `(...)`, not negative, with cividis, from dark blue (0) to yellow (the largest): `(..., 3)` uint8.
    The scale is that of their square roots, so that one patch with most of the attention does not hide the others.
    """
    scaled = np.sqrt(weights / max(weights.max(), 1e-12))
    return (colormaps["cividis"](scaled)[..., :3] * 255).round().astype(np.uint8)


def new_figure(width: float, height: float, dpi: int = 100, **options: Any) -> Figure:
    """A figure of `width` x `height` inches."""
    return Figure(figsize=(width, height), dpi=dpi, **options)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG; a missing folder is created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png")


def new_grid(
    cells: Sequence[Sequence[np.ndarray | None]],
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    cell_names: Sequence[Sequence[str]] = (),
    legend: Mapping[str, LegendEntry] | None = None,
    title: str = "",
    note: str = "",
    width: float = GRID_WIDTH,
    below: float = 0.0,
    group: int | None = None,
) -> Figure:
    """
    A figure of rows of pictures. A row is as high as its highest picture; lower ones are centred.

    Args:
        cells: Rows of pictures `(height, width, 3)`, uint8, the same number in each; `None` leaves a place empty.
        column_names, row_names, cell_names (*optional*): Above the first row, left of each row, below each picture.
        legend (*optional*): Entries by name, read line by line below the pictures. If they need more than four lines,
            those with the smallest areas are left out, and the last entry says how many.
        title, note (`str`): Small text above and below the figure.
        width, below (`float`): Inches; `below` stays free at the bottom.
        group (`int`, *optional*): A wider gap follows every `group` columns.
    """
    columns = len(cells[0])
    left = 0.42 if row_names else 0.02
    indents = [column // (group or columns) * _GROUP_GAP for column in range(columns)]
    side = (width - left - 0.02 - indents[-1] - _GAP * (columns - 1)) / columns
    heights = [side * max(one.shape[0] / one.shape[1] for one in row if one is not None) for row in cells]
    under = 0.26 if cell_names else 0.0
    lines_of_names = [line for name in column_names for line in name.splitlines()]
    font = min(GRID_FONT, 72 * side / (0.55 * max(map(len, lines_of_names), default=1)))
    name_lines = max((len(name.splitlines()) for name in column_names), default=0)

    legend = dict(legend or {})
    room = _MAX_LEGEND_LINES * max(int(width / _entry_width(legend)), 1)
    if len(legend) > room:
        areas = {name: entry.area for name, entry in legend.items()}
        hidden = sorted(areas, key=areas.__getitem__)[: len(legend) - room + 1]
        legend = {name: entry for name, entry in legend.items() if name not in hidden}
        legend[f"and {len(hidden)} more"] = LegendEntry(np.full(3, 255))
    per_line = _legend_columns(list(legend), width)
    lines = -(-len(legend) // per_line)

    top = (0.08 + 0.2 * len(title.splitlines()) if title else 0.05) + 0.02 + 0.27 * name_lines
    bottom = below + 0.05 + (0.2 if note else 0) + (0.15 + _LINE * lines if lines else 0)
    height = top + sum(heights) + under * len(cells) + _GAP * (len(cells) - 1) + bottom
    figure = new_figure(width, height, GRID_DPI)
    # One pair of axes, in inches, for all pictures: separate axes would take most of the time.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    y = height - top
    for line, (row, row_height) in enumerate(zip(cells, heights)):
        y -= row_height
        for column, picture in enumerate(row):
            x = left + column * (side + _GAP) + indents[column]
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
    handles = [Patch(color=tuple(entry.colour / 255), label=name) for name, entry in legend.items()]
    figure.legend(
        # Matplotlib fills column by column; this order reads line by line.
        handles=[handle for column in range(per_line) for handle in handles[column::per_line]],
        loc="lower left",
        bbox_to_anchor=(0.0, (below + (0.25 if note else 0.05)) / height),
        ncols=per_line,
        fontsize=GRID_FONT - 1,
        handlelength=1,
        frameon=False,
        borderaxespad=0.0,
        columnspacing=1.2,
    )
    return figure


def _entry_width(names: Iterable[str]) -> float:
    """Inches that the longest of these names needs in a legend."""
    return 0.58 + 0.11 * max(map(len, names), default=0)


def _legend_columns(names: Sequence[str], width: float) -> int:
    """The most columns of a legend that fit into `width` inches if each is as wide as its longest name."""
    for columns in range(len(names), 1, -1):
        if sum(_entry_width(names[column::columns]) for column in range(columns)) <= width:
            return columns
    return 1


def draw_grid(cells: Sequence[Sequence[np.ndarray | None]], path: str | os.PathLike, **options: Any) -> None:
    """Write [`new_grid`] as a PNG."""
    save_figure(new_grid(cells, **options), path)


def draw_panels(
    panels: Mapping[str, Sequence[np.ndarray]],
    path: str | os.PathLike,
    legend: Mapping[str, LegendEntry] | None = None,
    note: str = "",
    title: str = "",
) -> None:
    """
    Write a PNG with a column for each name and a row for each picture.

    Args:
        panels: Pictures `(height, width, 3)`, uint8, by column; the same number in each.
        path: Where to write.
        legend (*optional*): As for [`new_grid`].
        note, title (`str`): Small text below and above.
    """
    options = {"legend": legend, "note": note, "title": title, "width": max(1.4 * len(panels), GRID_WIDTH)}
    draw_grid(list(zip(*panels.values())), path, column_names=list(panels), **options)
