"""
Fine-tune an encoder for semantic segmentation, and report the mean intersection over union of the validation set.

    python examples/run_semantic_segmentation.py examples/configs/segmentation/camvid_vit_tiny.yaml
    python examples/run_semantic_segmentation.py --model runs/mine/encoder --dataset_name labelled --output_dir runs/1
    python examples/run_semantic_segmentation.py ... --head light
    python examples/run_semantic_segmentation.py ... --model vit_tiny_patch16_224 --from_scratch

`--model` is a folder of C2FMAE (pre-training folders too), any vision transformer of `AutoModel`, or an architecture
of timm. The dataset has the columns `image` and `semantic`, as label_images.py writes them. The output folder then
holds the segmenter for `pipeline("image-segmentation")`, `results.json` and `predictions.png`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from transformers import AutoModelForSemanticSegmentation, TrainingArguments, set_seed

from ..data.rows import count_semantic_classes, semantic_id2label
from ..data.splits import load_train_and_validation
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..images import to_rgb
from ..pictures.colours import colour_ids
from ..pictures.figures import draw_panels
from ..publishing.records import RunRecord
from ..transfer.encoders import pixel_statistics
from ..transfer.segmentation import (
    MeanIoUOfBatches,
    SemanticSegmentationDataset,
    SemanticSegmentationTrainer,
    build_segmenter,
    collate_padded,
    patch_size_of_segmenter,
    segmentation_transforms,
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
    head: str = field(default="upernet", metadata={"help": "upernet, or light (C2FMAE only)."})
    head_channels: int | None = field(default=None, metadata={"help": "Width of the head; 512 for UperNet."})
    out_indices: list[int] | None = field(default=None, metadata={"help": "Four blocks that UperNet sees."})
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth, of C2FMAE and timm."})


@dataclass
class DataArguments:
    """Data."""

    dataset_name: str | None = field(default=None, metadata={"help": "As for run_pretraining.py."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    class_names: str | None = field(
        default=None, metadata={"help": "File of class names, one per line, if the dataset has none."}
    )
    image_size: int = field(default=512, metadata={"help": "Side of training crops; shorter side in evaluation."})
    min_scale: float = field(default=0.5, metadata={"help": "Of training images before the crop."})
    max_scale: float = field(default=2.0, metadata={"help": "Of training images before the crop."})
    photometric: bool = field(default=True, metadata={"help": "Random changes of colour in training."})
    sliding_window: bool = field(default=False, metadata={"help": "Evaluate squares of image_size, not whole images."})
    window_stride: int | None = field(default=None, metadata={"help": "By default two thirds of image_size."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many rows, drawn at random."})
    num_drawn: int = field(default=4, metadata={"help": "Rows of predictions.png; 0 draws none."})


@dataclass
class ProtocolArguments:
    """Protocol."""

    layer_decay: float = field(default=0.75, metadata={"help": "Learning rate of a layer to that of the next."})
    ema_decay: float | None = field(default=None, metadata={"help": "Average the weights with this decay."})


GROUPS = (ModelArguments, DataArguments, ProtocolArguments, TrainingArguments, HubArguments)


def load_rows(data_args: DataArguments, seed: int):
    train, validation = load_train_and_validation(
        data_args.dataset_name,
        data_args.train_split,
        data_args.validation_split,
        data_args.max_train_samples,
        seed,
    )
    if data_args.class_names is not None:
        id2label = dict(enumerate(Path(data_args.class_names).read_text(encoding="utf-8").splitlines()))
    else:
        id2label = semantic_id2label(train.features)
    if id2label is None:
        number = max(count_semantic_classes(train), count_semantic_classes(validation))
        id2label = {index: f"class {index}" for index in range(number)}
    return train, validation, id2label


def build_processor(model_args: ModelArguments, patch_size: int, image_size: int) -> C2FMAEImageProcessor:
    """Whole images at their own aspect, with the statistics of the encoder's own processor."""
    mean, std = pixel_statistics(model_args.model)
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
    number = min(number, len(rows))
    chosen = [index * len(rows) // number for index in range(number)]
    panels: dict[str, list[np.ndarray]] = {"photograph": [], "labels": [], "prediction": []}
    trainer.model.eval()
    for index in chosen:
        batch = trainer._prepare_inputs(collate_padded([trainer.eval_dataset[index]]))
        prediction, labels = trainer.predict_maps(trainer.model, batch), batch["labels"]
        panels["photograph"].append(np.asarray(to_rgb(rows[index]["image"])))
        panels["labels"].append(colour_ids(labels[0].cpu().numpy()))
        panels["prediction"].append(colour_ids(prediction[0].cpu().numpy()))
    colours = {name: colour_ids(np.array([[index]]))[0, 0] for index, name in id2label.items()}
    draw_panels(panels, path, colours, "Light grey: without label.")


def parse(args: list[str] | None = None) -> tuple:
    return parse_arguments(
        GROUPS,
        args,
        __doc__,
        command="segment",
        positionals=("model", "dataset_name"),
        required=("model", "dataset_name"),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
    )


def main(args: list[str] | None = None) -> dict:
    model_args, data_args, protocol_args, training_args, hub_args = parse(args)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    set_seed(training_args.seed)
    train_rows, validation_rows, id2label = load_rows(data_args, training_args.seed)
    if model_args.evaluate_only:
        model = AutoModelForSemanticSegmentation.from_pretrained(model_args.model)
    else:
        model = build_segmenter(
            model_args.model,
            id2label,
            model_args.head,
            model_args.from_scratch,
            data_args.image_size,
            model_args.out_indices,
            model_args.head_channels,
            model_args.drop_path_rate,
        )
    patch_size = patch_size_of_segmenter(model)
    if data_args.image_size % patch_size:
        raise ValueError(f"image_size: expected a multiple of the patch size {patch_size}, got {data_args.image_size}")
    processor = build_processor(model_args, patch_size, data_args.image_size)
    training, evaluation = segmentation_transforms(
        data_args.image_size,
        patch_size,
        processor.image_mean,
        processor.image_std,
        (data_args.min_scale, data_args.max_scale),
        data_args.photometric,
    )
    trainer = SemanticSegmentationTrainer(
        model=model,
        args=training_args,
        train_dataset=SemanticSegmentationDataset(train_rows, training, len(id2label)),
        eval_dataset=SemanticSegmentationDataset(validation_rows, evaluation, len(id2label)),
        processing_class=processor,
        compute_metrics=MeanIoUOfBatches(len(id2label)),
        encoder=getattr(model, "backbone", None),
        layer_decay=protocol_args.layer_decay,
        ema_decay=protocol_args.ema_decay,
        window=data_args.image_size if data_args.sliding_window else None,
        stride=data_args.window_stride,
        **hub_args.publishing(),
    )
    record = RunRecord(
        "semantic_segmentation",
        (model_args, data_args, protocol_args, training_args),
        rows={"train": len(train_rows), "validation": len(validation_rows)},
        splits={"train": data_args.train_split, "validation": data_args.validation_split},
        starting_model=model,
    )
    started = time.perf_counter()
    if not model_args.evaluate_only:
        trainer.train(resume_from_checkpoint=find_checkpoint(training_args))
        trainer.save_model()
        trainer.save_state()
    seconds = time.perf_counter() - started
    metrics = trainer.evaluate()

    names = ("mean_iou", "mean_accuracy", "overall_accuracy")
    per_class = dict(zip(id2label.values(), metrics["eval_per_category_iou"]))
    absent = [name for name, value in per_class.items() if value != value]
    if absent:
        logger.warning("Classes that occur neither in the validation split nor in predictions: %s.", absent[:20])
    results = {
        "results": {name: metrics[f"eval_{name}"] for name in names},
        "iou": {name: None if value != value else value for name, value in per_class.items()},
        "seconds": seconds,
        "settings": {**asdict(model_args), **asdict(data_args), **asdict(protocol_args), "seed": training_args.seed},
        "run": record.finish(None if model_args.evaluate_only else trainer.accelerator.unwrap_model(trainer.model)),
    }
    folder = Path(training_args.output_dir)
    if trainer.is_world_process_zero():
        write_json(folder / "results.json", results)
        if data_args.num_drawn > 0:
            draw(trainer, validation_rows, id2label, data_args.num_drawn, folder / "predictions.png")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    print(", ".join(f"{name} {value:.4f}" for name, value in results["results"].items()))
    print(f"Results: {folder / 'results.json'}")
    return results
