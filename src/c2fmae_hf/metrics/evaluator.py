"""`evaluate.evaluator("image-segmentation")`, which the library leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from evaluate import Evaluator
from PIL import Image
from transformers import Pipeline

from ..constants import IGNORE_INDEX
from ..decoding import expand_label_map, to_label_map, to_rgb


class ImageSegmentationEvaluator(Evaluator):
    """
    Scores a `pipeline("image-segmentation")` on images and label maps, by default with this package's `mean_iou`.

        evaluator("image-segmentation").compute(pipe, data=rows, metric=load_metric("mean_iou"), label_column="semantic")

    Pixels that no segment covers are predicted as none of the classes.
    """

    PIPELINE_KWARGS = {"subtask": "semantic"}
    METRIC_KWARGS: dict[str, Any] = {}

    def __init__(self, task: str = "image-segmentation", default_metric_name: str | None = None) -> None:
        super().__init__(task, default_metric_name=default_metric_name)

    def prepare_data(self, data: Dataset, input_column: str, label_column: str, *args, **kwargs):
        """Images as RGB, and label maps at their images' sizes, -100 = ignore."""
        self.check_required_columns(data, {"input_column": input_column, "label_column": label_column})
        images = [to_rgb(image) for image in data[input_column]]
        maps = [
            expand_label_map(to_label_map(label_map), (image.height, image.width))
            for label_map, image in zip(data[label_column], images)
        ]
        return {"references": maps}, images

    def predictions_processor(
        self, predictions: Sequence[Sequence[Mapping[str, Any]]], label_mapping: Mapping[str, int] | None
    ) -> dict[str, list[np.ndarray]]:
        """The pipeline's segments, each a label and a mask, to maps of class ids."""
        return {"predictions": [self._paint(segments, label_mapping or {}) for segments in predictions]}

    @staticmethod
    def _paint(segments: Sequence[Mapping[str, Any]], label_mapping: Mapping[str, int]) -> np.ndarray:
        if not segments:
            raise ValueError("pipeline: expected at least one segment in every image, got none")
        label_map = np.full(np.asarray(segments[0]["mask"]).shape, IGNORE_INDEX, dtype=np.int64)
        for segment in segments:
            mask = segment["mask"]
            mask = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask) > 0
            label_map[mask] = label_mapping[segment["label"]]
        return label_map

    def compute(
        self,
        model_or_pipeline: Pipeline,
        data: Dataset,
        metric: Any,
        input_column: str = "image",
        label_column: str = "semantic",
        label_mapping: Mapping[str, int] | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """
        Args:
            model_or_pipeline: A pipeline for image segmentation.
            data: Rows with images and single-channel maps of class ids.
            metric: `load_metric("mean_iou")`.
            input_column, label_column (`str`): Names of the columns.
            label_mapping (*optional*): Class id by label; by default the model's own `label2id`.
            kwargs: Of `evaluate.Evaluator.compute`.
        """
        if label_mapping is None:
            label_mapping = {label: int(index) for label, index in model_or_pipeline.model.config.label2id.items()}
        self._num_labels = len(label_mapping)
        return super().compute(
            model_or_pipeline=model_or_pipeline,
            data=data,
            metric=metric,
            input_column=input_column,
            label_column=label_column,
            label_mapping=label_mapping,
            **kwargs,
        )
