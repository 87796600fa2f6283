"""Pictures of masks, of predictions and of checkpoints side by side, each with a caption."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..constants import MASKING_STRATEGIES
from ..masking import MaskingCurriculum
from .captions import (
    Facts,
    Picture,
    class_legend,
    draw_picture,
    map_picture,
    masked_facts,
    masked_share,
    photo_pixels,
    sentences,
)
from .colours import PALETTE, colour_instances, enlarge
from .encoder_panels import heat_picture, outlined
from .encoder_views import photo_attention
from .figures import GRID_FONT, new_grid, save_figure
from .views import (
    Frame,
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


# Photographs in a grid of predictions.
MAX_ROWS = 8
NO_INSTANCE_IS_BLACK = "Nearly black: no instance."
NAMES = {"semantic": "semantics", "instance": "instances", "image": "pixels"}
_STRATEGY_COLOURS = dict(zip(MASKING_STRATEGIES, PALETTE.astype(np.uint8)))


def prediction_cells(viewed: ViewedModel, prediction: Prediction) -> dict[str, np.ndarray | None]:
    """A picture by granularity; `None` for those that were not predicted."""
    return {
        "semantic": map_picture(prediction.semantic, viewed.config),
        "instance": map_picture(prediction.instance, viewed.config, colour_instances),
        "image": prediction.image,
    }


def about_gaps(viewed: ViewedModel) -> str:
    """Say what predicted maps show where patches are visible."""
    if not {"semantic", "instance"} & set(viewed.granularities):
        return ""
    if viewed.config.supervise_visible_labels:
        return "Visible patches are predicted, too: this model was trained on their labels."
    return "Light grey: visible patches, which are not predicted."


def draw_predictions(
    viewed: ViewedModel,
    photos: Sequence[Photo],
    path: str | os.PathLike,
    seed: int = 0,
    mask_ratio: float | None = None,
) -> Picture:
    """
    Draw a row for each of up to eight photographs: the photograph, its visible patches, and what the decoder predicts
    for the others. Visible patches are copied into the predictions.

    Args:
        viewed, path, seed, mask_ratio: As for [`draw_strategies`].
        photos: Photographs prepared for this model.
    """
    config, photos = viewed.config, photos[:MAX_ROWS]
    rows, maps = [], []
    for draw, photo in enumerate(photos):
        pixels = photo_pixels(viewed, photo)
        mask, _ = strategy_mask(photo, config, "random", seed, mask_ratio, draw)
        found = predict(viewed, photo, mask)
        is_hidden = enlarge(mask.cpu().numpy().reshape(config.grid_size), config.patch_size)[..., None]
        pictures: dict[str, Any] = prediction_cells(viewed, found)
        seen = [np.where(is_hidden, pictures[name], pixels) for name in viewed.granularities]
        rows.append([pixels, masked_photo(pixels, mask, config.patch_size), *seen])
        maps.append(found.semantic)
    masked = (count_masked(config, mask_ratio), config.num_patches)
    facts = Facts([viewed.name], [photo.name for photo in photos], masked, seed)
    return draw_picture(
        rows,
        path,
        "What the decoder predicts",
        sentences(
            f"The encoder sees the second column; the decoder predicts the other {masked_share(*masked)}.",
            NO_INSTANCE_IS_BLACK if "instance" in viewed.granularities else "",
        ),
        facts,
        column_names=["photograph", "visible patches", *(NAMES[name] for name in viewed.granularities)],
        legend=class_legend(*((ids, viewed.class_names) for ids in maps)),
    )


def draw_strategies(
    viewed: ViewedModel, photo: Photo, path: str | os.PathLike, seed: int = 0, mask_ratio: float | None = None
) -> Picture:
    """
    Draw a row for each masking strategy: its regions (for random masking the photograph), the visible patches, and
    what the decoder predicts.

    Args:
        viewed ([`~c2fmae_hf.pictures.views.ViewedModel`]): A model with a decoder.
        photo ([`~c2fmae_hf.pictures.views.Photo`]): Without maps only random masking is drawn.
        path: Where to write.
        seed (`int`): Seed of the masks.
        mask_ratio (`float`, *optional*): By default the model's.
    """
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    names = {**viewed.class_names, **photo.class_names}
    semantic = photo.semantic.numpy()
    regions = [map_picture(semantic, config), map_picture(photo.instance.numpy(), config, colour_instances), pixels]
    rows: dict[str, list[np.ndarray | None]] = {}
    maps: list[np.ndarray | None] = [semantic]
    for strategy, region in zip(MASKING_STRATEGIES, regions):
        mask, applied = strategy_mask(photo, config, strategy, seed, mask_ratio)
        if applied != strategy:
            continue
        prediction = predict(viewed, photo, mask)
        pictures = prediction_cells(viewed, prediction)
        seen = masked_photo(pixels, mask, config.patch_size)
        rows[strategy] = [region, seen, *(pictures[name] for name in viewed.granularities)]
        maps.append(prediction.semantic)
    missing = [name for name in MASKING_STRATEGIES if name not in rows]
    caption = sentences(
        "What the decoder predicts under each masking strategy. Semantic masking leaves a part of every class "
        "visible, instance masking a part of every instance, random masking any patches. Regions come from "
        f"{photo.maps_from}."
        if photo.maps_from
        else "What the decoder predicts for randomly hidden patches.",
        "" if photo.shares_classes or not photo.maps_from else "Their classes and colours are not the checkpoint's.",
        f"Without maps there is no {' or '.join(missing)} masking." if missing else "",
        about_gaps(viewed),
        NO_INSTANCE_IS_BLACK if "instance" in viewed.granularities else "",
        "Predicted pixels take each patch's brightness and contrast from the photograph."
        if "image" in viewed.granularities and config.norm_pix_loss
        else "",
    )
    return draw_picture(
        list(rows.values()),
        path,
        "Predictions under each masking strategy",
        caption,
        masked_facts(viewed, photo, seed, mask_ratio),
        column_names=["regions", "input", *(NAMES[name] for name in viewed.granularities)],
        row_names=list(rows),
        legend=class_legend(*((ids, names) for ids in maps)),
    )


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
    Draw the masking curriculum as a film strip: training progress t from 0 to 1, a row for each of three samples, and
    the strategies' probabilities.

    Args:
        viewed, photo, path, seed, mask_ratio: As for [`draw_strategies`]; the model needs no decoder.
        curriculum ([`MaskingCurriculum`], *optional*): By default linear, coarse to fine.
        num_frames (`int`): Number of times to draw, at least 2.
    """
    curriculum = curriculum or MaskingCurriculum()
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    times = np.linspace(0, 1, num_frames).tolist()
    rows = curriculum_frames(photo, config, curriculum, times, seed=seed, mask_ratio=mask_ratio)

    def framed(frame: Frame) -> np.ndarray:
        seen = masked_photo(pixels, frame.mask, config.patch_size)
        border = -(-len(seen) // 24)
        picture = np.full([len(seen) + 2 * border, seen.shape[1] + 2 * border, 3], _STRATEGY_COLOURS[frame.strategy])
        picture[border:-border, border:-border] = seen
        return picture

    facts = masked_facts(viewed, photo, seed, mask_ratio)
    whole: list[np.ndarray | None] = [pixels] + [None] * (len(rows) - 1)
    figure = new_grid(
        [[first, *(framed(frame) for frame in row)] for first, row in zip(whole, rows)],
        column_names=["photo", *[f"t = {time:.1f}" for time in times]],
        cell_names=[["", *[frame.strategy for frame in row]] for row in rows],
        title=facts.headline(),
        below=1.75,
    )
    # The t axis is aligned with the middles of the frames.
    height, columns = figure.get_figheight(), num_frames + 1
    axes = figure.add_axes((1.5 / columns, 0.85 / height, 1 - 2 / columns, 0.9 / height))
    fine = torch.linspace(0, 1, 3001, dtype=torch.double)  # steps are upright
    axes.stackplot(
        fine.numpy(),
        curriculum.probabilities(fine).numpy().T,
        colors=list(PALETTE[: len(MASKING_STRATEGIES)] / 255),
        labels=[f"{name} masking" for name in MASKING_STRATEGIES],
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), yticks=[0, 1])
    axes.tick_params(labelsize=12)
    axes.set_xlabel("t", fontsize=GRID_FONT, labelpad=0)
    figure.legend(loc="lower center", ncols=len(MASKING_STRATEGIES), fontsize=13, frameon=False)
    save_figure(figure, path)
    caption = sentences(
        f"What the encoder sees as training progresses from t = 0 to t = 1, with the {curriculum.schedule} schedule. "
        "Each row is one sample with fixed random numbers; borders have the colour of the strategy. Below: the "
        "probability of each strategy.",
        f"Regions come from {photo.maps_from}."
        if photo.maps_from
        else "Without maps every strategy falls back to random masks.",
    )
    return Picture(Path(path), "The masking curriculum", caption, facts)


