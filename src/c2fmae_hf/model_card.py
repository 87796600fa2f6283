"""
Model cards, rendered from the records that runs leave behind. A figure without a record cannot get in: every row of
the results names a file and the place in it, and [`check_card`] reads it there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForPreTraining, PreTrainedConfig

import c2fmae_hf

from .configuration_c2fmae import C2FMAEConfig
from .evidence import METRICS, Figure, Run, data_name, figures_of, resolve


TEMPLATE = Path(__file__).with_name("model_card_template.md")
DEFAULT_DATA = (
    "The training data, the origin of their label maps, and the licences of both are not stated. Weights may inherit "
    "obligations from both: ask before you rely on them."
)
DEFAULT_LIMITS = (
    "Not tested for bias. What the encoder knows of objects comes from the label maps that it was trained with: "
    "classes that a labeller confuses or omits, it is likely to confuse as well. Not fit for identifying people or "
    "for decisions about them."
)


@dataclass(frozen=True)
class Kind:
    """What a model's class means on a hub."""

    description: str
    pipeline_tag: str
    head: str


KINDS = {
    "C2FMAEModel": Kind("The encoder", "image-feature-extraction", ""),
    "C2FMAEForPreTraining": Kind("Encoder and pre-training decoder", "image-feature-extraction", "decoder"),
    "C2FMAEForImageClassification": Kind("An image classifier on the encoder", "image-classification", ""),
    "C2FMAEForSemanticSegmentation": Kind("A semantic segmenter on the encoder", "image-segmentation", "decode_head"),
    "C2FMAEBackbone": Kind("The encoder as a backbone", "image-feature-extraction", "fpn"),
    "UperNetForSemanticSegmentation": Kind("A semantic segmenter (UperNet) on the encoder", "image-segmentation", ""),
    "MaskRCNNForObjectDetection": Kind("A detector (Mask R-CNN) on the encoder", "object-detection", ""),
    "Mask2FormerForUniversalSegmentation": Kind(
        "An instance segmenter (Mask2Former) on the encoder", "image-segmentation", ""
    ),
}


@dataclass(frozen=True)
class CardFacts:
    """
    What no record knows.

    Args:
        license (`str`): The weights' licence, as the Hub names it.
        datasets: Names of datasets on the Hub that the weights were trained on.
        base_model (*optional*): Name on the Hub of the model that was fine-tuned.
        data (`str`): On the data, the labels and their licences.
        limits (`str`): What the model is not to be used for.
        tags: Further tags.
    """

    license: str = "apache-2.0"
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    data: str = DEFAULT_DATA
    limits: str = DEFAULT_LIMITS
    tags: tuple[str, ...] = ()


# The card


def build_card(
    name: str,
    config: PreTrainedConfig,
    model_class: str,
    *,
    files: Sequence[str] = (),
    runs: Sequence[Run] = (),
    facts: CardFacts | None = None,
    parameters: dict[str, int] | None = None,
) -> ModelCard:
    """
    Args:
        name (`str`): Of the repository.
        config: The model's configuration.
        model_class (`str`): Name of its class.
        files: Names of the repository's files; none for weights that are not published.
        runs: Records of training and evaluation. Runs that trained these weights come before those that scored them.
        facts (*optional*): What no record knows.
        parameters (*optional*): Number of parameters by part; by default counted from the configuration.

    Returns:
        `ModelCard`: with metadata that hubs read; its figures have passed [`check_card`].
    """
    facts = facts or CardFacts()
    kind = KINDS.get(model_class, Kind(f"A {model_class} on the encoder", "image-feature-extraction", ""))
    figures = [figure for run in runs for figure in figures_of(run)]
    training = [run for run in runs if run.record.get("encoder")]
    data = ModelCardData(
        license=facts.license,
        library_name="transformers",
        pipeline_tag=kind.pipeline_tag,
        tags=["c2fmae", "masked-autoencoder", "vision", *(["timm"] if _is_timms(config) else []), *facts.tags],
        datasets=list(facts.datasets) or None,
        base_model=facts.base_model,
        metrics=sorted({METRICS[figure.metric][1] for figure in figures}) if files and figures else None,
        model_name=name.rpartition("/")[2] if files and figures else None,
        eval_results=[_eval_result(name, figure) for figure in figures] if files and figures else None,
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=name.rpartition("/")[2],
        kind=kind,
        version=c2fmae_hf.__version__,
        files=_describe_files(files, config),
        architecture=_describe_architecture(config, parameters or count_parameters(config, model_class)),
        usage=_usage(name, config, model_class, bool(files)),
        training=[_describe_training(run) for run in training],
        results=[
            {
                "task": figure.task,
                "data": figure.data,
                "metric": METRICS[figure.metric][0],
                "value": figure.shown,
                "evidence": figure.evidence,
            }
            for figure in figures
        ],
        data=facts.data,
        limits=facts.limits,
    )
    check_card(str(card), {file: content for run in runs for file, content in run.files.items()})
    return card


