"""
Pictures of what a model sees, predicts and attends to, each with the words that say so. Needs the `viz` extra
(matplotlib). Colours are Okabe and Ito's, and cividis: colour-blind readers can tell them apart.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .configuration_c2fmae import C2FMAEConfig
from .constants import MASKING_STRATEGIES, NO_INSTANCE
from .figures import (
    GRID_DPI,
    GRID_FONT,
    GRID_WIDTH,
    PALETTE,
    UNKNOWN_COLOUR,
    colour_ids,
    draw_grid,
    enlarge,
    heat_colours,
    new_canvas,
    new_figure,
    place_picture,
    save_figure,
)
from .masking import MaskingCurriculum
from .views import (
    Photo,
    Prediction,
    ViewedModel,
    count_masked,
    curriculum_frames,
    enlarge_patches,
    feature_pictures,
    masked_photo,
    objects_attention,
    photo_attention,
    predict,
    predict_everywhere,
    strategy_mask,
)


_STRATEGY_COLOURS = dict(zip(MASKING_STRATEGIES, PALETTE[[0, 1, 3]] / 255))
_LINES = (("o-", PALETTE[0]), ("s--", PALETTE[5]), ("^:", PALETTE[2]))
_NO_INSTANCE = "Nearly black: no instance."


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


def _facts(
    viewed: Sequence[ViewedModel], photos: Sequence[Photo], num_masked: int | None = None, seed: int | None = None
) -> dict[str, str]:
    names = [photo.name for photo in photos]
    checkpoints = [model.name for model in viewed]
    if len(checkpoints) > 1:
        checkpoints = [f"{number}: {name}" for number, name in enumerate(checkpoints, 1)]
    facts = {
        "checkpoint": ", ".join(checkpoints),
        "image": names[0] if len(names) == 1 else f"{len(names)} images: {', '.join(names)}",
    }
    if num_masked is not None:
        facts["masked"] = _masked(viewed[0].config, num_masked)
    if seed is not None:
        facts["seed"] = str(seed)
    return facts


def _masked(config: C2FMAEConfig, num_masked: int) -> str:
    return f"{num_masked} of {config.num_patches} patches ({num_masked / config.num_patches:.0%})"


def _headline(facts: Mapping[str, str]) -> str:
    """The facts in the picture itself, by which it is known when it travels alone."""
    image = facts["image"].partition(":")[0] if " images: " in facts["image"] else facts["image"]
    checkpoints, image = ("  ".join(_short(name) for name in facts["checkpoint"].split(", ")), _short(image))
    parts = [image]
    if "masked" in facts:
        parts.append(f"{facts['masked'].rpartition('(')[2].rstrip(')')} masked")
    if "seed" in facts:
        parts.append(f"seed {facts['seed']}")
    line = " | ".join([checkpoints, *parts])
    return line if len(line) <= 86 else f"{checkpoints}\n{' | '.join(parts)}"


def _short(name: str, limit: int = 40) -> str:
    return name if len(name) <= limit else f"{name[: limit // 3]}...{name[-(limit - limit // 3 - 3) :]}"


def _pixels(viewed: ViewedModel, photo: Photo) -> np.ndarray:
    return viewed.processor.to_pixels(photo.pixel_values[None])[0]


def _map_picture(ids: np.ndarray | None, config: C2FMAEConfig, background: int | None = None) -> np.ndarray | None:
    return None if ids is None else enlarge(colour_ids(ids, background), config.label_stride)


def _class_legend(*named_maps: tuple[np.ndarray | None, Mapping[int, str], str]) -> dict[str, np.ndarray]:
    """Colours by name of the classes in maps of `(ids, names, suffix)`, those that cover most first."""
    area: Counter[str] = Counter()
    colours: dict[str, np.ndarray] = {}
    for ids, names, suffix in named_maps:
        if ids is None:
            continue
        for label, count in zip(*np.unique(ids[ids >= 0], return_counts=True)):
            name = f"{_short(names.get(int(label), f'class {label}'), 24)}{suffix}"
            area[name] += int(count)
            colours[name] = colour_ids(np.array([[label]]))[0, 0]
    return {name: colours[name] for name, _ in area.most_common()}


def _gaps(viewed: ViewedModel) -> str:
    """What predicted maps show where patches are visible."""
    if not {"semantic", "instance"} & set(viewed.granularities):
        return ""
    if viewed.config.supervise_visible_labels:
        return "Semantics and instances of visible patches are predicted, too: this model was trained on them."
    return "Light grey: visible patches, which are not predicted."


def _borrowed(config: C2FMAEConfig) -> str:
    if not config.norm_pix_loss:
        return ""
    return "Brightness and contrast of each rebuilt patch are borrowed from the photograph, its texture is predicted."


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def draw_strategies(
    viewed: ViewedModel, photo: Photo, path: str | os.PathLike, seed: int = 0, mask_ratio: float | None = None
) -> Picture:
    """
    A row for each masking strategy: its regions (of random masking the photograph), what is left of the photograph, and
    what the decoder makes of that.

    Args:
        viewed ([`~c2fmae_hf.views.ViewedModel`]): With a decoder.
        photo ([`~c2fmae_hf.views.Photo`]): With maps, or all strategies are random.
        path: Where to write.
        seed (`int`): Of the masks.
        mask_ratio (`float`, *optional*): Instead of the model's.
    """
    config, pixels = viewed.config, _pixels(viewed, photo)
    regions = {
        "semantic": _map_picture(photo.semantic.numpy(), config),
        "instance": _map_picture(photo.instance.numpy(), config, NO_INSTANCE),
        "random": pixels,
    }
    cells: list[list[np.ndarray | None]] = []
    row_names, found = [], []
    for strategy in MASKING_STRATEGIES:
        mask, applied = strategy_mask(photo, config, strategy, seed, mask_ratio)
        if applied != strategy:
            continue
        prediction = predict(viewed, photo, mask)
        row_names.append(strategy)
        found.append(prediction)
        seen = masked_photo(pixels, mask, config.patch_size, UNKNOWN_COLOUR)
        cells.append([regions[strategy], seen, *_prediction_cells(viewed, prediction)])
    has_classes = "semantic" in row_names and photo.shares_classes and photo.are_known
    legend = _class_legend(
        *((prediction.semantic, viewed.label_names, "") for prediction in found),
        (photo.semantic.numpy() if has_classes else None, {**photo.label_names, **viewed.label_names}, ""),
    )
    facts = _facts([viewed], [photo], count_masked(config, mask_ratio), seed)
    draw_grid(cells, path, ["regions", "input", *_prediction_columns(viewed)], row_names, legend, _headline(facts))
    missing = [name for name in MASKING_STRATEGIES if name not in row_names]
    caption = _sentences(
        "What the decoder rebuilds of the patches that a strategy hides: whole semantic regions; whole instances and, "
        "outside them, semantic regions; or patches at random, beside the photograph itself."
        if photo.maps_from
        else "What the decoder rebuilds of patches that are hidden at random.",
        f"The regions are the maps {photo.maps_from}." if photo.maps_from else "",
        "" if photo.shares_classes or not photo.maps_from else "Their classes and colours are not the checkpoint's.",
        f"No maps, hence no {' or '.join(missing)} masking." if missing else "",
        _gaps(viewed),
        _NO_INSTANCE if "instance" in viewed.granularities else "",
        _borrowed(config) if "image" in viewed.granularities else "",
    )
    return Picture(Path(path), "Rebuilt under each masking strategy", caption, facts)


def _prediction_columns(viewed: ViewedModel) -> list[str]:
    names = {"semantic": "semantics", "instance": "instances", "image": "pixels"}
    return [names[name] for name in viewed.granularities]


def _prediction_cells(viewed: ViewedModel, prediction: Prediction) -> list[np.ndarray | None]:
    pictures = {
        "semantic": _map_picture(prediction.semantic, viewed.config),
        "instance": _map_picture(prediction.instance, viewed.config, NO_INSTANCE),
        "image": prediction.image,
    }
    return [pictures[name] for name in viewed.granularities]


def draw_curriculum(
    viewed: ViewedModel,
    photo: Photo,
    path: str | os.PathLike,
    curriculum: MaskingCurriculum | None = None,
    num_frames: int = 6,
    seed: int = 0,
    mask_ratio: float | None = None,
) -> Picture:
    """
    The masking curriculum as a film strip: training progress t = 0 ... 1 from left to right, three samples below each
    other, and the strategies' probabilities.

    Args:
        viewed, photo, path, seed, mask_ratio: As for [`draw_strategies`]; a decoder is not needed.
        curriculum ([`MaskingCurriculum`], *optional*): By default linear, coarse to fine.
        num_frames (`int`): Times, at least 2.
    """
    curriculum = curriculum or MaskingCurriculum()
    config, pixels = viewed.config, _pixels(viewed, photo)
    times = np.linspace(0, 1, num_frames).tolist()
    rows = curriculum_frames(photo, config, curriculum, times, seed=seed, mask_ratio=mask_ratio)
    facts = _facts([viewed], [photo], count_masked(config, mask_ratio), seed)

    gap, left = 0.1, 0.05
    side = (GRID_WIDTH - 2 * left - gap * (num_frames - 1)) / num_frames
    aspect = pixels.shape[0] / pixels.shape[1]
    top, plot, bottom, name = 0.62, 0.9, 0.9, 0.26
    height = top + len(rows) * (side * aspect + name + 0.04) + 0.1 + plot + bottom
    figure, canvas = new_canvas(height)
    from matplotlib.patches import Rectangle

    for line, row in enumerate(rows):
        y = height - top - (line + 1) * (side * aspect + name + 0.04) + name
        for column, frame in enumerate(row):
            x = left + column * (side + gap)
            seen = masked_photo(pixels, frame.mask, config.patch_size, UNKNOWN_COLOUR)
            place_picture(canvas, seen, x, y, side, side * aspect)
            colour = tuple(_STRATEGY_COLOURS[frame.strategy])
            canvas.add_patch(Rectangle((x, y), side, side * aspect, fill=False, edgecolor=colour, linewidth=5))
            canvas.text(x + side / 2, y - 0.05, frame.strategy, ha="center", va="top", fontsize=12)
            if line == 0:
                time = f"t = {frame.progress:.1f}"
                canvas.text(x + side / 2, y + side * aspect + 0.06, time, ha="center", va="bottom", fontsize=GRID_FONT)
    # Its t axis runs through the middles of the frames.
    width = GRID_WIDTH - 2 * left - side
    axes = figure.add_axes(((left + side / 2) / GRID_WIDTH, bottom / height, width / GRID_WIDTH, plot / height))
    fine = torch.linspace(0, 1, 101, dtype=torch.double)
    shares = curriculum.probabilities(fine).numpy().T
    colours = [tuple(_STRATEGY_COLOURS[strategy]) for strategy in MASKING_STRATEGIES]
    axes.stackplot(fine.numpy(), shares, colors=colours, labels=MASKING_STRATEGIES)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1])
    axes.tick_params(labelsize=12)
    axes.set_xlabel("t", fontsize=GRID_FONT, labelpad=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        [f"{label} masking" for label in labels],
        loc="lower center",
        ncols=len(labels),
        fontsize=13,
        frameon=False,
        bbox_to_anchor=(0.5, 0.0),
    )
    headline = _headline(facts)
    figure.text(0.02 / GRID_WIDTH, 1 - 0.05 / height, headline, fontsize=11, ha="left", va="top", color="#444444")
    save_figure(figure, path)
    fallen_back = photo.maps_from == ""
    caption = _sentences(
        f"What the encoder is shown as training goes on, with the {curriculum.schedule} schedule: t is the share of "
        "the training steps that are done. Below, the probability of each strategy. Each row is one sample with the "
        f"same random numbers throughout; the {len(rows)} rows draw strategies at evenly spread quantiles, so that "
        "the strategies share them as the probabilities say. The border's colour is the strategy's.",
        f"Regions come from the maps {photo.maps_from}." if photo.maps_from else "",
        "There are no maps, so that every strategy falls back to random masks." if fallen_back else "",
    )
    return Picture(Path(path), "The masking curriculum", caption, facts)


def draw_maps(
    viewed: ViewedModel, photo: Photo, path: str | os.PathLike, seed: int = 0, mask_ratio: float | None = None
) -> Picture:
    """
    Predicted semantics and instances with and without gaps, beside the known ones: see
    [`~c2fmae_hf.views.predict_everywhere`] for what the latter means.

    Args:
        viewed ([`~c2fmae_hf.views.ViewedModel`]): With a decoder that predicts semantics or instances.
        photo, path, seed, mask_ratio: As for [`draw_strategies`].
    """
    config, pixels = viewed.config, _pixels(viewed, photo)
    mask, _ = strategy_mask(photo, config, "random", seed, mask_ratio)
    masked, everywhere = predict(viewed, photo, mask), predict_everywhere(viewed, photo, seed, mask_ratio)
    row_names, cells = [], []
    pictures = iter([pixels, masked_photo(pixels, mask, config.patch_size, UNKNOWN_COLOUR)])
    for name, background in (("semantic", None), ("instance", NO_INSTANCE)):
        if name not in viewed.granularities:
            continue
        predicted = (getattr(found, name) for found in (masked, everywhere))
        row = [next(pictures), *(_map_picture(ids, config, background) for ids in predicted)]
        if photo.are_known:
            row.append(_map_picture(getattr(photo, name).numpy(), config, background))
        cells.append(row)
        row_names.append("semantics" if name == "semantic" else "instances")
    target = photo.semantic.numpy() if photo.are_known else None
    is_shared = photo.shares_classes or not photo.are_known
    legend: dict[str, np.ndarray] = {}
    if "semantic" in viewed.granularities:
        names = {**photo.label_names, **viewed.label_names} if is_shared else photo.label_names
        legend = _class_legend(
            (everywhere.semantic, viewed.label_names, ""),
            (masked.semantic, viewed.label_names, ""),
            (target, names, "" if is_shared else " (known)"),
        )
    facts = _facts([viewed], [photo], count_masked(config, mask_ratio), seed)
    columns = ["photograph", "masked", "every patch", *(["known"] if photo.are_known else [])]
    draw_grid(cells, path, columns, row_names, legend, _headline(facts))
    if everywhere.passes:
        unmasked = (
            "Every patch: the decoder predicts masked patches only, so that the photograph was seen through "
            f"{everywhere.passes} masks that between them hide every patch, and each patch is the mean of the "
            "predictions that did not see it. So the gaps are filled, but no patch was ever predicted from its own "
            "pixels."
        )
    else:
        unmasked = (
            "Every patch: nothing was masked. This model was also trained on the labels of visible patches "
            "(supervise_visible_labels), so that it predicts a patch from its own pixels, too."
        )
    caption = _sentences(
        "Semantics and instances as the decoder predicts them.",
        "Masked: from one random mask, which the photograph below shows."
        if len(cells) > 1
        else "Masked: from one random mask.",
        _gaps(viewed),
        unmasked,
        f"Known: the map {photo.maps_from}." if photo.are_known else "",
        "" if is_shared else "Its classes are not the checkpoint's: colours do not compare between the two.",
        f"{_NO_INSTANCE} Colours of instances have no meaning." if "instance" in viewed.granularities else "",
    )
    return Picture(Path(path), "Predicted semantics and instances", caption, facts)


# Attention


def _heat(weights: np.ndarray, config: C2FMAEConfig, patch: tuple[int, int]) -> np.ndarray:
    """What one patch attends to `(N,)` in cividis, up to its own maximum, with the patch outlined."""
    colours = heat_colours(weights / max(weights.max(), 1e-12))
    picture = enlarge_patches(colours, config.grid_size, config.patch_size)
    return _outlined(picture, patch, config.patch_size)


def _outlined(picture: np.ndarray, patch: tuple[int, int], patch_size: int) -> np.ndarray:
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
        viewed, photo, path: As for [`draw_strategies`]; a decoder is not needed.
        patches: (row, column) of each, from 0.
        layers (*optional*): From 0; by default four, evenly spread.
    """
    config, pixels = viewed.config, _pixels(viewed, photo)
    attention = photo_attention(viewed, photo).mean(dim=1).numpy()  # (layers, N, N)
    layers = spread(len(attention), 4) if layers is None else layers
    cells: list[list[np.ndarray | None]] = []
    for patch in patches:
        index = patch[0] * config.grid_size[1] + patch[1]
        shown = [_heat(attention[layer, index], config, patch) for layer in layers]
        cells.append([_outlined(pixels, patch, config.patch_size), *shown])
    facts = _facts([viewed], [photo])
    names = [f"patch {row},{column}" for row, column in patches]
    draw_grid(cells, path, ["photograph", *(f"layer {layer + 1}" for layer in layers)], names, None, _headline(facts))
    caption = (
        "What the outlined patch attends to, mean over the heads of a layer, in the photograph without any mask. "
        "Yellow: most, dark blue: none; each picture is scaled to its own maximum. Patches are named by row and "
        "column from the upper left, from 0; attention to the class token is left out."
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
    cells = []
    for layer in layers:
        shown = [attention[layer, :, index].mean(axis=0), *(attention[layer, head, index] for head in heads)]
        cells.append([_heat(weights, config, patch) for weights in shown])
    facts = _facts([viewed], [photo])
    columns = ["mean", *(f"head {head + 1}" for head in heads)]
    draw_grid(cells, path, columns, [f"layer {layer + 1}" for layer in layers], None, _headline(facts))
    caption = (
        f"What the outlined patch in row {patch[0]}, column {patch[1]} attends to, by layer (rows) and head (columns; "
        "first the mean over all heads). Yellow: most, dark blue: none; each picture is scaled to its own maximum."
    )
    return Picture(Path(path), f"Heads, patch {patch[0]},{patch[1]}", caption, facts)


def draw_attention_in_objects(
    viewed: Sequence[ViewedModel], photos: Sequence[Sequence[Photo]], path: str | os.PathLike
) -> Picture | None:
    """
    By layer, the share of attention that stays inside the object; `None`, and no picture, if no object is known.

    Args:
        viewed: One model, or several to compare.
        photos: Those of each model.
        path: Where to write.
    """
    found = [objects_attention(model, own) for model, own in zip(viewed, photos)]
    if any(result is None for result in found):
        return None
    curves = [result for result in found if result is not None]
    height = 4.5 + 0.3 * len(viewed)
    figure = new_figure(GRID_WIDTH, height, GRID_DPI)
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_axes((0.1, 0.75 / height, 0.88, 2.6 / height))
    spoken = []
    for model, result, (style, colour) in zip(viewed, curves, _LINES):
        layers, shares = np.arange(len(result.shares)) + 1, result.shares
        axes.plot(layers, shares, style, color=tuple(colour / 255), label=model.name, linewidth=2.5, markersize=8)
        best = int(shares.argmax())
        spoken.append(
            f"{model.name}: {shares[-1]:.0%} in the last layer, at most {shares[best]:.0%} (layer {best + 1})."
        )
    even = curves[0].even
    axes.axhline(even, color="black", linewidth=1.5, linestyle=(0, (6, 4)), label="even attention")
    axes.set_ylim(0, 1.15 * max(even, *(result.shares.max() for result in curves)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer", fontsize=GRID_FONT)
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=13, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.1)
    shown = [photo for photo in photos[0] if photo.has_objects]
    facts = _facts(viewed, shown)
    figure.text(0.01, 1 - 0.05 / height, _headline(facts), fontsize=11, ha="left", va="top", color="#444444")
    heading = "attention that stays inside the object"
    figure.text(0.01, 1 - 0.48 / height, heading, fontsize=GRID_FONT, ha="left", va="top")
    save_figure(figure, path)
    caption = _sentences(
        "Of the attention of patches inside an object (to patches; mean over heads), the share that patches of the "
        f"same object get; a mean over {curves[0].num_objects} objects of at least 4 patches, from the instance maps "
        f"{shown[0].maps_from}. Even attention to everything would give each object its share of the image, "
        f"{even:.0%} on average: the dashed line.",
        *spoken,
    )
    return Picture(Path(path), "Attention inside objects", caption, facts)


# Features


def draw_features(viewed: ViewedModel, photos: Sequence[Photo], path: str | os.PathLike) -> Picture:
    """
    Patch features as colours, of all photographs together: see [`~c2fmae_hf.views.feature_pictures`].

    Args:
        viewed ([`~c2fmae_hf.views.ViewedModel`]): A decoder is not needed.
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
        cells.append([*(_pixels(viewed, photo) for photo in own), *empty])
        pictures = features.pictures[start : start + per_line]
        cells.append([*(enlarge(picture, config.patch_size) for picture in pictures), *empty])
    facts = _facts([viewed], photos)
    draw_grid(cells, path, (), (), None, _headline(facts))
    caption = (
        "Each photograph, and below it the features of its patches (last layer, after the norm, nothing masked) as "
        f"colours: the first three principal components over these {len(photos)} images together, which hold "
        f"{features.explained:.0%} of the variance. Lightness is the first, blue to yellow the second, green to red "
        "the third. Like colours: like features. The colours themselves have no meaning, and do not compare between "
        "checkpoints."
    )
    return Picture(Path(path), "Features of the patches", caption, facts)


# Two checkpoints


def draw_comparison(
    viewed: Sequence[ViewedModel],
    photos: Sequence[Photo],
    path: str | os.PathLike,
    patch: tuple[int, int],
    pca: Sequence[np.ndarray],
    seed: int = 0,
    mask_ratio: float | None = None,
) -> Picture:
    """
    One photograph side by side for several checkpoints: a row for each.

    Args:
        viewed: The models, with or without a decoder.
        photos: The photograph, prepared for each.
        path: Where to write.
        patch: (row, column) in the first model's grid, whose attention is shown; in the others the patch that holds
            its middle.
        pca: The photograph's picture of each model from [`~c2fmae_hf.views.feature_pictures`].
        seed, mask_ratio: As for [`draw_strategies`].
    """
    rows: list[list[np.ndarray | None]] = []
    classes, spoken = [], []
    for position, (model, photo, features) in enumerate(zip(viewed, photos, pca)):
        config = model.config
        sides = zip(patch, viewed[0].config.grid_size, config.grid_size)
        row, column = (int((index + 0.5) / total * own) for index, total, own in sides)
        everywhere = Prediction()
        rebuilt: np.ndarray | None = None
        what = "no decoder, predicts nothing"
        if model.whole is not None:
            mask, _ = strategy_mask(photo, config, "random", seed, mask_ratio)
            everywhere = predict_everywhere(model, photo, seed, mask_ratio)
            rebuilt = predict(model, photo, mask).image
            passes = f"{everywhere.passes} complementary masks" if everywhere.passes else "one pass without a mask"
            what = f"{_masked(config, count_masked(config, mask_ratio))} masked; semantics and instances from {passes}"
        spoken.append(f"Row {position + 1}: {model.name}, {what}.")
        weights = photo_attention(model, photo)[-1].mean(dim=0)[row * config.grid_size[1] + column]
        other = position > 0 and model.label_names != viewed[0].label_names
        classes.append((everywhere.semantic, model.label_names, f" ({position + 1})" if other else ""))
        rows.append(
            [
                rebuilt,
                _map_picture(everywhere.semantic, config),
                _map_picture(everywhere.instance, config, NO_INSTANCE),
                enlarge(features, config.patch_size),
                _heat(weights.numpy(), config, (row, column)),
            ]
        )
    columns = ["pixels", "semantics", "instances", "features", "attention"]
    kept = [index for index in range(len(columns)) if any(row[index] is not None for row in rows)]
    marked = _outlined(_pixels(viewed[0], photos[0]), patch, viewed[0].config.patch_size)
    cells = [[None if position else marked, *(row[index] for index in kept)] for position, row in enumerate(rows)]
    facts = _facts(viewed, photos[:1], seed=seed)
    row_names = [str(position + 1) for position in range(len(viewed))]
    column_names = ["photograph", *(columns[index] for index in kept)]
    draw_grid(cells, path, column_names, row_names, _class_legend(*classes), _headline(facts))
    predicts = any(model.whole is not None for model in viewed)
    caption = _sentences(
        *spoken,
        "Pixels: what is rebuilt under one random mask; semantics and instances: of every patch." if predicts else "",
        "Classes followed by a number are those of that row alone." if any(suffix for *_, suffix in classes) else "",
        "Features: principal components of each checkpoint on its own, whose colours do not compare between rows. "
        "Attention: of the outlined patch in the last layer, mean over heads.",
    )
    return Picture(Path(path), "Side by side", caption, facts)


__all__ = [
    "Picture",
    "draw_attention",
    "draw_attention_heads",
    "draw_attention_in_objects",
    "draw_comparison",
    "draw_curriculum",
    "draw_features",
    "draw_maps",
    "draw_strategies",
    "spread",
]
