"""Scores of predictions as functions of numpy arrays, and the counts behind them, which add up over batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..constants import IGNORE_INDEX, NO_INSTANCE


def count_top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> int:
    """
    Count the rows whose label is among the `k` highest scores. In a tie the lower class wins; NaN scores rank last.

    Args:
        scores: `(rows, classes)`.
        labels: `(rows,)` class ids.
        k (`int`): Number of scores; with at least the number of classes every row counts.

    Raises:
        `ValueError`: if shapes do not fit or a label is not a class.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"predictions: expected scores (rows, classes) and as many labels, got {scores.shape} and {labels.shape}"
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= scores.shape[1]):
        raise ValueError(
            f"references: expected classes in [0, {scores.shape[1]}), got {labels.min()} to {labels.max()}"
        )
    scores = np.where(np.isnan(scores), -np.inf, scores)
    own = scores[np.arange(len(labels)), labels][:, None]
    classes = np.arange(scores.shape[1])
    rank = (scores > own).sum(axis=1) + ((scores == own) & (classes < labels[:, None])).sum(axis=1)
    return int((rank < k).sum())


def confusion_matrix(
    predictions: np.ndarray, references: np.ndarray, num_labels: int, ignore_index: int = IGNORE_INDEX
) -> np.ndarray:
    """
    Count pixels by class of the reference (rows) and of the prediction (columns).

    Args:
        predictions: Class ids of any shape.
        references: Class ids of the same shape; pixels of `ignore_index` are not counted.
        num_labels (`int`): Number of classes.

    Returns:
        `np.ndarray` of shape `(num_labels, num_labels)`, int64; matrices of several batches may be added.

    Raises:
        `ValueError`: if shapes differ or an id is not a class.
    """
    if predictions.shape != references.shape:
        raise ValueError(f"predictions: expected the references' shape {references.shape}, got {predictions.shape}")
    counted = references != ignore_index
    predictions, references = predictions[counted].astype(np.int64), references[counted].astype(np.int64)
    for name, ids in (("predictions", predictions), ("references", references)):
        if len(ids) and (ids.min() < 0 or ids.max() >= num_labels):
            raise ValueError(f"{name}: expected classes in [0, {num_labels}), got {ids.min()} to {ids.max()}")
    return np.bincount(references * num_labels + predictions, minlength=num_labels**2).reshape(num_labels, num_labels)


def iou_scores(matrix: np.ndarray) -> dict[str, float | list[float]]:
    """
    Intersection over union from a [`confusion_matrix`].

    Returns:
        `mean_iou` and `mean_accuracy` over the classes that occur (in the reference or, for IoU, in a prediction),
        `overall_accuracy`, and `per_category_iou`, `per_category_accuracy` with NaN for classes that do not occur. All
        are NaN if nothing is counted.
    """
    hit = np.diag(matrix).astype(np.float64)
    reference, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hit / (reference + predicted - hit)
        accuracy = hit / reference
        overall = hit.sum() / matrix.sum()
    return {
        "mean_iou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "overall_accuracy": float(overall),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
    }


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def panoptic_from_instances(instance_map: np.ndarray) -> np.ndarray:
    """
    Convert instances without classes to a panoptic map of two classes: 0, a thing, for every instance; 1, stuff, for
    all other pixels. Use it with `num_labels=2, things={0}`.

    Args:
        instance_map: `(height, width)` ids; 0 = none, -100 = ignore.

    Returns:
        `np.ndarray` of shape `(height, width, 2)`, int64.
    """
    label = np.where(instance_map == IGNORE_INDEX, IGNORE_INDEX, (instance_map == NO_INSTANCE).astype(np.int64))
    return np.stack([label, instance_map.astype(np.int64)], axis=-1)


