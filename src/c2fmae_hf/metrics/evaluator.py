"""`evaluate.evaluator("image-segmentation")`, which `evaluate` itself lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Dataset
from transformers import Pipeline, PreTrainedModel, pipeline

from ..constants import IGNORE_INDEX
from ..images import expand_label_map, to_label_map, to_rgb
from .mean_iou import MeanIoU


class ImageSegmentationEvaluator(evaluate.Evaluator):
    """
    Scores a `pipeline("image-segmentation")` for semantic segmentation on images and label maps:
    `evaluator("image-segmentation").compute(folder, data=rows)`.
    """

    PIPELINE_KWARGS = {"subtask": "semantic"}

    def __init__(self, task: str = "image-segmentation", default_metric_name: str | None = None) -> None:
        super().__init__(task, default_metric_name=default_metric_name)

    def prepare_pipeline(
        self,
        model_or_pipeline: str | Pipeline | PreTrainedModel,
        tokenizer: Any = None,
        feature_extractor: Any = None,
        device: int | None = None,
    ) -> Pipeline:
        if isinstance(model_or_pipeline, Pipeline):
            return model_or_pipeline
        device = self._infer_device() if device is None else device
        return pipeline(self.task, model=model_or_pipeline, image_processor=feature_extractor, device=device)

    def prepare_data(self, data: Dataset, input_column: str, label_column: str, *args, **kwargs):
        """Convert images to RGB, and label maps to their images' sizes; -100 = ignore."""
        self.check_required_columns(data, {"input_column": input_column, "label_column": label_column})
        images = [to_rgb(image) for image in data[input_column]]
        maps = [
            expand_label_map(to_label_map(label_map), (image.height, image.width))
            for label_map, image in zip(data[label_column], images)
        ]
        return {"references": maps}, images

    def predictions_processor(
        self, predictions: Sequence[Sequence[Mapping[str, Any]]], label_mapping: Mapping[str, int]
    ) -> dict[str, list[np.ndarray]]:
        """Convert the pipeline's segments, each a label and a mask, to maps of class ids."""
        maps = []
        for segments in predictions:
            label_map = np.full(np.asarray(segments[0]["mask"]).shape, IGNORE_INDEX, dtype=np.int64)
            for segment in segments:
                label_map[np.asarray(segment["mask"]) > 0] = label_mapping[segment["label"]]
            maps.append(label_map)
        return {"predictions": maps}

    def compute(  # type: ignore[override]
        self,
        model_or_pipeline: str | Pipeline | PreTrainedModel,
        data: Dataset,
        metric: evaluate.EvaluationModule | None = None,
        input_column: str = "image",
        label_column: str = "semantic",
        label_mapping: Mapping[str, int] | None = None,
        device: int | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """
        Score a pipeline on a dataset.

        Args:
            model_or_pipeline: A pipeline for image segmentation, or the folder or name of a model.
            data: Rows with images and single-channel maps of class ids.
            metric (*optional*): Defaults to this package's mean intersection over union.
            input_column, label_column (`str`): Names of the columns.
            label_mapping (*optional*): Class id by label; defaults to the model's `label2id`.
            device (`int`, *optional*): -1 for the CPU; defaults to a GPU if there is one.
            kwargs: Passed to `evaluate.Evaluator.compute`.

        Returns:
            The metric's scores, and the time that the pipeline took.
        """
        pipe = self.prepare_pipeline(model_or_pipeline, device=device)
        if label_mapping is None:
            label_mapping = {label: int(index) for label, index in (pipe.model.config.label2id or {}).items()}
        self.METRIC_KWARGS = {"num_labels": len(label_mapping)}
        return super().compute(
            model_or_pipeline=pipe,
            data=data,
            metric=MeanIoU() if metric is None else metric,
            input_column=input_column,
            label_column=label_column,
            label_mapping=dict(label_mapping),
            **kwargs,
        )