def check_card(text: str, evidence: dict[str, Any]) -> None:
    """
    Compare a card's figures, in the table of results and in the metadata, with the records that it names.

    Args:
        text (`str`): The card.
        evidence: What each file of records holds, by its path in the repository.

    Raises:
        `ValueError`: naming the line whose figure no record bears out.
    """
    card = ModelCard(text, ignore_metadata_errors=False)
    _, _, section = card.text.partition("\n## Results\n")
    section = section.partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 5 and cells[4].startswith("`"):
            file, _, place = cells[4].strip("`").partition(":")
            value = _recorded(evidence, file, place, line)
            metric = place.rpartition(".")[2]
            expected = Figure("", "", "", metric, value, file, place) if metric in METRICS else None
            if expected is None or (expected.shown, METRICS[metric][0]) != (cells[3], cells[2]):
                raise ValueError(f"card, results: {line!r} says {cells[3]}, the record {value}")
        elif re.search(r"\d", line):
            raise ValueError(f"card, results: {line!r} has a figure without a record")
    for result in card.data.eval_results or []:
        file, _, place = str((result.metric_args or {}).get("record", "")).partition(":")
        if _recorded(evidence, file, place, result.metric_name or result.metric_type) != result.metric_value:
            raise ValueError(f"card, metadata: {result.metric_name} says {result.metric_value}, the record another")


def _recorded(evidence: dict[str, Any], file: str, place: str, what: str) -> Any:
    try:
        return resolve(evidence[file], place)
    except KeyError:
        raise ValueError(f"card, {what!r}: there is no record {file}:{place}") from None


def _eval_result(name: str, figure: Figure) -> EvalResult:
    shown_name, hub_metric, _ = METRICS[figure.metric]
    return EvalResult(
        task_type=figure.hub_task,
        dataset_type=figure.data,
        dataset_name=figure.data,
        metric_type=hub_metric,
        metric_name=f"{figure.task}: {shown_name.removesuffix(', %')}",
        metric_value=figure.value,
        # Hubs group metrics by task and data, with one source for all; each one's own record is its argument.
        metric_args={"record": figure.evidence},
        source_name="records in this repository",
        source_url=f"https://huggingface.co/{name}/tree/main/runs",
    )


def _is_timms(config: PreTrainedConfig) -> bool:
    return isinstance(config, C2FMAEConfig) and config.timm_keys() is not None


def count_parameters(config: PreTrainedConfig, model_class: str) -> dict[str, int]:
    """Parameters of a C2FMAE configuration's encoder and decoder, without their memory; tables are no parameters."""
    if not isinstance(config, C2FMAEConfig):
        return {}
    with torch.device("meta"):
        model = AutoModelForPreTraining.from_config(config)
    parts = {"encoder": model.c2fmae, "decoder": model.decoder}
    if model_class not in ("C2FMAEModel", "C2FMAEForPreTraining"):
        parts.pop("decoder")
    return {part: sum(value.numel() for value in module.parameters()) for part, module in parts.items()}


def _describe_architecture(config: PreTrainedConfig, parameters: dict[str, int]) -> list[tuple[str, str]]:
    rows = [(f"parameters, {part}", f"{number / 1e6:.1f} M") for part, number in parameters.items()]
    if isinstance(config, C2FMAEConfig):
        height, width = config.image_height_width
        rows = [
            (
                "encoder",
                f"ViT, width {config.hidden_size}, {config.num_hidden_layers} blocks, {config.num_attention_heads} "
                f"heads, patches of {config.patch_size} pixels",
            ),
            ("input", f"{height} x {width} pixels, mean {config.image_mean}, standard deviation {config.image_std}"),
            ("pooled output", "mean of the patch tokens" if config.pooling == "mean" else "class token"),
            *rows,
            (
                "pre-training",
                f"{', '.join(config.granularities)}; {config.decoder_type} decoder, width "
                f"{config.decoder_hidden_size}, {config.decoder_num_hidden_layers} blocks a stage; "
                f"{config.mask_ratio:.0%} of the patches masked",
            ),
        ]
    labels = getattr(config, "id2label", None) or {}
    if labels and next(iter(labels.values())) != "LABEL_0":
        names = [str(name) for name in labels.values()]
        rows.append(("classes", f"{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"))
    return rows


