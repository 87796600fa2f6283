"""
Label images: turn photographs into a multi-granular dataset for pre-training.

    c2fmae label photos runs/labels
    c2fmae label photos runs/labels --labeller panoptic --checkpoint facebook/mask2former-swin-large-coco-panoptic
    c2fmae label photos --estimate                # time, memory and storage, without labelling everything
    c2fmae label coco/val2017 runs/coco --labeller annotations --layout coco_panoptic \\
        --annotations coco/panoptic_val2017.json

SOURCE is a folder of images, WebDataset tar files or Parquet files (wildcards in quotes), a folder written by
save_to_disk, or a dataset on the Hub. After an interruption, run the same command again: it continues.

Exit code: 0 if every image was labelled, 3 if some were rejected (see rejects.jsonl), 130 if stopped by Ctrl-C.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from ..data.rows import semantic_id2label
from ..labelling.job import LabellingSummary, label_images
from ..labelling.labellers.annotations import (
    Ade20kLabeller,
    AnnotationLabeller,
    CocoInstancesLabeller,
    CocoPanopticLabeller,
    ColumnsLabeller,
    MirroredFoldersLabeller,
    VocLabeller,
)
from ..labelling.labellers.base import Labeller
from ..labelling.labellers.classical import ClassicalLabeller
from ..labelling.labellers.panoptic import PanopticLabeller
from ..labelling.labellers.semantic_and_masks import SemanticAndMasksLabeller
from ..labelling.records import OutputOptions
from ..labelling.sources.base import ImageSource
from ..labelling.sources.open import open_source
from ..training.log_lines import counted
from ..utils.files import read_lines
from .arguments import find_missing, parse_arguments, pick_device
from .console import print_results, type_in
from .estimate import EstimateArguments, scratch_folder, storage_in_words
from .estimate_labelling import LabellingEstimate, estimate_labelling


LABELLERS = ("classical", "panoptic", "semantic+masks", "annotations")
LAYOUTS = ("coco", "coco_panoptic", "ade20k", "voc", "folders", "columns")


@dataclass
class SourceArguments:
    """Source."""

    source: str | None = field(default=None, metadata={"help": "Images: a folder, files or a dataset."})
    source_split: str | None = field(
        default=None, metadata={"help": "Split of a dataset, ADE20K or VOC; by default the only one, or train."}
    )
    source_config_name: str | None = field(
        default=None, metadata={"help": "Configuration name of a dataset on the Hub."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Stream a dataset on the Hub instead of downloading it first."}
    )
    class_folders: bool = field(
        default=False, metadata={"help": "The first folder below SOURCE is the class of the image."}
    )


@dataclass
class LabellerArguments:
    """Labeller."""

    labeller: str = field(default="classical", metadata={"help": f"One of {', '.join(LABELLERS)}."})
    checkpoint: str | None = field(
        default=None,
        metadata={"help": "panoptic, semantic+masks: segmentation model, on the Hub or a folder."},
    )
    mask_checkpoint: str | None = field(
        default=None, metadata={"help": "semantic+masks: mask generator (SAM, SAM2, ...)."}
    )
    thing_classes: str | None = field(
        default=None,
        metadata={
            "help": "Classes that have instances: 'all', 'none', or names, ids and ranges separated by ';'. "
            "Not needed for models of COCO, ADE20K and Cityscapes."
        },
    )
    threshold: float | None = field(default=None, metadata={"help": "panoptic: minimum score of a segment."})
    mask_threshold: float | None = field(default=None, metadata={"help": "panoptic: minimum probability of a pixel."})
    overlap_mask_area_threshold: float | None = field(
        default=None, metadata={"help": "panoptic: minimum visible share of a mask."}
    )
    points_per_side: int = field(default=32, metadata={"help": "semantic+masks: points per side of the grid."})
    pred_iou_thresh: float | None = field(
        default=None, metadata={"help": "semantic+masks: minimum quality of a mask."}
    )
    stability_score_thresh: float | None = field(
        default=None, metadata={"help": "semantic+masks: minimum stability of a mask."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images per forward pass."})
    device: str | None = field(default=None, metadata={"help": "Device; by default an accelerator, if there is one."})
    dtype: str | None = field(
        default=None, metadata={"help": "Precision; by default bfloat16 on accelerators, else float32."}
    )
    num_classes: int = field(default=32, metadata={"help": "classical: number of semantic classes."})
    regions: str = field(default="felzenszwalb", metadata={"help": "classical: felzenszwalb or slic."})
    layout: str = field(default="folders", metadata={"help": f"annotations: one of {', '.join(LAYOUTS)}."})
    annotations: str | None = field(default=None, metadata={"help": "coco, coco_panoptic: the JSON file."})
    class_names: str | None = field(
        default=None,
        metadata={"help": "columns: text file of class names, one per line, if the dataset has none."},
    )


@dataclass
class OutputArguments:
    """Output."""

    output_dir: str | None = field(default=None, metadata={"help": "The dataset's folder."})
    split: str = field(default="train", metadata={"help": "Split to write; other splits in the folder are kept."})
    label_stride: int = field(default=2, metadata={"help": "Pixels per cell of the stored label maps."})
    shortest_edge: int | None = field(
        default=None,
        metadata={"help": "Resize larger images to this shorter side, as JPEG; by default images are unchanged."},
    )
    jpeg_quality: int = field(default=90, metadata={"help": "JPEG quality of resized images."})
    min_side: int = field(default=16, metadata={"help": "Images with a side below this are rejected."})
    max_pixels: int = field(
        default=OutputOptions.max_pixels, metadata={"help": "Images with more pixels are rejected."}
    )
    rows_per_shard: int = field(default=1000, metadata={"help": "Images per Parquet file."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the split first."})


@dataclass
class EngineArguments:
    """Engine."""

    engine: str = field(default="local", metadata={"help": "local, or ray for a cluster."})
    num_workers: int = field(default=1, metadata={"help": "Processes (local) or actors (ray), each with a labeller."})
    num_threads: int = field(default=2, metadata={"help": "Threads per process that decode and encode."})
    max_reject_share: float = field(default=0.5, metadata={"help": "Stop if a larger share of a shard is rejected."})
    ray_address: str | None = field(
        default=None,
        metadata={"help": "Address of a cluster, or 'auto' on a machine in it; by default Ray starts locally."},
    )
    ray_num_gpus: float | None = field(
        default=None, metadata={"help": "GPUs per actor; by default 1 if there are any."}
    )
    ray_num_cpus: float | None = field(default=None, metadata={"help": "CPUs per actor; by default 1."})


MODELS = ("panoptic", "semantic+masks")
#: The labellers that an option is for.
USED_BY = {
    **dict.fromkeys(("checkpoint", "thing_classes", "batch_size", "device", "dtype"), MODELS),
    **dict.fromkeys(("threshold", "mask_threshold", "overlap_mask_area_threshold"), ("panoptic",)),
    **dict.fromkeys(
        ("mask_checkpoint", "points_per_side", "pred_iou_thresh", "stability_score_thresh"), ("semantic+masks",)
    ),
    **dict.fromkeys(("num_classes", "regions"), ("classical",)),
    **dict.fromkeys(("layout", "annotations", "class_names"), ("annotations",)),
}
#: The layouts of annotations that an option is for.
USED_BY_LAYOUT = {
    "annotations": ("coco", "coco_panoptic"),
    "class_names": ("columns",),
    "source_split": ("ade20k", "voc", "columns"),
    "source_config_name": ("columns",),
    "streaming": ("columns",),
    "class_folders": (),
}

GROUPS = (SourceArguments, LabellerArguments, OutputArguments, EngineArguments, EstimateArguments)


def find_mistake(
    source_args: SourceArguments,
    labeller_args: LabellerArguments,
    output_args: OutputArguments,
    engine_args: EngineArguments,
    estimate_args: EstimateArguments,
) -> str | None:
    if not estimate_args.estimate and (missing := find_missing([output_args], ["output_dir"], ["output_dir"])):
        return missing
    kind, layout = labeller_args.labeller, labeller_args.layout
    if kind not in LABELLERS:
        return f"--labeller: expected one of {', '.join(LABELLERS)}, got {kind!r}"
    groups = (source_args, labeller_args)
    given = [one.name for group in groups for one in fields(group) if getattr(group, one.name) != one.default]
    for name in given:
        if kind not in USED_BY.get(name, (kind,)):
            return f"--{name} is for --labeller {' or '.join(USED_BY[name])}, got {kind}"
    for one in fields(engine_args):
        if one.name.startswith("ray_") and engine_args.engine != "ray" and getattr(engine_args, one.name) is not None:
            return f"--{one.name} is for --engine ray, got {engine_args.engine}"
    if output_args.shortest_edge is None and output_args.jpeg_quality != OutputArguments.jpeg_quality:
        return "--jpeg_quality is for resized images: pass --shortest_edge, too"
    for name in ("batch_size", "points_per_side"):
        if getattr(labeller_args, name) < 1:
            return f"--{name}: expected at least 1, got {getattr(labeller_args, name)}"
    if not 0 <= engine_args.max_reject_share <= 1:
        return f"--max_reject_share: expected a share in [0, 1], got {engine_args.max_reject_share:g}"
    if kind in MODELS and labeller_args.checkpoint is None:
        return f"--labeller {kind} needs --checkpoint"
    if kind == "semantic+masks" and labeller_args.mask_checkpoint is None:
        return "--labeller semantic+masks needs --mask_checkpoint"
    if kind == "annotations" and layout not in LAYOUTS:
        return f"--layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}"
    if kind == "annotations" and layout.startswith("coco") and labeller_args.annotations is None:
        return f"--layout {layout} needs --annotations, the JSON file"
    for name in given:
        if kind == "annotations" and layout not in USED_BY_LAYOUT.get(name, (layout,)):
            return f"--{name} is not for --layout {layout}"
    return None


def build_annotations(source_args: SourceArguments, args: LabellerArguments) -> tuple[AnnotationLabeller, ImageSource]:
    """Build an annotation labeller and the source of its images."""
    root = source_args.source
    if args.layout == "columns":
        source = open_source(
            root,
            source_args.source_split,
            source_args.source_config_name,
            source_args.streaming,
            columns=("semantic", "instance"),
        )
        if args.class_names is not None:
            names = dict(enumerate(read_lines(args.class_names, "class_names: expected names, one per line,")))
        else:
            names = semantic_id2label(source.features)
        if not names:
            raise ValueError("class_names: expected a file of class names, since the dataset has none")
        return ColumnsLabeller(names), source
    labeller: AnnotationLabeller
    if args.layout == "coco":
        labeller = CocoInstancesLabeller(root, args.annotations)
    elif args.layout == "coco_panoptic":
        labeller = CocoPanopticLabeller(root, args.annotations)
    elif args.layout == "ade20k":
        labeller = Ade20kLabeller(root, source_args.source_split or "training")
    elif args.layout == "voc":
        labeller = VocLabeller(root, source_args.source_split or "train")
    else:
        labeller = MirroredFoldersLabeller(root)
    return labeller, labeller.source()


def build(source_args: SourceArguments, args: LabellerArguments) -> tuple[Labeller, ImageSource]:
    if args.labeller == "annotations":
        return build_annotations(source_args, args)
    labeller: Labeller
    if args.labeller == "classical":
        labeller = ClassicalLabeller(args.num_classes, args.regions)
    elif args.labeller == "panoptic":
        labeller = PanopticLabeller(
            args.checkpoint,
            thing_classes=args.thing_classes,
            threshold=args.threshold,
            mask_threshold=args.mask_threshold,
            overlap_mask_area_threshold=args.overlap_mask_area_threshold,
            batch_size=args.batch_size,
            device=args.device,
            dtype=args.dtype,
        )
    else:
        labeller = SemanticAndMasksLabeller(
            args.checkpoint,
            args.mask_checkpoint,
            thing_classes=args.thing_classes,
            points_per_side=args.points_per_side,
            pred_iou_thresh=args.pred_iou_thresh,
            stability_score_thresh=args.stability_score_thresh,
            batch_size=args.batch_size,
            device=args.device,
            dtype=args.dtype,
        )
    source = open_source(
        source_args.source,
        source_args.source_split,
        source_args.source_config_name,
        source_args.streaming,
        source_args.class_folders,
    )
    return labeller, source


def parse(args: list[str] | None = None) -> tuple:
    return parse_arguments(
        GROUPS,
        args,
        __doc__,
        command="label",
        positionals=("source", "output_dir"),
        required=("source",),
        check=find_mistake,
    )


def main(args: list[str] | None = None) -> LabellingSummary | LabellingEstimate:
    source_args, labeller_args, output_args, engine_args, estimate_args = parse(args)
    if labeller_args.device is not None:
        pick_device(labeller_args.device)
    labeller, source = build(source_args, labeller_args)
    options = OutputOptions(**{f.name: getattr(output_args, f.name) for f in fields(OutputOptions)})
    if estimate_args.estimate:
        output_dir = output_args.output_dir or "labels"
        with scratch_folder(output_dir) as folder:
            estimate = estimate_labelling(
                source,
                labeller,
                folder,
                estimate_args.estimate_devices,
                options,
                engine_args.num_workers,
                engine_args.num_threads,
                engine_args.max_reject_share,
            )
        print(f"\nEstimate from {counted(estimate.measured, 'image')} of {source_args.source}, which were not kept:")
        lines = [*estimate.lines(), estimate.memory_line()]
        if output_args.output_dir is not None and estimate.images is not None:
            lines.append(storage_in_words({"dataset": estimate.bytes}, output_args.output_dir))
        print(*(f"  {line}" for line in lines), sep="\n")
        return estimate
    number = source.num_records(1000)
    images = "the images" if number is None else counted(number, "image")
    print(
        f"Labelling {images} of {source_args.source} with the {labeller_args.labeller} labeller. Output folder: "
        f"{output_args.output_dir}, split {output_args.split}.",
        flush=True,
    )
    summary = label_images(
        source,
        labeller,
        output_args.output_dir,
        output_args.split,
        options,
        engine=engine_args.engine,
        num_workers=engine_args.num_workers,
        num_threads=engine_args.num_threads,
        max_reject_share=engine_args.max_reject_share,
        overwrite=output_args.overwrite,
        ray_options={
            "address": engine_args.ray_address,
            "num_gpus": engine_args.ray_num_gpus,
            "num_cpus": engine_args.ray_num_cpus,
        },
    )
    lines = [output_args.output_dir, *str(summary).splitlines()]
    if source.passed_over:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(source.passed_over.items()))
        lines.append(f"skipped, since these are not image files: {kinds}")
    if summary.rejects:
        lines.append(f"rejected: see {Path(output_args.output_dir) / 'rejects.jsonl'}")
    is_other = output_args.split != "train"
    next_steps = [
        type_in("validate", output_args.output_dir, *(("--split", output_args.split) * is_other)),
        type_in("pretrain", output_args.output_dir, "--output_dir", "runs/pretrained"),
    ]
    if is_other and not list(Path(output_args.output_dir).glob("data/train-*.parquet")):
        next_steps.pop()  # nothing to train on yet
    print_results(lines, next_steps if summary.rows else ())
    return summary


def exit_code(summary: LabellingSummary | LabellingEstimate) -> int:
    return 3 if isinstance(summary, LabellingSummary) and summary.rejects else 0
