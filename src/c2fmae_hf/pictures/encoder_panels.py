"""
Pictures of what the encoder does, each with the words that say so. Needs the `viz` extra (matplotlib). Attention is in
cividis, which the colour-blind see.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..configuration_c2fmae import C2FMAEConfig
from .captions import Picture, headline, photo_pixels, picture_facts, sentences
from .encoder_views import MIN_OBJECT_PATCHES, ObjectAttention, feature_pictures, objects_attention, photo_attention
from .figures import (
    GRID_DPI,
    GRID_FONT,
    GRID_WIDTH,
    PALETTE,
    draw_grid,
    enlarge,
    heat_colours,
    new_figure,
    save_figure,
)
from .views import Photo, ViewedModel, enlarge_patches


_LINES = (("o-", PALETTE[0]), ("s--", PALETTE[5]), ("^:", PALETTE[2]))


def heat_picture(weights: np.ndarray, config: C2FMAEConfig, patch: tuple[int, int]) -> np.ndarray:
    """
    What one patch attends to `(N,)` in cividis, up to its own maximum, with the patch outlined: by square roots, since
    else a single patch that draws much of all attention leaves the others in the dark.
    """
    colours = heat_colours(np.sqrt(weights / max(weights.max(), 1e-12)))
    picture = enlarge_patches(colours, config.grid_size, config.patch_size)
    return outlined(picture, patch, config.patch_size)


def outlined(picture: np.ndarray, patch: tuple[int, int], patch_size: int) -> np.ndarray:
    """White within black, which shows on every ground."""
    picture = picture.copy()
    thick = max(picture.shape[0] // 75, 1)
    row, column = (index * patch_size for index in patch)
    for grown, colour in ((thick, 0), (0, 255)):
        top, left = max(row - grown, 0), max(column - grown, 0)
        bottom, right = row + patch_size + grown, column + patch_size + grown
        inner = max(thick, 1) if grown == 0 else grown + 1
        frame = np.zeros(picture.shape[:2], dtype=bool)
        frame[top:bottom, left:right] = True
        frame[top + inner : bottom - inner, left + inner : right - inner] = False
        picture[frame] = colour
    return picture


def spread(number: int, limit: int) -> list[int]:
    """At most `limit` of `number` indices from 0, evenly spread, with the first and the last."""
    return sorted({round(index) for index in np.linspace(0, number - 1, min(limit, number))})


def draw_attention(
    viewed: ViewedModel,
    photo: Photo,
    path: str | os.PathLike,
    patches: Sequence[tuple[int, int]],
    layers: Sequence[int] | None = None,
) -> Picture:
    """
    What chosen patches attend to, by layer: a row for each patch.

    Args:
        viewed ([`~c2fmae_hf.pictures.views.ViewedModel`]): A decoder is not needed.
        photo ([`~c2fmae_hf.pictures.views.Photo`]): Prepared for this model.
        path: Where to write.
        patches: (row, column) of each, from 0; pictures name them from 1.
        layers (*optional*): From 0; by default four, evenly spread.
    """
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    attention = photo_attention(viewed, photo).mean(dim=1).numpy()  # (layers, N, N)
    layers = spread(len(attention), 4) if layers is None else layers
    cells: list[list[np.ndarray | None]] = []
    for patch in patches:
        index = patch[0] * config.grid_size[1] + patch[1]
        shown = [heat_picture(attention[layer, index], config, patch) for layer in layers]
        cells.append([outlined(pixels, patch, config.patch_size), *shown])
    facts = picture_facts([viewed], [photo])
    names = [f"patch {row + 1},{column + 1}" for row, column in patches]
    draw_grid(cells, path, ["photograph", *(f"layer {layer + 1}" for layer in layers)], names, None, headline(facts))
    caption = (
        "What the outlined patch attends to, mean over the heads of a layer, in the photograph without any mask. "
        "Yellow: most, dark blue: none, by square roots; each picture is scaled to its own maximum. Patches are named "
        "by row and column from the upper left, from 1; attention to the class token is left out."
    )
    return Picture(Path(path), "What patches attend to", caption, facts)


def draw_attention_heads(
    viewed: ViewedModel,
    photo: Photo,
    path: str | os.PathLike,
    patch: tuple[int, int],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Picture:
    """
    What one patch attends to: a row for each layer, a column for each head.

    Args:
        viewed, photo, path, layers: As for [`draw_attention`].
        patch: (row, column), from 0.
        heads (*optional*): From 0; by default up to four, evenly spread.
    """
    config = viewed.config
    attention = photo_attention(viewed, photo).numpy()
    layers = spread(len(attention), 4) if layers is None else layers
    heads = spread(attention.shape[1], 4) if heads is None else heads
    index = patch[0] * config.grid_size[1] + patch[1]
    cells: list[list[np.ndarray | None]] = []
    for layer in layers:
        shown = [attention[layer, :, index].mean(axis=0), *(attention[layer, head, index] for head in heads)]
        photograph = None if cells else outlined(photo_pixels(viewed, photo), patch, config.patch_size)
        cells.append([photograph, *(heat_picture(weights, config, patch) for weights in shown)])
    facts = picture_facts([viewed], [photo])
    columns = ["photograph", "mean", *(f"head {head + 1}" for head in heads)]
    draw_grid(cells, path, columns, [f"layer {layer + 1}" for layer in layers], None, headline(facts))
    caption = (
        f"What the outlined patch in row {patch[0] + 1}, column {patch[1] + 1} attends to, by layer (rows) and head "
        "(columns; first the mean over all heads). Yellow: most, dark blue: none, by square roots; each picture is "
        "scaled to its own maximum; attention to the class token is left out."
    )
    return Picture(Path(path), f"Heads, patch {patch[0] + 1},{patch[1] + 1}", caption, facts)


def draw_attention_in_objects(
    viewed: Sequence[ViewedModel], photos: Sequence[Sequence[Photo]], path: str | os.PathLike
) -> Picture | None:
    """
    By layer, the share of attention that stays inside the object; `None`, and no picture, if no model sees an object
    that is known.

    Args:
        viewed: One model, or several to compare.
        photos: Those of each model.
        path: Where to write.
    """
    found = [(model, objects_attention(model, own)) for model, own in zip(viewed, photos)]
    curves = [(model, result) for model, result in found if result is not None]
    if not curves:
        return None
    height = 4.8 + 0.5 * len(viewed)
    figure = new_figure(GRID_WIDTH, height, GRID_DPI)
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_axes((0.1, 0.75 / height, 0.88, 2.6 / height))
    spoken = []
    # Models that see more or less of the photographs see other objects, or larger parts of them.
    is_same = len({(result.num_objects, round(result.even, 3)) for _, result in curves}) == 1
    for (model, result), (style, colour) in zip(curves, _LINES):
        layers, shares = np.arange(len(result.shares)) + 1, result.shares
        axes.plot(layers, shares, style, color=tuple(colour / 255), label=model.name, linewidth=2.5, markersize=8)
        if not is_same:
            label = f"even attention, {model.name}"
            axes.axhline(result.even, color=tuple(colour / 255), linewidth=1.5, linestyle=(0, (6, 4)), label=label)
        best = int(shares.argmax())
        spoken.append(
            f"{model.name}: {shares[-1]:.0%} in the last layer, at most {shares[best]:.0%} (layer {best + 1})"
            + ("." if is_same else f"; {_count_objects(result)}, even attention {result.even:.0%}.")
        )
    spoken += [
        f"{model.name} sees no object of at least {MIN_OBJECT_PATCHES} patches in them, and has no line."
        for model, result in found
        if result is None
    ]
    if is_same:
        even = curves[0][1].even
        axes.axhline(even, color="black", linewidth=1.5, linestyle=(0, (6, 4)), label="even attention")
    axes.set_ylim(0, 1.15 * max(max(result.even, result.shares.max()) for _, result in curves))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer", fontsize=GRID_FONT)
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=13, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.1)
    shown = [photo for photo in photos[0] if photo.has_objects]
    facts = picture_facts(viewed, shown)
    figure.text(0.01, 1 - 0.05 / height, headline(facts), fontsize=11, ha="left", va="top", color="#444444")
    heading = "attention that stays inside the object"
    figure.text(0.01, 1 - 0.48 / height, heading, fontsize=GRID_FONT, ha="left", va="top")
    save_figure(figure, path)
    caption = sentences(
        "Of the attention of patches inside an object (to patches; mean over heads), the share that patches of the "
        f"same object get; a mean over {_count_objects(curves[0][1]) if is_same else 'the objects'} of at least "
        f"{MIN_OBJECT_PATCHES} patches, from the instance maps {shown[0].maps_from}. Even attention to everything "
        "would give each object its share of the image: "
        + (f"{curves[0][1].even:.0%} on average, the dashed line." if is_same else "the dashed lines."),
        *spoken,
    )
    return Picture(Path(path), "Attention inside objects", caption, facts)


def _count_objects(result: ObjectAttention) -> str:
    return f"{result.num_objects} {'object' if result.num_objects == 1 else 'objects'}"


def draw_features(viewed: ViewedModel, photos: Sequence[Photo], path: str | os.PathLike) -> Picture:
    """
    Patch features as colours, of all photographs together: see [`~c2fmae_hf.pictures.encoder_views.feature_pictures`].

    Args:
        viewed ([`~c2fmae_hf.pictures.views.ViewedModel`]): A decoder is not needed.
        photos: At least one.
        path: Where to write.
    """
    config = viewed.config
    features = feature_pictures(viewed, photos)
    per_line = min(len(photos), 4)
    cells: list[list[np.ndarray | None]] = []
    for start in range(0, len(photos), per_line):
        own = photos[start : start + per_line]
        empty = [None] * (per_line - len(own))
        cells.append([*(photo_pixels(viewed, photo) for photo in own), *empty])
        pictures = features.pictures[start : start + per_line]
        cells.append([*(enlarge(picture, config.patch_size) for picture in pictures), *empty])
    facts = picture_facts([viewed], photos)
    draw_grid(cells, path, (), (), None, headline(facts))
    caption = (
        "Each photograph, and below it the features of its patches (last layer, after the norm, nothing masked) as "
        f"colours: the first three principal components over these {len(photos)} images together, which hold "
        f"{features.explained:.0%} of the variance. Lightness is the first, blue to yellow the second, green to red "
        "the third. Like colours: like features. The colours themselves have no meaning, and do not compare between "
        "checkpoints."
    )
    return Picture(Path(path), "Features of the patches", caption, facts)


__all__ = ["draw_attention", "draw_attention_heads", "draw_attention_in_objects", "draw_features", "spread"]
