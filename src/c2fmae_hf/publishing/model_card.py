"""
Model cards, rendered from a configuration and from the records that runs leave behind. A figure without a record
cannot get in: [`check_card`] reads every result where its record has it, renders everything else again, and takes no
number in the words that people add but those of names, licences, years and counts of images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForPreTraining, PreTrainedConfig

from ..configuration_c2fmae import C2FMAEConfig
from .records import METRICS, Figure, Run, data_of, figures_of, resolve, task_name


TEMPLATE = Path(__file__).with_name("model_card_template.md")
HUB_NAME = r"[\w.-]+/[\w.-]+"
WORDS_HEADING = "\n## Data, licences and limits\n"
RESULTS_HEADING = "\n## Results\n"
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
# What a number in a person's words may be part of: an address, a paper, a licence, a name (ImageNet-1K), a year.
_NAMED_NUMBERS = re.compile(
    r"https?://\S+"
    r"|arxiv[:\s]\d{4}\.\d{4,5}(?:v\d)?"
    r"|CC0(?: 1\.0)?"
    r"|(?:CC[- ]BY(?:[- ](?:SA|NC|ND))*|Apache|(?:A|L)?GPL|MPL|BSD|ODbL|CDLA)[- ]v?[1-4](?:\.\d|-Clause)?(?![\d.]*\d)"
    r"|(?<![\w])(?!acc|top|m?iou|ap|pq|map|score|loss|error|auc|recall|precision|f1)[a-z][a-z_-]*\d+[a-z]*(?![.,]?\d)"
    r"|\b(?:19|20)\d\d\b(?![.,]?\d)",
    re.IGNORECASE,
)


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
        parameters (*optional*): Number of parameters by part; by default counted from the configuration.
        revision, subfolder (`str`, *optional*): Branch and folder of the repository, which the card's code must name.
        folder (`str`, *optional*): Of weights that are on no hub: where they are, as the card's code shall name it.

    Returns:
        `ModelCard`: with metadata that hubs read; it has passed [`check_card`].

    Raises:
        `ValueError`: for a number in the facts that no record bears out, a record that is not complete, or converted
            weights without a licence.
    """
    address = _Address(name, revision, subfolder, folder)
    text = _render(address, config, model_class, files, runs, facts or CardFacts(), parameters)
    check_card(
        *(text, name, config, model_class),
        files=files,
        runs=runs,
        parameters=parameters,
        revision=revision,
        subfolder=subfolder,
        folder=folder,
    )
    return ModelCard(text)


def _render(
    address: _Address,
    config: PreTrainedConfig,
    model_class: str,
    files: Sequence[str],
    runs: Sequence[Run],
    facts: CardFacts,
    parameters: dict[str, int] | None,
) -> str:
    kind, own = _kind_of(model_class), own_config(config)
    figures = [figure for run in runs for figure in figures_of(run)]
    published = [figure for figure in figures if figure.is_last and figure.is_finite] if files else []
    results = [_eval_result(address, figure) for figure in published]
    origin = own.converted_from if own is not None else None
    if origin and facts.license is None:
        raise ValueError(
            f"license: expected that of {origin}, from which the weights were converted (see its card, or its "
            "authors' repository), got None"
        )
    license_name = facts.license or DEFAULT_LICENSE
    data = ModelCardData(
        license=license_name,
        license_name=facts.license_name if license_name == "other" else None,
        license_link="LICENSE" if license_name == "other" else None,
        library_name="transformers",
        pipeline_tag=kind.pipeline_tag,
        tags=[*_tags(config), *facts.tags],
        datasets=list(facts.datasets) or _datasets_of(runs) or None,
        base_model=facts.base_model or _base_model_of(runs, origin),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=address.name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    description = (
        f"{kind.description} of **C2FMAE**, a coarse-to-fine masked autoencoder "
        "([arXiv 2603.09955](https://arxiv.org/abs/2603.09955)): a method by which an encoder learns from semantic "
        "masks, instance masks and pixels through a cascaded decoder and a masking curriculum."
    )
    if origin:
        description += f" The weights were made of those of `{origin}`, which is not ours."
    elif files and not any(run.record.get("task") == "pretraining" for run in runs):
        description += " No record says whether these weights were pre-trained by it."
    if own is None:
        description = f"{kind.description.removesuffix(' on the encoder')}. Its encoder is not C2FMAE's."
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=address.name.rpartition("/")[2],
        description=description,
        version=metadata.version("c2fmae-hf"),
        files=_describe_files(files, config, model_class, at_root=not address.subfolder),
        architecture=_describe_architecture(
            config, own, model_class, parameters or count_parameters(config, model_class)
        ),
        usage=_usage(address, config, model_class, files),
        training=[_describe_training(run) for run in runs if run.is_training],
        results=[_row(figure) for figure in figures],
        data=facts.data.strip(),
        limits=facts.limits.strip(),
    )
    return str(card)


