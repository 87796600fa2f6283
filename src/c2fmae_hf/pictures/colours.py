"""Colours of label maps, without matplotlib."""

from __future__ import annotations

import numpy as np

from ..constants import IGNORE_INDEX


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
_TONES = np.array([1.0, 0.62, 1.38, 0.8, 1.2, 0.45])
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
    tone = _TONES[(ids // len(PALETTE)) % len(_TONES)][..., None]
    colours = np.clip(PALETTE[ids % len(PALETTE)] * tone, 0, 255)
    colours[ids == IGNORE_INDEX] = UNKNOWN_COLOUR
    if background is not None:
        colours[ids == background] = _BACKGROUND_COLOUR
    return colours.astype(np.uint8)


def colour_of(label: int) -> np.ndarray:
    """Colour `(3,)`, uint8, of one id in [`colour_ids`]."""
    return colour_ids(np.array([label]))[0]


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel of `(height, width, ...)` as a square of `factor` x `factor`."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
