"""Records of runs, from which model cards are made: command, arguments, data, weights, versions, hardware, time."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..utils.files import read_json
from .fingerprints import encoder_fingerprint, weights_fingerprint
from .licences import inherited_license
from .redaction import hide_folders, hide_secrets, hide_tokens


PACKAGES = ("c2fmae-hf", "torch", "torchvision", "transformers", "timm", "datasets", "accelerate")
RUN_FILE = "run.json"
ARCHITECTURE_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "image_size"),
    *("num_channels", "qkv_bias", "granularities", "input_granularities", "decoder_type", "decoder_hidden_size"),
    *("decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size", "mask_ratio"),
)


class RunRecord:
    """
    Record of a run. The clock starts when it is created.

    Args:
        task (`str`): Such as `pretraining`.
        arguments: Dataclasses of arguments. Values that differ from their defaults are kept, except tokens.
        rows: Number of images to train on (`train`) and to evaluate on (`validation`).
        splits: Names of these two splits in the dataset.
        starting_model (*optional*): The model before training. Its fingerprints and licence are kept.
        details: Further facts, such as the curriculum.
    """

    def __init__(
        self,
        task: str,
        arguments: Sequence[Any],
        rows: Mapping[str, int | None],
        splits: Mapping[str, str],
        starting_model: nn.Module | None = None,
        **details: Any,
    ) -> None:
        self._clock = time.perf_counter()
        changed = {name: value for group in arguments for name, value in changed_arguments(group).items()}
        # Now, while local folders can still be told from names on the Hub.
        data, base_model = changed.get("dataset_name") or changed.get("coco_dir"), changed.get("model")
        self.content: dict[str, Any] = {
            "task": task,
            "command": hide_tokens(_command()),
            "arguments": hide_folders(changed),
            "data": data_name(data),
            "base_model": hub_name(base_model or changed.get("model_name_or_path")),
            "rows": dict(rows),
            "splits": dict(splits),
            **details,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(),
        }
        if starting_model is not None:
            self.content["starting_encoder"] = encoder_fingerprint(starting_model)
            self.content["starting_weights"] = weights_fingerprint(starting_model)
            if (inherited := inherited_license(starting_model)) is not None:
                self.content["license"] = inherited.license_name or inherited.license

    def finish(self, model: nn.Module | None = None, **details: Any) -> dict[str, Any]:
        """
        The finished record, as JSON values.

        Args:
            model (*optional*): The model after training, as saved. Its fingerprints are kept, and those that a copy
                saved in bfloat16 has.
            details: Further facts.
        """
        content = {**self.content, **details, "seconds": round(time.perf_counter() - self._clock, 1)}
        if model is not None:
            content["encoder"] = encoder_fingerprint(model)
            content["weights"] = weights_fingerprint(model)
            content["in_bfloat16"] = {
                "encoder": encoder_fingerprint(model, rounded=True),
                "weights": weights_fingerprint(model, rounded=True),
            }
            content["architecture"] = architecture_of(getattr(model, "config", None))
        return content


def changed_arguments(group: Any) -> dict[str, Any]:
    """
    Fields of a dataclass that differ from their defaults, without tokens, objects, and empty defaults that
    `__post_init__` changes to another empty value (`None` to `False`). Defaults are read from the fields, because
    a second `TrainingArguments` would reset the state that the processes of a run share.
    """
    changed = {}
    for one in fields(group):
        value = getattr(group, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        is_hidden = "token" in one.name or one.name.startswith("_") or not one.init
        is_plain = isinstance(value, (bool, int, float, str, list, tuple, dict, os.PathLike)) or value is None
        if is_hidden or not is_plain or value == default or not (value or default):
            continue
        changed[one.name] = hide_secrets(_plain(value))
    return changed


def _command() -> list[str]:
    """Words of the command line, with `c2fmae` for `python -m c2fmae_hf`."""
    name = "c2fmae" if Path(sys.argv[0]).name in ("c2fmae", "__main__.py") else sys.argv[0]
    return [name, *sys.argv[1:]]


def _plain(value: Any) -> Any:
    """A value as JSON types."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def hub_name(name: Any) -> str | None:
    """A model's name on the Hub; `None` for a folder or an architecture without an owner."""
    return name if isinstance(name, str) and name.count("/") == 1 and data_name(name) == name else None


def architecture_of(config: Any) -> dict[str, Any]:
    """Fields that describe an architecture, as far as the configuration has them."""
    config = getattr(config, "backbone_config", None) or config
    return {name: getattr(config, name) for name in ARCHITECTURE_FIELDS if hasattr(config, name)}