@dataclass
class PanopticCounts:
    """Counts of matched segments by class; [`~PanopticCounts.add`] adds those of an image."""

    num_labels: int
    iou: np.ndarray = field(init=False)
    true_positives: np.ndarray = field(init=False)
    false_positives: np.ndarray = field(init=False)
    false_negatives: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.iou = np.zeros(self.num_labels)
        self.true_positives, self.false_positives, self.false_negatives = (
            np.zeros(self.num_labels, dtype=np.int64) for _ in range(3)
        )

    def add(
        self,
        prediction: np.ndarray,
        reference: np.ndarray,
        things: Collection[int],
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        """
        Match the segments of one image: two segments of a class match if they overlap by more than half of their
        union.

        Args:
            prediction, reference: `(height, width, 2)` integers: class, and instance within the class; the instance
                matters only for things. Pixels whose reference class, or a thing's reference instance, is
                `ignore_index` are not counted; a predicted segment with more than half of its area there is neither
                right nor wrong. A predicted class of `ignore_index` means no prediction.
            things: Classes that have instances.

        Raises:
            `ValueError`: if shapes differ or an id is not a class.
        """
        if prediction.shape != reference.shape or prediction.ndim != 3 or prediction.shape[2] != 2:
            raise ValueError(
                f"predictions: expected maps (height, width, 2) of class and instance, as the references', got "
                f"{prediction.shape} and {reference.shape}"
            )
        # Also a region of things whose instances are not known, such as a crowd.
        is_crowd = np.isin(reference[..., 0], list(things)) & (reference[..., 1] == ignore_index)
        reference = np.where(is_crowd[..., None], ignore_index, reference)
        void = reference[..., 0] == ignore_index
        predicted, predicted_area = self._segments(prediction, things, ignore_index, "predictions")
        actual, actual_area = self._segments(reference, things, ignore_index, "references")
        void_area = self._areas(predicted[void])
        pairs, overlap = np.unique(np.stack([predicted[~void], actual[~void]], axis=1), axis=0, return_counts=True)
        matched_predicted, matched_actual = set(), set()
        for (mine, theirs), area in zip(pairs.tolist(), overlap.tolist()):
            if mine < 0 or theirs < 0 or mine % self.num_labels != theirs % self.num_labels:
                continue
            union = predicted_area[mine] - void_area.get(mine, 0) + actual_area[theirs] - area
            if 2 * area > union:
                label = mine % self.num_labels
                self.iou[label] += area / union
                self.true_positives[label] += 1
                matched_predicted.add(mine)
                matched_actual.add(theirs)
        for theirs in actual_area:
            if theirs not in matched_actual:
                self.false_negatives[theirs % self.num_labels] += 1
        for mine, area in predicted_area.items():
            if mine not in matched_predicted and 2 * void_area.get(mine, 0) <= area:
                self.false_positives[mine % self.num_labels] += 1

    def _segments(
        self, maps: np.ndarray, things: Collection[int], ignore_index: int, name: str
    ) -> tuple[np.ndarray, dict[int, int]]:
        """One number per pixel for its segment (its class is the number modulo `num_labels`; -1 = none), and areas."""
        label, instance = (maps[..., channel].astype(np.int64) for channel in range(2))
        counted = label != ignore_index
        if counted.any() and (label[counted].min() < 0 or label[counted].max() >= self.num_labels):
            raise ValueError(
                f"{name}: expected classes in [0, {self.num_labels}), got {label[counted].min()} to "
                f"{label[counted].max()}"
            )
        instance = np.where(np.isin(label, list(things)), instance, 0)
        # Instance ids are arbitrary: number them from 0.
        instance = np.unique(instance, return_inverse=True)[1].reshape(instance.shape)
        segments = np.where(counted, instance * self.num_labels + label, -1)
        return segments, self._areas(segments)

    @staticmethod
    def _areas(segments: np.ndarray) -> dict[int, int]:
        ids, counts = np.unique(segments[segments >= 0], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist()))

    def scores(self, classes: Sequence[int] | None = None) -> dict[str, float]:
        """Mean `pq`, `sq` and `rq` over those of the classes (by default all) that occur; NaN if none does."""
        chosen = np.arange(self.num_labels) if classes is None else np.asarray(sorted(classes), dtype=np.int64)
        right = self.true_positives[chosen]
        total = right + (self.false_positives[chosen] + self.false_negatives[chosen]) / 2
        occurs = total > 0
        if not occurs.any():
            return {"pq": float("nan"), "sq": float("nan"), "rq": float("nan")}
        iou, right, total = self.iou[chosen][occurs], right[occurs], total[occurs]
        return {
            "pq": float((iou / total).mean()),
            "sq": float((iou / np.maximum(right, 1)).mean()),
            "rq": float((right / total).mean()),
        }
