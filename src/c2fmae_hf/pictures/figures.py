"""Colours, and figures as PNG files. Drawing needs the `viz` extra (matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..constants import IGNORE_INDEX
from ..utils.files import replace_file


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette, which colour-blind readers can tell apart; further ids repeat it in other tones.
PALETTE = np.array(
    [
        [0, 114, 178],
        [230, 159, 0],
        [0, 158, 115],
        [204, 121, 167],
        [86, 180, 233],
        [213, 94, 0],
        [240, 228, 66],
        [110, 110, 110],
    ],
    dtype=np.float64,
)
_TONES = (1.0, 0.62, 1.38, 0.8, 1.2, 0.45)
UNKNOWN_COLOUR = (222, 222, 222)
_BACKGROUND_COLOUR = (30, 30, 30)
_NEEDS_MATPLOTLIB = 'figures need matplotlib: pip install "c2fmae-hf[viz]"'


def colour_ids(ids: np.ndarray, background: int | None = None) -> np.ndarray:
    """
    Colours of a map of ids.

    Args:
        ids: `(height, width)`; -100 is drawn light grey.
        background (`int`, *optional*): The id that is drawn nearly black.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, uint8.
    """
    tone = np.asarray(_TONES)[(ids // len(PALETTE)) % len(_TONES)][..., None]
    colours = np.clip(PALETTE[ids % len(PALETTE)] * tone, 0, 255)
    colours[ids == IGNORE_INDEX] = UNKNOWN_COLOUR
    if background is not None:
        colours[ids == background] = _BACKGROUND_COLOUR
    return colours.astype(np.uint8)


def free_colours(taken: Collection[int], number: int) -> list[np.ndarray]:
    """
    As many colours `(3,)` uint8 as possible that no id of `taken` has in [`colour_ids`], the clearest first; after
    those, all of them once more.
    """
    all_ids = np.arange(len(PALETTE) * len(_TONES))
    used = {tuple(colour) for colour in colour_ids(np.array(sorted(taken), dtype=np.int64))}
    colours = colour_ids(all_ids)
    free = [colour for colour in colours if tuple(colour) not in used] or list(colours)
    return [free[index % len(free)] for index in range(number)]


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values `(...)` in [0, 1] in cividis, from dark blue to yellow, which the colour-blind see: `(..., 3)` uint8."""
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise ImportError(_NEEDS_MATPLOTLIB) from error
    return (colormaps["cividis"](values)[..., :3] * 255).round().astype(np.uint8)


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(_NEEDS_MATPLOTLIB) from error
    # Without pyplot: no global state, no display.
    return Figure(figsize=(width, height), dpi=dpi)


def _legend_columns(width: float, names: Collection[str], fontsize: float = 9) -> int:
    """How many class names of a font size fit beside each other in `width` inches."""
    longest = max((len(name) for name in names), default=0)
    return max(int(width / ((0.5 + 0.07 * longest) * fontsize / 9)), 1)


