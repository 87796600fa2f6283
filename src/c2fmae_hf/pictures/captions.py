"""Headlines, facts and legends of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration_c2fmae import C2FMAEConfig
from .colours import colour_classes, colour_of, enlarge
from .figures import LegendEntry, draw_grid
from .views import Photo, ViewedModel, count_masked


@dataclass(frozen=True)
class Facts:
    """
    What a picture shows.

    Args:
        checkpoints, images: Names.
        masked (*optional*): Numbers of masked patches and of all patches of a photograph.
        seed (`int`, *optional*): Seed of the masks.
    """

    checkpoints: Sequence[str]
    images: Sequence[str]
    masked: tuple[int, int] | None = None
    seed: int | None = None

    def headline(self) -> str:
        """One or two short lines for the picture itself."""
        checkpoints = "  ".join(_numbered([short_name(name) for name in self.checkpoints]))
        parts = [short_name(self.images[0]) if len(self.images) == 1 else f"{len(self.images)} images"]
        if self.masked is not None:
            parts.append(f"{self.masked[0] / self.masked[1]:.0%} masked")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        line = " | ".join([checkpoints, *parts])
        return line if len(line) <= 86 else f"{checkpoints}\n{' | '.join(parts)}"

    def entries(self) -> dict[str, str]:
        """All facts by name, for the page."""
        images = ", ".join(self.images)
        entries = {
            "checkpoint": ", ".join(_numbered(self.checkpoints)),
            "image": images if len(self.images) == 1 else f"{len(self.images)} images: {images}",
        }
        if self.masked is not None:
            entries["masked"] = masked_share(*self.masked)
        if self.seed is not None:
            entries["seed"] = str(self.seed)
        return entries


@dataclass(frozen=True)
class Picture:
    """
    A picture and its texts.

    Args:
        path (`Path`): The PNG.
        title (`str`): A few words.
        caption (`str`): What is seen.
        facts ([`Facts`]): What it shows.
    """

    path: Path
    title: str
    caption: str
    facts: Facts


def draw_picture(
    cells: Sequence[Sequence[np.ndarray | None]], path: Any, title: str, caption: str, facts: Facts, **options: Any
) -> Picture:
    """Draw a grid under its headline; `options` are those of [`~c2fmae_hf.pictures.figures.new_grid`]."""
    draw_grid(cells, path, title=facts.headline(), **options)
    return Picture(Path(path), title, caption, facts)


def masked_facts(viewed: ViewedModel, photo: Photo, seed: int, mask_ratio: float | None) -> Facts:
    """Facts of one masked photograph."""
    masked = count_masked(viewed.config, mask_ratio), viewed.config.num_patches
    return Facts([viewed.name], [photo.name], masked, seed)


def masked_share(num_masked: int, num_patches: int) -> str:
    """Say it in words, such as `147 of 196 patches (75%)`."""
    return f"{num_masked} of {num_patches} patches ({num_masked / num_patches:.0%})"


def _numbered(names: Sequence[str]) -> Sequence[str]:
    return names if len(names) == 1 else [f"{number}: {name}" for number, name in enumerate(names, 1)]


def short_name(name: str, limit: int = 40) -> str:
    """Shorten a name to `limit` characters by cutting out its middle."""
    return name if len(name) <= limit else f"{name[: limit // 3]}...{name[-(limit - limit // 3 - 3) :]}"


def sentences(*parts: str) -> str:
    """Join the parts that are not empty."""
    return " ".join(filter(None, parts))


def photo_pixels(viewed: ViewedModel, photo: Photo) -> np.ndarray:
    """The photograph as the model sees it, `(H, W, 3)` uint8."""
    return viewed.processor.to_pixels(photo.pixel_values[None])[0]


def map_picture(
    ids: np.ndarray | None, config: C2FMAEConfig, colour: Callable[[np.ndarray], np.ndarray] = colour_classes
) -> np.ndarray | None:
    """Colour a map of ids and enlarge it from the label grid to the photograph's size."""
    return None if ids is None else enlarge(colour(ids), config.label_stride)


def class_legend(*maps: tuple[np.ndarray | None, Mapping[int, str]]) -> dict[str, LegendEntry]:
    """
    Legend of the classes that occur in maps, in the order of their ids.

    Args:
        maps: Class ids, and names of the classes to list.
    """
    area: Counter[tuple[int, str]] = Counter()
    for ids, names in maps:
        for label, count in zip(*np.unique(np.array([]) if ids is None else ids, return_counts=True)):
            if label in names:
                area[int(label), short_name(names[label], 24)] += int(count)
    return {name: LegendEntry(colour_of(label), area[label, name]) for label, name in sorted(area)}
