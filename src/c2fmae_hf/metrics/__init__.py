"""
Standard metrics as `evaluate` modules that need no network: `load_metric("top_k_accuracy")`, `"mean_iou"`,
`"panoptic_quality"`. The module `scores` computes them from arrays. Importing this package also registers
`evaluate.evaluator("image-segmentation")`.
"""

from __future__ import annotations

import evaluate
from evaluate.evaluator import SUPPORTED_EVALUATOR_TASKS

from .evaluator import ImageSegmentationEvaluator
from .mean_iou import MeanIoU
from .panoptic_quality import PanopticQuality
from .top_k_accuracy import TopKAccuracy


METRICS: dict[str, type[evaluate.Metric]] = {
    "top_k_accuracy": TopKAccuracy,
    "mean_iou": MeanIoU,
    "panoptic_quality": PanopticQuality,
}

SUPPORTED_EVALUATOR_TASKS.setdefault(
    "image-segmentation", {"implementation": ImageSegmentationEvaluator, "default_metric_name": None}
)


def load_metric(name: str, **options) -> evaluate.Metric:
    """
    Load a metric of this package; [`evaluate.load`] would look for the name on the Hub.

    Args:
        name (`str`): `top_k_accuracy`, `mean_iou` or `panoptic_quality`.
        options: Options of [`evaluate.Metric`], such as `experiment_id` or `keep_in_memory`.

    Raises:
        `ValueError`: for an unknown name.
    """
    if name not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name](**options)
