"""Model cards, rendered from a configuration and from the records that runs leave behind. Records are not verified."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    """What a model's class means on a hub, and the class of transformers that loads it."""

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
    What no record knows.

    Args:
        license (`str`, *optional*): The weights' licence, as the Hub names it. By default Apache-2.0; of weights of
            others it must be given, see [`~c2fmae_hf.publishing.hub.check_license`].
        datasets: Names of datasets on the Hub that the weights were trained on; by default those of the records.
        base_model (*optional*): Name on the Hub of the model that was trained further or converted; by default that of
            the records or the configuration.
        data (`str`): On the data, the labels and their licences.
        limits (`str`): What the model is not to be used for.
        tags: Further tags.
        license_name (`str`, *optional*): Short name of a licence that the Hub calls `other`.
    """

    license: str | None = None
    datasets: tuple[str, ...] = ()
    base_model: str | None = None
    data: str = DEFAULT_DATA
    limits: str = DEFAULT_LIMITS
    tags: tuple[str, ...] = ()
    license_name: str | None = None


@dataclass(frozen=True)
class _Address:
    """Where on the Hub the model is, and how code says so."""

    name: str
    revision: str | None = None
    subfolder: str | None = None
    folder: str | None = None

    @property
    def arguments(self) -> str:
        """Of `from_pretrained`."""
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
        """`None` of what is on no hub, or has no owner's name by which a hub would find it."""
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
    Args:
        name (`str`): Of the repository.
        config: The model's configuration.
        model_class (`str`): Name of its class.
        files: Names of the repository's files; none for weights that are not published.
        runs: Records of training and evaluation. Runs that trained these weights come before those that scored them.
        facts (*optional*): What no record knows.
        revision, subfolder (`str`, *optional*): Branch and folder of the repository, which the card's code must name.
        folder (`str`, *optional*): Of weights that are on no hub: where they are, as the card's code shall name it.

    Returns:
        `ModelCard`: with metadata that hubs read.
    """
    address, facts = _Address(name, revision, subfolder, folder), facts or CardFacts()
    kind, own = _kind_of(model_class), own_config(config)
    figures = [figure for run in runs for figure in figures_of(run)]
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
        training=[_describe_training(run) for run in runs if run.is_training],
        results=[_row(figure) for figure in figures],
        data=facts.data.strip(),
        limits=facts.limits.strip(),
    )


def _kind_of(model_class: str) -> Kind:
    if model_class in KINDS:
        return KINDS[model_class]
    tags = [tag for suffix, tag in _TASKS_OF_OTHERS.items() if model_class.endswith(suffix)]
    if not tags:
        return Kind(f"A {model_class} on the encoder", "image-feature-extraction")
    return Kind(f"A {model_class} on the encoder", tags[0], model_class)


def own_config(config: PreTrainedConfig) -> C2FMAEConfig | None:
    """The encoder's, in a model on it, too; `None` if the encoder is another library's."""
    for candidate in (config, getattr(config, "backbone_config", None)):
        if isinstance(candidate, C2FMAEConfig):
            return candidate
    return None


def _datasets_of(runs: Sequence[Run]) -> list[str]:
    """Names on a hub of what the weights were trained on."""
    names = [data_of(run) for run in runs if run.is_training]
    return [name for name in dict.fromkeys(names) if re.fullmatch(HUB_NAME, name)]


def _base_model_of(runs: Sequence[Run], origin: str | None) -> str | None:
    """The name on a hub of what was trained further or, if that was converted, of the model that it was before."""
    made = [run.record.get("base_model") for run in runs if run.role == "made"]
    names = [name for name in (*made, origin) if isinstance(name, str) and re.fullmatch(HUB_NAME, name)]
    return names[0] if names else None


# Results


def _row(figure: Figure) -> list[str]:
    data = f"{figure.data}, {figure.split}" if figure.split else figure.data
    return [_cell(figure.task), _cell(data), METRICS[figure.metric][0], figure.shown, f"`{figure.evidence}`"]


def _cell(text: str) -> str:
    """Text as a cell of a table shows it, whatever is in it."""
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
        # Hubs group metrics by task and data, with one source for all; each one's own record is its argument.
        metric_args={"record": figure.evidence},
        source_name="records in this repository" if url else None,
        source_url=url,
    )


# Architecture and training


def count_parameters(config: PreTrainedConfig, model_class: str) -> dict[str, int]:
    """Parameters of a C2FMAE configuration's encoder and decoder, without their memory; tables are no parameters."""
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
    """Names of classes for a cell of a table; none if there are only numbers."""
    labels = list((getattr(config, "id2label", None) or {}).values())
    if not labels or labels[0] == "LABEL_0":
        return []
    return [_cell(name if len(name) <= 60 else f"{name[:57]}...") or "(no name)" for name in map(str, labels)]


def _needs_package(config: PreTrainedConfig) -> bool:
    """Whether any part of the model is of this package rather than transformers' own."""
    parts = (config, getattr(config, "backbone_config", None))
    return any(type(part).__module__.startswith("c2fmae_hf") for part in parts)


def _describe_training(run: Run) -> dict[str, Any]:
    record = run.record
    # These say nothing of the result.
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
        "data": data_of(run),
        "state": next((content for content in run.files.values() if "log_history" in content), None),
        "duration": _duration(record["seconds"]),
        "arguments": "\n".join(f"{name}: {json.dumps(value)}" for name, value in arguments.items()),
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
