"""
Image classification with an encoder: fine-tuning, linear probe, or k-nearest neighbours.

    python examples/run_classification.py --model runs/demo/c2fmae-vit-tiny --dataset_name mine --output_dir runs/1
    python examples/run_classification.py --model runs/demo/c2fmae-vit-tiny ... --linear_probe
    python examples/run_classification.py --model google/vit-base-patch16-224-in21k ... --knn
    python examples/run_classification.py --model vit_tiny_patch16_224 --from_scratch ...

`--model` is a folder or a name on the Hub that `AutoModel` loads (C2FMAE's encoders and pre-training checkpoints, ViT,
`timm/...`), or, with `--from_scratch`, an architecture of timm. The dataset has the columns `image` and `label`. A
YAML or JSON file may give the arguments; options on the command line override it.

Prints top-1 and top-5 accuracy on the validation split and writes them, with all settings, to `results.json`; saves
the fine-tuned model, or the encoder with the probe as its head, with its image processor.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperImageProcessor,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)

from ..configuration_c2fmae import C2FMAEConfig, resize_before_crop
from ..data.splits import load_train_and_validation
from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..metrics import load_metric
from ..publishing.hub import HubError, check_license, push_to_hub
from ..publishing.records import RunRecord, load_run
from ..publishing.repository import load_saved
from ..transfer.classification import (
    ImageClassificationTrainer,
    ImageLabelDataset,
    build_classifier,
    classification_transforms,
    resize_images,
)
from ..transfer.encoders import encoder_config, load_encoder, own_image_size, pixel_statistics
from ..transfer.probes import LinearProbe, extract_features, weighted_knn
from ..utils.files import write_json
from .arguments import HubArguments, find_checkpoint, parse_arguments


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """Model."""

    model: str | None = field(default=None, metadata={"help": "See above."})
    from_scratch: bool = field(default=False, metadata={"help": "Random weights: what pre-training must beat."})
    evaluate_only: bool = field(default=False, metadata={"help": "Score a model that was fine-tuned before."})
    pooling: str | None = field(default=None, metadata={"help": "mean or cls; by default the model's own."})
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth, of C2FMAE and timm."})


@dataclass
class DataArguments:
    """Data."""

    dataset_name: str | None = field(default=None, metadata={"help": "As for run_pretraining.py."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the input; by default the model's own."})
    min_crop_scale: float = field(default=0.2, metadata={"help": "Smallest area of a training crop."})
    crop_ratio: float = field(default=0.875, metadata={"help": "Side of the central crop in evaluation."})
    rand_augment: bool = field(default=False, metadata={"help": "RandAugment in fine-tuning."})
    random_erasing: float = field(default=0.0, metadata={"help": "In fine-tuning; MAE's recipe has 0.25."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many rows, drawn at random."})


@dataclass
class ProtocolArguments:
    """Protocol."""

    linear_probe: bool = field(default=False, metadata={"help": "Frozen encoder, batch norm and a linear layer."})
    knn: bool = field(default=False, metadata={"help": "Frozen encoder, weighted nearest neighbours, no training."})
    probe_epochs: int = field(default=90, metadata={"help": "Of the linear probe."})
    probe_views: int = field(default=4, metadata={"help": "Augmented views of each image that the probe sees."})
    probe_learning_rate: float = field(default=0.1, metadata={"help": "For a batch of 256."})
    k: int = field(default=20, metadata={"help": "Neighbours."})
    temperature: float = field(default=0.07, metadata={"help": "Of the neighbours' weights."})
    layer_decay: float = field(default=0.75, metadata={"help": "Fine-tuning: learning rate of a layer to the next."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Fine-tuning; MAE's recipe has 0.8."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "Fine-tuning; MAE's recipe has 1.0."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Fine-tuning."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Fine-tuning: average the weights with this decay."}
    )


GROUPS = (ModelArguments, DataArguments, ProtocolArguments, TrainingArguments, HubArguments)


def find_mistake(_, __, protocol_args: ProtocolArguments, training_args: TrainingArguments, *___) -> str | None:
    if protocol_args.linear_probe and protocol_args.knn:
        return "--linear_probe and --knn: choose one"
    if training_args.push_to_hub and protocol_args.knn:
        return "--push_to_hub and --knn: nearest neighbours are no model to publish"
    return None


def load_rows(data_args: DataArguments, seed: int):
    train, validation = load_train_and_validation(
        data_args.dataset_name,
        data_args.train_split,
        data_args.validation_split,
        data_args.max_train_samples,
        seed,
    )
    feature = train.features.get("label")
    other = validation.features.get("label")
    if getattr(feature, "names", None) != getattr(other, "names", None):
        raise ValueError(
            f"dataset, column 'label': expected the same classes in both splits, got {feature} and {other}"
        )
    if not hasattr(feature, "names") and getattr(feature, "dtype", "") not in ("int64", "int32", "int16", "uint8"):
        raise ValueError(f"dataset, column 'label': expected class names or integers, got {feature}")
    if hasattr(feature, "names"):
        id2label = dict(enumerate(feature.names))
    else:
        number = max(max(train["label"]), max(validation["label"])) + 1
        id2label = {index: f"class {index}" for index in range(number)}
    absent = sorted(set(id2label) - set(validation["label"]))
    if absent:
        logger.warning("Classes that do not occur in the validation split: %s.", [id2label[i] for i in absent[:20]])
    return train, validation, id2label


def build_processor(name: str, config, image_size: int, crop_ratio: float):
    """What evaluation does to images: C2FMAE's processor, or the model's own at this size, which may not crop."""
    size = {"height": image_size, "width": image_size}
    if isinstance(config, C2FMAEConfig):
        shortest_edge = resize_before_crop(image_size, crop_ratio)
        return C2FMAEImageProcessor.from_config(config, size={"shortest_edge": shortest_edge}, crop_size=size)
    try:
        processor = AutoImageProcessor.from_pretrained(name, size=size, crop_size=size)
    except (OSError, ValueError):
        processor = None
    if processor is None or isinstance(processor, TimmWrapperImageProcessor):
        # timm's processor has no size of its own, and is part of the model's configuration.
        mean, std = pixel_statistics(name)
        return ViTImageProcessor(size=size, image_mean=mean, image_std=std)
    return processor


def score(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return load_metric("top_k_accuracy").compute(predictions=scores.numpy(), references=labels.numpy())


def start_record(model, model_args, data_args, protocol_args, training_args, data) -> RunRecord:
    arguments = (model_args, data_args, protocol_args, training_args)
    rows = dict(zip(("train", "validation"), map(len, data)))
    splits = {"train": data_args.train_split, "validation": data_args.validation_split}
    return RunRecord("image_classification", arguments, rows, splits, starting_model=model)


def judge_features(model_args, data_args, protocol_args, training_args, hub_args, data, id2label) -> tuple[dict, dict]:
    """k-NN or linear probe on frozen features, for each pooling that the encoder has."""
    train_rows, validation_rows = data
    encoder = load_encoder(model_args.model, model_args.from_scratch, image_size=data_args.image_size)
    if training_args.push_to_hub:  # say now what would fail after the work
        if not isinstance(encoder.config, C2FMAEConfig):
            raise HubError(
                f"--push_to_hub and --linear_probe: expected a C2FMAE encoder, got {encoder.config.model_type}"
            )
        check_license(encoder, hub_args.publishing()["card_facts"], hub_args.publishing()["license_text"])
    encoder = encoder.to(training_args.device)
    record = start_record(encoder, model_args, data_args, protocol_args, training_args, data)
    processor = build_processor(model_args.model, encoder.config, data_args.image_size, data_args.crop_ratio)
    statistics = (processor.image_mean, processor.image_std)
    augmented, central = classification_transforms(
        data_args.image_size, *statistics, data_args.min_crop_scale, data_args.crop_ratio
    )

    def features(rows, transform, description):
        loader = DataLoader(
            ImageLabelDataset(rows, transform),
            batch_size=training_args.per_device_eval_batch_size,
            num_workers=training_args.dataloader_num_workers,
        )
        return extract_features(encoder, loader, description)

    views = protocol_args.probe_views if protocol_args.linear_probe else 0
    # The central crop, and for the probe augmented views besides.
    parts = [features(train_rows, central, "Training features")]
    parts += [features(train_rows, augmented, f"Augmented view {view + 1}/{views}") for view in range(views)]
    train = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
    train_labels = torch.cat([part[1] for part in parts])
    validation, labels = features(validation_rows, central, "Validation features")

    results, probes, classifier, saved = {}, {}, None, {}
    for pooling in train:
        if protocol_args.knn:
            scores = weighted_knn(
                train[pooling],
                train_labels,
                validation[pooling],
                len(id2label),
                protocol_args.k,
                protocol_args.temperature,
            )
        else:
            torch.manual_seed(training_args.seed)
            probes[pooling] = LinearProbe(train[pooling].shape[1], len(id2label)).fit(
                train[pooling],
                train_labels,
                epochs=protocol_args.probe_epochs,
                base_learning_rate=protocol_args.probe_learning_rate,
                seed=training_args.seed,
            )
            with torch.no_grad():
                scores = probes[pooling](validation[pooling])
        results[pooling] = score(scores, labels)
    if probes and training_args.process_index == 0 and isinstance(encoder.config, C2FMAEConfig):
        pooling = model_args.pooling or encoder.config.pooling
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
    model.c2fmae.load_state_dict(encoder.state_dict())
    resize_images(model, processor.crop_size["height"])
    weight, bias = probe.fold()
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def fine_tune(model_args, data_args, protocol_args, training_args, hub_args, data, id2label) -> tuple[dict, dict]:
    train_rows, validation_rows = data
    if model_args.evaluate_only:
        model = AutoModelForImageClassification.from_pretrained(model_args.model)
    else:
        model = build_classifier(
            model_args.model,
            id2label,
            model_args.from_scratch,
            data_args.image_size,
            model_args.pooling,
            model_args.drop_path_rate,
        )
    processor = build_processor(model_args.model, model.config, data_args.image_size, data_args.crop_ratio)
    statistics = (processor.image_mean, processor.image_std)
    training, evaluation = classification_transforms(
        data_args.image_size,
        *statistics,
        data_args.min_crop_scale,
        data_args.crop_ratio,
        data_args.rand_augment,
        data_args.random_erasing,
    )
    metric = load_metric("top_k_accuracy")
    trainer = ImageClassificationTrainer(
        model=model,
        args=training_args,
        train_dataset=ImageLabelDataset(train_rows, training),
        eval_dataset=ImageLabelDataset(validation_rows, evaluation),
        processing_class=processor,
        compute_metrics=lambda output: metric.compute(predictions=output.predictions, references=output.label_ids),
        mixup_alpha=protocol_args.mixup_alpha,
        cutmix_alpha=protocol_args.cutmix_alpha,
        label_smoothing=protocol_args.label_smoothing,
        layer_decay=protocol_args.layer_decay,
        ema_decay=protocol_args.ema_decay,
        **hub_args.publishing(),
    )
    record = start_record(model, model_args, data_args, protocol_args, training_args, data)
    if not model_args.evaluate_only:
        trainer.train(resume_from_checkpoint=find_checkpoint(training_args))
        trainer.save_model()
        trainer.save_state()
    metrics = trainer.evaluate()
    pooling = getattr(model.config, "pooling", None) or "model's own"
    names = ("top1_accuracy", "top5_accuracy")
    results = {pooling: {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics}}
    return results, record.finish(
        None if model_args.evaluate_only else trainer.accelerator.unwrap_model(trainer.model)
    )


def parse(args: list[str] | None = None) -> tuple:
    return parse_arguments(
        GROUPS,
        args,
        __doc__,
        command="classify",
        positionals=("model", "dataset_name"),
        required=("model", "dataset_name"),
        check=find_mistake,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
    )


def main(args: list[str] | None = None) -> dict:
    model_args, data_args, protocol_args, training_args, hub_args = parse(args)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    token = training_args.hub_token  # the trainer takes it out of the arguments
    set_seed(training_args.seed)
    if data_args.image_size is None:
        data_args.image_size = own_image_size(encoder_config(model_args.model, model_args.from_scratch))
    *data, id2label = load_rows(data_args, training_args.seed)
    protocol = "knn" if protocol_args.knn else "linear_probe" if protocol_args.linear_probe else "fine_tuning"
    started = time.perf_counter()
    run = fine_tune if protocol == "fine_tuning" else judge_features
    scores, record = run(model_args, data_args, protocol_args, training_args, hub_args, data, id2label)
    results = {
        "protocol": protocol,
        "results": scores,
        "seconds": time.perf_counter() - started,
        "settings": {**asdict(model_args), **asdict(data_args), **asdict(protocol_args), "seed": training_args.seed},
        "run": record,
    }
    folder = Path(training_args.output_dir)
    if training_args.process_index == 0:
        write_json(folder / "results.json", results)
        if training_args.push_to_hub:
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
    for pooling, values in results["results"].items():
        print(f"{protocol}, {pooling}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
    print(f"Results: {folder / 'results.json'}")
    return results
