"""
Classify images with an encoder: fine-tuning, a linear probe, or k-nearest neighbours.

    c2fmae classify runs/mine/c2fmae-vit-tiny labelled --knn
    c2fmae classify runs/mine/c2fmae-vit-tiny labelled --linear_probe
    c2fmae classify runs/mine/c2fmae-vit-tiny labelled --output_dir runs/classifier --num_train_epochs 20
    c2fmae classify vit_tiny_patch16_224 labelled --from_scratch

MODEL is a folder or a name on the Hub that AutoModel loads (encoders and pre-training checkpoints of C2FMAE, ViT,
timm/...), or with --from_scratch an architecture of timm. DATASET_NAME has the columns `image` and `label`, or is a
folder with a subfolder of images for each class. The output folder then holds results.json with top-1 and top-5
accuracy and all settings, and the classifier with its image processor.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification

from ..configuration_c2fmae import C2FMAEConfig
from ..metrics import load_metric
from ..publishing.hub import HubError, prepare_repository, push_to_hub
from ..publishing.records import load_run
from ..publishing.repository import load_saved
from ..timm_c2fmae import tell_timm
from ..training.log_lines import counted
from ..transfer.classification import (
    ImageClassificationTrainer,
    ImageLabelDataset,
    build_classifier,
    classification_transforms,
    name_classes,
    ranked_accuracy,
)
from ..transfer.encoders import (
    CROP_PCT,
    build_processor,
    check_channels,
    encoder_config,
    load_encoder,
    own_image_size,
    saved_view,
)
from ..transfer.fine_tuning_args import FineTuningArguments
from ..transfer.probes import LinearProbe, extract_features, weighted_knn
from .arguments import HubArguments, has_option
from .console import model_in_words
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

TASK = "image_classification"
BEST_BY = "ranked_accuracy"
#: What the protocols have no use for.
OF_FINE_TUNING = (
    *("layer_decay", "drop_path_rate", "ema_decay", "rand_augment", "random_erasing", "mixup_alpha", "cutmix_alpha"),
    "label_smoothing",
)
OF_PROBES = ("probe_epochs", "probe_views", "probe_learning_rate")
OF_NEIGHBOURS = ("k", "temperature")
UNUSED = {
    "fine_tuning": (*OF_PROBES, *OF_NEIGHBOURS),
    "linear_probe": (*OF_FINE_TUNING, *OF_NEIGHBOURS),
    "knn": (*OF_FINE_TUNING, *OF_PROBES),
}


@dataclass
class ClassifyArguments(TransferArguments):
    """Model and data."""

    LAYER_DECAY: ClassVar[float] = 0.65

    layer_decay: float | None = field(default=None, metadata={"help": LAYER_DECAY_HELP.format(LAYER_DECAY)})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the input; by default the model's own, of a fine-tuned model as it was trained."},
    )
    pooling: str | None = field(
        default=None, metadata={"help": "mean or cls; by default the model's own.", "choices": ["mean", "cls"]}
    )
    min_crop_scale: float = field(default=0.2, metadata={"help": "Smallest area of a training crop."})
    crop_pct: float | None = field(
        default=None,
        metadata={"help": f"Side of the central crop in evaluation; {CROP_PCT}, or as the evaluated model has it."},
    )
    knn: bool = field(default=False, metadata={"help": "Frozen encoder, weighted nearest neighbours, no training."})
    k: int = field(default=20, metadata={"help": "k-NN: neighbours."})
    temperature: float = field(default=0.07, metadata={"help": "k-NN: temperature of the votes."})
    linear_probe: bool = field(default=False, metadata={"help": "Frozen encoder, batch norm and a linear layer."})
    probe_epochs: int = field(default=90, metadata={"help": "Linear probe: epochs."})
    probe_views: int = field(default=4, metadata={"help": "Linear probe: augmented views of each image."})
    probe_learning_rate: float = field(default=0.1, metadata={"help": "Linear probe: rate for a batch of 256."})
    rand_augment: bool = field(default=False, metadata={"help": "Fine-tuning: RandAugment."})
    random_erasing: float = field(default=0.0, metadata={"help": "Fine-tuning; MAE's recipe has 0.25."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Fine-tuning; MAE's recipe has 0.8."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "Fine-tuning; MAE's recipe has 1.0."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Fine-tuning."})

    @property
    def protocol(self) -> str:
        return "knn" if self.knn else "linear_probe" if self.linear_probe else "fine_tuning"


def find_mistake(
    words: Sequence[str], args: ClassifyArguments, training_args: FineTuningArguments, _: HubArguments
) -> str | None:
    if args.linear_probe and args.knn:
        return "--linear_probe and --knn: choose one"
    if training_args.push_to_hub and args.knn:
        return "--push_to_hub and --knn: nearest neighbours are no model to publish"
    if args.evaluate_only and args.protocol != "fine_tuning":
        return f"--evaluate_only and --{args.protocol}: --evaluate_only scores a fine-tuned classifier"
    if args.evaluate_only and has_option(words, "pooling"):
        return "--evaluate_only and --pooling: a fine-tuned classifier keeps the pooling that it was trained with"
    if unused := [name for name in UNUSED[args.protocol] if has_option(words, name)]:  # recipes may have them
        return f"--{unused[0]}: expected none for {args.protocol.replace('_', ' ')}, which does not use it"
    if args.k < 1 or not args.temperature > 0:
        return f"--k and --temperature: expected at least 1 and above 0, got {args.k} and {args.temperature}"
    return None


def load_rows(args: ClassifyArguments, seed: int):
    """Training and validation rows, and the names of their classes."""
    hint = "A folder with a subfolder of images for each class has them"
    train, validation = args.load(seed, ("image", "label"), hint)
    train, validation, id2label = name_classes(train, validation)
    for split, rows in (("training", train), ("validation", validation)):
        absent = sorted(set(id2label) - set(rows["label"]))
        if absent:
            names = ", ".join([id2label[index] for index in absent[:20]] + ["..."] * (len(absent) > 20))
            logger.warning("Classes that do not occur in the %s split: %s.", split, names)
    return train, validation, id2label


def score(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return load_metric("top_k_accuracy").compute(predictions=scores.numpy(), references=labels.numpy())


def judge_features(args: ClassifyArguments, training_args, hub_args, data, id2label) -> tuple[dict, dict]:
    """k-NN or linear probe on frozen features, for each pooling that the encoder has."""
    train_rows, validation_rows = data
    encoder = load_encoder(args.model, args.from_scratch, image_size=args.image_size)
    check_channels(encoder.config)
    if training_args.push_to_hub:  # say now what would fail after the work
        if not isinstance(encoder.config, C2FMAEConfig):
            raise HubError(
                f"--push_to_hub and --linear_probe: expected a C2FMAE encoder, got {encoder.config.model_type}"
            )
        prepare_repository(
            encoder,
            training_args.hub_model_id or Path(training_args.output_dir).absolute().name,
            facts=hub_args.publishing()["card_facts"],
            license_text=hub_args.publishing()["license_text"],
            private=training_args.hub_private_repo,
            token=training_args.hub_token,
        )
    encoder = encoder.to(training_args.device)
    rows = {"train": len(train_rows), "validation": len(validation_rows)}
    if training_args.process_index == 0:
        method = f"{args.k} nearest neighbours" if args.knn else f"a linear probe ({args.probe_epochs} epochs)"
        size = f"{args.image_size} x {args.image_size} pixels"
        print(
            f"Classifying frozen features by {method}: {model_in_words(args.model, encoder)} at {size}, "
            f"{counted(rows['train'], 'row')} of {args.dataset_name}, {rows['validation']} held out, "
            f"{counted(len(id2label), 'class', 'classes')}, on {training_args.device}. "
            f"Output folder: {training_args.output_dir}.",
            flush=True,
        )
    record = args.record(TASK, training_args, rows, encoder)
    processor = build_processor(args.model, encoder.config, args.image_size, args.crop_pct)
    statistics = (processor.image_mean, processor.image_std)
    augmented, central = classification_transforms(args.image_size, *statistics, args.min_crop_scale, args.crop_pct)

    def features(rows, transform, description):
        loader = DataLoader(
            ImageLabelDataset(rows, transform),
            batch_size=training_args.per_device_eval_batch_size,
            num_workers=training_args.dataloader_num_workers,
        )
        return extract_features(encoder, loader, description)

    views = args.probe_views if args.linear_probe else 0
    # The central crop; for the probe also augmented views.
    parts = [features(train_rows, central, "Training features")]
    parts += [features(train_rows, augmented, f"Augmented view {view + 1}/{views}") for view in range(views)]
    train = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    train_labels = torch.cat([part[1] for part in parts])
    validation, labels = features(validation_rows, central, "Validation features")

    results, probes, classifier, saved = {}, {}, None, {}
    for pooling in train:
        if args.knn:
            scores = weighted_knn(
                train[pooling],
                train_labels,
                validation[pooling],
                len(id2label),
                args.k,
                args.temperature,
            )
        else:
            torch.manual_seed(training_args.seed)
            probes[pooling] = LinearProbe(train[pooling].shape[1], len(id2label)).fit(
                train[pooling],
                train_labels,
                epochs=args.probe_epochs,
                base_learning_rate=args.probe_learning_rate,
                seed=training_args.seed,
            )
            with torch.no_grad():
                scores = probes[pooling](validation[pooling])
        results[pooling] = score(scores, labels)
    if probes and training_args.process_index == 0 and isinstance(encoder.config, C2FMAEConfig):
        pooling = args.pooling or encoder.config.pooling
        classifier = save_probe(encoder, probes[pooling], pooling, id2label, processor, training_args.output_dir)
        saved = {"pooling": pooling}
    return results, record.finish(classifier, **saved)


def save_probe(encoder, probe: LinearProbe, pooling: str, id2label, processor, folder: str) -> nn.Module:
    """The encoder and the probe as one classifier that `pipeline("image-classification")` loads."""
    from ..modeling_c2fmae import C2FMAEForImageClassification

    config = encoder.config
    config.pooling, config.id2label = pooling, id2label
    config.label2id = {label: index for index, label in id2label.items()}
    model = C2FMAEForImageClassification(config)
    model.c2fmae = encoder.cpu()  # with its licence
    model.resize_positions(processor.crop_size["height"])
    weight, bias = probe.fold()
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tell_timm(folder, processor)
    return model


def fine_tune(args: ClassifyArguments, training_args, hub_args, data, id2label) -> tuple[dict, dict]:
    train_rows, validation_rows = data
    if args.evaluate_only:
        model = load_fine_tuned(AutoModelForImageClassification, args.model, "a classifier")
        check_classes(model, id2label, hasattr(train_rows.features["label"], "names"))
    else:
        model = build_classifier(
            args.model,
            id2label,
            args.from_scratch,
            args.image_size,
            args.pooling,
            args.drop_path_rate,
        )
    processor = build_processor(args.model, model.config, args.image_size, args.crop_pct)
    statistics = (processor.image_mean, processor.image_std)
    training, evaluation = classification_transforms(
        args.image_size,
        *statistics,
        args.min_crop_scale,
        args.crop_pct,
        args.rand_augment,
        args.random_erasing,
    )
    metric = load_metric("top_k_accuracy")
    trainer = ImageClassificationTrainer(
        model=model,
        args=training_args,
        train_dataset=ImageLabelDataset(train_rows, training),
        eval_dataset=ImageLabelDataset(validation_rows, evaluation),
        processing_class=processor,
        compute_metrics=lambda output: {
            **metric.compute(predictions=output.predictions, references=output.label_ids),
            BEST_BY: ranked_accuracy(output.predictions, output.label_ids),
        },
        mixup_alpha=args.mixup_alpha,
        cutmix_alpha=args.cutmix_alpha,
        label_smoothing=args.label_smoothing,
        layer_decay=args.layer_decay,
        ema_decay=args.ema_decay,
        **hub_args.publishing(),
    )
    rows = {"train": len(train_rows), "validation": len(validation_rows)}
    record = args.record(TASK, training_args, rows, model)
    names = ("top1_accuracy", "top5_accuracy")
    metrics, _ = train(trainer, args, str(args.dataset_name), ("loss", *names, BEST_BY))
    pooling = getattr(model.config, "pooling", None) or "model's own"
    results = {pooling: {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics}}
    return results, record.finish(None if args.evaluate_only else trainer.accelerator.unwrap_model(trainer.model))


def parse(args: list[str] | None = None) -> tuple[ClassifyArguments, FineTuningArguments, HubArguments]:
    return parse_transfer(
        "classify",
        ClassifyArguments,
        args,
        __doc__,
        required=("model", "dataset_name"),
        check=partial(find_mistake, sys.argv[1:] if args is None else args),
        metric_for_best_model=BEST_BY,
    )


def main(args: list[str] | None = None) -> dict:
    args, training_args, hub_args = parse(args)
    token = training_args.hub_token  # the trainer takes it out of the arguments
    image_size, crop_pct = saved_view(args.model) if args.evaluate_only else (None, None)
    args.crop_pct = args.crop_pct or crop_pct or CROP_PCT
    args.image_size = args.image_size or image_size or own_image_size(encoder_config(args.model, args.from_scratch))
    *data, id2label = load_rows(args, training_args.seed)
    started = time.perf_counter()
    run = fine_tune if args.protocol == "fine_tuning" else judge_features
    scores, record = run(args, training_args, hub_args, data, id2label)
    seconds = time.perf_counter() - started
    folder = Path(training_args.output_dir)

    def publish() -> None:
        model, processor = load_saved(folder)
        push_to_hub(
            model,
            training_args.hub_model_id or folder.absolute().name,
            processor=processor,
            runs=[load_run(folder, "training")],
            private=training_args.hub_private_repo,
            token=token,
            revision=training_args.hub_revision,
            facts=hub_args.publishing()["card_facts"],
            license_text=hub_args.publishing()["license_text"],
        )

    number, lines = len(data[1]), []
    commonest = max(Counter(data[1]["label"]).values())
    for pooling, values in scores.items():
        words = [f"{name} {value:.4f} ({round(value * number)} of {number})" for name, value in values.items()]
        lines.append(f"{args.protocol}, {pooling}: {', '.join(words)}")
    lines.append(f"the commonest class alone: top1_accuracy {commonest / number:.4f} ({commonest} of {number})")
    return finish(
        args,
        training_args,
        {"protocol": args.protocol, "results": scores},
        record,
        seconds,
        publish=publish if training_args.process_index == 0 else None,
        scores=lines,
        task="image-classification",
    )
