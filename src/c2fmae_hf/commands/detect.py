"""
Fine-tune an encoder for detection and instance segmentation, and report COCO's average precision.

    python examples/run_object_detection.py examples/configs/detection/pennfudan_vit_tiny.yaml
    python examples/run_object_detection.py --model runs/mine/encoder --dataset_name labelled --output_dir runs/det
    python examples/run_object_detection.py ... --detector mask2former
    python examples/run_object_detection.py ... --model vit_tiny_patch16_224 --from_scratch
    torchrun --nproc_per_node 8 examples/run_object_detection.py examples/configs/detection/coco_vit_base.yaml

`--model` is a folder of C2FMAE (pre-training folders too), any vision transformer of `AutoModel`, or an architecture
of timm. Objects come from a dataset with the columns `image`, `semantic` and `instance`, as label_images.py writes
them, or from COCO's own files (`--coco_dir`), whose scores are the official ones. The output folder then holds the
detector, `results.json` and `detections.png`; Mask R-CNN loads as `pipeline("object-detection")`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, TrainingArguments, set_seed

from ..data.rows import semantic_id2label
from ..data.splits import load_train_and_validation
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..pictures.colours import colour_ids
from ..pictures.figures import draw_panels
from ..publishing.records import RunRecord
from ..transfer.detection import DetectionTrainer, Mask2FormerTrainer, build_mask2former, build_mask_rcnn
from ..transfer.encoders import pixel_statistics
from ..transfer.modeling_mask_rcnn import MaskRCNNForObjectDetection
from ..transfer.objects import (
    CocoObjects,
    DetectionDataset,
    MapObjects,
    ObjectSource,
    collate_lists,
    detection_transform,
    find_thing_classes,
)
from ..utils.files import write_json
from .arguments import HubArguments, find_checkpoint, parse_arguments


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """Model."""

    model: str | None = field(default=None, metadata={"help": "See above."})
    from_scratch: bool = field(default=False, metadata={"help": "Random weights: what pre-training must beat."})
    evaluate_only: bool = field(default=False, metadata={"help": "Score a model that was fine-tuned before."})
    detector: str = field(default="mask_rcnn", metadata={"help": "mask_rcnn (torchvision's) or mask2former."})
    out_indices: list[int] | None = field(
        default=None, metadata={"help": "Blocks for the pyramid: by default the last, or four for mask2former."}
    )
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth, of C2FMAE and timm."})
    detector_options: str | None = field(
        default=None,
        metadata={"help": "Fields of MaskRCNNConfig or Mask2FormerConfig as JSON, e.g. '{\"pyramid_channels\": 64}'."},
    )


@dataclass
class DataArguments:
    """Data."""

    dataset_name: str | None = field(default=None, metadata={"help": "As for run_pretraining.py."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    thing_classes: list[int] | None = field(
        default=None, metadata={"help": "Class ids to detect; by default those that have instances in training."}
    )
    coco_dir: str | None = field(
        default=None, metadata={"help": "Instead of a dataset: a folder with train2017, val2017 and annotations."}
    )
    image_size: int = field(default=1024, metadata={"help": "Shorter side of images."})
    max_image_size: int | None = field(default=None, metadata={"help": "Longer side; by default 4/3 of the shorter."})
    large_scale_jitter: bool = field(
        default=False, metadata={"help": "Train on squares of image_size, scaled by 0.1 to 2 (ViTDet)."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many rows, drawn at random."})
    num_drawn: int = field(default=4, metadata={"help": "Rows of detections.png; 0 draws none."})


@dataclass
class ProtocolArguments:
    """Protocol."""

    layer_decay: float = field(default=0.7, metadata={"help": "Learning rate of a layer to that of the next."})
    ema_decay: float | None = field(default=None, metadata={"help": "Average the weights with this decay."})


GROUPS = (ModelArguments, DataArguments, ProtocolArguments, TrainingArguments, HubArguments)


def find_mistake(model_args: ModelArguments, data_args: DataArguments, *others) -> str | None:
    if model_args.detector not in ("mask_rcnn", "mask2former"):
        return f"--detector: expected mask_rcnn or mask2former, got {model_args.detector!r}"
    if data_args.coco_dir is not None and data_args.max_train_samples is not None:
        return "--max_train_samples is for --dataset_name only"
    if (data_args.dataset_name is None) == (data_args.coco_dir is None):
        return "expected one of --dataset_name and --coco_dir"
    return None


def load_objects(data_args: DataArguments, seed: int) -> tuple[ObjectSource, ObjectSource]:
    if data_args.coco_dir is not None:
        folder = Path(data_args.coco_dir)
        train = CocoObjects(folder / "train2017", folder / "annotations" / "instances_train2017.json")
        return train, CocoObjects(folder / "val2017", folder / "annotations" / "instances_val2017.json", train)
    train, validation = load_train_and_validation(
        data_args.dataset_name, data_args.train_split, data_args.validation_split
    )
    names = semantic_id2label(train.features) or {}
    known = find_thing_classes(train)
    ids = data_args.thing_classes or known
    if not set(ids) <= set(known):
        raise ValueError(f"thing_classes: expected some of {known}, which have instances in training, got {ids}")
    if data_args.max_train_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(data_args.max_train_samples, len(train))))
    classes = {class_id: names.get(class_id, f"class {class_id}") for class_id in ids}
    return MapObjects(train, classes), MapObjects(validation, classes)


def build(model_args: ModelArguments, data_args: DataArguments, id2label: dict[int, str]):
    """The detector, its trainer's class, and what the trainer needs besides."""
    options: dict[str, Any] = json.loads(model_args.detector_options or "{}")
    common = (model_args.model, id2label, model_args.from_scratch, model_args.out_indices, model_args.drop_path_rate)
    longest = data_args.max_image_size or data_args.image_size * 4 // 3
    if model_args.detector == "mask_rcnn":
        if model_args.evaluate_only:
            model = MaskRCNNForObjectDetection.from_pretrained(model_args.model)
        else:
            model = build_mask_rcnn(*common, image_size=data_args.image_size, max_image_size=longest, **options)
        # The model resizes and normalises by itself.
        processor = C2FMAEImageProcessor(
            do_resize=False, do_center_crop=False, do_normalize=False, patch_size=1, label_stride=1
        )
        return model, DetectionTrainer, {"processing_class": processor, "encoder": model.backbone}
    if model_args.evaluate_only:
        model = Mask2FormerForUniversalSegmentation.from_pretrained(model_args.model)
    else:
        model = build_mask2former(*common, image_size=data_args.image_size, **options)
    mean, std = pixel_statistics(model_args.model)
    encoder = model.model.pixel_level_module.encoder
    processor = Mask2FormerImageProcessor(
        size={"shortest_edge": data_args.image_size, "longest_edge": longest},
        size_divisor=2 * int(encoder.config.patch_size),
        image_mean=mean,
        image_std=std,
    )
    return model, Mask2FormerTrainer, {"processor": processor, "encoder": encoder}


