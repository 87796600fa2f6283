"""
The field's metrics as `evaluate` modules that need no network: `load_metric("top_k_accuracy")`, `"mean_iou"`,
`"panoptic_quality"`. What they compute is in `scores`, as functions of arrays. Importing this package also makes
`evaluate.evaluator("image-segmentation")` known.
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
    A metric of this package; [`evaluate.load`] would ask the Hub for the name.

    Args:
        name (`str`): `top_k_accuracy`, `mean_iou` or `panoptic_quality`.
        options: Of [`evaluate.Metric`], such as `experiment_id` or `keep_in_memory`.

    Raises:
        `ValueError`: for an unknown name.
    """
    if name not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name](**options)
