"""Panoptic quality as an `evaluate` module."""

from __future__ import annotations

from collections.abc import Collection

import datasets
import evaluate
import numpy as np

from c2fmae_hf.constants import IGNORE_INDEX
from c2fmae_hf.metrics.scores import PanopticCounts


class PanopticQuality(evaluate.Metric):
    """
    Panoptic quality (Kirillov et al., CVPR 2019): how well segments are found (`rq`) and outlined (`sq`).

    `compute(predictions, references, num_labels, things=None, ignore_index=-100)`: lists of maps `(height, width, 2)`
    of class and instance; see [`~c2fmae_hf.metrics.scores.PanopticCounts.add`]. `things` are the classes that have
    instances, by default all. Returns `pq`, `sq`, `rq` over the classes that occur, and the same for things and for
    stuff (`pq_things`, ...). [`~c2fmae_hf.metrics.scores.panoptic_from_instances`] converts instance maps without
    classes, such as the decoder's, to such maps; `pq_things` is their score.
    """

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.List(datasets.List(datasets.List(datasets.Value("int32"))))
        return evaluate.MetricInfo(
            description="Panoptic quality of maps of classes and instances.",
            citation="",
            inputs_description="predictions, references: maps (height, width, 2) of class and instance.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(
        self,
        predictions,
        references,
        num_labels: int,
        things: Collection[int] | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> dict[str, float]:
        things = set(range(num_labels)) if things is None else set(things)
        counts = PanopticCounts(num_labels)
        for prediction, reference in zip(predictions, references):
            counts.add(np.asarray(prediction), np.asarray(reference), things, ignore_index)
        results = counts.scores()
        for name, classes in (("things", things), ("stuff", set(range(num_labels)) - things)):
            if classes:
                results.update({f"{key}_{name}": value for key, value in counts.scores(sorted(classes)).items()})
        return results
