"""Top-1 and top-5 accuracy as an `evaluate` module."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from c2fmae_hf.metrics.scores import count_top_k


class TopKAccuracy(evaluate.Metric):
    """
    Share of images whose class is among the `k` likeliest.

    `compute(predictions, references, ks=(1, 5))`: predictions are scores `(rows, classes)` or, for `k = 1` only, class
    ids, as from `evaluate.evaluator("image-classification")`. Returns `{"top1_accuracy": ..., "top5_accuracy": ...}`,
    in [0, 1]; `ks` beyond the number of classes are left out.
    """

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Share of images whose class is among the k likeliest.",
            citation="",
            inputs_description="predictions: scores of all classes, or class ids; references: class ids.",
            features=[
                datasets.Features({"predictions": label, "references": label}),
                datasets.Features({"predictions": datasets.List(datasets.Value("float32")), "references": label}),
            ],
        )

    def _compute(self, predictions, references, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        if predictions.ndim == 1:
            return {"top1_accuracy": float((predictions == references).mean())}
        return {
            f"top{k}_accuracy": count_top_k(predictions, references, k) / len(references)
            for k in ks
            if k == 1 or k < predictions.shape[1]
        }