def draw_legend(
    figure: Figure, colours: Mapping[str, np.ndarray], bottom: float, lines: int = 1, fontsize: float = 9
) -> None:
    """Class names in so many lines; those that do not fit are left out."""
    from matplotlib.patches import Patch

    columns = _legend_columns(figure.get_figwidth(), colours, fontsize)
    handles = [Patch(color=tuple(colour / 255), label=name) for name, colour in colours.items()][: lines * columns]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, bottom),
        ncols=columns,
        fontsize=fontsize,
        frameon=False,
        borderaxespad=0.0,
        columnspacing=1.2,
    )


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
    pictures = next(iter(panels.values()))
    number = len(pictures)
    width = max(1.75, 9 / len(panels))
    aspect = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    lines = min(-(-len(legend or {}) // _legend_columns(width * len(panels), legend or {})), 3)
    figure = new_figure(width * len(panels) + 0.1, width * min(aspect, 1.5) * number + 0.95 + 0.25 * lines)
    axes = figure.subplots(number, len(panels), squeeze=False)
    for column, (name, images) in enumerate(panels.items()):
        axes[0, column].set_title(name, fontsize=11)
        for row, image in enumerate(images):
            axes[row, column].imshow(image, interpolation="nearest")
            axes[row, column].set_axis_off()
    height = figure.get_figheight()
    if legend:
        draw_legend(figure, legend, bottom=0.27 / height, lines=lines)
    figure.text(0.01, 0.08 / height, note, fontsize=9, va="bottom")
    if title:
        figure.suptitle(title, fontsize=12, x=0.01, y=1 - 0.08 / height, ha="left", va="top")
    figure.subplots_adjust(
        left=0.01,
        right=0.99,
        top=1 - 0.6 / height,
        bottom=(0.35 + 0.25 * lines) / height,
        wspace=0.03,
        hspace=0.03,
    )
    save_figure(figure, path)


# Of figures that are shown at half their size, on a telephone: 960 pixels wide, with large letters.
GRID_WIDTH, GRID_DPI, GRID_FONT = 8.0, 120, 15
_MAX_LEGEND_LINES = 4


def new_canvas(height: float) -> tuple[Figure, Axes]:
    """
    A figure of the grid's width with one invisible pair of axes in inches, the origin at the lower left: pictures are
    placed in it with [`place_picture`]. Axes of their own take most of a figure's time.
    """
    figure = new_figure(GRID_WIDTH, height, GRID_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, GRID_WIDTH)
    axes.set_ylim(0, height)
    axes.set_autoscale_on(False)
    return figure, axes


def place_picture(axes: Axes, picture: np.ndarray, x: float, y: float, width: float, height: float) -> None:
    """A picture `(h, w, 3)` uint8 with its lower left corner at (x, y), in inches."""
    extent = (x, x + width, y, y + height)
    axes.imshow(picture, extent=extent, aspect="auto", interpolation="antialiased")


def draw_grid(
    cells: Sequence[Sequence[np.ndarray | None]],
    path: str | os.PathLike,
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    legend: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> None:
    """
    A PNG of rows of pictures, which stays readable at half its size. A row is as high as its highest picture; narrower
    and lower ones stand in the middle of their place.

    Args:
        cells: Rows of pictures `(height, width, 3)`, uint8, as many in each; `None` leaves a place empty.
        path: Where to write.
        column_names, row_names (*optional*): Above the first row, and to the left of each.
        legend (*optional*): Colours `(3,)`, uint8, by name, the most important first; four lines are shown, and how
            many names were left out.
        title (`str`): Above all, in small letters.
    """
    legend = legend or {}
    left = 0.42 if row_names else 0.02
    columns = len(cells[0])
    gap = 0.06
    side = (GRID_WIDTH - left - 0.02 - gap * (columns - 1)) / columns
    side = min(side, 2.6)
    shapes = [[picture.shape[0] / picture.shape[1] for picture in row if picture is not None] for row in cells]
    heights = [side * max(aspects, default=1.0) for aspects in shapes]
    legend_font = GRID_FONT - 1
    per_line = _legend_columns(GRID_WIDTH, legend, legend_font)
    lines = min(-(-len(legend) // per_line), _MAX_LEGEND_LINES)
    surplus = len(legend) - lines * per_line
    if surplus > 0:
        legend = dict(list(legend.items())[: -surplus - 1])
        legend[f"and {surplus + 1} more"] = np.full(3, 255)
    top = (0.08 + 0.2 * (1 + title.count("\n")) if title else 0.05) + (0.29 if column_names else 0)
    bottom = 0.05 + (0.12 + 0.27 * lines if lines else 0)
    height = top + bottom + sum(heights) + gap * (len(cells) - 1)
    figure, axes = new_canvas(height)
    for line, (row, row_height) in enumerate(zip(cells, heights)):
        y = height - top - sum(heights[: line + 1]) - line * gap
        for column, picture in enumerate(row):
            x = left + column * (side + gap)
            middle = (x + side / 2, y + row_height / 2)
            if picture is not None:
                own = side * picture.shape[0] / picture.shape[1]
                place_picture(axes, picture, x, middle[1] - own / 2, side, own)
            if line == 0 and column_names:
                above = y + row_height + 0.05
                axes.text(middle[0], above, column_names[column], fontsize=GRID_FONT, ha="center", va="bottom")
            if column == 0 and row_names:
                axes.text(0.2, middle[1], row_names[line], fontsize=GRID_FONT, rotation=90, ha="center", va="center")
    if legend:
        draw_legend(figure, legend, bottom=0.05 / height, lines=lines, fontsize=legend_font)
    if title:
        figure.text(0.02 / GRID_WIDTH, 1 - 0.05 / height, title, fontsize=11, ha="left", va="top", color="#444444")
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png")