def draw_objects(pixels: torch.Tensor, objects: dict[str, torch.Tensor]) -> np.ndarray:
    image = (pixels * 255).round().byte()
    if len(objects["boxes"]) > 0:
        ids = np.arange(len(objects["boxes"]))[:, None]
        colours = [tuple(int(value) for value in colour_ids(one[None])[0, 0]) for one in ids]
        for mask, colour in zip(objects["masks"].bool(), colours):  # together, it would paint overlaps black
            image = draw_segmentation_masks(image, mask, alpha=0.5, colors=colour)
        image = draw_bounding_boxes(image, objects["boxes"], colors=colours, width=2)
    return image.permute(1, 2, 0).numpy()


def draw(trainer: DetectionTrainer, number: int, path: Path, least_score: float = 0.5) -> None:
    """Photographs with annotated and with detected objects."""
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


def parse(args: list[str] | None = None) -> tuple:
    return parse_arguments(
        GROUPS,
        args,
        __doc__,
        command="detect",
        positionals=("model", "dataset_name"),
        required=("model",),
        check=find_mistake,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
    )


def main(args: list[str] | None = None) -> dict:
    model_args, data_args, protocol_args, training_args, hub_args = parse(args)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    set_seed(training_args.seed)
    train, validation = load_objects(data_args, training_args.seed)
    model, trainer_class, options = build(model_args, data_args, train.id2label)
    jitter_size = data_args.image_size if data_args.large_scale_jitter else None
    trainer = trainer_class(
        model=model,
        args=training_args,
        train_dataset=DetectionDataset(train, detection_transform(jitter_size)),
        eval_dataset=DetectionDataset(validation),
        layer_decay=protocol_args.layer_decay,
        ema_decay=protocol_args.ema_decay,
        **hub_args.publishing(),
        **options,
    )
    record = RunRecord(
        "object_detection",
        (model_args, data_args, protocol_args, training_args),
        rows={"train": len(train), "validation": len(validation)},
        splits={"train": data_args.train_split, "validation": data_args.validation_split}
        if data_args.coco_dir is None
        else {"train": "train2017", "validation": "val2017"},
        starting_model=model,
    )
    started = time.perf_counter()
    if not model_args.evaluate_only:
        trainer.train(resume_from_checkpoint=find_checkpoint(training_args))
        trainer.save_model()
        trainer.save_state()
    seconds = time.perf_counter() - started
    metrics = trainer.evaluate()

    names = ("bbox_map", "bbox_map_50", "bbox_map_75", "segm_map", "segm_map_50", "segm_map_75")
    results = {
        "results": {name: metrics[f"eval_{name}"] for name in names},
        "segm_map_by_class": metrics["eval_segm_map_per_class"],
        "seconds": seconds,
        "settings": {**asdict(model_args), **asdict(data_args), **asdict(protocol_args), "seed": training_args.seed},
        "run": record.finish(None if model_args.evaluate_only else trainer.accelerator.unwrap_model(trainer.model)),
    }
    folder = Path(training_args.output_dir)
    if trainer.is_world_process_zero():
        write_json(folder / "results.json", results)
        if data_args.num_drawn > 0:
            draw(trainer, data_args.num_drawn, folder / "detections.png")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    print(", ".join(f"{name} {value:.4f}" for name, value in results["results"].items()))
    print(f"Results: {folder / 'results.json'}")
    return results