def check_card(
    text: str,
    name: str,
    config: PreTrainedConfig,
    model_class: str,
    *,
    files: Sequence[str] = (),
    runs: Sequence[Run] = (),
    parameters: dict[str, int] | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    folder: str | None = None,
) -> None:
    """
    Hold a card to what it was made of, which are the other arguments, as for [`build_card`]:

    - a result, in the table and in the metadata, has the value that stands at the place of the record that it names;
    - everything else down to the last section is what configuration and records give, line by line, but for the
      licence, the tags and the names of datasets and base model;
    - these, and the words of the last section, hold no number but as part of a name, a licence, an address or a year,
      or as the number of images in a record.

    Raises:
        `ValueError`: naming the line and what was expected there.
    """
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"card, metadata: expected what huggingface_hub reads, {error}") from None
    _check_results(card, {file: content for run in runs for file, content in run.files.items()})

    head, heading, words = text.partition(WORDS_HEADING)
    counts = {str(number) for run in runs for number in run.record.get("rows", {}).values() if number is not None}
    tags = [tag for tag in card.data.tags or [] if tag not in _tags(config)]
    for line in (*tags, *words.splitlines()):
        _check_words(line, counts)
    datasets, base_model = card.data.datasets or [], card.data.base_model
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", str(card.data.license)):
        raise ValueError(f"card, metadata: expected a licence as the Hub names it, got {card.data.license!r}")
    for value in (*([datasets] if isinstance(datasets, str) else datasets), base_model or "-"):
        if not re.fullmatch(r"[\w.+-]+(/[\w.-]+)?", str(value)):
            raise ValueError(f"card, metadata: expected the name of a dataset or model on a hub, got {value!r}")

    license_name = card.data.license_name
    if license_name is not None and not re.fullmatch(r"[a-z]+(-[a-z]+)*", license_name):
        raise ValueError(
            f"card, metadata: expected a licence's name in small letters and dashes, got {license_name!r}"
        )
    facts = CardFacts(
        *(str(card.data.license), tuple(datasets), base_model, "", "", tuple(tags), license_name)  # type: ignore[arg-type]
    )
    address = _Address(name, revision, subfolder, folder)
    expected = _render(address, config, model_class, files, runs, facts, parameters).partition(WORDS_HEADING)[0]
    if not heading or head != expected:
        lines, expected_lines = head.splitlines(), expected.splitlines()
        length = max(len(lines), len(expected_lines))
        for one, other in zip(*(part + [""] * (length - len(part)) for part in (lines, expected_lines))):
            if one != other:
                raise ValueError(
                    f"card, {one!r}: expected {other!r}, as its configuration and records give; a card is not edited, "
                    "but made again"
                )
        raise ValueError(f"card: expected the section {WORDS_HEADING.strip()!r}, found none")


