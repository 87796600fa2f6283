"""Pictures that a person can judge a run by. Needs the `viz` extra (matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..constants import GRANULARITIES, IGNORE_INDEX, MASKING_STRATEGIES, NO_INSTANCE
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..modeling_c2fmae import C2FMAEForPreTraining
from ..targets import instance_map_from_labels
from .figures import PALETTE, UNKNOWN_COLOUR, colour_ids, draw_panels, enlarge, new_figure, save_figure


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

    pixel_values, masked = inputs["pixel_values"], inputs["bool_masked_pos"].cpu().numpy()
    rows, columns = (side // config.patch_size for side in pixel_values.shape[2:])
    photos = processor.to_pixels(pixel_values)
    seen = []
    for photo, mask in zip(photos, masked):
        hidden = enlarge(mask.reshape(rows, columns), config.patch_size)
        seen.append(np.where(hidden[..., None], np.array(UNKNOWN_COLOUR, dtype=np.uint8), photo))
    panels: dict[str, list[np.ndarray]] = {"photograph": photos, "masked input": seen}

    if "semantic" in config.granularities:
        targets = inputs["semantic_labels"].cpu().numpy()
        predicted = processor.post_process_semantic_segmentation(outputs, grid_size=(rows, columns))
        panels["semantic target"] = [colour_ids(target) for target in targets]
        panels["semantic prediction"] = [colour_ids(ids.cpu().numpy()) for ids in predicted]
    if "instance" in config.granularities:
        labels = inputs["instance_labels"].cpu()
        targets = instance_map_from_labels(labels, radius=0.02, min_cells=1).numpy()
        targets = np.where(labels[:, 2].numpy() == IGNORE_INDEX, IGNORE_INDEX, targets)
        predictions = processor.post_process_instance_segmentation(outputs, grid_size=(rows, columns))
        panels["instance target"] = [colour_ids(target, background=NO_INSTANCE) for target in targets]
        shown = []
        for prediction, mask in zip(predictions, masked):
            visible = ~enlarge(mask.reshape(rows, columns), config.label_cells_per_side)
            ids = np.where(visible, IGNORE_INDEX, prediction["segmentation"].cpu().numpy())
            shown.append(colour_ids(ids, background=NO_INSTANCE))
        panels["instance prediction"] = shown
    if "image" in config.granularities:
        panels["reconstruction"] = processor.post_process_reconstruction(outputs, pixel_values, config.norm_pix_loss)

    notes = ["Light grey: not predicted (visible patches) or without label."]
    if config.norm_pix_loss and "image" in config.granularities:
        notes.append("Brightness and contrast of reconstructed patches are borrowed from the photograph.")
    names: dict[Any, str] = dict(config.semantic_id2label or {})
    present: list[int] = []
    if "semantic" in config.granularities:
        present = [i for i in inputs["semantic_labels"].unique().tolist() if i in names]
    colours = {names[i]: colour_ids(np.array([[i]]))[0, 0] for i in present}
    draw_panels(panels, path, colours, " ".join(notes), title)


def draw_curves(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = "") -> None:
    """
    A PNG with each granularity's loss over the steps, in training and on the held-out split, and the curriculum.

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
    figure = new_figure(3.6 * (len(names) + 1), 3.4)
    axes = figure.subplots(1, len(names) + 1)

    def series(key: str) -> tuple[list[float], list[float]]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        return [step for step, _ in points], [value for _, value in points]

    colours = PALETTE / 255
    for index, name in enumerate(names):
        axes[index].plot(*series(f"{name}_loss"), color=colours[index], label="training (augmented, curriculum masks)")
        steps, values = series(f"eval_{name}_loss")
        if steps:
            axes[index].plot(steps, values, "o--", color="black", markersize=4, label="held-out (fixed masks)")
        axes[index].set_title(f"{name} loss")
        axes[index].set_xlabel("step")
        axes[index].grid(alpha=0.3)
        axes[index].legend(fontsize=7)
    for index, (name, style) in enumerate(zip(MASKING_STRATEGIES, ("-", "--", ":"))):
        axes[-1].plot(*series(f"curriculum_{name}"), style, color=colours[index], label=name, linewidth=2)
    axes[-1].set_title("masking curriculum")
    axes[-1].set_xlabel("step")
    axes[-1].set_ylabel("probability")
    axes[-1].set_ylim(-0.02, 1.02)
    axes[-1].grid(alpha=0.3)
    axes[-1].legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.tight_layout()
    save_figure(figure, path)
