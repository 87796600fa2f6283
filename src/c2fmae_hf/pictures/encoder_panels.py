"""Pictures of the encoder's attention and features, each with a caption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..configuration_c2fmae import C2FMAEConfig
from .captions import Facts, Picture, draw_picture, photo_pixels, sentences
from .colours import PALETTE, enlarge
from .encoder_views import MIN_OBJECT_PATCHES, feature_pictures, objects_attention, photo_attention
from .figures import GRID_DPI, GRID_FONT, GRID_WIDTH, heat_colours, new_figure, save_figure
from .views import Photo, ViewedModel


ABOUT_HEAT = (
    "Dark blue: no attention; yellow: the most in the picture; colours follow the square root. Attention to the class "
    "token is left out."
)


def heat_picture(weights: np.ndarray, config: C2FMAEConfig, patch: tuple[int, int]) -> np.ndarray:
    """Draw what one patch attends to, `(N,)`, at the photograph's size, with the patch outlined."""
    picture = enlarge(heat_colours(weights).reshape(*config.grid_size, 3), config.patch_size)
    return outlined(picture, patch, config.patch_size)


def outlined(picture: np.ndarray, patch: tuple[int, int], patch_size: int) -> np.ndarray:
    """Outline a patch in white and black, so that the frame shows on any background."""
    picture = picture.copy()
    thick = max(picture.shape[0] // 75, 1)
    row, column = (index * patch_size for index in patch)
    inner = picture[row + thick : row + patch_size - thick, column + thick : column + patch_size - thick].copy()
    for grown, colour in ((thick, 0), (0, 255)):
        top, left = max(row - grown, 0), max(column - grown, 0)
        picture[top : row + patch_size + grown, left : column + patch_size + grown] = colour
    picture[row + thick : row + patch_size - thick, column + thick : column + patch_size - thick] = inner
    return picture


def spread(number: int, limit: int) -> list[int]:
    """At most `limit` indices below `number`, evenly spread, with the first and the last."""
    return sorted({round(index) for index in np.linspace(0, number - 1, min(limit, number))})


def draw_attention(
    viewed: ViewedModel,
    photo: Photo,
    path: str | os.PathLike,
    patches: Sequence[tuple[int, int]],
    layers: Sequence[int] | None = None,
) -> Picture:
    """
    Draw what chosen patches attend to: a row for each patch, a column for each layer.

    Args:
        viewed, photo: A model, which needs no decoder, and a photograph prepared for it.
        path: Where to write.
        patches: (row, column) of each, from 0; pictures number them from 1.
        layers (*optional*): Layers from 0; by default four, evenly spread.
    """
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    attention = photo_attention(viewed, photo).mean(dim=1).numpy()  # (layers, N, N)
    layers = spread(len(attention), 4) if layers is None else layers
    cells = []
    for patch in patches:
        weights = attention[layers, np.ravel_multi_index(patch, config.grid_size)]
        pictures = [heat_picture(one, config, patch) for one in weights]
        cells.append([outlined(pixels, patch, config.patch_size), *pictures])
    return draw_picture(
        cells,
        path,
        "What patches attend to",
        "What the outlined patch attends to, averaged over the heads of a layer; nothing is masked. "
        f"{ABOUT_HEAT} Patches are named by row and column, counted from 1 at the upper left.",
        Facts([viewed.name], [photo.name]),
        column_names=["photograph", *(f"layer {layer + 1}" for layer in layers)],
        row_names=[f"patch {row + 1},{column + 1}" for row, column in patches],
    )


def draw_attention_heads(
    viewed: ViewedModel,
    photo: Photo,
    path: str | os.PathLike,
    patch: tuple[int, int],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Picture:
    """
    Draw what one patch, (row, column) from 0, attends to: a row for each layer, a column for each head. By default
    four layers and up to four heads, evenly spread. The other arguments are those of [`draw_attention`].
    """
    config = viewed.config
    attention = photo_attention(viewed, photo).numpy()[:, :, np.ravel_multi_index(patch, config.grid_size)]
    layers = spread(len(attention), 4) if layers is None else layers
    heads = spread(attention.shape[1], 4) if heads is None else heads
    photograph = outlined(photo_pixels(viewed, photo), patch, config.patch_size)
    cells: list[list[np.ndarray | None]] = []
    for layer in layers:
        weights = [attention[layer].mean(axis=0), *attention[layer, heads]]
        cells.append([None if cells else photograph, *(heat_picture(one, config, patch) for one in weights)])
    row, column = patch[0] + 1, patch[1] + 1
    return draw_picture(
        cells,
        path,
        f"Heads, patch {row},{column}",
        f"What the outlined patch in row {row}, column {column} attends to: a row for each layer, a column for each "
        f"head, after the mean over all heads. {ABOUT_HEAT}",
        Facts([viewed.name], [photo.name]),
        column_names=["photograph", "mean", *(f"head {head + 1}" for head in heads)],
        row_names=[f"layer {layer + 1}" for layer in layers],
    )


def draw_attention_in_objects(
    viewed: Sequence[ViewedModel], photos: Sequence[Sequence[Photo]], path: str | os.PathLike
) -> Picture | None:
    """
    Plot the share of attention that stays inside the object, by layer, for one model or two, with the photographs
    prepared for each. Returns `None` and draws nothing if no model sees a known object.
    """
    found = [objects_attention(model, own) for model, own in zip(viewed, photos)]
    if not any(found):
        return None
    shown = [photo for photo in photos[0] if photo.has_objects]
    facts = Facts([model.name for model in viewed], [photo.name for photo in shown])
    figure = new_figure(GRID_WIDTH, 5.0, GRID_DPI, layout="constrained")
    axes = figure.subplots()
    highest, spoken = 0.0, []
    for model, result, colour, style in zip(viewed, found, PALETTE[[0, 5]] / 255, ("o-", "s--")):
        if result is None:
            small = f"{model.name} has no line: it sees no object of at least {MIN_OBJECT_PATCHES} patches."
            spoken.append(small)
            continue
        shares, even = result.shares, result.even
        axes.plot(range(1, len(shares) + 1), shares, style, color=colour, label=model.name, lw=2.5, markersize=8)
        axes.axhline(even, color=colour, lw=1.5, linestyle=(0, (6, 4)), label=f"even attention, {model.name}")
        highest = max(highest, even, shares.max())
        spoken.append(
            f"{model.name}: {shares[-1]:.0%} in the last layer, at most {shares.max():.0%} (layer "
            f"{shares.argmax() + 1}); {result.num_objects} {'object' if result.num_objects == 1 else 'objects'}, even "
            f"attention {even:.0%}."
        )
    axes.set_ylim(0, 1.15 * highest)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer", fontsize=GRID_FONT)
    axes.set_title("attention that stays inside the object", fontsize=GRID_FONT, loc="left")
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.3)
    figure.suptitle(facts.headline(), fontsize=11, x=0.01, ha="left", color="#444444")
    figure.legend(fontsize=13, frameon=False, loc="outside lower left")
    save_figure(figure, path)
    caption = sentences(
        "Share of attention that an object's patches give to the same object, of all that they give to patches. It is "
        f"averaged over heads and over the objects of at least {MIN_OBJECT_PATCHES} patches in "
        f"{shown[0].maps_from}. Dashed lines: even attention, which gives each object its share of the image.",
        *spoken,
    )
    return Picture(Path(path), "Attention inside objects", caption, facts)


def draw_features(viewed: ViewedModel, photos: Sequence[Photo], path: str | os.PathLike) -> Picture:
    """
    Draw photographs and their patch features as colours; see
    [`~c2fmae_hf.pictures.encoder_views.feature_pictures`].
    """
    features = feature_pictures(viewed, photos)
    per_line = min(max(len(photos), 3), 4)
    empty = [None] * (-len(photos) % per_line)
    pixels = [*(photo_pixels(viewed, photo) for photo in photos), *empty]
    pictures = [*(enlarge(picture, viewed.config.patch_size) for picture in features.pictures), *empty]
    starts = range(0, len(pixels), per_line)
    return draw_picture(
        [row[start : start + per_line] for start in starts for row in (pixels, pictures)],
        path,
        "Features of the patches",
        "Each photograph, and below it the features of its patches (last layer, after the norm, nothing masked) as "
        "colours: the first three principal components over all photographs, which hold "
        f"{features.explained:.0%} of the variance, as lightness, blue to yellow, and green to red. Similar colours "
        "mean similar features; colours cannot be compared between checkpoints.",
        Facts([viewed.name], [photo.name for photo in photos]),
    )
