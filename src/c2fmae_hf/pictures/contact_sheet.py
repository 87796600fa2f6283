"""A contact sheet: photographs of a dataset with their label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..constants import IGNORE_INDEX
from .captions import class_legend, short_name
from .colours import colour_classes, colour_instances
from .figures import draw_grid


_THUMBNAIL = (320, 320)


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
    pictures: list[np.ndarray | None] = [_join(sample) for sample in samples]
    names = [short_name(sample["image_id"]) for sample in samples]
    empty = -len(samples) % columns
    pictures, names = [*pictures, *[None] * empty], [*names, *[""] * empty]
    starts = range(0, len(pictures), columns)
    draw_grid(
        [pictures[start : start + columns] for start in starts],
        path,
        cell_names=[names[start : start + columns] for start in starts],
        legend=class_legend(*((sample.get("semantic"), id2label or {}) for sample in samples)),
        title=title,
        note="Photograph, semantic map, instance map. Light grey: ignored; nearly black: no instance.",
        width=4.8 * columns,
    )


def _join(sample: Mapping[str, Any]) -> np.ndarray:
    """Photograph and maps side by side, small."""
    nothing = np.full(sample["image"].shape[:2], IGNORE_INDEX)
    maps = [colour_classes(sample.get("semantic", nothing)), colour_instances(sample.get("instance", nothing))]
    panels = []
    for pixels, how in zip([sample["image"], *maps], ("BOX", "NEAREST", "NEAREST")):
        thumbnail = Image.fromarray(pixels)
        thumbnail.thumbnail(_THUMBNAIL, Image.Resampling[how])
        panels.append(np.pad(np.asarray(thumbnail), ((0, 0), (0, 4), (0, 0)), constant_values=255))
    return np.pad(np.concatenate(panels, axis=1), ((0, 0), (0, 16), (0, 0)), constant_values=255)
