"""Model cards, rendered from a configuration and the records of runs. Records are not verified."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForPreTraining, PreTrainedConfig

from ..configuration_c2fmae import C2FMAEConfig
from .records import METRICS, Figure, Run, data_of, figures_of, task_name


TEMPLATE = Path(__file__).with_name("model_card_template.md")
HUB_NAME = r"[\w.-]+/[\w.-]+"
DEFAULT_LICENSE = "apache-2.0"
# File of a picture of predictions in a repository; the card shows it.
PICTURE = "predictions.png"
DEFAULT_CAPTION = "Predictions for a few photographs, made with these weights."
DEFAULT_DATA = (
    "Nothing else is stated about the training data, its label maps and the licences of both. The weights may inherit "
    "obligations from both: ask before you use them."
)
LIMITS = "Not tested for bias.{} Not fit for identifying people or for decisions about them."
LIMITS_OF_LABELS = (
    " The encoder learned objects from label maps: it is likely to confuse the classes that the labeller confused or "
    "missed."
)


@dataclass(frozen=True)
class Kind:
    """How the Hub and transformers treat a model class."""

    description: str
    pipeline_tag: str
    auto_class: str = "AutoModel"


KINDS = {
    "C2FMAEModel": Kind("The encoder", "image-feature-extraction"),
    "C2FMAEForPreTraining": Kind(
        "Encoder and pre-training decoder", "image-feature-extraction", "AutoModelForPreTraining"
    ),
    "C2FMAEForImageClassification": Kind(
        "An image classifier on the encoder", "image-classification", "AutoModelForImageClassification"
    ),
    "C2FMAEForSemanticSegmentation": Kind(
        "A semantic segmenter on the encoder", "image-segmentation", "AutoModelForSemanticSegmentation"
    ),
    "C2FMAEBackbone": Kind("A backbone, which is the encoder", "image-feature-extraction", "AutoBackbone"),
    "UperNetForSemanticSegmentation": Kind(
        "A semantic segmenter (UperNet) on the encoder", "image-segmentation", "AutoModelForSemanticSegmentation"
    ),
    "MaskRCNNForObjectDetection": Kind(
        "A detector (Mask R-CNN) on the encoder", "object-detection", "AutoModelForObjectDetection"
    ),
    "Mask2FormerForUniversalSegmentation": Kind(
        "An instance segmenter (Mask2Former) on the encoder", "image-segmentation", "AutoModelForUniversalSegmentation"
    ),
}
_TASKS_OF_OTHERS = {
    "ForImageClassification": "image-classification",
    "Segmentation": "image-segmentation",
    "ForObjectDetection": "object-detection",
}


@dataclass(frozen=True)
class CardFacts:
    """
    Facts for a card that are not in the records of runs.

    Args:
        license (`str`, *optional*): The weights' licence, as the Hub names it. By default Apache-2.0; required for
            weights that others made, see [`~c2fmae_hf.publishing.hub.check_license`].
        datasets: Hub names of the datasets that the weights were trained on; by default those in the records.
        base_model (*optional*): Hub name of the model that was fine-tuned or converted; by default the one in the
            records or the configuration.
        data (`str`): Text on the data, the labels and their licences.
        limits (`str`, *optional*): Text on what the model must not be used for; by default a sentence on bias, and one
            on label maps if the encoder learned from them.
        tags: Further tags.
        license_name (`str`, *optional*): Short name of a licence that the Hub calls `other`.
        caption (`str`): Text below the picture of predictions, if there is one.
        data_names: Dataset names in the records, mapped to the names that the card shows instead.
    """

    license: str | None = None
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    data: str = DEFAULT_DATA
    limits: str | None = None
    tags: tuple[str, ...] = ()
    license_name: str | None = None
    caption: str = DEFAULT_CAPTION
    data_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Address:
    """Where the model is: on the Hub or in a folder."""

    name: str
    revision: str | None = None
    subfolder: str | None = None
    folder: str | None = None

    @property
    def arguments(self) -> str:
        """Arguments of `from_pretrained`, as code."""
        if self.folder:
            return f'"{self.folder}"'
        named = {"revision": self.revision, "subfolder": self.subfolder}
        return ", ".join([f'"{self.name}"', *(f'{key}="{value}"' for key, value in named.items() if value)])

    @property
    def timm_name(self) -> str:
        if self.folder:
            return f"local-dir:{self.folder}"
        return f"hf-hub:{self.name}{f'@{self.revision}' if self.revision else ''}"

    @property
    def records_url(self) -> str | None:
        """`None` for a model that is not on the Hub, or whose name lacks the owner."""
        if self.folder or "/" not in self.name:
            return None
        folder = "/".join(filter(None, (quote(self.revision or "main", safe=""), self.subfolder, "runs")))
        return f"https://huggingface.co/{self.name}/tree/{folder}"


def build_card(
    name: str,
    config: PreTrainedConfig,
    model_class: str,
    *,
    files: Sequence[str] = (),
    runs: Sequence[Run] = (),
    facts: CardFacts | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    folder: str | None = None,
) -> ModelCard:
    """
    Render the card of a model.

    Args:
        name (`str`): Name of the repository.
        config: The model's configuration.
        model_class (`str`): Name of its class.
        files: Names of the repository's files; empty if no weights are published.
        runs: Records of training and evaluation, training first.
        facts (*optional*): Facts that are not in the records.
        revision, subfolder (`str`, *optional*): Branch and folder in the repository, for the card's code.
        folder (`str`, *optional*): Folder of weights that are not on the Hub, for the card's code.

    Returns:
        `ModelCard`: Text and metadata.
    """
    address, facts = _Address(name, revision, subfolder, folder), facts or CardFacts()
    kind, own = _kind_of(model_class), own_config(config)
    figures = [figure for run in runs for figure in figures_of(run)]
    figures = [replace(figure, data=facts.data_names.get(figure.data, figure.data)) for figure in figures]
    published = [figure for figure in figures if figure.is_last and math.isfinite(figure.value)] if files else []
    results = [_eval_result(address, figure) for figure in published]
    origin = own.converted_from if own is not None else None
    license_name = facts.license or DEFAULT_LICENSE
    timm_keys = config.timm_keys() if isinstance(config, C2FMAEConfig) else None
    tags = [*(["c2fmae", "masked-autoencoder"] if own else []), "vision", *(["timm"] if timm_keys else [])]
    data = ModelCardData(
        license=license_name,
        license_name=facts.license_name if license_name == "other" else None,
        license_link="LICENSE" if license_name == "other" else None,
        library_name="transformers",
        pipeline_tag=kind.pipeline_tag,
        tags=[*tags, *facts.tags],
        datasets=list(facts.datasets) or _datasets_of(runs) or None,
        base_model=facts.base_model or _base_model_of(runs, origin),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=address.name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=address.name.rpartition("/")[2],
        kind=kind,
        origin=origin,
        is_pretrained=any(run.record.get("task") == "pretraining" for run in runs),
        version=metadata.version("c2fmae-hf"),
        files=files,
        config=config,
        own=own,
        parameters=count_parameters(config, model_class),
        class_names=_class_names(config),
        model_class=model_class,
        cell=_cell,
        timm_keys=timm_keys,
        address=address,
        needs_package=_needs_package(config),
        training=[_describe_training(run, facts.data_names) for run in runs if run.is_training],
        results=[_row(figure) for figure in figures],
        picture=PICTURE if PICTURE in files else None,
        caption=facts.caption.strip(),
        label_maps=_label_maps_of(runs),
        data=facts.data.strip(),
        limits=facts.limits.strip() if facts.limits else _limits_of(own, origin),
    )


def _limits_of(own: C2FMAEConfig | None, origin: str | None) -> str:
    """Words on limits; those on label maps only for an encoder that learned from them."""
    has_learned = own is not None and origin is None and bool({"semantic", "instance"} & set(own.granularities))
    return LIMITS.format(LIMITS_OF_LABELS if has_learned else "")


def _kind_of(model_class: str) -> Kind:
    if model_class in KINDS:
        return KINDS[model_class]
    tags = [tag for suffix, tag in _TASKS_OF_OTHERS.items() if model_class.endswith(suffix)]
    if not tags:
        return Kind(f"A {model_class} on the encoder", "image-feature-extraction")
    return Kind(f"A {model_class} on the encoder", tags[0], model_class)


def own_config(config: PreTrainedConfig) -> C2FMAEConfig | None:
    """Configuration of the C2FMAE encoder in a model; `None` if the encoder is another library's."""
    for candidate in (config, getattr(config, "backbone_config", None)):
        if isinstance(candidate, C2FMAEConfig):
            return candidate
    return None


