"""
Fine-tune an encoder for detection and instance segmentation, and report COCO's average precision.

    c2fmae detect runs/mine/c2fmae-vit-tiny runs/mine/dataset --output_dir runs/detector
    c2fmae detect --recipe pennfudan-vit-tiny
    c2fmae detect runs/mine/c2fmae-vit-tiny --coco_dir coco --detector mask2former
    torchrun --nproc_per_node 8 -m c2fmae_hf detect --recipe coco-vit-base

MODEL is a folder of C2FMAE (pre-training folders too), any vision transformer of AutoModel, or with --from_scratch an
architecture of timm. Objects come from a dataset with the columns `image`, `semantic` and `instance`, as `c2fmae
label` writes them, or from COCO's own files (--coco_dir), whose scores are the official ones. The output folder then
holds the detector, results.json and detections.png; Mask R-CNN loads as pipeline("object-detection").
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

from ..data.rows import semantic_id2label
from ..pictures.colours import colour_instances
from ..training.log_lines import counted
from ..transfer.detection import (
    DetectionTrainer,
    Mask2FormerTrainer,
    build_mask2former,
    build_mask_rcnn,
    check_options,
)
from ..transfer.encoders import encoder_config, own_image_size, pixel_statistics
from ..transfer.fine_tuning_args import FineTuningArguments
from ..transfer.image_processing_mask_rcnn import MaskRCNNImageProcessor
from ..transfer.modeling_mask_rcnn import MaskRCNNConfig, MaskRCNNForObjectDetection
from ..transfer.objects import (
    CocoObjects,
    DetectionDataset,
    MapObjects,
    ObjectSource,
    collate_lists,
    detection_transform,
    find_thing_classes,
)
from ..utils.packages import require
from .arguments import HubArguments
from .transfer import (
    LAYER_DECAY_HELP,
    TransferArguments,
    check_classes,
    finish,
    load_fine_tuned,
    parse_transfer,
    train,
)


logger = logging.getLogger(__name__)


@dataclass
class DetectArguments(TransferArguments):
    """Model and data."""

    LAYER_DECAY: ClassVar[float] = 0.7

    layer_decay: float | None = field(default=None, metadata={"help": LAYER_DECAY_HELP.format(LAYER_DECAY)})
    detector: str = field(default="mask_rcnn", metadata={"help": "mask_rcnn (torchvision's) or mask2former."})
    out_indices: list[int] | None = field(
        default=None, metadata={"help": "Blocks for the pyramid: by default the last, or four for mask2former."}
    )
    detector_options: str | None = field(
        default=None,
        metadata={"help": "Fields of MaskRCNNConfig or Mask2FormerConfig as JSON, e.g. '{\"pyramid_channels\": 64}'."},
    )
    thing_classes: list[int] | None = field(
        default=None, metadata={"help": "Class ids to detect; by default those that have instances in training."}
    )
    coco_dir: str | None = field(
        default=None, metadata={"help": "Instead of a dataset: a folder with train2017, val2017 and annotations."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Shorter side of images; by default the model's own."}
    )
    max_image_size: int | None = field(default=None, metadata={"help": "Longer side; by default 4/3 of the shorter."})
    large_scale_jitter: bool = field(
        default=False, metadata={"help": "Train on squares of image_size, scaled by 0.1 to 2 (ViTDet)."}
    )
    num_drawn: int = field(default=4, metadata={"help": "Rows of detections.png; 0 draws none."})


def find_mistake(args: DetectArguments, *others) -> str | None:
    if args.detector not in ("mask_rcnn", "mask2former"):
        return f"--detector: expected mask_rcnn or mask2former, got {args.detector!r}"
    if (args.dataset_name is None) == (args.coco_dir is None):
        return "expected one of --dataset_name and --coco_dir"
    if args.max_image_size is not None and args.image_size is None and args.evaluate_only:
        return "--max_image_size: expected --image_size, too"
    of_datasets = ("thing_classes", "max_train_samples", "train_split", "validation_split", "validation_share")
    if args.coco_dir is not None:
        for name in of_datasets:
            if getattr(args, name) != getattr(DetectArguments, name, None):
                return f"--{name} is for --dataset_name only"
    return None


def load_objects(args: DetectArguments, seed: int) -> tuple[ObjectSource, ObjectSource]:
    """
    Objects to train on and to find.

    Raises:
        `ValueError`: if there is nothing to train on or to find, or data are wrong.
    """
    train, validation = open_coco(args.coco_dir) if args.coco_dir is not None else open_rows(args, seed)
    present = validation.present()
    if not present:
        raise ValueError(f"validation: expected an object of {', '.join(train.id2label.values())}, got none")
    absent = [name for label, name in train.id2label.items() if label not in present]
    if absent:
        names = ", ".join(absent[:20] + ["..."] * (len(absent) > 20))
        logger.warning("Classes without an object in the validation split: %s.", names)
    return train, validation


def open_coco(name: str) -> tuple[CocoObjects, CocoObjects]:
    folder = Path(name)
    train = CocoObjects(folder / "train2017", folder / "annotations" / "instances_train2017.json")
    return train, CocoObjects(folder / "val2017", folder / "annotations" / "instances_val2017.json", train)


def open_rows(args: DetectArguments, seed: int) -> tuple[MapObjects, MapObjects]:
    hint = "c2fmae label makes such a dataset"
    number, args.max_train_samples = args.max_train_samples, None  # classes are those of all rows
    train, validation = args.load(seed, ("image", "semantic", "instance"), hint)
    args.max_train_samples = number
    names = semantic_id2label(train.features) or {}
    num_classes = max(names) + 1 if names else None
    known = find_thing_classes(train, num_classes)
    ids = args.thing_classes or known
    if not set(ids) <= set(known):
        raise ValueError(f"thing_classes: expected some of {known}, which have instances in training, got {ids}")
    if args.max_train_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(args.max_train_samples, len(train))))
    classes = {class_id: names.get(class_id, f"class {class_id}") for class_id in ids}
    return MapObjects(train, classes, num_classes), MapObjects(validation, classes, num_classes)


def build(args: DetectArguments, id2label: dict[int, str]):
    """The detector, its trainer's class, and further arguments for the trainer."""
    options: dict[str, Any] = json.loads(args.detector_options or "{}")
    if args.image_size is None and not args.evaluate_only:
        args.image_size = own_image_size(encoder_config(args.model, args.from_scratch))
        logger.info("Images have a shorter side of %d pixels; --image_size finds smaller objects.", args.image_size)
    common = (args.model, id2label, args.from_scratch, args.out_indices, args.drop_path_rate)
    longest = args.max_image_size or (args.image_size or 0) * 4 // 3
    if args.detector == "mask_rcnn":
        if args.evaluate_only:
            check_options(MaskRCNNConfig, options)
            if args.image_size is not None:
                options |= {"image_size": args.image_size, "max_image_size": longest}
            model = load_fine_tuned(MaskRCNNForObjectDetection, args.model, "a Mask R-CNN", **options)
        else:
            model = build_mask_rcnn(*common, image_size=args.image_size, max_image_size=longest, **options)
        return model, DetectionTrainer, {"processing_class": MaskRCNNImageProcessor(), "encoder": model.backbone}
    size = {"size": {"shortest_edge": args.image_size, "longest_edge": longest}} if args.image_size else {}
    if args.evaluate_only:
        check_options(Mask2FormerConfig, options)
        model = load_fine_tuned(Mask2FormerForUniversalSegmentation, args.model, "a Mask2Former", **options)
        processor = Mask2FormerImageProcessor.from_pretrained(args.model, **size)
    else:
        model = build_mask2former(*common, image_size=args.image_size, **options)
        mean, std = pixel_statistics(args.model)
        divisor = 2 * int(model.config.backbone_config.patch_size)
        processor = Mask2FormerImageProcessor(size_divisor=divisor, image_mean=mean, image_std=std, **size)
    encoder = model.model.pixel_level_module.encoder
    return model, Mask2FormerTrainer, {"processor": processor, "encoder": encoder}


