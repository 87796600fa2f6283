"""Mean intersection over union as an `evaluate` module."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from c2fmae_hf.constants import IGNORE_INDEX
from c2fmae_hf.metrics.scores import confusion_matrix, iou_scores


class MeanIoU(evaluate.Metric):
    """
    Intersection over union of semantic maps over a whole dataset: pixels are counted over all images, then divided.

    `compute(predictions, references, num_labels, ignore_index=-100)`: lists of maps `(height, width)` of class ids;
    images may have different sizes. Returns the result of [`~c2fmae_hf.metrics.scores.iou_scores`]. `add_batch` keeps
    the maps on disk until then; a loop that adds up `confusion_matrix` needs no disk.
    """

    def _info(self) -> evaluate.MetricInfo:
        class_map = datasets.List(datasets.List(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of semantic maps.",
            citation="",
            inputs_description="predictions, references: maps of class ids (height, width).",
            features=datasets.Features({"predictions": class_map, "references": class_map}),
        )

    def _compute(self, predictions, references, num_labels: int, ignore_index: int = IGNORE_INDEX) -> dict:
        matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
        for prediction, reference in zip(predictions, references):
            matrix += confusion_matrix(np.asarray(prediction), np.asarray(reference), num_labels, ignore_index)
        return iou_scores(matrix)