def draw_maps(
    viewed: ViewedModel, photo: Photo, path: str | os.PathLike, seed: int = 0, mask_ratio: float | None = None
) -> Picture:
    """
    Draw predicted semantics and instances under one mask, for every patch (see
    [`~c2fmae_hf.pictures.views.predict_everywhere`]), and the known ones.

    Args:
        viewed ([`~c2fmae_hf.pictures.views.ViewedModel`]): A model whose decoder predicts semantics or instances.
        photo, path, seed, mask_ratio: As for [`draw_strategies`].
    """
    config, pixels = viewed.config, photo_pixels(viewed, photo)
    mask, _ = strategy_mask(photo, config, "random", seed, mask_ratio)
    masked, everywhere = predict(viewed, photo, mask), predict_everywhere(viewed, photo, seed, mask_ratio)
    known = Prediction(photo.semantic.numpy(), photo.instance.numpy())
    shown = [masked, everywhere, *([known] if photo.are_known else [])]
    granularities = [name for name in ("semantic", "instance") if name in viewed.granularities]
    pictures = [prediction_cells(viewed, one) for one in shown]
    cells = [
        [left, *(one[name] for one in pictures)]
        for left, name in zip((pixels, masked_photo(pixels, mask, config.patch_size)), granularities)
    ]
    names = {**viewed.class_names, **photo.class_names}
    if everywhere.passes:
        unmasked = (
            f"Every patch: seen through {everywhere.passes} masks that together hide every patch; predictions for a "
            "patch are averaged over the masks that hide it, so none uses the patch's own pixels."
        )
    else:
        unmasked = (
            "Every patch: nothing was masked. This model was trained on the labels of visible patches, too "
            "(supervise_visible_labels), so it also uses the patch's own pixels."
        )
    caption = sentences(
        "Semantics and instances that the decoder predicts. Masked: under one random mask"
        + (", shown at the lower left." if len(cells) > 1 else "."),
        about_gaps(viewed),
        unmasked,
        f"Known: {photo.maps_from}." if photo.are_known else "",
        "Their classes are not the checkpoint's and have other colours."
        if photo.are_known and not photo.shares_classes
        else "",
        f"{NO_INSTANCE_IS_BLACK} Colours of instances have no meaning." if "instance" in granularities else "",
    )
    return draw_picture(
        cells,
        path,
        "Predicted semantics and instances",
        caption,
        masked_facts(viewed, photo, seed, mask_ratio),
        column_names=["photograph, input", "masked", "every patch", "known"][: len(cells[0])],
        row_names=[NAMES[name] for name in granularities],
        legend=class_legend(*((one.semantic, names) for one in shown)) if "semantic" in granularities else None,
    )


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
    Draw a row for each checkpoint, all for one photograph.

    Args:
        viewed: Models with or without a decoder.
        photos: The photograph, prepared for each.
        path: Where to write.
        patch: (row, column) from 0 in the first model's grid; its attention is shown, for the other models that of the
            patch nearest to its middle.
        pca: The photograph's picture of each model from [`~c2fmae_hf.pictures.encoder_views.feature_pictures`].
        seed, mask_ratio: As for [`draw_strategies`].
    """
    first, rows, maps, spoken = viewed[0], [], [], []
    for number, (model, photo, features) in enumerate(zip(viewed, photos, pca), 1):
        config = model.config
        place = same_patch(patch, first.config, config)
        found, what = Prediction(), "no decoder, predicts nothing"
        if model.whole is not None:
            mask, _ = strategy_mask(photo, config, "random", seed, mask_ratio)
            everywhere = predict_everywhere(model, photo, seed, mask_ratio)
            found = Prediction(everywhere.semantic, everywhere.instance, predict(model, photo, mask).image)
            passes = f"{everywhere.passes} complementary masks" if everywhere.passes else "one pass without a mask"
            share = masked_share(count_masked(config, mask_ratio), config.num_patches)
            what = f"{share} masked; semantics and instances from {passes}"
        spoken.append(f"Row {number}: {model.name}, {what}.")
        is_own = model.config.semantic_id2label != first.config.semantic_id2label
        suffix = f" ({number})" if is_own else ""
        maps.append((found.semantic, {label: f"{name}{suffix}" for label, name in model.class_names.items()}))
        is_new = number == 1 or config.image_height_width != first.config.image_height_width
        weights = photo_attention(model, photo)[-1].mean(dim=0)[np.ravel_multi_index(place, config.grid_size)]
        pictures = prediction_cells(model, found)
        row = {
            "photograph": outlined(photo_pixels(model, photo), place, config.patch_size) if is_new else None,
            **{NAMES[name]: pictures[name] for name in ("image", "semantic", "instance")},
            "features": enlarge(features, config.patch_size),
            "attention": heat_picture(weights.numpy(), config, place),
        }
        rows.append(row)
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    predicts = any(model.whole is not None for model in viewed)
    has_own = any(model.config.semantic_id2label != first.config.semantic_id2label for model in viewed)
    return draw_picture(
        [[row[name] for name in columns] for row in rows],
        path,
        "Side by side",
        sentences(
            *spoken,
            "Pixels are predicted under one random mask, semantics and instances for every patch." if predicts else "",
            "A number after a class is that of the row it belongs to." if has_own and predicts else "",
            "Features: principal components of each checkpoint; colours cannot be compared between rows. "
            "Attention: that of the outlined patch in the last layer, averaged over heads.",
        ),
        Facts([model.name for model in viewed], [photos[0].name], seed=seed),
        column_names=columns,
        row_names=[str(number) for number in range(1, len(viewed) + 1)],
        legend=class_legend(*maps),
    )
