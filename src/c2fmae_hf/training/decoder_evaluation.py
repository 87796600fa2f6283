"""Mean IoU and panoptic quality of the decoder's predicted maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..constants import IGNORE_INDEX, NO_INSTANCE
from ..data.data_collator import DIAGNOSTICS, DataCollatorForC2FMAE
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..metrics.scores import PanopticCounts, confusion_matrix, iou_scores, panoptic_from_instances
from ..modeling_c2fmae import C2FMAEForPreTraining


@torch.inference_mode()
def evaluate_decoder(
    model: C2FMAEForPreTraining,
    dataset: Dataset,
    collator: DataCollatorForC2FMAE,
    processor: C2FMAEImageProcessor,
    batch_size: int = 16,
) -> dict[str, float]:
    """
    Score the predicted maps on the label grid. Only masked patches count, so an instance is scored on its masked part.

    Args:
        model ([`C2FMAEForPreTraining`]): Put into evaluation mode for the call.
        dataset: Samples with `semantic` and `instance`; see [`~c2fmae_hf.data.dataset.C2FMAEDataset`].
        collator ([`DataCollatorForC2FMAE`]): Draws the masks.
        processor ([`C2FMAEImageProcessor`]): Turns outputs into maps.
        batch_size (`int`): Samples per forward pass.

    Returns:
        For a decoder with semantics, `semantic_mean_iou` and `semantic_accuracy`. For one with instances,
        `instance_pq`, `instance_sq` and `instance_rq`, the panoptic quality of instances regardless of class. NaN
        where nothing is labelled.
    """
    config = model.config
    if not {"semantic", "instance"} & set(config.granularities):
        return {}
    matrix = np.zeros((config.num_semantic_classes, config.num_semantic_classes), dtype=np.int64)
    counts = PanopticCounts(2)
    was_training = model.training
    model.eval()
    number = len(dataset)  # type: ignore[arg-type]
    for start in tqdm(range(0, number, batch_size), desc="Evaluating the decoder", mininterval=1):
        samples: list[dict[str, Any]] = [dataset[index] for index in range(start, min(start + batch_size, number))]
        batch = collator(samples)
        inputs = {name: value.to(model.device) for name, value in batch.items() if name not in DIAGNOSTICS}
        outputs = model(**inputs, interpolate_pos_encoding=True)
        height, width = batch["pixel_values"].shape[2:]
        grid_size = (height // config.patch_size, width // config.patch_size)
        cells = config.label_cells_per_side
        visible = ~batch["bool_masked_pos"].unflatten(1, grid_size).repeat_interleave(cells, 1).repeat_interleave(
            cells, 2
        )
        if "semantic" in config.granularities:
            predicted = processor.post_process_semantic_segmentation(outputs, grid_size=grid_size)
            for label_map, sample, hidden in zip(predicted, samples, visible):
                reference = sample["semantic"].masked_fill(hidden, IGNORE_INDEX)
                matrix += confusion_matrix(
                    label_map.cpu().numpy(),
                    reference.numpy(),
                    config.num_semantic_classes,  # type: ignore[union-attr]
                )
        if "instance" in config.granularities:
            results = processor.post_process_instance_segmentation(outputs, grid_size=grid_size)
            for result, sample, hidden in zip(results, samples, visible):
                instances = result["segmentation"].cpu().masked_fill(hidden, NO_INSTANCE)
                reference = sample["instance"].masked_fill(hidden, IGNORE_INDEX)
                counts.add(
                    panoptic_from_instances(instances.numpy()),
                    panoptic_from_instances(reference.numpy()),
                    things={0},
                )
    model.train(was_training)
    scores: dict[str, float] = {}
    if "semantic" in config.granularities:
        found = iou_scores(matrix)
        scores["semantic_mean_iou"] = float(found["mean_iou"])  # type: ignore[arg-type]
        scores["semantic_accuracy"] = float(found["overall_accuracy"])  # type: ignore[arg-type]
    if "instance" in config.granularities:
        scores.update({f"instance_{name}": value for name, value in counts.scores([0]).items()})
    return scores
