"""What pictures of a model have in common: the words below them, and photographs and label maps as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..configuration_c2fmae import C2FMAEConfig
from .figures import colour_ids, enlarge, free_colours
from .views import Photo, ViewedModel


ABOUT_NO_INSTANCE = "Nearly black: no instance."


@dataclass(frozen=True)
class Picture:
    """
    A picture, and what is to be said of it.

    Args:
        path (`Path`): The PNG.
        title (`str`): A few words.
        caption (`str`): What one sees.
        facts: By name: checkpoint, image, masks, seed.
    """

    path: Path
    title: str
    caption: str
    facts: Mapping[str, str]


def picture_facts(
    viewed: Sequence[ViewedModel], photos: Sequence[Photo], num_masked: int | None = None, seed: int | None = None
) -> dict[str, str]:
    """What a caption names, by name; of several checkpoints each with its number."""
    names = [photo.name for photo in photos]
    checkpoints = [model.name for model in viewed]
    if len(checkpoints) > 1:
        checkpoints = [f"{number}: {name}" for number, name in enumerate(checkpoints, 1)]
    facts = {
        "checkpoint": ", ".join(checkpoints),
        "image": names[0] if len(names) == 1 else f"{len(names)} images: {', '.join(names)}",
    }
    if num_masked is not None:
        facts["masked"] = masked_share(viewed[0].config, num_masked)
    if seed is not None:
        facts["seed"] = str(seed)
    return facts


def masked_share(config: C2FMAEConfig, num_masked: int) -> str:
    """Such as `147 of 196 patches (75%)`."""
    return f"{num_masked} of {config.num_patches} patches ({num_masked / config.num_patches:.0%})"


def headline(facts: Mapping[str, str]) -> str:
    """The facts in the picture itself, by which it is known when it travels alone."""
    image = facts["image"].partition(":")[0] if " images: " in facts["image"] else facts["image"]
    checkpoints, image = ("  ".join(short_name(name) for name in facts["checkpoint"].split(", ")), short_name(image))
    parts = [image]
    if "masked" in facts:
        parts.append(f"{facts['masked'].rpartition('(')[2].rstrip(')')} masked")
    if "seed" in facts:
        parts.append(f"seed {facts['seed']}")
    line = " | ".join([checkpoints, *parts])
    return line if len(line) <= 86 else f"{checkpoints}\n{' | '.join(parts)}"


def short_name(name: str, limit: int = 40) -> str:
    """A name without its middle, if it is longer than `limit`."""
    return name if len(name) <= limit else f"{name[: limit // 3]}...{name[-(limit - limit // 3 - 3) :]}"


def photo_pixels(viewed: ViewedModel, photo: Photo) -> np.ndarray:
    """The photograph as the model sees it, `(H, W, 3)` uint8."""
    return viewed.processor.to_pixels(photo.pixel_values[None])[0]


def map_picture(
    ids: np.ndarray | None,
    config: C2FMAEConfig,
    background: int | None = None,
    colours: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray | None:
    """
    A map of ids on the label grid in colours, at the photograph's size: those of
    [`~c2fmae_hf.pictures.figures.colour_ids`], or of `colours` by id.
    """
    if ids is None:
        return None
    picture = colour_ids(ids, background)
    for label, colour in (colours or {}).items():
        picture[ids == label] = colour
    return enlarge(picture, config.label_stride)


def other_colours(ids: np.ndarray, predicted: Sequence[np.ndarray | None]) -> dict[int, np.ndarray]:
    """
    Colours by id for a map whose classes are not the model's: none that a predicted map of the same picture has, the
    clearest for those that cover most.
    """
    taken = {int(label) for one in predicted if one is not None for label in np.unique(one[one >= 0])}
    labels, counts = np.unique(ids[ids >= 0], return_counts=True)
    largest = [int(label) for label in labels[np.argsort(-counts, kind="stable")]]
    return dict(zip(largest, free_colours(taken, len(largest))))


class NamedMap(NamedTuple):
    """A map of class ids for a legend, names of its classes, what follows them, and colours if not the usual ones."""

    ids: np.ndarray | None
    names: Mapping[int, str]
    suffix: str = ""
    colours: Mapping[int, np.ndarray] | None = None


def class_legend(*maps: NamedMap) -> dict[str, np.ndarray]:
    """Colours by name of the classes in maps, those that cover most first."""
    area: Counter[str] = Counter()
    found: dict[str, np.ndarray] = {}
    for ids, names, suffix, colours in maps:
        if ids is None:
            continue
        for label, count in zip(*np.unique(ids[ids >= 0], return_counts=True)):
            name = f"{short_name(names.get(int(label), f'class {label}'), 24)}{suffix}"
            area[name] += int(count)
            found[name] = colours[int(label)] if colours else colour_ids(np.array([[label]]))[0, 0]
    return {name: found[name] for name, _ in area.most_common()}


def about_gaps(viewed: ViewedModel) -> str:
    """What predicted maps show where patches are visible."""
    if not {"semantic", "instance"} & set(viewed.granularities):
        return ""
    if viewed.config.supervise_visible_labels:
        return "Semantics and instances of visible patches are predicted, too: this model was trained on them."
    return "Light grey: visible patches, which are not predicted."


def about_brightness(config: C2FMAEConfig) -> str:
    """What of rebuilt patches is not predicted."""
    if not config.norm_pix_loss:
        return ""
    return "Brightness and contrast of each rebuilt patch are borrowed from the photograph, its texture is predicted."


def sentences(*parts: str) -> str:
    """Those that are not empty, one after another."""
    return " ".join(part for part in parts if part)