def _datasets_of(runs: Sequence[Run]) -> list[str]:
    """Hub names of the datasets that the weights were trained on."""
    names = [data_of(run) for run in runs if run.is_training]
    return [name for name in dict.fromkeys(names) if re.fullmatch(HUB_NAME, name)]


def _label_maps_of(runs: Sequence[Run]) -> list[str]:
    """How the label maps of pre-training were made, as far as records tell."""
    told = [run.record.get("label_maps") for run in runs if run.is_training]
    return list(dict.fromkeys(filter(None, told)))


def _base_model_of(runs: Sequence[Run], origin: str | None) -> str | None:
    """Hub name of the model that was fine-tuned or, failing that, converted."""
    made = [run.record.get("base_model") for run in runs if run.role == "made"]
    names = [name for name in (*made, origin) if isinstance(name, str) and re.fullmatch(HUB_NAME, name)]
    return names[0] if names else None


# Results


def _row(figure: Figure) -> list[str]:
    data = f"{figure.data}, {figure.split}" if figure.split else figure.data
    return [_cell(figure.task), _cell(data), METRICS[figure.metric][0], figure.shown, f"`{figure.evidence}`"]


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def _eval_result(address: _Address, figure: Figure) -> EvalResult:
    shown_name, hub_metric, _ = METRICS[figure.metric]
    url = address.records_url
    return EvalResult(
        task_type=figure.hub_task,
        dataset_type=figure.data,
        dataset_name=figure.data,
        dataset_split=figure.split,
        metric_type=hub_metric,
        metric_name=f"{figure.task}: {shown_name.removesuffix(', %')}",
        metric_value=figure.value,
        # The Hub groups metrics by task and data, with one source for all, so each names its record here.
        metric_args={"record": figure.evidence},
        source_name="records in this repository" if url else None,
        source_url=url,
    )


