"""
What runs left behind, as evidence: the records of a run, and the figures in them, each with the file and the place
in it where it stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .run_record import RUN_FILE


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
        files: What each file holds, by its path in the repository, such as `runs/pretraining/run.json`.
        sources: Where each file is now.
    """

    files: dict[str, Any]
    sources: dict[str, Path] = field(default_factory=dict)

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
    def encoders(self) -> set[str]:
        """Fingerprints of the encoder that the run started from and of the one that it made."""
        return {self.record[key] for key in ("starting_encoder", "encoder") if key in self.record}


def load_run(path: str | os.PathLike, name: str) -> Run:
    """
    The records in a folder that a training script wrote, or one `results.json`.

    Args:
        path: The folder, or the file.
        name (`str`): Of the run within the repository.

    Raises:
        `FileNotFoundError`: if there is neither `run.json` nor `results.json`.
        `ValueError`: if a file is not JSON.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    wanted = [path.name] if path.is_file() else [RUN_FILE, RESULTS_FILE, STATE_FILE, DECODER_FILE]
    found = {file: folder / file for file in wanted if (folder / file).is_file()}
    if not path.is_file() and not {RUN_FILE, RESULTS_FILE} & set(found):
        raise FileNotFoundError(f"{folder}: expected {RUN_FILE} or {RESULTS_FILE} of a training script, found neither")
    files = {}
    for file, source in found.items():
        try:
            files[f"runs/{name}/{file}"] = json.loads(source.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}: expected JSON, {error}") from None
    return Run(files, {f"runs/{name}/{file}": source for file, source in found.items()})


# Results


@dataclass(frozen=True)
class Figure:
    """One measured value: the task, the data, the metric's name in [`METRICS`], and where the value stands."""

    task: str
    hub_task: str
    data: str
    metric: str
    value: float
    file: str
    place: str
    note: str = ""

    @property
    def shown(self) -> str:
        return f"{100 * self.value:.1f}" if METRICS[self.metric][2] else f"{self.value:.3f}"

    @property
    def evidence(self) -> str:
        return f"{self.file}:{self.place}"


def figures_of(run: Run) -> list[Figure]:
    """Everything that a run measured, in the order in which a reader wants it."""
    record = run.record
    arguments = record.get("arguments", {})
    figures = []
    for file, content in run.files.items():
        settings = content.get("settings", {})
        data = data_name(arguments.get("dataset_name") or settings.get("dataset_name"))
        task = record.get("task", "")
        if file.endswith(RESULTS_FILE):
            note = content.get("protocol", "").replace("_", " ")
            for place, metric, value in _leaves(content.get("results", {}), "results"):
                pooling = place.split(".")[1] if place.count(".") > 1 else ""
                figures.append(
                    Figure(
                        ", ".join(filter(None, (task.replace("_", " "), note, pooling and f"{pooling} pooling"))),
                        HUB_TASKS.get(task, "image-classification"),
                        data,
                        metric,
                        value,
                        file,
                        place,
                    )
                )
        elif file.endswith(STATE_FILE):
            history = content["log_history"]
            evaluations = [index for index, entry in enumerate(history) if "eval_loss" in entry]
            for index in dict.fromkeys(evaluations[:1] + evaluations[-1:]):
                entry = history[index]
                figures += [
                    Figure(
                        f"pre-training, step {entry['step']}",
                        HUB_TASKS["pretraining"],
                        data,
                        name,
                        entry[name],
                        file,
                        f"log_history.{index}.{name}",
                    )
                    for name in METRICS
                    if name in entry
                ]
        elif file.endswith(DECODER_FILE):
            figures += [
                Figure("decoder's own maps", HUB_TASKS["pretraining"], data, name, content[name], file, name)
                for name in METRICS
                if name in content
            ]
    return figures


def _leaves(content: dict[str, Any], place: str) -> Iterator[tuple[str, str, float]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}.{name}")
        elif name in METRICS and value is not None:
            yield f"{place}.{name}", name, value


def data_name(dataset: str | None) -> str:
    """A dataset's name: that on a hub, or the last part of a local path."""
    if not dataset:
        return "not recorded"
    is_path = dataset.startswith((".", "/", "~")) or dataset.count("/") != 1 or Path(dataset).exists()
    return Path(dataset).name.replace("*", "").removesuffix(".parquet").strip("_-") if is_path else dataset


def resolve(content: Any, place: str) -> Any:
    """What stands at a dotted place, such as `log_history.3.eval_loss`; `KeyError` if nothing does."""
    for part in place.split("."):
        try:
            content = content[int(part)] if isinstance(content, list) else content[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(place) from None
    return content
