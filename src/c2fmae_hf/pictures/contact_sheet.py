"""A contact sheet: photographs of a dataset with their label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..constants import IGNORE_INDEX
from .captions import class_legend, short_name
from .colours import colour_classes, colour_instances
from .figures import draw_grid


_SIDE, _WIDTH = 320, 4.8
_COLUMN_NAMES = ("photograph", "semantic", "instance")


def draw_contact_sheet(
    samples: list[dict[str, Any]],
    path: str | Path,
    id2label: Mapping[int, str] | None = None,
    title: str = "",
    columns: int = 2,
) -> None:
    """
    Write a PNG of rows of a dataset: photograph, coloured semantic map, coloured instance map.

    Args:
        samples: From [`validate_dataset`].
        path: Where to write.
        id2label (`dict[int, str]`, *optional*): Names for the legend.
        title (`str`): Small text above.
        columns (`int`): Samples side by side.
    """
    cells, names = sheet_cells(samples, columns)
    draw_grid(
        cells,
        path,
        column_names=_COLUMN_NAMES * (len(cells[0]) // len(_COLUMN_NAMES)),
        cell_names=names,
        legend=class_legend(*((sample.get("semantic"), id2label or {}) for sample in samples)),
        title=title,
        note="Light grey: ignored. Nearly black: no instance.",
        width=_WIDTH * columns,
        group=len(_COLUMN_NAMES),
    )


def sheet_cells(samples: list[dict[str, Any]], columns: int) -> tuple[list[list[np.ndarray | None]], list[list[str]]]:
    """
    Pictures and names by row of the sheet, three cells a sample. Pictures are 320 pixels wide and at most as high, so
    that columns are aligned whatever the photographs' aspect; tall ones have white margins.
    """
    cells: list[list[np.ndarray | None]] = []
    names: list[list[str]] = []
    for index, sample in enumerate(samples):
        if index % columns == 0:
            cells.append([])
            names.append([])
        nothing = np.full(sample["image"].shape[:2], IGNORE_INDEX)
        semantic, instance = (sample.get(name, nothing) for name in ("semantic", "instance"))
        cells[-1] += [
            _fit(sample["image"], Image.Resampling.BOX),
            _fit(colour_classes(semantic), Image.Resampling.NEAREST),
            _fit(colour_instances(instance), Image.Resampling.NEAREST),
        ]
        names[-1] += ["", short_name(sample["image_id"], 36), ""]
    empty = -len(samples) % columns * len(_COLUMN_NAMES)
    cells[-1] += [None] * empty
    names[-1] += [""] * empty
    return cells, names


def _fit(pixels: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    picture = ImageOps.contain(Image.fromarray(pixels), (_SIDE, _SIDE), resampling)
    return np.asarray(ImageOps.pad(picture, (_SIDE, picture.height), color="white"))
