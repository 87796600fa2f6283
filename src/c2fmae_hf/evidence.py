"""
What runs left behind, as evidence: the records of a run, and the figures in them, each with the file and the place
in it where it stands.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .run_record import (
    RUN_FILE,
    architecture_of,
    data_name,
    encoder_fingerprint,
    hide_folders,
    hide_secrets,
    weights_fingerprint,
)


STATE_FILE = "trainer_state.json"
DECODER_FILE = "decoder_results.json"
RESULTS_FILE = "results.json"
# Metrics of the records: what the table calls them, the Hub's name, and whether they are shares, shown as percentages.
METRICS = {
    "eval_loss": ("held-out loss", "loss", False),
    "eval_semantic_loss": ("held-out semantic loss", "loss", False),
    "eval_instance_loss": ("held-out instance loss", "loss", False),
    "eval_image_loss": ("held-out image loss", "loss", False),
    "semantic_mean_iou": ("mean IoU of the decoder's semantics, %", "mean_iou", True),
    "semantic_accuracy": ("accuracy of the decoder's semantics, %", "accuracy", True),
    "instance_pq": ("panoptic quality of the decoder's instances, %", "panoptic_quality", True),
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
        files: What each file holds, by its path in the repository, such as `runs/training/run.json`; without tokens,
            passwords and the folders of the machine that it ran on, since it is to be published.
        sources: Where each file is now.
        role: What it has to do with the weights that it is published with: it `"made"` them, it `"made_encoder"`, of
            which these are another class, it `"made_start"`, the encoder that they were trained from, it `"judged"`
            them, or it `"transferred"` their encoder to a task. Its figures are of these weights if it made or judged
            them.
    """

    files: dict[str, Any]
    sources: dict[str, Path] = field(default_factory=dict)
    role: Literal["made", "made_encoder", "made_start", "judged", "transferred"] = "made"

    @property
    def record(self) -> dict[str, Any]:
        """Command, arguments, hardware, ...; empty if a result was written without them."""
        for content in self.files.values():
            if "task" in content:
                return content
            if "run" in content:
                return content["run"]
        return {}

    @property
    def folder(self) -> str:
        """Where its files are in the repository."""
        return next(iter(self.files)).rpartition("/")[0]

    @property
    def is_training(self) -> bool:
        """Whether it trained the weights that it is published with, their encoder, or what they started from."""
        return self.role in ("made", "made_encoder", "made_start")


def load_run(path: str | os.PathLike, name: str) -> Run:
    """
    The records in a folder that a training script wrote, or one `results.json`, whatever its name is now.

    Args:
        path: The folder, or the file.
        name (`str`): Of the run within the repository.

    Raises:
        `FileNotFoundError`: if there is neither `run.json` nor `results.json`.
        `ValueError`: if a file is not a JSON object.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    wanted = [RUN_FILE, RESULTS_FILE, STATE_FILE, DECODER_FILE]
    found = {file: folder / file for file in wanted if (folder / file).is_file()}
    if path.is_file():  # whatever its name is
        found = {RESULTS_FILE: path}
    if not path.is_file() and not {RUN_FILE, RESULTS_FILE} & set(found):
        raise FileNotFoundError(f"{folder}: expected {RUN_FILE} or {RESULTS_FILE} of a training script, found neither")
    files = {}
    for file, source in found.items():
        try:
            content = json.loads(source.read_text(encoding="utf-8"))
        except ValueError as error:  # of JSON, or of UTF-8
            raise ValueError(f"{source}: expected JSON, {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{source}: expected a JSON object, got {type(content).__name__}")
        files[f"runs/{name}/{file}"] = hide_folders(hide_secrets(content))
    run = Run(files, {f"runs/{name}/{file}": source for file, source in found.items()})
    return run if "encoder" in run.record else replace(run, role="judged")


def run_of_weights(run: Run, model: nn.Module) -> Run | None:
    """
    The run with its role towards a model, by the fingerprints in its record; `None` if it is of other weights.

    Args:
        model: A C2FMAE model, or one that is built on it.
    """
    record, weights, encoder = run.record, weights_fingerprint(model), encoder_fingerprint(model)
    kind = type(model).__name__
    if record.get("weights") == weights:
        return replace(run, role="made")
    if record.get("starting_weights") == weights and "weights" not in record:
        return replace(run, role="judged")
    if record.get("task") == "pretraining":
        # With another decoder it is another model.
        is_encoder_s = record.get("encoder") == encoder and kind != "C2FMAEForPreTraining"
        return replace(run, role="made_encoder") if is_encoder_s else None
    is_start = record.get("starting_encoder") == encoder and kind in ("C2FMAEModel", "C2FMAEForPreTraining")
    return replace(run, role="transferred") if is_start else None


def runs_of_architecture(runs: Sequence[Run], config: Any) -> list[Run]:
    """
    The runs with their roles towards an architecture whose weights are not at hand: pre-training of it, and what was
    measured with the encoders that it gave.

    Args:
        config ([`C2FMAEConfig`]): Of the architecture.

    Raises:
        `ValueError`: naming a run of another architecture, or of an encoder that no run among these made.
    """
    expected, trained = architecture_of(config), []
    for run in runs:
        if run.record.get("task") == "pretraining":
            if run.record.get("architecture") != expected:
                found = run.record.get("architecture") or "none"
                raise ValueError(f"{run.folder}: expected a run of the architecture {expected}, got one of {found}")
            trained.append(replace(run, role="made"))
    encoders = {run.record.get("encoder") for run in trained} - {None}
    others = [run for run in runs if run.record.get("task") != "pretraining"]
    for run in others:
        if run.record.get("starting_encoder") not in encoders:
            raise ValueError(
                f"{run.folder}: expected a run that started from an encoder of {[one.folder for one in trained]}, got "
                "one of another"
            )
    return [*trained, *(replace(run, role="transferred") for run in others)]


# Results


@dataclass(frozen=True)
class Figure:
    """
    One measured value: the task, the data, the metric's name in [`METRICS`], where the value stands, whether it is of
    the weights that the run ended with, and the split of the data, if it is known.
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
    def is_finite(self) -> bool:
        return math.isfinite(self.value)

    @property
    def shown(self) -> str:
        if not self.is_finite:
            return "not finite"
        return f"{100 * self.value:.1f}" if METRICS[self.metric][2] else f"{self.value:.3f}"

    @property
    def evidence(self) -> str:
        return f"{self.file}:{self.place}"


