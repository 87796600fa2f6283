"""
Pictures of masks and of what the decoder predicts, and of checkpoints side by side, each with the words that say so.
Needs the `viz` extra (matplotlib). Colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..constants import MASKING_STRATEGIES, NO_INSTANCE
from ..masking import MaskingCurriculum
from .captions import (
    ABOUT_NO_INSTANCE,
    NamedMap,
    Picture,
    about_brightness,
    about_gaps,
    class_legend,
    headline,
    map_picture,
    masked_share,
    other_colours,
    photo_pixels,
    picture_facts,
    sentences,
)
from .encoder_panels import heat_picture, outlined
from .encoder_views import photo_attention
from .figures import (
    GRID_FONT,
    GRID_WIDTH,
    PALETTE,
    UNKNOWN_COLOUR,
    draw_grid,
    enlarge,
    new_canvas,
    place_picture,
    save_figure,
)
from .views import (
    Photo,
    Prediction,
    ViewedModel,
    count_masked,
    curriculum_frames,
    masked_photo,
    predict,
    predict_everywhere,
    same_patch,
    strategy_mask,
)


_STRATEGY_COLOURS = dict(zip(MASKING_STRATEGIES, PALETTE[[0, 1, 2]] / 255))


def draw_strategies(
    viewed: ViewedModel, photo: Photo, path: str | os.PathLike, seed: int = 0, mask_ratio: float | None = None
) -> Picture:
    """
    A row for each masking strategy: its regions (of random masking the photograph), what is left of the photograph,
    and what the decoder makes of that.

    Args:
        viewed ([`~c2fmae_hf.pictures.views.ViewedModel`]): With a decoder.
        photo ([`~c2fmae_hf.pictures.views.Photo`]): With maps, or all strategies are random.
        path: Where to write.
        seed (`int`): Of the masks.
        mask_ratio (`float`, *optional*): Instead of the model's.
    """
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    semantic = photo.semantic.numpy()
    masks = {name: strategy_mask(photo, config, name, seed, mask_ratio) for name in MASKING_STRATEGIES}
    found = {name: predict(viewed, photo, mask) for name, (mask, applied) in masks.items() if applied == name}
    # Classes of others get colours that no predicted class has here.
    predicted = [prediction.semantic for prediction in found.values()]
    colours = None if photo.shares_classes else other_colours(semantic, predicted)
    regions = {
        "semantic": map_picture(semantic, config, colours=colours),
        "instance": map_picture(photo.instance.numpy(), config, NO_INSTANCE),
        "random": pixels,
    }
    cells: list[list[np.ndarray | None]] = []
    for strategy, prediction in found.items():
        seen = masked_photo(pixels, masks[strategy][0], config.patch_size, UNKNOWN_COLOUR)
        cells.append([regions[strategy], seen, *_prediction_cells(viewed, prediction)])
    row_names = list(found)
    shown = NamedMap(semantic, {**photo.label_names, **viewed.label_names})
    if not photo.shares_classes:  # of which the classical labeller's have no names
        shown = NamedMap(semantic if photo.are_known else None, photo.label_names, " (regions)", colours)
    legend = class_legend(
        *(NamedMap(ids, viewed.label_names) for ids in predicted),
        *([shown] if "semantic" in found else []),
    )
    facts = picture_facts([viewed], [photo], count_masked(config, mask_ratio), seed)
    draw_grid(cells, path, ["regions", "input", *_prediction_columns(viewed)], row_names, legend, headline(facts))
    missing = [name for name in MASKING_STRATEGIES if name not in row_names]
    caption = sentences(
        "What the decoder rebuilds of the patches that a strategy hides: whole semantic regions; whole instances and, "
        "outside them, semantic regions; or patches at random, beside the photograph itself."
        if photo.maps_from
        else "What the decoder rebuilds of patches that are hidden at random.",
        f"The regions are the maps {photo.maps_from}." if photo.maps_from else "",
        "" if photo.shares_classes or not photo.maps_from else "Their classes and colours are not the checkpoint's.",
        f"No maps, hence no {' or '.join(missing)} masking." if missing else "",
        about_gaps(viewed),
        ABOUT_NO_INSTANCE if "instance" in viewed.granularities else "",
        about_brightness(config) if "image" in viewed.granularities else "",
    )
    return Picture(Path(path), "Rebuilt under each masking strategy", caption, facts)


def _prediction_columns(viewed: ViewedModel) -> list[str]:
    names = {"semantic": "semantics", "instance": "instances", "image": "pixels"}
    return [names[name] for name in viewed.granularities]


def _prediction_cells(viewed: ViewedModel, prediction: Prediction) -> list[np.ndarray | None]:
    pictures = {
        "semantic": map_picture(prediction.semantic, viewed.config),
        "instance": map_picture(prediction.instance, viewed.config, NO_INSTANCE),
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
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    times = np.linspace(0, 1, num_frames).tolist()
    rows = curriculum_frames(photo, config, curriculum, times, seed=seed, mask_ratio=mask_ratio)
    facts = picture_facts([viewed], [photo], count_masked(config, mask_ratio), seed)

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
    fine = torch.linspace(0, 1, 3001, dtype=torch.double)  # steps are upright
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
    canvas.text(0.02, height - 0.05, headline(facts), fontsize=11, ha="left", va="top", color="#444444")
    save_figure(figure, path)
    fallen_back = photo.maps_from == ""
    caption = sentences(
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
    [`~c2fmae_hf.pictures.views.predict_everywhere`] for what the latter means.

    Args:
        viewed ([`~c2fmae_hf.pictures.views.ViewedModel`]): With a decoder that predicts semantics or instances.
        photo, path, seed, mask_ratio: As for [`draw_strategies`].
    """
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    mask, _ = strategy_mask(photo, config, "random", seed, mask_ratio)
    masked, everywhere = predict(viewed, photo, mask), predict_everywhere(viewed, photo, seed, mask_ratio)
    target = photo.semantic.numpy() if photo.are_known else None
    is_shared = target is None or photo.shares_classes
    predicted = [masked.semantic, everywhere.semantic]
    colours = None if target is None or photo.shares_classes else other_colours(target, predicted)
    row_names, cells = [], []
    pictures = iter([pixels, masked_photo(pixels, mask, config.patch_size, UNKNOWN_COLOUR)])
    for name, background in (("semantic", None), ("instance", NO_INSTANCE)):
        if name not in viewed.granularities:
            continue
        both = (getattr(found, name) for found in (masked, everywhere))
        row = [next(pictures), *(map_picture(ids, config, background) for ids in both)]
        if photo.are_known:
            known = getattr(photo, name).numpy()
            row.append(map_picture(known, config, background, colours if name == "semantic" else None))
        cells.append(row)
        row_names.append("semantics" if name == "semantic" else "instances")
    legend: dict[str, np.ndarray] = {}
    if "semantic" in viewed.granularities:
        names = {**photo.label_names, **viewed.label_names} if is_shared else photo.label_names
        legend = class_legend(
            NamedMap(everywhere.semantic, viewed.label_names),
            NamedMap(masked.semantic, viewed.label_names),
            NamedMap(target, names, "" if is_shared else " (known)", colours),
        )
    facts = picture_facts([viewed], [photo], count_masked(config, mask_ratio), seed)
    columns = ["photograph, input", "masked", "every patch", *(["known"] if photo.are_known else [])]
    draw_grid(cells, path, columns, row_names, legend, headline(facts))
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
    caption = sentences(
        "Semantics and instances as the decoder predicts them.",
        "Masked: from one random mask, which the photograph below shows."
        if len(cells) > 1
        else "Masked: from one random mask.",
        about_gaps(viewed),
        unmasked,
        f"Known: the map {photo.maps_from}." if photo.are_known else "",
        "" if is_shared else "Its classes are not the checkpoint's, and have other colours.",
        f"{ABOUT_NO_INSTANCE} Colours of instances have no meaning." if "instance" in viewed.granularities else "",
    )
    return Picture(Path(path), "Predicted semantics and instances", caption, facts)


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
        patch: (row, column) in the first model's grid, from 0, whose attention is shown; in the others the patch that
            holds its middle, or is nearest to it, as models may see more or less of a photograph.
        pca: The photograph's picture of each model from [`~c2fmae_hf.pictures.encoder_views.feature_pictures`].
        seed, mask_ratio: As for [`draw_strategies`].
    """
    rows: list[list[np.ndarray | None]] = []
    classes, spoken = [], []
    for position, (model, photo, features) in enumerate(zip(viewed, photos, pca)):
        config = model.config
        row, column = same_patch(patch, viewed[0].config, config)
        everywhere = Prediction()
        rebuilt: np.ndarray | None = None
        what = "no decoder, predicts nothing"
        if model.whole is not None:
            mask, _ = strategy_mask(photo, config, "random", seed, mask_ratio)
            everywhere = predict_everywhere(model, photo, seed, mask_ratio)
            rebuilt = predict(model, photo, mask).image
            share = masked_share(config, count_masked(config, mask_ratio))
            passes = f"{everywhere.passes} complementary masks" if everywhere.passes else "one pass without a mask"
            what = f"{share} masked; semantics and instances from {passes}"
        spoken.append(f"Row {position + 1}: {model.name}, {what}.")
        weights = photo_attention(model, photo)[-1].mean(dim=0)[row * config.grid_size[1] + column]
        other = position > 0 and model.label_names != viewed[0].label_names
        classes.append(NamedMap(everywhere.semantic, model.label_names, f" ({position + 1})" if other else ""))
        is_new = position == 0 or config.image_height_width != viewed[0].config.image_height_width
        rows.append(
            [
                outlined(photo_pixels(model, photo), (row, column), config.patch_size) if is_new else None,
                rebuilt,
                map_picture(everywhere.semantic, config),
                map_picture(everywhere.instance, config, NO_INSTANCE),
                enlarge(features, config.patch_size),
                heat_picture(weights.numpy(), config, (row, column)),
            ]
        )
    columns = ["photograph", "pixels", "semantics", "instances", "features", "attention"]
    kept = [index for index in range(len(columns)) if any(row[index] is not None for row in rows)]
    cells = [[row[index] for index in kept] for row in rows]
    facts = picture_facts(viewed, photos[:1], seed=seed)
    row_names = [str(position + 1) for position in range(len(viewed))]
    draw_grid(cells, path, [columns[index] for index in kept], row_names, class_legend(*classes), headline(facts))
    predicts = any(model.whole is not None for model in viewed)
    caption = sentences(
        *spoken,
        "Pixels: what is rebuilt under one random mask; semantics and instances: of every patch." if predicts else "",
        "Classes followed by a number are those of that row alone." if any(suffix for *_, suffix in classes) else "",
        "Features: principal components of each checkpoint on its own, whose colours do not compare between rows. "
        "Attention: of the outlined patch in the last layer, mean over heads.",
    )
    return Picture(Path(path), "Side by side", caption, facts)


__all__ = ["draw_comparison", "draw_curriculum", "draw_maps", "draw_strategies"]
