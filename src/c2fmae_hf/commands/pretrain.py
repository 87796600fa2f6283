"""
Pre-train C2FMAE on a folder of photographs, or on images with semantic and instance maps.

    c2fmae pretrain photos --output_dir runs/mine
    c2fmae pretrain runs/mine/dataset --output_dir runs/again --size small
    c2fmae pretrain --recipe demo --dataset_name "mine/*.parquet" --output_dir runs/1
    c2fmae pretrain --recipe imagenet-vit-base --estimate     # time, memory and storage, without the run
    torchrun --nproc_per_node 8 -m c2fmae_hf pretrain --recipe imagenet-vit-base

Photographs without label maps are labelled first, into <output_dir>/dataset. Without a recipe the settings are those
of `--recipe photographs`, a ViT-Ti in batches of 16, and the run makes about 100 passes, at least 400 steps (fewer
passes above 10 000 photographs). Streams keep the defaults below and need --max_steps.

The output folder then holds the encoder (c2fmae-vit-<size>, for AutoModel and timm), the whole model
(c2fmae-vit-<size>-pretraining), trainer_state.json with every logged loss, decoder_results.json (mean IoU and panoptic
quality of the decoder's maps on held-out images), run.json (what a model card is made of), reconstruction.png and
curves.png.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from ..configuration_c2fmae import SIZES, C2FMAEConfig
from ..data.dataset import C2FMAEDataset
from ..data.rows import count_semantic_classes, semantic_id2label
from ..data.splits import load_splits
from ..interop.starting_point import load_starting_point
from ..labelling.job import describe_maps
from ..labelling.records import OutputOptions
from ..modeling_c2fmae import C2FMAEForPreTraining
from ..publishing.records import RUN_FILE, RunRecord, data_name
from ..training.decoder_evaluation import evaluate_decoder
from ..training.log_lines import announce, counted, format_log
from ..training.trainer import C2FMAETrainer
from ..training.training_args import C2FMAETrainingArguments
from ..transfer.knn_probe import KNNProbeCallback, load_probe_rows
from ..utils.files import write_json
from ..utils.packages import require
from .arguments import (
    HubArguments,
    check_output_dir,
    find_checkpoint,
    find_recipe,
    has_option,
    parse_arguments,
    read_recipe,
)
from .console import print_results, type_in
from .drawing import try_to_draw
from .estimate import EstimateArguments, scratch_folder
from .estimate_labelling import estimate_labelling
from .estimate_training import TrainingEstimate, estimate_training, scratch_arguments
from .photographs import RECIPE, choose_steps, label_photographs, open_photographs, photographs_labeller


logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Data."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A folder of photographs, a labelled folder, Parquet or tar files (wildcards in quotes), or what "
            "datasets.load_dataset takes. Columns: image, semantic, instance; optionally semantic_classes, image_id."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to evaluate on, if there is one."})
    validation_share: float = field(
        default=0.05,
        metadata={"help": "Without such a split, the share of the training rows that is held out; 0 holds out none."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many rows, drawn at random."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many rows, drawn at random; the first ones of a stream."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed. Set max_steps."})
    num_drawn: int = field(default=6, metadata={"help": "Rows of reconstruction.png; 0 draws no figures."})
    probe_dataset: str | None = field(
        default=None,
        metadata={"help": "Labelled images for a k-NN score of the encoder during training."},
    )
    probe_steps: int = field(default=500, metadata={"help": "Steps between these probes."})


@dataclass
class ModelArguments:
    """Model."""

    size: str | None = field(
        default=None, metadata={"help": "tiny, small, base, large or huge; by default base, or the starting point's."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the input in pixels; by default 224, or the starting point's."}
    )
    num_semantic_classes: int | None = field(
        default=None,
        metadata={"help": "By default as many as the dataset names or, where it names none, uses. Set it to stream."},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Further fields of C2FMAEConfig as JSON, e.g. '{\"mask_ratio\": 0.6}'."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from instead of random ones: a folder, Hub name or file of C2FMAE, ViT, ViTMAE "
            "or timm, with or without a decoder."
        },
    )


GROUPS = (DataArguments, ModelArguments, C2FMAETrainingArguments, HubArguments, EstimateArguments)


def find_mistake(
    data_args: DataArguments, model_args: ModelArguments, args: C2FMAETrainingArguments, *others
) -> str | None:
    try:
        overrides = json.loads(model_args.config_overrides or "{}")
    except ValueError as error:
        return f"config_overrides: expected JSON, {error}"
    if not isinstance(overrides, dict):
        return f"config_overrides: expected names and values as JSON, got {model_args.config_overrides}"
    known = {*C2FMAEConfig().to_dict(), "attn_implementation", "out_features", "out_indices"}
    if unknown := sorted(overrides.keys() - known):
        return f"config_overrides: unknown fields {unknown} of C2FMAEConfig"
    if data_args.streaming and args.max_steps <= 0:
        return "--streaming needs --max_steps, since a stream has no length"
    if data_args.streaming and data_args.max_train_samples is not None:
        return "--max_train_samples and --streaming: a stream is read row by row; set --max_steps"
    if not 0 <= data_args.validation_share < 1:
        return (
            f"validation_share: expected a number from 0 (hold none out) to below 1, got {data_args.validation_share}"
        )
    if data_args.probe_steps < 1:
        return f"probe_steps: expected at least 1, got {data_args.probe_steps}"
    if model_args.size not in (None, *SIZES):
        return f"size: expected one of {list(SIZES)}, got {model_args.size!r}"
    if model_args.model_name_or_path is not None:  # which has fields of its own
        return None
    try:  # with any number of classes, which the dataset decides
        C2FMAEConfig.from_size(model_args.size or "base", **given_fields(model_args))
    except (ValueError, TypeError, StrictDataclassError) as error:
        return " ".join(str(error).split())
    return None


def load_rows(data_args: DataArguments, seed: int):
    """Training and held-out rows, and what the latter are called."""
    splits = load_splits(data_args.dataset_name, data_args.dataset_config_name, data_args.streaming)
    return choose_rows(splits, data_args, seed)


def check_splits(names: Collection[str], data_args: DataArguments) -> None:
    """
    Check that a dataset with splits of these names has the two that are asked for.

    Raises:
        `ValueError`: if it has not. The default for validation may be missing.
    """
    for option, default in (("train_split", None), ("validation_split", DataArguments.validation_split)):
        name = getattr(data_args, option)
        if name not in (*names, default):
            raise ValueError(f"{option}: expected one of {sorted(names)}, got {name!r}")


def choose_rows(splits: dict[str, Any], data_args: DataArguments, seed: int):
    """As [`load_rows`], of splits by name."""
    check_splits(splits, data_args)
    train, held_out = splits[data_args.train_split], splits.get(data_args.validation_split)
    if data_args.validation_split == data_args.train_split:
        held_out = None
    if data_args.streaming:
        if held_out is not None and data_args.max_eval_samples is not None:
            held_out = held_out.take(data_args.max_eval_samples)
        return train, held_out, data_args.validation_split
    if len(train) == 0:
        raise ValueError(f"dataset {data_args.dataset_name!r}: split {data_args.train_split!r} has no rows")
    name = data_args.validation_split
    if held_out is None and data_args.validation_share > 0 and len(train) > 1:
        parts = train.train_test_split(data_args.validation_share, seed=seed)
        train, held_out, name = parts["train"], parts["test"], f"held out of {data_args.train_split}"
        if others := sorted(splits.keys() - {data_args.train_split}):
            logger.warning(
                "Rows of %r are held out; the other splits are not used: %s.", data_args.train_split, others
            )
    if data_args.max_train_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(data_args.max_train_samples, len(train))))
    if held_out is not None and data_args.max_eval_samples is not None:
        held_out = held_out.shuffle(seed=seed).select(range(min(data_args.max_eval_samples, len(held_out))))
    return train, held_out, name


def given_fields(model_args: ModelArguments) -> dict:
    """Fields of the configuration that the command line or the recipe sets."""
    size = {} if model_args.image_size is None else {"image_size": model_args.image_size}
    return {**size, **json.loads(model_args.config_overrides or "{}")}


def build_model(model_args: ModelArguments, parts: list, on_bad_row: str) -> C2FMAEForPreTraining:
    """The model, from the starting point if there is one, for the semantic classes of training and held-out rows."""
    fields, counted = given_fields(model_args), None
    start = model_args.model_name_or_path
    has_maps = start is None or "semantic" in (parts[0].column_names or ["semantic"])
    if has_maps and "semantic" in fields.get("granularities", ["semantic"]):
        names = semantic_id2label(parts[0].features)
        number = model_args.num_semantic_classes or fields.get("num_semantic_classes")
        number = number or (len(names) if names else None)
        if number is not None:
            fields["num_semantic_classes"] = number
            if names:
                fields.setdefault("semantic_id2label", names)
        elif isinstance(parts[0], datasets.IterableDataset):
            raise ValueError("num_semantic_classes: expected a number, since a stream cannot be counted, got None")
        else:
            counted = count_semantic_classes(parts, on_bad_row)
    if start is None:
        if counted is not None:
            fields["num_semantic_classes"] = counted
        return C2FMAEForPreTraining(C2FMAEConfig.from_size(model_args.size or "base", **fields))
    if model_args.size is not None:
        fields["hidden_size"] = SIZES[model_args.size]["hidden_size"]
    return load_starting_point(start, counted_classes=counted, **fields)


def parse(args: list[str] | None = None) -> tuple:
    words = list(sys.argv[1:] if args is None else args)

    def read(**defaults) -> tuple:
        return parse_arguments(
            GROUPS,
            words,
            __doc__,
            command="pretrain",
            positionals=("dataset_name",),
            required=("dataset_name",),
            check=find_mistake,
            **defaults,
        )

    parsed = read()
    data_args, model_args = parsed[:2]
    if find_recipe(words) is not None or data_args.streaming:
        return parsed
    defaults = read_recipe("pretrain", RECIPE)
    left_out: set[str] = set()
    if model_args.model_name_or_path is not None:  # which has its own
        left_out |= {"size", "image_size", "learning_rate"}
    if model_args.size not in (None, defaults["size"]) or has_option(words, "base_learning_rate"):
        left_out.add("learning_rate")
    return read(**{name: value for name, value in defaults.items() if name not in left_out})


def set_length(words: list[str], args: C2FMAETrainingArguments, num_rows: int) -> None:
    """Let the number of steps follow from the number of rows, unless the command line or its recipe sets it."""
    names, recipe = ("max_steps", "num_train_epochs"), find_recipe(words)
    of_recipe = {} if recipe is None else read_recipe("pretrain", recipe)
    if not has_option(words, *names) and of_recipe.keys().isdisjoint(names):
        args.max_steps = choose_steps(num_rows, images_per_step(args))


def describe(model: C2FMAEForPreTraining, train_rows, held_out_rows, data_args: DataArguments) -> str:
    """Sentences about model and data."""
    config = model.config
    rows = "a stream" if data_args.streaming else counted(len(train_rows), "row")
    held_out = "" if held_out_rows is None or data_args.streaming else f", {len(held_out_rows)} held out"
    classes = (
        f", {counted(config.num_semantic_classes, 'class', 'classes')}" if "semantic" in config.granularities else ""
    )
    encoder, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.c2fmae, model.decoder))
    height, width = config.image_height_width
    return (
        f"Pre-training on {rows} of {data_args.dataset_name}{held_out}{classes}. {model_name(config)}: patches of "
        f"{config.patch_size} at {width} x {height} pixels, {encoder:.1f} M parameters in the encoder and "
        f"{decoder:.1f} M in the decoder."
    )


def model_name(config: C2FMAEConfig) -> str:
    widths = {fields["hidden_size"]: size for size, fields in SIZES.items()}
    return f"c2fmae-vit-{widths.get(config.hidden_size, 'custom')}"


def images_per_step(args: C2FMAETrainingArguments) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def set_up(
    words: list[str], data_args: DataArguments, model_args: ModelArguments, args: C2FMAETrainingArguments, *rows
) -> C2FMAEForPreTraining:
    """The model for training and held-out rows; the arguments are completed."""
    train_rows, held_out_rows = rows
    if not data_args.streaming:
        set_length(words, args, len(train_rows))
    if held_out_rows is None:
        args.eval_strategy = "no"
        args.eval_on_start = False
        logger.warning("No validation split: the run is not evaluated.")
    return build_model(model_args, [part for part in rows if part is not None], args.on_bad_row)


def estimate(
    words: list[str],
    data_args: DataArguments,
    model_args: ModelArguments,
    args: C2FMAETrainingArguments,
    hub_args: HubArguments,
    devices: int,
) -> TrainingEstimate:
    """Measure a part of the run that these arguments describe, print the estimate, and keep nothing."""
    labelling = None
    with scratch_folder(args.output_dir) as folder:
        probe = load_probe_rows(data_args.probe_dataset, args.seed) if data_args.probe_dataset else None
        source = open_photographs(data_args.dataset_name)
        if source is None:
            rows = load_rows(data_args, args.seed)[:2]
        else:
            # Each process labels its own sample, since folders of several machines differ; the first one undisturbed.
            with args.main_process_first(desc="labelling"):
                labeller = photographs_labeller(source, data_args.dataset_name)
                labelling = estimate_labelling(source, labeller, folder / "labels", devices)
            files = [str(path) for path in sorted(folder.glob("labels/data/*.parquet"))]
            sample = datasets.Dataset.from_parquet(files, cache_dir=folder / "cache")
            # The sample stands in for all photographs, as many of them in every process.
            number = broadcast_object_list([round(len(sample) * labelling.scale)])[0]
            repeated = sample.select([index % len(sample) for index in range(number)])
            if data_args.streaming:
                repeated = repeated.to_iterable_dataset(math.ceil(number / OutputOptions.rows_per_shard))
            rows = choose_rows({"train": repeated}, data_args, args.seed)[:2]
        follows_rows = args.max_steps <= 0
        model = set_up(words, data_args, model_args, args, *rows)
        trainer = C2FMAETrainer(
            model=model,
            args=scratch_arguments(args, folder / "run"),
            train_dataset=rows[0],
            eval_dataset=rows[1],
            **hub_args.publishing(),
        )
        is_first = trainer.is_world_process_zero()
        if is_first:
            print(f"{describe(model, *rows, data_args)} Measuring a few steps.", flush=True)
        result = estimate_training(
            trainer,
            args,
            follows_rows,
            devices,
            max_eval_samples=data_args.max_eval_samples,
            probe=probe,
            probe_steps=data_args.probe_steps,
            labelling=labelling,
        )
    if is_first:
        print(f"\nEstimate from {counted(result.num_measured, 'step')}, which were not kept:")
        print(*(f"  {line}" for line in result.lines()), sep="\n")
    return result


def main(args: list[str] | None = None) -> C2FMAETrainer | TrainingEstimate:
    """Returns the trainer, or with `--estimate` the estimate."""
    words = list(sys.argv[1:] if args is None else args)
    data_args, model_args, training_args, hub_args, estimate_args = parse(words)
    if data_args.num_drawn > 0:  # now, and not after the training
        require("matplotlib", "reconstruction.png", " or pass --num_drawn 0")
    transformers_logging.set_verbosity(training_args.get_process_log_level())
    set_seed(training_args.seed)
    if estimate_args.estimate:
        return estimate(words, data_args, model_args, training_args, hub_args, estimate_args.estimate_devices)
    output_dir = Path(training_args.output_dir)
    check_output_dir(training_args)

    # Data and model
    probe = load_probe_rows(data_args.probe_dataset, training_args.seed) if data_args.probe_dataset else None
    source = open_photographs(data_args.dataset_name)
    if source is not None:
        check_splits(["train"], data_args)  # before the labelling
        photographs, data_args.dataset_name = data_args.dataset_name, str(output_dir / "dataset")
        done = output_dir / "dataset" / ".labelling" / f"done-{broadcast_object_list([time.time_ns()])[0]}"
        if training_args.process_index == 0:
            label_photographs(source, photographs, output_dir / "dataset")
            done.touch()
        else:  # by looking for a file, since labelling may take longer than a collective
            if training_args.local_process_index == 0:
                logger.warning("Waiting for process 0 to label into %s, which all machines share.", output_dir)
            while not done.is_file():
                time.sleep(1)
        PartialState().wait_for_everyone()
        if training_args.process_index == 0:
            done.unlink()
    train_rows, held_out_rows, held_out_name = load_rows(data_args, training_args.seed)
    model = set_up(words, data_args, model_args, training_args, train_rows, held_out_rows)
    config = model.config

    # Training
    record = RunRecord(
        "pretraining",
        (data_args, model_args, training_args),
        rows={
            "train": None if data_args.streaming else len(train_rows),
            "validation": None if data_args.streaming or held_out_rows is None else len(held_out_rows),
        },
        splits={"train": data_args.train_split, "validation": held_out_name},
        starting_model=model if model_args.model_name_or_path is not None else None,
        curriculum=asdict(training_args.get_curriculum()),
        batch_size=images_per_step(training_args),
        resumed_from=find_checkpoint(training_args),
        label_maps=describe_maps(data_args.dataset_name, data_args.train_split),
        **({} if source is None else {"data": data_name(photographs)}),
    )
    trainer = C2FMAETrainer(
        model=model,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=held_out_rows,
        **hub_args.publishing(),
    )
    if probe is not None:
        trainer.add_callback(KNNProbeCallback(trainer, *probe, steps=data_args.probe_steps))
    announce(trainer, describe(model, train_rows, held_out_rows, data_args))
    collator, processor, eval_dataset = trainer.data_collator, trainer.processing_class, trainer.eval_dataset
    trainer.train(resume_from_checkpoint=find_checkpoint(training_args))
    encoder_dir = output_dir / model_name(config)
    trainer.save_encoder(encoder_dir)
    trainer.save_model(str(output_dir / f"{encoder_dir.name}-pretraining"))
    results: list[str | Path] = []
    names = [encoder_dir.name, f"{encoder_dir.name}-pretraining", "trainer_state.json", RUN_FILE]
    if eval_dataset is not None:
        results.append(format_log(trainer.evaluate(), trainer.state.global_step, trainer.state.max_steps))
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_json(output_dir / RUN_FILE, record.finish(trainer.accelerator.unwrap_model(trainer.model)))
    if isinstance(eval_dataset, C2FMAEDataset) and trainer.is_world_process_zero():
        unwrapped = trainer.accelerator.unwrap_model(trainer.model)
        batch_size = training_args.per_device_eval_batch_size
        scores = evaluate_decoder(unwrapped, eval_dataset, collator, processor, batch_size)
        if scores:  # an image-only decoder has no maps
            words = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            results.append(f"decoder on held-out rows: {words}")
            trainer.save_metrics("decoder", scores, combined=False)
            names.append("decoder_results.json")

    # Results
    if source is not None:
        names.append("dataset")
    results += [output_dir / name for name in names]
    if data_args.num_drawn > 0 and trainer.is_world_process_zero():
        from ..pictures.reconstruction import draw_curves, draw_reconstruction

        title = f"{encoder_dir.name}, {trainer.state.global_step} steps"
        dataset = eval_dataset if eval_dataset is not None else trainer.train_dataset
        if data_args.streaming:
            samples = [sample for _, sample in zip(range(data_args.num_drawn), dataset)]
        else:
            count = min(data_args.num_drawn, len(dataset))
            samples = [dataset[i] for i in torch.linspace(0, len(dataset) - 1, count).long().tolist()]
        pictures: dict[str, Callable[[Path], Any]] = {
            "reconstruction.png": lambda path: draw_reconstruction(model, collator(samples), processor, path, title)
        }
        if any("semantic_loss" in entry or "image_loss" in entry for entry in trainer.state.log_history):
            pictures["curves.png"] = lambda path: draw_curves(trainer.state.log_history, path, title)
        else:
            logger.warning("Nothing was logged, so there are no curves; lower logging_steps.")
        results += [output_dir / name for name, draw in pictures.items() if try_to_draw(output_dir / name, draw)]
    if training_args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        images = photographs if source is not None else "photos"
        next_steps = [
            type_in("embed", encoder_dir, images, "--output", "features.parquet"),
            type_in("classify", encoder_dir, "FOLDER_OF_CLASSES", "--knn"),
            type_in("push", f"{encoder_dir}-pretraining", "NAME", "--preview", output_dir / "preview"),
        ]
        print_results(results, next_steps)
    return trainer
