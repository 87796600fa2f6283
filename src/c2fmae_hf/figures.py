"""Colours, and figures as PNG files. Drawing needs the `viz` extra (matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .constants import IGNORE_INDEX
from .files import replace_file


if TYPE_CHECKING:
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


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "c2fmae-hf[viz]"') from error
    # Without pyplot: no global state, no display.
    return Figure(figsize=(width, height), dpi=100)


def _legend_columns(width: float, names: Collection[str]) -> int:
    """How many class names of font size 9 fit beside each other in `width` inches."""
    longest = max((len(name) for name in names), default=0)
    return max(int(width / (0.5 + 0.07 * longest)), 1)


def draw_legend(figure: Figure, colours: Mapping[str, np.ndarray], bottom: float, lines: int = 1) -> None:
    """Class names in so many lines; those that do not fit are left out."""
    from matplotlib.patches import Patch

    columns = _legend_columns(figure.get_figwidth(), colours)
    handles = [Patch(color=tuple(colour / 255), label=name) for name, colour in colours.items()][: lines * columns]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, bottom),
        ncols=columns,
        fontsize=9,
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


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png")