def _check_results(card: ModelCard, evidence: dict[str, Any]) -> None:
    """The results against the records alone, whatever rendered them."""
    section = card.text.partition(RESULTS_HEADING)[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if line.startswith("|") and len(cells) == 5 and cells[4].startswith("`"):
            file, _, place = cells[4].strip("`").partition(":")
            value, metric = _recorded(evidence, file, place, line), place.rpartition(".")[2]
            expected = Figure("", "", "", metric, value, file, place) if metric in METRICS else None
            if expected is None or (expected.shown, METRICS[metric][0]) != (cells[3], cells[2]):
                raise ValueError(f"card, results: {line!r} says {cells[3]}, the record {value}")
        elif re.search(r"\d", line):
            raise ValueError(f"card, results: {line!r} has a figure without a record")
    for result in card.data.eval_results or []:
        file, _, place = str((result.metric_args or {}).get("record", "")).partition(":")
        value = _recorded(evidence, file, place, result.metric_name or result.metric_type)
        if value != result.metric_value:
            raise ValueError(f"card, metadata: {result.metric_name} says {result.metric_value}, the record {value}")


def _recorded(evidence: dict[str, Any], file: str, place: str, what: str) -> Any:
    try:
        return resolve(evidence[file], place)
    except KeyError:
        raise ValueError(f"card, {what!r}: there is no record {file}:{place}") from None


def _check_words(line: str, counts: set[str]) -> None:
    rest = _NAMED_NUMBERS.sub("", line)
    rest = re.sub(r"(?<![\w.,])\d+(?![.,]?\w)", lambda found: "" if found[0] in counts else found[0], rest)
    is_layout = line.lstrip().startswith(("#", "|", "```", "~~~")) or re.fullmatch(r"\s*(=+|-+)\s*", line)
    if is_layout or "<" in line or "![" in line:
        raise ValueError(f"card, {line!r}: expected plain words, without headings, tables, code, HTML and pictures")
    has_number = any(character.isnumeric() for character in rest)
    if has_number or re.search(r"%|\bper ?cent", rest, re.IGNORECASE):
        raise ValueError(
            f"card, {line!r}: expected no number but those of names, licences, years, and numbers of images in the "
            "records; what was measured belongs in a record, from which the card takes it"
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


def _tags(config: PreTrainedConfig) -> list[str]:
    own = ["c2fmae", "masked-autoencoder"] if own_config(config) is not None else []
    return [*own, "vision", *(["timm"] if _is_timms(config) else [])]


def _datasets_of(runs: Sequence[Run]) -> list[str]:
    """Names on a hub of what the weights were trained on."""
    names = [data_of(run) for run in runs if run.is_training]
    return [name for name in dict.fromkeys(names) if re.fullmatch(HUB_NAME, name)]


def _base_model_of(runs: Sequence[Run], origin: str | None) -> str | None:
    """The name on a hub of what was trained further or, if that was converted, of the model that it was before."""
    made = [run.record.get("base_model") for run in runs if run.role == "made"]
    names = [name for name in (*made, origin) if isinstance(name, str) and re.fullmatch(HUB_NAME, name)]
    return names[0] if names else None


def _is_timms(config: PreTrainedConfig) -> bool:
    return isinstance(config, C2FMAEConfig) and config.timm_keys() is not None


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


# Architecture, files, use


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


def _describe_architecture(
    config: PreTrainedConfig, own: C2FMAEConfig | None, model_class: str, parameters: dict[str, int]
) -> list[tuple[str, str]]:
    rows = [(f"parameters, {part}", f"{number / 1e6:.1f} M") for part, number in parameters.items()]
    if own is not None:
        height, width = own.image_height_width
        mean, deviation = (
            ", ".join(f"{value:g}" for value in values or ()) for values in (own.image_mean, own.image_std)
        )
        rows = [
            (
                "encoder",
                f"ViT, width {own.hidden_size}, {_count(own.num_hidden_layers, 'block')}, "
                f"{_count(own.num_attention_heads, 'head')}, "
                f"patches of {own.patch_size} pixels",
            ),
            ("input", f"{height} x {width} pixels, normalised with mean {mean} and standard deviation {deviation}"),
            ("pooled output", "mean of the patch tokens" if own.pooling == "mean" else "class token"),
            *rows,
        ]
    if own is not None and model_class == "C2FMAEForPreTraining":
        blocks = own.decoder_num_hidden_layers
        rows.append(
            (
                "pre-training",
                f"{', '.join(own.granularities)}; {own.decoder_type} decoder, width {own.decoder_hidden_size}, "
                f"{_count(blocks, 'block')} a stage; {own.mask_ratio:.0%} of the patches masked",
            )
        )
    if getattr(config, "dtype", None) is not None:
        rows.append(("weights", f"stored in {str(config.dtype).removeprefix('torch.')}"))
    labels = getattr(config, "id2label", None) or {}
    if labels and next(iter(labels.values())) != "LABEL_0":
        names = [_cell(_short(str(name))) or "(no name)" for name in labels.values()]
        rows.append(("classes", f"{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"))
    return rows


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _describe_files(
    files: Sequence[str], config: PreTrainedConfig, model_class: str, at_root: bool
) -> list[dict[str, str]]:
    both = "transformers, timm" if _is_timms(config) and at_root else "transformers"
    weights = "encoder and classifier" if model_class == "C2FMAEForImageClassification" else "encoder"
    known = {
        "model.safetensors": (weights if _is_timms(config) else "all weights", both),
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


def _usage(address: _Address, config: PreTrainedConfig, model_class: str, files: Sequence[str]) -> str:
    if not files:
        size = address.name.rpartition("-")[2]
        timm_name = f"c2fmae_{(config.timm_keys() or {}).get('architecture')}"  # type: ignore[attr-defined]
        return "Random weights, to be pre-trained on your own images:\n\n" + _python(
            "import timm",
            "from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining",
            "",
            f'model = C2FMAEForPreTraining(C2FMAEConfig.from_size("{size}"))',
            f'encoder = timm.create_model("{timm_name}", num_classes=0)',
        )
    kind = _kind_of(model_class)
    own = ["import c2fmae_hf  # registers C2FMAE with transformers and timm"] if _needs_package(config) else []
    if kind.pipeline_tag == "image-feature-extraction":
        lines = _feature_lines(address, kind, files)
    else:
        lines = _pipeline_lines(address, kind, files)
    blocks = [_python(*own, *lines)]
    if _is_timms(config) and not address.subfolder:
        blocks += _use_without_package(address, kind, model_class, files)
    return "\n\n".join(blocks)


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _processor_line(address: _Address, files: Sequence[str]) -> tuple[list[str], str]:
    """What to import, and how to make the processor."""
    if "preprocessor_config.json" in files:
        return ["AutoImageProcessor"], f"processor = AutoImageProcessor.from_pretrained({address.arguments})"
    return [], "processor = c2fmae_hf.C2FMAEImageProcessor.from_config(model.config)"


def _feature_lines(address: _Address, kind: Kind, files: Sequence[str]) -> list[str]:
    imported, processor = _processor_line(address, files)
    lines = [
        "from PIL import Image",
        f"from transformers import {', '.join(sorted({*imported, 'AutoModel', kind.auto_class}))}",
        "",
        f"model = AutoModel.from_pretrained({address.arguments})",
        processor,
        'inputs = processor(Image.open("photo.jpg"), return_tensors="pt")',
        "features = model(**inputs).last_hidden_state",
    ]
    if kind.auto_class != "AutoModel":
        what = {"AutoModelForPreTraining": "with the decoder", "AutoBackbone": "with maps of features"}
        lines += [f"whole = {kind.auto_class}.from_pretrained({address.arguments})  # {what[kind.auto_class]}"]
    return lines


def _pipeline_lines(address: _Address, kind: Kind, files: Sequence[str]) -> list[str]:
    lines = ["from transformers import pipeline", "", f'pipe = pipeline("{kind.pipeline_tag}", {address.arguments})']
    if address.subfolder:  # where pipelines do not look by themselves
        imported, processor = _processor_line(address, files)
        lines = [
            f"from transformers import {', '.join([*imported, kind.auto_class, 'pipeline'])}",
            "",
            f"model = {kind.auto_class}.from_pretrained({address.arguments})",
            processor,
            f'pipe = pipeline("{kind.pipeline_tag}", model, image_processor=processor)',
        ]
    return [*lines, 'print(pipe("photo.jpg"))']


def _use_without_package(address: _Address, kind: Kind, model_class: str, files: Sequence[str]) -> list[str]:
    has_code = "modeling_c2fmae.py" in files
    is_classifier = model_class == "C2FMAEForImageClassification"
    wrapper = "TimmWrapperForImageClassification" if is_classifier else "TimmWrapperModel"
    thing = "it" if is_classifier or model_class == "C2FMAEModel" else "the encoder"
    outputs = "logits" if is_classifier else "features"
    lines = [
        "import timm",
        "from PIL import Image",
        f"from transformers import {wrapper}",
        "",
        f'model = timm.create_model("{address.timm_name}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        'pixel_values = transform(Image.open("photo.jpg").convert("RGB"))[None]',
        f"{outputs} = model(pixel_values)",
        "",
        f"model = {wrapper}.from_pretrained({address.arguments})",
        "outputs = model(pixel_values)",
    ]
    blocks = [
        f"Without c2fmae-hf, timm loads {thing}, and so does transformers through its wrapper of timm:",
        _python(*lines),
    ]
    if not has_code:
        return blocks
    trust = f"{address.arguments}, trust_remote_code=True"
    has_processor = "preprocessor_config.json" in files
    lines = [
        f"from transformers import {', '.join(['AutoImageProcessor'] * has_processor + [kind.auto_class])}",
        "",
        f"model = {kind.auto_class}.from_pretrained({trust})",
        *[f"processor = AutoImageProcessor.from_pretrained({trust})"] * has_processor,
    ]
    whole = "" if thing == "it" else " all of it"
    words = f"The code in this repository loads{whole or ' it'}, too. It runs on your machine: read it first."
    return [*blocks, words, _python(*lines)]


def _needs_package(config: PreTrainedConfig) -> bool:
    """Whether any part of the model is of this package rather than transformers' own."""
    parts = (config, getattr(config, "backbone_config", None))
    return any(type(part).__module__.startswith("c2fmae_hf") for part in parts)


# Training


def _describe_training(run: Run) -> dict[str, Any]:
    record = run.record
    absent = [name for name in ("command", "seconds", "started", "versions", "hardware") if name not in record]
    if absent:
        raise ValueError(f"{run.folder}: expected a whole record of a run, found one without {absent}")
    hardware = record["hardware"]
    devices = hardware.get("gpus") or [f"{hardware.get('cores')} cores of {hardware.get('processor')}"]
    processes = hardware.get("processes", 1)
    rows = {
        record.get("splits", {}).get(part, part): "uncounted" if number is None else number
        for part, number in record.get("rows", {}).items()
    }
    facts = [
        ("data", data_of(run)),
        ("images", ", ".join(f"{split} {number}" for split, number in rows.items())),
        ("hardware", ", ".join(devices) + (f", {processes} processes" if processes > 1 else "")),
        ("time", f"{_duration(record['seconds'])}, begun on {record['started'][:10]} (UTC)"),
        ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
    ]
    for content in run.files.values():
        if "log_history" in content:
            steps = f"{content['global_step']} steps, {content['epoch']:.1f} epochs"
            facts.insert(
                2, ("training", steps + (f", batch {record['batch_size']}" if "batch_size" in record else ""))
            )
    if record.get("resumed_from"):
        facts.append(("resumed", "yes; the time is that of the last part"))
    schedule = record.get("curriculum")
    curriculum = ""
    if schedule:
        weights = dict(zip(("semantic", "instance", "random"), schedule["weights"]))
        shares = ", ".join(f"{name} {value:g}" for name, value in weights.items())
        curriculum = (
            f"Masking curriculum: {schedule['schedule']}, "
            f"{shares if schedule['schedule'] == 'constant' else ' then '.join(schedule['order'])}; jitter "
            f"{schedule['jitter']:g}"
        )
        if schedule.get("min_visible"):
            curriculum += f"; at least {schedule['min_visible']} of every region's patches visible"
        length = schedule.get("length", 1)
        curriculum += f"; over the first {length:.0%} of the run." if length < 1 else "."
    # What names this machine's folders alone, or says nothing of the result.
    left_out = ("output_dir", "disable_tqdm", "report_to", "push_to_hub", "do_eval")
    arguments = {
        name: value
        for name, value in record.get("arguments", {}).items()
        if name not in left_out and not name.startswith("hub_")
    }
    task = task_name(record["task"])
    return {
        "sentence": f"{task[0].upper()}{task[1:]}, one run; its records are in `{run.folder}`.",
        "command": _code(record["command"]),
        "arguments": _code("\n".join(f"{name}: {json.dumps(value)}" for name, value in arguments.items())),
        "curriculum": curriculum,
        "facts": [(name, _cell(value)) for name, value in facts if value],
    }


def _code(text: str) -> str:
    """A fenced block, whatever is in it."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}" if text else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