def _describe_files(files: Sequence[str], config: PreTrainedConfig) -> list[dict[str, str]]:
    both = "transformers, timm" if _is_timms(config) else "transformers"
    known = {
        "model.safetensors": ("encoder, and a classifier's head" if _is_timms(config) else "all weights", both),
        "decoder.safetensors": ("pre-training decoder", "transformers"),
        "decode_head.safetensors": ("segmentation head", "transformers"),
        "fpn.safetensors": ("feature pyramid", "transformers"),
        "label_embed.safetensors": ("embeddings of label inputs", "transformers"),
        "config.json": ("configuration", both),
        "preprocessor_config.json": ("image processor", "transformers"),
        "modeling_c2fmae.py": ("code, with the other `*.py`", "transformers with `trust_remote_code=True`"),
    }
    rows = [{"name": name, "content": known[name][0], "loaded_by": known[name][1]} for name in files if name in known]
    if rows and any(name.startswith("runs/") for name in files):
        rows.append({"name": "runs/", "content": "records of training and evaluation", "loaded_by": "readers"})
    return rows


def _usage(name: str, config: PreTrainedConfig, model_class: str, published: bool) -> str:
    if not published:
        size = name.rpartition("-")[2]
        timm_name = f"c2fmae_{(config.timm_keys() or {}).get('architecture')}"  # type: ignore[attr-defined]
        return (
            "Random weights, to be pre-trained on your own images:\n\n```python\nimport timm\nfrom c2fmae_hf import "
            f'C2FMAEConfig, C2FMAEForPreTraining\n\nmodel = C2FMAEForPreTraining(C2FMAEConfig.from_size("{size}"))\n'
            f'encoder = timm.create_model("{timm_name}", num_classes=0)\n```'
        )
    pipeline_tag = KINDS[model_class].pipeline_tag if model_class in KINDS else None
    lines = ["import c2fmae_hf  # registers C2FMAE with transformers and timm"]
    if pipeline_tag and pipeline_tag != "image-feature-extraction":
        lines += ["from transformers import pipeline", "", f'pipe = pipeline("{pipeline_tag}", "{name}")']
        lines += ['print(pipe("photo.jpg"))']
    else:
        lines += [
            "from PIL import Image",
            "from transformers import AutoImageProcessor, AutoModel",
            "",
            f'processor = AutoImageProcessor.from_pretrained("{name}")',
            f'model = AutoModel.from_pretrained("{name}")',
            'inputs = processor(Image.open("photo.jpg"), return_tensors="pt")',
            "features = model(**inputs).last_hidden_state",
        ]
    if model_class == "C2FMAEForPreTraining":
        lines += ["", "from transformers import AutoModelForPreTraining", ""]
        lines += [f'whole = AutoModelForPreTraining.from_pretrained("{name}")  # with the decoder']
    blocks = ["```python\n" + "\n".join(lines) + "\n```"]
    if _is_timms(config):
        wrapper = "TimmWrapper" + (
            "ForImageClassification" if model_class == "C2FMAEForImageClassification" else "Model"
        )
        blocks += [
            "Without c2fmae-hf, timm loads it, and so does transformers through its wrapper of timm, or by the code "
            "in this repository:",
            "```python\nimport timm\nfrom transformers import AutoModel, " + wrapper + "\n\n"
            f'model = timm.create_model("hf-hub:{name}", pretrained=True)\n'
            f'model = {wrapper}.from_pretrained("{name}")\n'
            f'model = AutoModel.from_pretrained("{name}", trust_remote_code=True)\n```',
        ]
    return "\n\n".join(blocks)


def _describe_training(run: Run) -> dict[str, Any]:
    record = run.record
    hardware, versions = record.get("hardware", {}), record.get("versions", {})
    rows = record.get("rows", {})
    devices = ", ".join(hardware.get("gpus") or [f"{hardware.get('cores')} cores of {hardware.get('processor')}"])
    facts = [
        ("task", record["task"].replace("_", " ")),
        ("data", data_name(record.get("arguments", {}).get("dataset_name"))),
        ("images", ", ".join(f"{number} {split}" for split, number in rows.items() if number is not None)),
        ("hardware", f"{devices}, {hardware.get('processes', 1)} process(es)"),
        ("time", f"{record['seconds'] / 60:.1f} min, on {record['started'][:10]} (UTC)"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    for content in run.files.values():
        if "log_history" in content:
            steps = f"{content['global_step']} steps, {content['epoch']:.1f} epochs"
            facts.insert(
                3, ("training", f"{steps}, batch {record['batch_size']}" if "batch_size" in record else steps)
            )
    if record.get("resumed_from"):
        facts.append(("resumed", "yes; the time is that of the last part"))
    folder = next(iter(run.files)).rpartition("/")[0]
    sentence = f"One run of {record['task'].replace('_', ' ')}; its records are in `{folder}`."
    schedule = record.get("curriculum")
    curriculum = ""
    if schedule:
        curriculum = (
            f"Masking curriculum: {schedule['schedule']}, {', '.join(schedule['order'])}, jitter {schedule['jitter']}"
            + (f", weights {schedule['weights']}" if schedule["schedule"] == "constant" else "")
            + "."
        )
    return {"sentence": sentence, "command": record["command"], "curriculum": curriculum, "facts": facts}
