"""Metrics against reference implementations, on random and on degenerate inputs."""

from __future__ import annotations

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import jaccard_score, top_k_accuracy_score
from torchmetrics.detection import PanopticQuality as ReferencePanopticQuality

import c2fmae_hf.metrics
from c2fmae_hf.metrics import METRICS, load_metric
from c2fmae_hf.metrics.scores import PanopticCounts, confusion_matrix, count_top_k, iou_scores, panoptic_from_instances


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_agrees_with_scikit_learn(k, ties):
    scores = GENERATOR.random((200, 7))
    if ties:
        scores = scores.round(1)
    labels = GENERATOR.integers(0, 7, 200)
    if not ties:
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
        assert count_top_k(scores, labels, k) / 200 == pytest.approx(expected, abs=1e-6)
    if k == 1:
        assert count_top_k(scores, labels, 1) == (scores.argmax(axis=1) == labels).sum()


def test_top_k_at_its_limits():
    scores = np.array([[np.nan, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert count_top_k(scores, np.array([0, 0]), 1) == 1  # not a number loses; of equal scores the first wins
    assert count_top_k(scores, np.array([0, 2]), 3) == 2
    with pytest.raises(ValueError, match=r"references: expected classes in \[0, 3\), got 0 to 3"):
        count_top_k(scores, np.array([0, 3]), 1)
    with pytest.raises(ValueError, match="predictions: expected scores"):
        count_top_k(scores, np.array([0]), 1)


def test_top_k_module():
    scores, labels = GENERATOR.random((50, 8)).astype(np.float32), GENERATOR.integers(0, 8, 50)
    metric = load_metric("top_k_accuracy")
    whole = metric.compute(predictions=scores, references=labels)
    assert set(whole) == {"top1_accuracy", "top5_accuracy"}
    metric.add_batch(predictions=scores[:20], references=labels[:20])
    metric.add_batch(predictions=scores[20:], references=labels[20:])
    assert metric.compute() == whole
    by_class = load_metric("top_k_accuracy").compute(predictions=scores.argmax(axis=1), references=labels)
    assert by_class == {"top1_accuracy": whole["top1_accuracy"]}
    # Top 5 of 2 classes says nothing.
    assert set(metric.compute(predictions=scores[:, :2], references=labels % 2)) == {"top1_accuracy"}


@pytest.mark.parametrize("absent", [False, True])
def test_iou_agrees_with_scikit_learn(absent):
    references = GENERATOR.integers(0, 4 if absent else 5, (6, 20, 30))
    predictions = np.where(GENERATOR.random(references.shape) < 0.6, references, GENERATOR.integers(0, 4, (6, 20, 30)))
    references[GENERATOR.random(references.shape) < 0.1] = -100
    counted = references != -100
    matrix = confusion_matrix(predictions, references, 6)
    expected = sklearn_confusion_matrix(references[counted], predictions[counted], labels=range(6))
    assert (matrix == expected).all()
    scores = iou_scores(matrix)
    occurring = np.unique(np.concatenate([references[counted], predictions[counted]]))
    each = jaccard_score(references[counted], predictions[counted], labels=occurring, average=None)
    assert np.array(scores["per_category_iou"])[occurring] == pytest.approx(each, abs=1e-6)
    assert scores["mean_iou"] == pytest.approx(each.mean(), abs=1e-6)
    assert math.isnan(scores["per_category_iou"][5])


def test_iou_of_nothing():
    ignored = np.full((4, 4), -100)
    scores = iou_scores(confusion_matrix(np.zeros((4, 4), int), ignored, 3))
    assert math.isnan(scores["mean_iou"])
    assert math.isnan(scores["overall_accuracy"])
    # A class that is predicted but not there counts as wrong; one that is neither does not count.
    scores = iou_scores(confusion_matrix(np.array([0, 1]), np.array([0, 0]), 3))
    assert scores["per_category_iou"][:2] == [0.5, 0.0]
    assert scores["mean_iou"] == 0.25
    assert scores["mean_accuracy"] == 0.5
    with pytest.raises(ValueError, match=r"predictions: expected the references' shape"):
        confusion_matrix(np.zeros((2, 2)), np.zeros((2, 3)), 3)
    with pytest.raises(ValueError, match=r"references: expected classes in \[0, 3\), got 0 to 255"):
        confusion_matrix(np.zeros(2), np.array([0, 255]), 3)


def test_iou_module_takes_images_of_several_sizes():
    references = [GENERATOR.integers(0, 3, size) for size in ((4, 6), (9, 5), (4, 6))]
    predictions = [GENERATOR.integers(0, 3, reference.shape) for reference in references]
    metric = load_metric("mean_iou")
    found = metric.compute(predictions=predictions, references=references, num_labels=3)
    flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in (predictions, references)]
    assert found == iou_scores(confusion_matrix(*flat, 3))


def random_panoptic(number: int, side: int, things: set[int], num_labels: int) -> np.ndarray:
    """Boxes of random classes and instances over one another."""
    maps = np.zeros((number, side, side, 2), np.int64)
    maps[..., 0] = num_labels - 1
    for image in maps:
        for instance in range(1, 9):
            top, left = GENERATOR.integers(0, side - 4, 2)
            height, width = GENERATOR.integers(3, side // 2, 2)
            label = GENERATOR.integers(0, num_labels)
            image[top : top + height, left : left + width] = (label, instance if label in things else 0)
    return maps


def shake(maps: np.ndarray) -> np.ndarray:
    """Nearly the same segments, under other instance numbers, with some classes changed."""
    shaken = np.roll(maps, 1, axis=2)
    shaken[..., 1] = np.where(shaken[..., 1] > 0, 50 - 3 * shaken[..., 1], 0)
    place = GENERATOR.random(len(maps)) < 0.3
    shaken[place, :5, :5] = (0, 99)
    return shaken


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_agrees_with_torchmetrics(seed):
    things, stuff = {0, 1, 2}, {3, 4}
    reference = random_panoptic(5, 24, things, 5)
    prediction = shake(reference) if seed % 2 else random_panoptic(5, 24, things, 5)
    counts = PanopticCounts(5)
    for mine, theirs in zip(prediction, reference):
        counts.add(mine, theirs, things)
    judge = ReferencePanopticQuality(things, stuff, return_sq_and_rq=True)
    expected = judge(torch.from_numpy(prediction), torch.from_numpy(reference))
    found = counts.scores()
    assert [found["pq"], found["sq"], found["rq"]] == pytest.approx(expected.tolist(), abs=1e-6)
    module = load_metric("panoptic_quality").compute(
        predictions=list(prediction), references=list(reference), num_labels=5, things=things
    )
    assert module["pq"] == found["pq"]
    assert set(module) == {f"{key}{part}" for key in ("pq", "sq", "rq") for part in ("", "_things", "_stuff")}


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_leaves_void_out(seed):
    things, stuff = {0, 1, 2}, {3, 4}
    reference = random_panoptic(5, 24, things, 5)
    prediction = shake(reference)
    reference[:, 5:14, 3:20] = (-100, 0)
    counts = PanopticCounts(5)
    for mine, theirs in zip(prediction, reference):
        counts.add(mine, theirs, things)
    judge = ReferencePanopticQuality(things, stuff, allow_unknown_preds_category=True, return_sq_and_rq=True)
    judged = reference.copy()
    judged[judged[..., 0] == -100] = (99, 0)  # unknown to the judge: void
    expected = judge(torch.from_numpy(prediction), torch.from_numpy(judged))
    found = counts.scores()
    assert [found["pq"], found["sq"], found["rq"]] == pytest.approx(expected.tolist(), abs=1e-6)


def test_panoptic_quality_at_its_limits():
    square = np.zeros((8, 8, 2), np.int64)
    square[2:6, 2:6] = (1, 7)
    nothing = np.full((8, 8, 2), -100)

    def score(prediction, reference, num_labels=2, things=(1,)):
        counts = PanopticCounts(num_labels)
        counts.add(prediction, reference, things)
        return counts

    assert score(square, square).scores() == {"pq": 1.0, "sq": 1.0, "rq": 1.0}
    # Nothing predicted: every segment is missed.
    counts = score(nothing, square)
    assert counts.false_negatives.tolist() == [1, 1]
    assert counts.scores()["pq"] == 0
    # Nothing to be found: nothing is wrong either.
    assert math.isnan(score(square, nothing).scores()["pq"])
    # Half an object is no match: more than half of the union must be.
    half = square.copy()
    half[4:6, 2:6] = (0, 0)
    assert score(half, square).true_positives.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"expected maps \(height, width, 2\)"):
        score(square[..., 0], square[..., 0])
    with pytest.raises(ValueError, match=r"predictions: expected classes in \[0, 1\), got 0 to 1"):
        score(square, square, num_labels=1)


def test_instances_without_classes():
    reference = np.zeros((10, 10), int)
    reference[:4, :4], reference[6:, 6:] = 3, 8
    reference[0, 9] = -100
    prediction = np.zeros((10, 10), int)
    prediction[:4, :4], prediction[0:2, 6:8] = 1, 2
    found = load_metric("panoptic_quality").compute(
        predictions=[panoptic_from_instances(prediction)],
        references=[panoptic_from_instances(reference)],
        num_labels=2,
        things=[0],
    )
    # One found exactly, one missed, one invented.
    assert found["pq_things"] == pytest.approx(0.5)
    assert found["sq_things"] == 1


def test_crowds_are_neither_right_nor_wrong():
    reference = np.zeros((10, 10, 2), int)
    reference[:4, :4] = (1, 1)
    reference[6:, 6:] = (1, -100)  # people, but nobody knows how many
    prediction = reference.copy()
    prediction[6:, 6:] = (0, 0)
    counts = PanopticCounts(2)
    counts.add(prediction, reference, things={1})
    assert counts.scores([1])["pq"] == 1
    prediction[6:, 6:] = (1, 5)
    counts.add(prediction, reference, things={1})
    assert counts.scores([1])["pq"] == 1


@pytest.mark.parametrize("name", METRICS)
def test_modules_load_by_path_too(name):
    """As `evaluate.load` finds modules, offline."""
    path = Path(c2fmae_hf.metrics.__file__).with_name(f"{name}.py")
    assert type(evaluate.load(str(path))).__name__ == METRICS[name].__name__


def test_unknown_metric():
    with pytest.raises(
        ValueError, match="metric: expected one of top_k_accuracy, mean_iou, panoptic_quality, got 'f1'"
    ):
        load_metric("f1")
