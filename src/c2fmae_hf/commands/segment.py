"""
Fine-tune an encoder for semantic segmentation, and report the mean intersection over union of the validation split.

    c2fmae segment runs/mine/c2fmae-vit-tiny runs/mine/dataset --output_dir runs/segmenter
    c2fmae segment --recipe camvid-vit-tiny
    c2fmae segment runs/mine/c2fmae-vit-tiny runs/mine/dataset --head light
    c2fmae segment vit_tiny_patch16_224 runs/mine/dataset --from_scratch

MODEL is a folder of C2FMAE (pre-training folders too), any vision transformer of AutoModel, or with --from_scratch an
architecture of timm. DATASET_NAME has the columns `image` and `semantic`, as `c2fmae label` writes them. The output
folder then holds the segmenter for pipeline("image-segmentation"), results.json and predictions.png.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import AutoModelForSemanticSegmentation

from ..data.rows import check_named_classes, count_semantic_classes, semantic_id2label
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..images import to_rgb
from ..pictures.colours import colour_classes
from ..training.log_lines import counted
from ..transfer.encoders import own_image_size, pixel_statistics, saved_view
from ..transfer.fine_tuning_args import FineTuningArguments
from ..transfer.segmentation import (
    MeanIoUOfBatches,
    SemanticSegmentationDataset,
    SemanticSegmentationTrainer,
    build_segmenter,
    collate_padded,
    patch_size_of_segmenter,
    segmentation_transforms,
)
from ..utils.files import read_lines
from ..utils.packages import require
from .arguments import HubArguments
from .transfer import TransferArguments, check_classes, finish, load_fine_tuned, parse_transfer, train


logger = logging.getLogger(__name__)


@dataclass
class SegmentArguments(TransferArguments):
    """Model and data."""

    head: str = field(default="upernet", metadata={"help": "upernet, or light (C2FMAE only)."})
    head_channels: int | None = field(
        default=None, metadata={"help": "Width of the head; UperNet: 512, or 64 for a tiny encoder."}
    )
    out_indices: list[int] | None = field(default=None, metadata={"help": "Four blocks that UperNet sees."})
    class_names: str | None = field(
        default=None, metadata={"help": "File of class names, one per line, if the dataset has none."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of training crops, shorter side in evaluation; by default the model's own, of a fine-tuned "
            "model as it was trained."
        },
    )
    min_scale: float = field(default=0.5, metadata={"help": "Smallest scale of training images before the crop."})
    max_scale: float = field(default=2.0, metadata={"help": "Largest scale of training images before the crop."})
    photometric: bool = field(default=True, metadata={"help": "Random changes of colour in training."})
    sliding_window: bool = field(default=False, metadata={"help": "Evaluate squares of image_size, not whole images."})
    window_stride: int | None = field(default=None, metadata={"help": "By default two thirds of image_size."})
    num_drawn: int = field(default=4, metadata={"help": "Rows of predictions.png; 0 draws none."})


def find_mistake(args: SegmentArguments, *others) -> str | None:
    if not 0 < args.min_scale <= args.max_scale:
        return f"--min_scale: expected a value above 0, up to {args.max_scale:g} (--max_scale), got {args.min_scale:g}"
    if args.window_stride is not None and not args.sliding_window:
        return "--window_stride is for --sliding_window"
    if args.head == "light" and args.out_indices is not None:
        return "--out_indices is for --head upernet"
    return None


def load_rows(args: SegmentArguments, seed: int):
    hint = "c2fmae label makes such a dataset"
    train, validation = args.load(seed, ("image", "semantic"), hint)
    if args.class_names is not None:
        id2label = dict(enumerate(read_lines(args.class_names, "class_names: expected names, one in a line,")))
    else:
        id2label = semantic_id2label(train.features)
    if id2label is None:
        number = count_semantic_classes([train, validation])
        id2label = {index: f"class {index}" for index in range(number)}
    if not args.evaluate_only:
        check_named_classes(train, id2label, "training rows")
    check_named_classes(validation, id2label, "validation rows")
    return train, validation, id2label


def build_processor(name: str, patch_size: int, image_size: int) -> C2FMAEImageProcessor:
    """A processor of whole images at their own aspect ratio, with the encoder's mean and standard deviation."""
    mean, std = pixel_statistics(name)
    return C2FMAEImageProcessor(
        size={"shortest_edge": image_size},
        do_center_crop=False,
        size_divisor=patch_size,
        patch_size=patch_size,
        label_stride=1,
        image_mean=mean,
        image_std=std,
    )


