"""Pictures of a pre-training run: reconstructions, and curves of the losses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..constants import GRANULARITIES, IGNORE_INDEX, MASKING_STRATEGIES
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..modeling_c2fmae import C2FMAEForPreTraining
from ..targets import instance_map_from_labels
from .captions import class_legend
from .colours import PALETTE, colour_classes, colour_instances
from .figures import GRID_DPI, GRID_FONT, GRID_WIDTH, draw_panels, new_figure, save_figure
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
    Write a PNG with a row per photograph: the photograph, what the encoder saw, and the target and the prediction of
    each granularity. Visible patches are not predicted: they are light grey in predicted maps and copied from the
    photograph in predicted pixels.

    Args:
        model ([`C2FMAEForPreTraining`]): In evaluation mode during the call.
        batch: From [`DataCollatorForC2FMAE`].
        processor ([`C2FMAEImageProcessor`]): The model's.
        path: Where to write.
        title (`str`): Small text above.
    """
    config = model.config
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "mask_strategy"}
    was_training = model.training
    outputs = model.eval()(**inputs, interpolate_pos_encoding=True)
    model.train(was_training)
    predictions: Any = read_predictions(processor, config, outputs, inputs["pixel_values"])

    photos = processor.to_pixels(inputs["pixel_values"])
    seen = [masked_photo(photo, mask, config.patch_size) for photo, mask in zip(photos, inputs["bool_masked_pos"])]
    panels = {"photograph": photos, "input": seen}
    notes, legend = ["Light grey: visible or unlabelled."], None
    if "semantic" in config.granularities:
        targets = inputs["semantic_labels"].cpu().numpy()
        panels["semantic\ntarget"] = [colour_classes(target) for target in targets]
        panels["semantic\nprediction"] = [colour_classes(found.semantic) for found in predictions]
        names: dict[Any, str] = config.semantic_id2label or {}  # type: ignore[assignment]
        legend = class_legend((targets, names), *((found.semantic, names) for found in predictions))
    if "instance" in config.granularities:
        labels = inputs["instance_labels"].cpu()
        instances = instance_map_from_labels(labels, radius=0.02, min_cells=1)
        instances[labels[:, 2] == IGNORE_INDEX] = IGNORE_INDEX
        panels["instance\ntarget"] = [colour_instances(target) for target in instances.numpy()]
        notes.append("Nearly black: no instance.")
        panels["instance\nprediction"] = [colour_instances(found.instance) for found in predictions]
    if "image" in config.granularities:
        panels["pixels"] = [found.image for found in predictions]
        if config.norm_pix_loss:
            notes.append("Pixels: brightness and contrast from the photograph.")
    draw_panels(panels, path, legend, " ".join(notes), title)


def draw_curves(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = "") -> None:
    """
    Write a PNG with each granularity's loss over the steps, in training and on the held-out split, the share of images
    that each strategy masked and, for a run with a probe, the encoder's k-NN accuracy.

    Args:
        log_history: `trainer.state.log_history`, or the same from a `trainer_state.json`.
        path: Where to write.
        title (`str`): Small text above.

    Raises:
        `ValueError`: if nothing was logged.
    """
    names = [name for name in GRANULARITIES if any(f"{name}_loss" in entry for entry in log_history)]
    if not names:
        raise ValueError("log_history: expected entries with losses, got none")
    is_probed = any("knn_accuracy" in entry for entry in log_history)
    number = len(names) + 1 + is_probed
    lines = -(-number // 2)
    figure = new_figure(GRID_WIDTH, 0.3 + 3.6 * lines, GRID_DPI)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    axes = figure.subplots(lines, 2, squeeze=False).flatten()
    for axis in axes[number:]:
        axis.set_axis_off()
    axes = axes[:number]

    def series(key: str) -> tuple[list[float], list[float]]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        return [step for step, _ in points], [value for _, value in points]

    colours = PALETTE / 255
    for axis, name, colour in zip(axes, names, colours):
        axis.plot(*series(f"{name}_loss"), color=colour, label="training", linewidth=2)
        steps, values = series(f"eval_{name}_loss")
        if steps:
            axis.plot(steps, values, "o--", color="black", markersize=5, label="held-out split")
        axis.set_title(f"{name} loss", fontsize=GRID_FONT)
    for name, colour, style in zip(MASKING_STRATEGIES, colours, ("-", "--", ":")):
        axes[len(names)].plot(*series(f"masked_{name}"), style, color=colour, label=name, linewidth=2.5)
    axes[len(names)].set_title("masking, share of images", fontsize=GRID_FONT)
    axes[len(names)].set_ylim(-0.02, 1.02)
    axes[len(names)].yaxis.set_major_formatter(PercentFormatter(1))
    if is_probed:
        steps, values = series("knn_accuracy")
        axes[-1].plot(steps, values, "o-", color="black", markersize=5, label="k-NN probe of the encoder")
        axes[-1].set_title("k-NN accuracy", fontsize=GRID_FONT)
        axes[-1].yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes:
        axis.set_xlabel("step", fontsize=13)
        axis.tick_params(labelsize=12)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(alpha=0.3)
        # Below the axes, where it covers no line.
        axis.legend(
            fontsize=12,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            frameon=False,
            ncols=3,
            handlelength=1.4,
            columnspacing=1.0,
        )
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color="#444444")
    save_figure(figure, path)