def draw_objects(pixels: torch.Tensor, objects: dict[str, torch.Tensor]) -> np.ndarray:
    image = (pixels * 255).round().byte()
    if len(objects["boxes"]) > 0:
        colours = [tuple(colour) for colour in colour_instances(np.arange(1, len(objects["boxes"]) + 1)).tolist()]
        for mask, colour in zip(objects["masks"].bool(), colours):  # together, it would paint overlaps black
            image = draw_segmentation_masks(image, mask, alpha=0.5, colors=colour)
        image = draw_bounding_boxes(image, objects["boxes"], colors=colours, width=2)
    return image.permute(1, 2, 0).numpy()


def draw(trainer: DetectionTrainer, number: int, path: Path, least_score: float = 0.5) -> None:
    """Photographs with annotated and with detected objects."""
    from ..pictures.figures import draw_panels

    panels: dict[str, list[np.ndarray]] = {"photograph": [], "annotated": [], "detected": []}
    model = trainer.model.eval()
    number = min(number, len(trainer.eval_dataset))
    for index in (position * len(trainer.eval_dataset) // number for position in range(number)):
        sample = trainer.eval_dataset[index]
        with torch.inference_mode():
            (found,) = trainer.detect(model, trainer._prepare_inputs(collate_lists([sample])))
        found = {name: values.cpu()[found["scores"].cpu() >= least_score] for name, values in found.items()}
        nothing = {"boxes": torch.zeros((0, 4))}
        for name, objects in (("photograph", nothing), ("annotated", sample["labels"]), ("detected", found)):
            panels[name].append(draw_objects(sample["pixel_values"], objects))
    draw_panels(panels, path, note=f"Detections with a score of at least {least_score}.")


def parse(args: list[str] | None = None) -> tuple[DetectArguments, FineTuningArguments, HubArguments]:
    return parse_transfer(
        "detect",
        DetectArguments,
        args,
        __doc__,
        required=("model",),
        check=find_mistake,
        metric_for_best_model="segm_map",
    )


def main(args: list[str] | None = None) -> dict:
    args, training_args, hub_args = parse(args)
    require("pycocotools", "detection")
    if args.num_drawn > 0:
        require("matplotlib", "detections.png", " or pass --num_drawn 0")
    train_objects, validation_objects = load_objects(args, training_args.seed)
    model, trainer_class, options = build(args, train_objects.id2label)
    if args.evaluate_only:
        check_classes(model, train_objects.id2label, is_named=True)
    jitter_size = args.image_size if args.large_scale_jitter and not args.evaluate_only else None
    trainer = trainer_class(
        model=model,
        args=training_args,
        train_dataset=DetectionDataset(train_objects, detection_transform(jitter_size)),
        eval_dataset=DetectionDataset(validation_objects),
        layer_decay=args.layer_decay,
        ema_decay=args.ema_decay,
        **hub_args.publishing(),
        **options,
    )
    rows = {"train": len(train_objects), "validation": len(validation_objects)}
    splits = {} if args.coco_dir is None else {"train": "train2017", "validation": "val2017"}
    record = args.record("object_detection", training_args, rows, model, **splits)
    names = ("bbox_map", "bbox_map_50", "bbox_map_75", "segm_map", "segm_map_50", "segm_map_75")
    metrics, seconds = train(trainer, args, str(args.coco_dir or args.dataset_name), names)

    results = {
        "results": {name: metrics[f"eval_{name}"] for name in names},
        "segm_map_by_class": metrics["eval_segm_map_per_class"],
    }
    words = ", ".join(f"{name} {value:.4f}" for name, value in results["results"].items())
    task = "object-detection" if args.detector == "mask_rcnn" else "image-segmentation"
    made = None if args.evaluate_only else trainer.accelerator.unwrap_model(trainer.model)
    return finish(
        args,
        training_args,
        results,
        record.finish(made),
        seconds,
        draw=(lambda path: draw(trainer, args.num_drawn, path)) if args.num_drawn else None,
        picture="detections.png",
        publish=trainer.push_to_hub,
        scores=[f"{words} ({counted(len(validation_objects), 'image')})"],
        task=task,
    )
