"""COCO's average precision of boxes and masks, by pycocotools, from results of one or several processes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


# pycocotools' summary, in its order.
_NAMES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
_NAMES += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
IOU_TYPES = ("bbox", "segm")


def encode_objects(objects: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """
    Encode the objects of an image as small records that processes can exchange.

    Args:
        objects: `boxes` `(N, 4)` (left, top, right, bottom), `masks` `(N, height, width)`, bool or uint8, `labels` or
            `class_labels` `(N,)`; for detections also `scores` `(N,)`, for annotations `iscrowd` `(N,)`.
    """
    from pycocotools import mask as coco_mask

    labels = objects["labels"] if "labels" in objects else objects["class_labels"]
    corners = objects["boxes"].cpu().double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    runs = [coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))) for mask in objects["masks"]]
    records: list[dict[str, Any]] = [
        {"category_id": label, "bbox": box, "segmentation": run, "iscrowd": 0}
        for label, box, run in zip(labels.tolist(), boxes, runs)
    ]
    for name in ("scores", "iscrowd"):
        for record, value in zip(records, objects[name].tolist() if name in objects else ()):
            record["score" if name == "scores" else name] = float(value) if name == "scores" else int(value)
    return records


def average_precision(
    references: Sequence[Sequence[Mapping[str, Any]]],
    predictions: Sequence[Sequence[Mapping[str, Any]]],
    sizes: Sequence[tuple[int, int]],
    id2label: Mapping[int, str],
) -> dict[str, Any]:
    """
    Compute COCO's scores.

    Args:
        references, predictions: Records from [`encode_objects`] for each image.
        sizes: `(height, width)` of each image.
        id2label: Names of the classes.

    Returns:
        `bbox_map`, `bbox_map_50`, ..., `segm_map`, ...: COCO's twelve scores for boxes and for masks, -1 if there is
        nothing to find. `bbox_map_per_class` and `segm_map_per_class`: by name, for the classes in the references.
    """
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    scores: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        for iou_type in IOU_TYPES:
            sides = []
            for is_reference, images in ((True, references), (False, predictions)):
                annotations: list[dict[str, Any]] = []
                for image_id, records in enumerate(images, start=1):
                    for record in records:
                        area = float(coco_mask.area(record["segmentation"]))
                        if iou_type == "bbox" and not is_reference:  # as in pycocotools
                            area = record["bbox"][2] * record["bbox"][3]
                        annotations.append({**record, "id": len(annotations) + 1, "image_id": image_id, "area": area})
                coco = COCO()
                coco.dataset = {
                    "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes, start=1)],
                    "annotations": annotations,
                    "categories": [{"id": label, "name": name} for label, name in id2label.items()],
                }
                coco.createIndex()
                sides.append(coco)
            evaluation = COCOeval(*sides, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores.update({f"{iou_type}_{name}": float(v) for name, v in zip(_NAMES, evaluation.stats)})
            # (thresholds, recalls, classes, areas, numbers of detections); -1 where a class has no reference.
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            scores[f"{iou_type}_map_per_class"] = {
                id2label[label]: float(precision[:, :, index].mean())
                for index, label in enumerate(evaluation.params.catIds)
                if precision[:, :, index].max(initial=-1) > -1
            }
    return scores