def data_name(dataset: str | None) -> str:
    """A dataset's name: on the Hub, or the last part of a local path."""
    if not dataset:
        return "not recorded"
    is_file = any(character in dataset for character in "*?[") or dataset.endswith((".parquet", ".json", ".csv"))
    is_path = dataset.startswith((".", "/", "~")) or dataset.count("/") != 1 or is_file or Path(dataset).exists()
    if not is_path:
        return dataset
    path = Path(dataset)
    name = path.name.replace("*", "").removesuffix(".parquet").strip("_-")
    if name in ("", "dataset"):  # `c2fmae pretrain` labels into OUTPUT_DIR/dataset
        name = path.absolute().parent.name or name
    return name or "not named"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine that this process runs on, without its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    content: dict[str, Any] = {
        "processor": _processor_name(),
        "cores": cores,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    if torch.cuda.is_available():
        content["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return content


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return found or platform.processor() or platform.machine()


STATE_FILE = "trainer_state.json"
DECODER_FILE = "decoder_results.json"
RESULTS_FILE = "results.json"
# Metrics in records: name in the card, name on the Hub, and whether they are shown as percentages.
METRICS = {
    "eval_loss": ("held-out loss", "loss", False),
    "eval_semantic_loss": ("held-out semantic loss", "loss", False),
    "eval_instance_loss": ("held-out instance loss", "loss", False),
    "eval_image_loss": ("held-out image loss", "loss", False),
    "semantic_mean_iou": ("mean IoU of the decoder's semantics, %", "mean_iou", True),
    "semantic_accuracy": ("accuracy of the decoder's semantics, %", "accuracy", True),
    "instance_pq": ("panoptic quality of the decoder's instances, %", "panoptic_quality", True),
    "knn_accuracy": ("k-NN accuracy during pre-training, %", "accuracy", True),
    "top1_accuracy": ("top-1 accuracy, %", "accuracy", True),
    "top5_accuracy": ("top-5 accuracy, %", "top_5_accuracy", True),
    "mean_iou": ("mean IoU, %", "mean_iou", True),
    "mean_accuracy": ("mean accuracy, %", "mean_accuracy", True),
    "overall_accuracy": ("overall accuracy, %", "accuracy", True),
    "bbox_map": ("box AP, %", "mean_average_precision", True),
    "bbox_map_50": ("box AP50, %", "mean_average_precision", True),
    "segm_map": ("mask AP, %", "mean_average_precision", True),
    "segm_map_50": ("mask AP50, %", "mean_average_precision", True),
}
PROTOCOLS = {"": "", "knn": "k-NN", "linear_probe": "linear probe", "fine_tuning": "fine-tuning"}
HUB_TASKS = {
    "pretraining": "image-feature-extraction",
    "image_classification": "image-classification",
    "semantic_segmentation": "image-segmentation",
    "object_detection": "object-detection",
}


@dataclass(frozen=True)
class Run:
    """
    The records of one run.

    Args:
        files: Content of each file, by its path in the repository, such as `runs/training/run.json`. Ready to publish:
            without tokens, passwords and local folders.
        sources: Local path of each file.
        role: How the run relates to the weights that it is published with. `"made"`: it trained them;
            `"made_encoder"`: it trained their encoder, as part of another model class; `"made_start"`: it trained the
            encoder that they started from; `"judged"`: it evaluated them; `"transferred"`: it trained a model for a
            task from their encoder. Its results are results of these weights if it made or judged them.
    """

    files: dict[str, Any]
    sources: dict[str, Path] = field(default_factory=dict)
    role: Literal["made", "made_encoder", "made_start", "judged", "transferred"] = "made"

    @property
    def record(self) -> dict[str, Any]:
        """Command, arguments, hardware, ...; empty if the run left only results."""
        for content in self.files.values():
            if "task" in content:
                return content
            if isinstance(content.get("run"), dict):
                return content["run"]
        return {}

    @property
    def folder(self) -> str:
        """Folder of its files in the repository."""
        return next(iter(self.files)).rpartition("/")[0]

    @property
    def is_training(self) -> bool:
        """Whether it trained these weights, their encoder, or the encoder that they started from."""
        return self.role in ("made", "made_encoder", "made_start")


def load_run(path: str | os.PathLike, name: str) -> Run:
    """
    Load the records in a folder that a command wrote, or a single file of results under any name.

    Args:
        path: The folder, or the file.
        name (`str`): Name of the run in the repository.

    Raises:
        `FileNotFoundError`: if there is neither `run.json` nor `results.json`.
        `ValueError`: if a file is not a JSON object.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    wanted = [RUN_FILE, RESULTS_FILE, STATE_FILE, DECODER_FILE]
    found = {file: folder / file for file in wanted if (folder / file).is_file()}
    if path.is_file():
        found = {RESULTS_FILE: path}
    if not path.is_file() and not {RUN_FILE, RESULTS_FILE} & set(found):
        raise FileNotFoundError(f"{folder}: expected {RUN_FILE} or {RESULTS_FILE} of a run, found neither")
    files = {}
    for file, source in found.items():
        files[f"runs/{name}/{file}"] = hide_folders(hide_secrets(read_json(source)))
    run = Run(files, {f"runs/{name}/{file}": source for file, source in found.items()})
    return run if "encoder" in run.record else replace(run, role="judged")


def run_of_weights(run: Run, model: nn.Module) -> Run | None:
    """
    The run with its role for a model, from the fingerprints in its record; `None` if it belongs to other weights.

    Args:
        model: A C2FMAE model, or one that is built on it.
    """
    record, weights, encoder = run.record, weights_fingerprint(model), encoder_fingerprint(model)
    kind = type(model).__name__
    if weights in _fingerprints(record, "weights"):
        return replace(run, role="made")
    if record.get("starting_weights") == weights and "weights" not in record:
        return replace(run, role="judged")
    if record.get("task") == "pretraining":
        # A pre-training model with another decoder is another model.
        is_encoder_s = encoder in _fingerprints(record, "encoder") and kind != "C2FMAEForPreTraining"
        return replace(run, role="made_encoder") if is_encoder_s else None
    is_start = record.get("starting_encoder") == encoder and kind in ("C2FMAEModel", "C2FMAEForPreTraining")
    return replace(run, role="transferred") if is_start else None


def _fingerprints(record: Mapping[str, Any], of: str) -> set[str]:
    """Fingerprints of what a run made, and of a copy of it in bfloat16."""
    return {made[of] for made in (record, record.get("in_bfloat16", {})) if of in made}


def runs_of_weights(runs: Sequence[Run], model: nn.Module) -> list[Run]:
    """
    The runs with their roles for a model, including the run that trained the encoder it started from.

    Raises:
        `ValueError`: naming a record that belongs to other weights.
    """
    found = [run_of_weights(run, model) for run in runs]
    starts = {run.record.get("starting_encoder") for run in found if run is not None and run.is_training} - {None}
    result = []
    for run, known in zip(runs, found):
        if known is None and starts.isdisjoint(_fingerprints(run.record, "encoder")):
            raise ValueError(
                f"{next(iter(run.sources.values()), run.folder)}: expected a record of the weights to be published, "
                "got one of others; evaluate these weights, or leave the record out"
            )
        result.append(known or replace(run, role="made_start"))
    return result


# Results


@dataclass(frozen=True)
class Figure:
    """
    One measured value: task, data, name in [`METRICS`], file and place of the value, whether it belongs to the run's
    final weights, and the split of the data, if known.
    """

    task: str
    hub_task: str
    data: str
    metric: str
    value: float
    file: str
    place: str
    is_last: bool = True
    split: str | None = None

    @property
    def shown(self) -> str:
        if not math.isfinite(self.value):
            return "not finite"
        return f"{100 * self.value:.1f}" if METRICS[self.metric][2] else f"{self.value:.3f}"

    @property
    def evidence(self) -> str:
        return f"{self.file}:{self.place}"


def figures_of(run: Run) -> list[Figure]:
    """
    All results of a run, in the order of the card. Of the losses during training, only the first and the last.
    """
    record = run.record
    task = record.get("task", "")
    figures: list[Figure] = []
    if run.role in ("made_encoder", "made_start"):  # its results belong to the whole model that it trained
        return figures
    # Losses of fine-tuning belong to intermediate weights, the score to the saved ones.
    is_scored = any(Path(file).name == RESULTS_FILE for file in run.files)

    def add(words: str, metric: str, value: Any, file: str, place: str, is_last: bool = True) -> None:
        hub_task = HUB_TASKS.get(task, "image-classification")
        if run.role == "transferred":  # the result of another model
            words, is_last = f"{words}, from this encoder", False
        split = record.get("splits", {}).get("validation")
        figures.append(Figure(words, hub_task, data_of(run), metric, value, file, place, is_last, split))

    for file, content in run.files.items():
        kind = Path(file).name
        if kind == RESULTS_FILE:
            protocol = content.get("protocol", "")
            for place, metric, value in _leaves(content.get("results", {}), "results"):
                pooling = place.split(".")[1] if place.count(".") > 1 else ""
                # A run saves one of its probes; the other's head is gone.
                is_saved = pooling in ("", record.get("pooling", pooling)) or run.role != "made"
                parts = (
                    task_name(task),
                    PROTOCOLS.get(protocol, protocol),
                    pooling and f"{pooling} pooling",
                    "" if is_saved else "head not included",
                )
                add(", ".join(filter(None, parts)), metric, value, file, place, is_last=is_saved)
        elif kind == STATE_FILE and not is_scored:
            history = content.get("log_history", [])
            for kind in ("eval_loss", "knn_accuracy"):
                found = [index for index, entry in enumerate(history) if kind in entry]
                for index in dict.fromkeys(found[:1] + found[-1:]):
                    entry = history[index]
                    for name in METRICS:
                        if name in entry and (name == "knn_accuracy") == (kind == "knn_accuracy"):
                            words = f"{task_name(task)}, step {entry['step']}"
                            place = f"log_history.{index}.{name}"
                            add(words, name, entry[name], file, place, is_last=index == found[-1])
        elif kind == DECODER_FILE:
            for name in METRICS:
                if content.get(name) is not None:
                    add("the decoder's own maps", name, content[name], file, name)
    return figures


def task_name(task: str) -> str:
    """Name of a record's task for people."""
    return "pre-training" if task == "pretraining" else task.replace("_", " ")


def data_of(run: Run) -> str:
    """Name of the data that a run trained or evaluated on."""
    return run.record.get("data", "not recorded")


def _leaves(content: dict[str, Any], place: str) -> Iterator[tuple[str, str, float]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}.{name}")
        elif name in METRICS and value is not None:
            yield f"{place}.{name}", name, value