def draw(trainer: SemanticSegmentationTrainer, rows, id2label: dict[int, str], number: int, path: Path) -> None:
    """Photographs, labels and predictions side by side."""
    from ..pictures.captions import class_legend
    from ..pictures.figures import draw_panels

    number = min(number, len(rows))
    chosen = [index * len(rows) // number for index in range(number)]
    panels: dict[str, list[np.ndarray]] = {"photograph": [], "labels": [], "prediction": []}
    maps = []
    trainer.model.eval()
    for index in chosen:
        batch = trainer._prepare_inputs(collate_padded([trainer.eval_dataset[index]]))
        prediction, labels = trainer.predict_maps(trainer.model, batch), batch["labels"]
        maps += [labels[0].cpu().numpy(), prediction[0].cpu().numpy()]
        panels["photograph"].append(np.asarray(to_rgb(rows[index]["image"])))
        panels["labels"].append(colour_classes(maps[-2]))
        panels["prediction"].append(colour_classes(maps[-1]))
    legend = class_legend(*((ids, id2label) for ids in maps))
    draw_panels(panels, path, legend, "Light grey: without label.")


def parse(args: list[str] | None = None) -> tuple[SegmentArguments, FineTuningArguments, HubArguments]:
    return parse_transfer(
        "segment",
        SegmentArguments,
        args,
        __doc__,
        required=("model", "dataset_name"),
        check=find_mistake,
        metric_for_best_model="mean_iou",
    )


def main(args: list[str] | None = None) -> dict:
    args, training_args, hub_args = parse(args)
    if args.num_drawn > 0:
        require("matplotlib", "predictions.png", " or pass --num_drawn 0")
    train_rows, validation_rows, id2label = load_rows(args, training_args.seed)
    if args.head == "upernet" and not args.evaluate_only and len(train_rows) < 2:
        raise ValueError("dataset: expected at least 2 training rows, since UperNet normalises by batch, got 1")
    if args.evaluate_only:
        model = load_fine_tuned(AutoModelForSemanticSegmentation, args.model, "a segmenter")
        check_classes(model, id2label, args.class_names is not None or bool(semantic_id2label(train_rows.features)))
    else:
        model = build_segmenter(
            args.model,
            id2label,
            args.head,
            args.from_scratch,
            args.image_size,
            args.out_indices,
            args.head_channels,
            args.drop_path_rate,
        )
    patch_size = patch_size_of_segmenter(model)
    if args.image_size is None:
        size = saved_view(args.model)[0] if args.evaluate_only else None
        args.image_size = size or own_image_size(getattr(model.config, "backbone_config", None) or model.config)
    if args.image_size % patch_size:
        raise ValueError(f"image_size: expected a multiple of the patch size {patch_size}, got {args.image_size}")
    processor = build_processor(args.model, patch_size, args.image_size)
    training, evaluation = segmentation_transforms(
        args.image_size,
        patch_size,
        processor.image_mean,
        processor.image_std,
        (args.min_scale, args.max_scale),
        args.photometric,
    )
    trainer = SemanticSegmentationTrainer(
        model=model,
        args=training_args,
        train_dataset=SemanticSegmentationDataset(train_rows, training, len(id2label)),
        eval_dataset=SemanticSegmentationDataset(validation_rows, evaluation, len(id2label)),
        processing_class=processor,
        compute_metrics=MeanIoUOfBatches(len(id2label)),
        encoder=getattr(model, "backbone", None),
        layer_decay=args.layer_decay,
        ema_decay=args.ema_decay,
        window=args.image_size if args.sliding_window else None,
        stride=args.window_stride,
        **hub_args.publishing(),
    )
    rows = {"train": len(train_rows), "validation": len(validation_rows)}
    record = args.record("semantic_segmentation", training_args, rows, model)
    names = ("mean_iou", "mean_accuracy", "overall_accuracy")
    metrics, seconds = train(trainer, args, str(args.dataset_name), names)

    per_class = dict(zip(id2label.values(), metrics["eval_per_category_iou"]))
    absent = [name for name, value in per_class.items() if value != value]
    if absent:
        shown = ", ".join(absent[:20] + ["..."] * (len(absent) > 20))
        logger.warning("Classes that occur neither in the validation split nor in predictions: %s.", shown)
    results = {
        "results": {name: metrics[f"eval_{name}"] for name in names},
        "iou": {name: None if value != value else value for name, value in per_class.items()},
    }
    words = ", ".join(f"{name} {value:.4f}" for name, value in results["results"].items())
    made = None if args.evaluate_only else trainer.accelerator.unwrap_model(trainer.model)
    return finish(
        args,
        training_args,
        results,
        record.finish(made),
        seconds,
        draw=(lambda path: draw(trainer, validation_rows, id2label, args.num_drawn, path)) if args.num_drawn else None,
        picture="predictions.png",
        publish=trainer.push_to_hub,
        scores=[f"{words} ({counted(len(validation_rows), 'image')})"],
        task="image-segmentation",
    )
