"""Pictures to judge a pre-training run by: reconstructions, and curves of the losses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..constants import GRANULARITIES, IGNORE_INDEX, MASKING_STRATEGIES
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..modeling_c2fmae import C2FMAEForPreTraining
from ..targets import instance_map_from_labels
from .captions import class_legend
from .colours import PALETTE, colour_classes, colour_instances
from .figures import draw_panels, new_figure, save_figure
from .views import masked_photo, read_predictions


@torch.no_grad()
def draw_reconstruction(
    model: C2FMAEForPreTraining,
    batch: Mapping[str, torch.Tensor],
    processor: C2FMAEImageProcessor,
    path: str | os.PathLike,
    title: str = "",
) -> None:
    """
    A PNG with a row per photograph: the photograph, what the encoder saw, and for each granularity the target and the
    prediction. Visible patches are not predicted: they are light grey in the maps and the photograph's own in the
    reconstruction.

    Args:
        model ([`C2FMAEForPreTraining`]): Put into evaluation mode for the call.
        batch: From [`DataCollatorForC2FMAE`].
        processor ([`C2FMAEImageProcessor`]): The model's.
        path: Where to write.
        title (`str`): Head line.
    """
    config = model.config
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "mask_strategy"}
    was_training = model.training
    outputs = model.eval()(**inputs, interpolate_pos_encoding=True)
    model.train(was_training)
    predictions: Any = read_predictions(processor, config, outputs, inputs["pixel_values"])

    photos = processor.to_pixels(inputs["pixel_values"])
    seen = [masked_photo(photo, mask, config.patch_size) for photo, mask in zip(photos, inputs["bool_masked_pos"])]
    panels = {"photograph": photos, "masked input": seen}
    notes, legend = ["Light grey: not predicted (visible patches) or without label."], None
    if "semantic" in config.granularities:
        targets = inputs["semantic_labels"].cpu().numpy()
        panels["semantic target"] = [colour_classes(target) for target in targets]
        panels["semantic prediction"] = [colour_classes(found.semantic) for found in predictions]
        names: dict[Any, str] = config.semantic_id2label or {}  # type: ignore[assignment]
        legend = class_legend((targets, names))
    if "instance" in config.granularities:
        labels = inputs["instance_labels"].cpu()
        instances = instance_map_from_labels(labels, radius=0.02, min_cells=1)
        instances[labels[:, 2] == IGNORE_INDEX] = IGNORE_INDEX
        panels["instance target"] = [colour_instances(target) for target in instances.numpy()]
        panels["instance prediction"] = [colour_instances(found.instance) for found in predictions]
    if "image" in config.granularities:
        panels["reconstruction"] = [found.image for found in predictions]
        if config.norm_pix_loss:
            notes.append("Brightness and contrast of reconstructed patches are borrowed from the photograph.")
    draw_panels(panels, path, legend, " ".join(notes), title)


def draw_curves(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = "") -> None:
    """
    A PNG with each granularity's loss over the steps, in training and on the held-out split, the share of images that
    each strategy masked and, of a run with a probe, the k-NN accuracy of the encoder.

    Args:
        log_history: `trainer.state.log_history`, or that of a `trainer_state.json`.
        path: Where to write.
        title (`str`): Head line.

    Raises:
        `ValueError`: if nothing was logged.
    """
    names = [name for name in GRANULARITIES if any(f"{name}_loss" in entry for entry in log_history)]
    if not names:
        raise ValueError("log_history: expected entries with losses, got none")
    is_probed = any("knn_accuracy" in entry for entry in log_history)
    number = len(names) + 1 + is_probed
    figure = new_figure(3.6 * number, 4.0, layout="constrained")
    axes = figure.subplots(1, number)

    def series(key: str) -> tuple[list[float], list[float]]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        return [step for step, _ in points], [value for _, value in points]

    colours = PALETTE / 255
    for axis, name, colour in zip(axes, names, colours):
        axis.plot(*series(f"{name}_loss"), color=colour, label="training (augmented, curriculum masks)")
        steps, values = series(f"eval_{name}_loss")
        if steps:
            axis.plot(steps, values, "o--", color="black", markersize=4, label="held-out (fixed masks)")
        axis.set_title(f"{name} loss")
    for name, colour, style in zip(MASKING_STRATEGIES, colours, ("-", "--", ":")):
        axes[len(names)].plot(*series(f"masked_{name}"), style, color=colour, label=name, linewidth=2)
    axes[len(names)].set(title="masks", ylabel="share of images", ylim=(-0.02, 1.02))
    if is_probed:
        steps, values = series("knn_accuracy")
        axes[-1].plot(steps, [100 * value for value in values], "o-", color="black", markersize=4, label="k-NN probe")
        axes[-1].set(title="k-NN accuracy of the encoder", ylabel="%")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        # Below, where it covers no line.
        axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save_figure(figure, path)
