"""Colours of label maps, without matplotlib."""

from __future__ import annotations

import numpy as np

from ..constants import IGNORE_INDEX, NO_INSTANCE


# For classes Okabe and Ito's palette, for instances Paul Tol's light one; both are safe for colour-blind readers.
# Further ids repeat the colours in other tones, then blended with others: 192 ids differ, some of them little.
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
_INSTANCE_PALETTE = np.array(
    [
        [238, 136, 102],
        [119, 170, 221],
        [238, 221, 136],
        [68, 187, 153],
        [255, 170, 187],
        [187, 204, 51],
        [153, 221, 255],
        [170, 170, 0],
    ],
    dtype=np.float64,
)
_TONES = np.array([1.0, 0.62, 1.38, 0.8, 1.2, 0.45])
_BLENDS = np.array([[0, 0, 0, 0], [255, 40, 40, 0.45], [40, 255, 40, 0.45], [90, 40, 255, 0.45]])  # RGB and share
UNKNOWN_COLOUR = (222, 222, 222)
_BACKGROUND_COLOUR = (30, 30, 30)


def _colour(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    rounds = ids // len(palette)
    tone = _TONES[rounds % len(_TONES)][..., None]
    blend = _BLENDS[rounds // len(_TONES) % len(_BLENDS)]
    share = blend[..., 3:]
    colours = np.clip(palette[ids % len(palette)] * tone, 0, 255) * (1 - share) + blend[..., :3] * share
    colours[ids == IGNORE_INDEX] = UNKNOWN_COLOUR
    return colours.astype(np.uint8)


def colour_classes(ids: np.ndarray) -> np.ndarray:
    """Colour a map of class ids: `(height, width, 3)`, uint8; -100 is light grey."""
    return _colour(ids, PALETTE)


def colour_instances(ids: np.ndarray) -> np.ndarray:
    """Colour a map of instance ids: `(height, width, 3)`, uint8; 0 (none) is nearly black, -100 light grey."""
    colours = _colour(np.where(ids > NO_INSTANCE, ids - 1, ids), _INSTANCE_PALETTE)
    colours[ids == NO_INSTANCE] = _BACKGROUND_COLOUR
    return colours


def colour_of(label: int) -> np.ndarray:
    """The colour of one class id, `(3,)`, uint8."""
    return colour_classes(np.array([label]))[0]


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat each pixel of `(height, width, ...)` as a square of `factor` x `factor`."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