# Architecture and training


def count_parameters(config: PreTrainedConfig, model_class: str) -> dict[str, int]:
    """Numbers of parameters of encoder and decoder, tables of positions included, without allocating them."""
    own = own_config(config)
    if own is None:
        return {}
    with torch.device("meta"):
        model = AutoModelForPreTraining.from_config(own)
    parts = {"encoder": model.c2fmae}
    if model_class == "C2FMAEForPreTraining":
        parts["decoder"] = model.decoder
    return {part: sum(value.numel() for value in module.parameters()) for part, module in parts.items()}


def _class_names(config: PreTrainedConfig) -> list[str]:
    """Class names, escaped for a table cell; empty if the classes are only numbered."""
    labels = list((getattr(config, "id2label", None) or {}).values())
    if not labels or labels[0] == "LABEL_0":
        return []
    return [_cell(name if len(name) <= 60 else f"{name[:57]}...") or "(no name)" for name in map(str, labels)]


def _needs_package(config: PreTrainedConfig) -> bool:
    """Whether loading the model needs this package."""
    parts = (config, getattr(config, "backbone_config", None))
    return any(type(part).__module__.startswith("c2fmae_hf") for part in parts)


def _describe_training(run: Run, data_names: Mapping[str, str]) -> dict[str, Any]:
    record = run.record
    # These do not affect the result.
    left_out = ("output_dir", "disable_tqdm", "report_to", "push_to_hub", "do_eval")
    arguments = {
        name: value
        for name, value in record.get("arguments", {}).items()
        if name not in left_out and not name.startswith("hub_")
    }
    task = task_name(record["task"])
    return {
        "task": f"{task[0].upper()}{task[1:]}",
        "folder": run.folder,
        "record": record,
        "data": data_names.get(data_of(run), data_of(run)),
        "state": next((content for content in run.files.values() if "log_history" in content), None),
        "duration": _duration(record["seconds"]),
        "arguments": "\n".join(f"{name}: {json.dumps(value)}" for name, value in arguments.items()),
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