def figures_of(run: Run) -> list[Figure]:
    """
    Everything that a run measured, in the order in which a reader wants it; of the losses of training the first and
    the last.

    Raises:
        `ValueError`: if something else than a number stands where a metric should.
    """
    record = run.record
    task = record.get("task", "")
    figures: list[Figure] = []
    if run.role in ("made_encoder", "made_start"):  # what it measured is of the whole that it made
        return figures
    # Losses of fine-tuning are of weights along the way, its score is of those that are saved.
    is_scored = any(Path(file).name == RESULTS_FILE for file in run.files)

    def add(words: str, metric: str, value: Any, file: str, place: str, is_last: bool = True) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{file}, {place}: expected a number, got {value!r}")
        if METRICS[metric][2] and math.isfinite(value) and not 0 <= value <= 1:
            raise ValueError(f"{file}, {place}: expected a share in [0, 1], got {value!r}")
        hub_task = HUB_TASKS.get(task, "image-classification")
        if run.role == "transferred":  # a result of another model
            words, is_last = f"{words}, from this encoder", False
        split = record.get("splits", {}).get("validation")
        if split is not None and not re.fullmatch(r"[\w. -]+", split):
            raise ValueError(f"{file}, splits: expected the name of a split, got {split!r}")
        figures.append(Figure(words, hub_task, data_of(run), metric, value, file, place, is_last, split))

    for file, content in run.files.items():
        kind = Path(file).name
        if kind == RESULTS_FILE:
            protocol = content.get("protocol", "")
            if protocol not in PROTOCOLS:
                raise ValueError(f"{file}, protocol: expected one of {list(PROTOCOLS)}, got {protocol!r}")
            for place, metric, value in _leaves(content.get("results", {}), "results"):
                pooling = place.split(".")[1] if place.count(".") > 1 else ""
                # Of the probes of a run one is saved; the other is of another head.
                is_saved = pooling in ("", record.get("pooling", pooling)) or run.role != "made"
                parts = (
                    task_name(task),
                    PROTOCOLS[protocol],
                    pooling and f"{pooling} pooling",
                    "" if is_saved else "a head that is not here",
                )
                add(", ".join(filter(None, parts)), metric, value, file, place, is_last=is_saved)
        elif kind == STATE_FILE and not is_scored:
            history = content.get("log_history", [])
            evaluations = [index for index, entry in enumerate(history) if "eval_loss" in entry]
            for index in dict.fromkeys(evaluations[:1] + evaluations[-1:]):
                entry = history[index]
                for name in METRICS:
                    if name in entry:
                        words = f"{task_name(task)}, step {entry['step']}"
                        place = f"log_history.{index}.{name}"
                        add(words, name, entry[name], file, place, is_last=index == evaluations[-1])
        elif kind == DECODER_FILE:
            for name in METRICS:
                if content.get(name) is not None:
                    add("the decoder's own maps", name, content[name], file, name)
    return figures


def task_name(task: str) -> str:
    """A record's task in words."""
    return "pre-training" if task == "pretraining" else task.replace("_", " ")


def data_of(run: Run) -> str:
    """Name of the data that a run trained on or judged by."""
    if "data" in run.record:
        return run.record["data"]
    settings = [content.get("settings", {}) for content in run.files.values()]
    named = [source.get("dataset_name") for source in (run.record.get("arguments", {}), *settings)]
    return data_name(next(filter(None, named), None))


def _leaves(content: dict[str, Any], place: str) -> Iterator[tuple[str, str, float]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}.{name}")
        elif name in METRICS and value is not None:
            yield f"{place}.{name}", name, value


def resolve(content: Any, place: str) -> Any:
    """What stands at a dotted place, such as `log_history.3.eval_loss`; `KeyError` if nothing does."""
    for part in place.split("."):
        try:
            content = content[int(part)] if isinstance(content, list) else content[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(place) from None
    return content
