"""
Write measured figures into the documents, from the records in `benchmarks/results`.

    python benchmarks/tables.py
    python benchmarks/tables.py --check

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; single figures in sentences are found by the
patterns of `figures`. The chart of the study's main rows is drawn again if it shows other scores. `--check` writes
nothing, names what differs and ends with 1. `measure.sh` makes the records.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
STUDY = ROOT / "benchmarks/representation"
PAGES = (
    "README.md",
    "benchmarks/README.md",
    "benchmarks/representation/README.md",
    "model_cards/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
TABLE = r"<!-- table: ([\w-]+) -->\n.*?<!-- end of table -->\n"
DEFAULT_RATIO = "0.25"

Row = dict[str, Any]


def record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows(name: str) -> list[Row]:
    return record(name)["rows"]


# Cells


def digits(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def with_range(row: Row, key: str = "images/s") -> str:
    return f"{digits(row[key])} ({digits(row['slowest'])} to {digits(row['fastest'])})"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def source(*names: str) -> str:
    """The line below a table: machine, date and commands."""
    contents = [record(name) for name in names]
    places = {place(content["machine"]) for content in contents}
    commands = [re.sub(r" --(output|work) \S+", "", content["command"]) for content in contents]
    links = ", ".join(f"[{name}](results/{name}.json)" for name in names)
    text = "\n".join(f"python benchmarks/{command}" for command in commands)
    return f"{'; '.join(sorted(places))}. Records: {links}.\n\n```bash\n{text}\n```"


def place(machine: Row) -> str:
    cores = f"{machine['cores']} CPU core{'s' if machine['cores'] > 1 else ''} ({machine['processor']})"
    return f"{machine.get('device') or cores}, torch {machine['torch']}, {machine['date']}"


# Tables


def contender_name(contender: str) -> str:
    """`C2FMAE, 25 %, compiled` of `C2FMAE 0.25 sdpa, compiled`."""
    name, comma, rest = contender.partition(",")
    name, *options = name.split()
    return f"{name}, {100 * float(options[0]):g} %{comma}{rest}" if options else contender


def training_step() -> str:
    single, half = ({row["contender"]: row for row in rows(f"step-{dtype}")} for dtype in ("float32", "bfloat16"))
    memory = {row["contender"]: row["peak memory, MiB"] for row in rows("step-memory")}
    lines = []
    for contender, row in single.items():
        lines.append(
            [
                contender_name(contender),
                with_range(row),
                f"{row['times ViTMAE']:.2f}",
                with_range(half[contender]),
                f"{half[contender]['times ViTMAE']:.2f}",
                digits(row["GFLOP an image"]),
                f"{row['share of the matrix rate, %']:.0f} %, {half[contender]['share of the matrix rate, %']:.0f} %",
                f"{memory[contender]:.0f} MiB" if contender in memory else "",
            ]
        )
    head = [
        "",
        "images/s, float32 (range)",
        "times ViTMAE",
        "images/s, bfloat16 (range)",
        "times ViTMAE",
        "GFLOP an image",
        "share of the matrix rate, float32 and bfloat16",
        "peak memory, float32",
    ]
    return f"{markdown(head, lines)}\n\n{source('step-float32', 'step-bfloat16', 'step-memory')}"


def operators() -> str:
    lines = []
    for row in rows("step-operators"):
        compiled = row["generated kernels"] + row["library calls"]
        name = contender_name(row["contender"].removesuffix(", compiled"))
        numbers = (row["all operators"], row["of them casts and copies"], compiled, row["graph breaks"])
        lines.append([name, *map(str, numbers)])
    head = [
        "",
        "operators of a step",
        "of them casts and copies",
        "kernels and library calls, compiled",
        "graph breaks",
    ]
    return f"{markdown(head, lines)}\n\n{source('step-operators')}"


def compiled() -> str:
    found = rows("step-compiled")
    lines = [[contender_name(row["contender"]), with_range(row), f"{row['times ViTMAE']:.2f}"] for row in found]
    return f"{markdown(['', 'images/s (range)', 'times ViTMAE'], lines)}\n\n{source('step-compiled')}"


def streams() -> str:
    content = record("streams")
    lines = []
    for row in content["rows"]:
        own, dispatched = row["images/s, own shards"], row["images/s, dispatched"]
        read = sorted(set(row["rows of each process"]))
        lost = content["rows_of_an_epoch"] - row["distinct rows"]
        lines.append([str(row["processes"]), digits(own), digits(dispatched), ", ".join(map(str, read)), str(lost)])
    head = [
        "processes",
        "images/s, own shards",
        "images/s, dispatched",
        "rows of each process in an epoch",
        "rows lost or read twice",
    ]
    return f"{markdown(head, lines)}\n\n{source('streams')}"


def training_step_gpu() -> str:
    lines = [
        [
            str(row["batch"]),
            contender_name(row["contender"]),
            with_range(row),
            f"{row['times ViTMAE']:.2f}",
            f"{row['share of the matrix rate, %']:.0f} %",
            "" if row.get("peak memory, MiB") is None else f"{row['peak memory, MiB']:.0f}",
        ]
        for row in rows("step-h200")
    ]
    head = ["batch", "", "images/s (range)", "times ViTMAE", "share of the matrix rate", "peak memory, MiB"]
    return markdown(head, lines)


def features() -> str:
    lines = [
        [str(row["batch"]), row["model"], with_range(row), f"{row['times timm']:.2f}"] for row in rows("features")
    ]
    return f"{markdown(['batch', 'model', 'images/s (range)', 'times timm'], lines)}\n\n{source('features')}"


LOADING = {
    "loading-256": "256 px, maps at stride 2",
    "loading-256-stride4": "at stride 4",
    "loading-500": "500 x 375, stride 2",
    "loading-4000": "4000 x 3000, stride 2",
}


def loading() -> str:
    columns = {name: {row["what"]: row for row in rows(name)} for name in LOADING}
    lines = [
        [what, *(f"{digits(found[what]['ms a sample'])} ({found[what]['range']})" for found in columns.values())]
        for what in columns["loading-256"]
    ]
    times = [f"**{found['three granularities']['times image alone']:.2f}**" for found in columns.values()]
    lines.append(["**three granularities: times the image alone**", *times])
    return f"{markdown(['ms a sample (range)', *LOADING.values()], lines)}\n\n{source(*LOADING)}"


def workers() -> str:
    lines = [
        [str(row["workers"]), with_range(row), f"{row['waits for data, % of the time']:.1f} %"]
        for row in rows("workers")
    ]
    return f"{markdown(['workers', 'images/s (range)', 'waits for data'], lines)}\n\n{source('workers')}"


def growth() -> str:
    lines = [
        [row["what grows"].replace("_", " "), str(row["to"]), digits(row["images/s"]), digits(row["peak memory, MiB"])]
        for row in rows("growth")
    ]
    return f"{markdown(['what grows', 'to', 'images/s', 'peak memory, MiB'], lines)}\n\n{source('growth')}"


def start_up() -> str:
    lines = [
        [row["what"], f"{row['ours']:.2f}", f"{row['peer']:.2f}", f"{row['times the peer']:.2f}"]
        for row in rows("start_up")
    ]
    return f"{markdown(['what', 'ours, s', 'peer, s', 'times the peer'], lines)}\n\n{source('start_up')}"


def labelling(name: str, first: str) -> str:
    lines = [[str(row[first]), with_range(row), f"{row['peak memory, MiB']:.0f} MiB"] for row in rows(name)]
    return f"{markdown([first, 'images/s (range)', 'peak memory'], lines)}\n\n{source(name)}"


def estimates() -> str:
    lines = [
        [f"`{row['recipe']}`", f"{row['estimate']} s", f"{row['run']} s", f"{row['estimate'] / row['run']:.2f}"]
        for row in rows("estimate")
    ]
    words = f"{place(record('estimate')['machine'])}. Record: [estimate](results/estimate.json)."
    return f"{markdown(['recipe', 'estimate', 'run', 'ratio'], lines)}\n\n{words}"


def memory_peaks() -> str:
    found = rows("memory-peaks")
    batches = [name.removesuffix(", MiB") for name in found[0] if name != "size"]
    lines = [[row["size"], *(f"{row[f'{batch}, MiB']:.0f} MiB" for batch in batches)] for row in found]
    return f"{markdown(['size', *batches], lines)}\n\n{source('memory-peaks')}"


def time_to_quality() -> str:
    lines = []
    for row in rows("time_to_quality"):
        sign = "" if row["sign"] == "=" else f"{row['sign']} "
        lines.append(
            [
                f"{row['score']} of MAE after {row['peer_epochs']} epochs, {100 * row['peer_score']:.1f}",
                study_module("variants").VARIANTS[row["variant"]].words,
                f"{sign}{row['epochs']:.1f}",
                f"**{sign}{row['epochs'] / row['peer_epochs']:.2f}**",
                f"{sign}{row['seconds']:.0f} s of {row['peer_seconds']:.0f} s",
                f"{row['peer_seeds']}, {row['seeds']}",
            ]
        )
    head = ["score to reach", "variant", "compute, epochs of MAE", "share of MAE's compute", "at the steps' seconds"]
    head.append("seeds of MAE, ours")
    return f"{markdown(head, lines)}\n\n{place(record('time_to_quality')['machine'])}."


def study(group: str, show: str, which: str = "all", folder: str = "") -> str:
    """
    A table of the study.

    Args:
        group: Group of runs, as `summarise.py` names them.
        show: `scores`, `differences`, `by class` or `attention`.
        which: `main` rows, `other` rows, or all.
        folder: Folder inside the study's results.
    """
    summarise, main = study_module("summarise"), study_module("variants").MAIN
    place = STUDY / "results" / folder
    runs = summarise.load(place)[group]
    found = summarise.summarise(runs, summarise.step_times(place, runs[0]["encoder"]))
    kept = {name: row for name, row in found.items() if which == "all" or (name in main) == (which == "main")}
    if show == "differences":
        # Variants that are left out are there to compare with, and to know the spread between seeds.
        return summarise.compare(runs, found, kept)
    if show == "attention":
        return summarise.table_of_attention(runs, kept)
    return {"scores": summarise.table, "by class": summarise.table_by_class}[show](kept)


def label_weights() -> str:
    """Scores with label losses weighted 1/3 minus those with 1, over all pairs of runs that are otherwise alike."""
    summarise = study_module("summarise")
    found = (summarise.load(STUDY / "results" / folder) for folder in ("", "all_decoded"))
    return summarise.compare_twins([runs for groups in found for runs in groups.values()])


def study_module(name: str) -> Any:
    if str(STUDY) not in sys.path:
        sys.path.append(str(STUDY))
    return importlib.import_module(name)


def study_lengths() -> str:
    """Scores of STL-10's runs of the small encoder by compute."""
    summarise = study_module("summarise")
    groups = {
        float(name.rpartition("-")[2]): summarise.summarise(runs, {})
        for name, runs in summarise.load(STUDY / "results").items()
        if name.startswith("study-stl10-small-")
    }
    lines = [
        [f"{epochs:g}", row["words"], str(row["linear_probe"]["seeds"])]
        + [summarise.shown(row[metric]) for metric in summarise.METRICS if metric in row]
        for name in study_module("variants").VARIANTS
        if any(name in rows for epochs, rows in groups.items() if epochs != 10)
        for epochs, rows in sorted(groups.items())
        if (row := rows.get(name))
    ]
    metrics = [words for metric, words in summarise.METRICS.items() if metric in groups[10]["mae"]]
    return markdown(["compute, epochs of MAE", "variant", "seeds", *metrics], lines)


# Records of the frozen encoder, and its name among the detectors. MAE was trained twice, on two kinds of processor.
WEIGHTS = {
    "shipped weights": (("encoder-c2fmae-vit-tiny-stl10",), "c2fmae-vit-tiny-stl10"),
    "MAE": (("mae-0-stl10-tiny-100", "mae-0-stl10-tiny-100-first"), "mae-0-stl10-tiny-100"),
    "random weights": (("encoder-untrained-c2fmae-vit-tiny-stl10",), "untrained"),
}
FROZEN_SCORES = {
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "caltech101_linear_probe": "Caltech-101, linear probe",
    "patch_mean_iou": "mean IoU",
}
DETECTION_SCORES = {"bbox_map": "AP of boxes", "segm_map": "AP of masks"}


def weights_scores() -> dict[str, list[str]]:
    """Scores of the shipped weights, of a MAE as long, and of random weights, from the study's records."""
    folder, summarise = STUDY / "results", study_module("summarise")
    runs = json.loads((folder / "detection-pennfudan.json").read_text(encoding="utf-8"))["runs"]
    found = {}
    for name, (records, detector) in WEIGHTS.items():
        frozen = [json.loads((folder / f"{one}.json").read_text(encoding="utf-8"))["results"] for one in records]
        detected = [run["results"] for run in runs if run["name"] == detector]
        cells = [(frozen, score) for score in FROZEN_SCORES] + [(detected, score) for score in DETECTION_SCORES]
        found[name] = [summarise.shown(summarise.cell([one[score] for one in given])) for given, score in cells]
    return found


def weights() -> str:
    names = (*(one for records, _ in WEIGHTS.values() for one in records), "detection-pennfudan")
    links = ", ".join(f"[{n}](representation/results/{n}.json)" for n in names)
    lines = [[name, *scores] for name, scores in weights_scores().items()]
    return f"{markdown(['', *FROZEN_SCORES.values(), *DETECTION_SCORES.values()], lines)}\n\nRecords: {links}."


def knn_of_weights() -> str:
    """k-NN of the shipped weights, from the records in their folders."""
    lines = []
    for name in ("c2fmae-vit-tiny-stl10", "c2fmae-vit-small-patch8-128"):
        records = [ROOT / f"model_cards/{name}/runs/{run}/results.json" for run in ("knn", "knn_caltech101")]
        found = [json.loads(path.read_text(encoding="utf-8"))["results"] for path in records]
        scores = [f"{100 * one[pooling]['top1_accuracy']:.1f}" for one in found for pooling in ("mean", "cls")]
        lines.append([name, *scores])
    head = [
        f"{data}, {pooling}" for data in ("STL-10", "Caltech-101") for pooling in ("mean of patches", "class token")
    ]
    return markdown(["", *head], lines)


def default_scores() -> str:
    """Scores of fine-tuned models, without a recipe and with one."""
    runs = record("defaults")["runs"]

    def right(task: str, photographs: str) -> str:
        found = [run for name, run in runs.items() if name.startswith(f"{task}-{photographs}-")]
        number = found[0]["rows"]["validation"]
        hits = ", ".join(f"{run['results']['mean']['top1_accuracy'] * number:.0f}" for run in found)
        return f"{hits} of {number} right"

    def precision(name: str) -> str:
        boxes, masks = (f"{100 * runs[name]['results'][score]:.1f}" for score in DETECTION_SCORES)
        return f"AP {boxes} boxes, {masks} masks"

    def iou(name: str) -> str:
        return f"mean IoU {100 * runs[name]['results']['mean_iou']:.1f}"

    lines = [
        [
            "classification",
            "48 photographs of four STL-10 classes, 20 epochs; seeds 0, 1, 2",
            right("classify", "many"),
        ],
        ["", "k-NN of the same encoder", right("knn", "many")],
        ["", "60 photographs, a fifth held out; seeds 0, 1, 2", right("classify", "sixty")],
        ["", "k-NN of the same encoder", right("knn", "sixty")],
        ["segmentation", "CamVid, 20 epochs (1060 steps of 8) at 96 pixels", iou("segment-default")],
        ["", "recipe `camvid-vit-tiny` at 96 pixels, 300 steps of 8", iou("segment-recipe")],
        ["detection", "Penn-Fudan, 20 epochs (300 steps of 8) at 96 pixels", precision("detect-default")],
        ["", "recipe `pennfudan-vit-tiny`, 300 steps of 4 at 160 pixels", precision("detect-recipe")],
    ]
    return f"{markdown(['task', 'data', 'score'], lines)}\n\n{source('defaults')}"


def losses_of(run: Row) -> list[str]:
    return [digits(run["results"][name]) for name in ("semantic", "instance", "image")]


def starts() -> str:
    """Pre-training from the shipped weights and from random ones."""
    lines = []
    for start, words in (("weights", "shipped weights"), ("random", "random")):
        run = record("defaults")["runs"][f"pretrain-{start}"]
        accuracies = ", ".join(f"{100 * run['knn'][place]:.1f}" for place in (0, -1))
        lines.append([words, *losses_of(run), accuracies])
    head = ["start", "semantic", "instance", "image", "k-NN before, after"]
    return f"{markdown(head, lines)}\n\n{source('defaults')}"


def rates() -> str:
    """Learning rates of pre-training."""
    runs = record("defaults")["runs"]
    words = {
        "default": "1.5e-3, without a recipe",
        "high": "7.5e-4",
        "root": "square root, 1.1e-4",
        "linear": "MAE's linear rule, 4.7e-6",
    }
    lines = [[rate, *losses_of(runs[f"rate-{name}"])] for name, rate in words.items()]
    return markdown(["rate", "semantic", "instance", "image"], lines)


IMAGENET, BILLION = 1_281_167, 1_000_000_000


def costs() -> str:
    """Costs of ImageNet and of a billion photographs at the measured rates."""
    labels = next(row["images/s"] for row in rows("labelling-engines") if row["engine"] == "1 process")
    step = next(r for r in rows("step-h200") if r["batch"] == 256 and f" {DEFAULT_RATIO} " in r["contender"])[
        "images/s"
    ]
    load = next(row["ms a sample"] for row in rows("loading-256") if row["what"] == "three granularities")
    cores = f"{step * load / 1000:.0f} cores"

    def hours(images: float, rate: float, what: str) -> str:
        return f"{digits(images / rate / 3600)} {what}-hours"

    lines = [
        [
            "storage, photographs at 256 px (30 kB) and panoptic maps at stride 2 (1.7 kB)",
            f"{digits(IMAGENET * 31.7e3 / 1e9)} GB in 1 282 shards",
            f"{digits(BILLION * 31.7e3 / 1e12)} TB in 100 000 shards",
        ],
        [
            f"labels by the classical labeller, {digits(labels)} images/s per core (measured)",
            hours(IMAGENET, labels, "core"),
            hours(BILLION, labels, "core"),
        ],
        [
            "labels by Mask2Former Swin-L at 384 px, *assuming* 100 images/s per GPU",
            hours(IMAGENET, 100, "GPU"),
            hours(BILLION, 100, "GPU"),
        ],
        [
            f"400 epochs of ViT-Base at {digits(step)} images/s per H200 (measured at batch 256)",
            hours(400 * IMAGENET, step, "GPU"),
            f"one epoch: {hours(BILLION, step, 'GPU')}",
        ],
        [f"loading for one such GPU, {digits(load)} ms per photograph and core (measured)", cores, cores],
    ]
    return markdown(["step", "ImageNet-1K, 1.28 M photographs", "a billion photographs"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "training-step": training_step,
    "operators": operators,
    "compiled": compiled,
    "streams": streams,
    "training-step-gpu": training_step_gpu,
    "features": features,
    "loading": loading,
    "workers": workers,
    "growth": growth,
    "start-up": start_up,
    "labelling-engines": lambda: labelling("labelling-engines", "engine"),
    "labelling-growth": lambda: labelling("labelling-growth", "images"),
    "memory-peaks": memory_peaks,
    **{
        f"study-{words.replace(' ', '-')}": functools.partial(study, "study-stl10-small-10", words, "main")
        for words in ("scores", "differences", "by class", "attention")
    },
    **{
        f"study-other-{words}": functools.partial(study, "study-stl10-small-10", words, "other")
        for words in ("scores", "differences")
    },
    **{
        f"study-all-decoded-{words}": functools.partial(study, "study-stl10-small-10", words, folder="all_decoded")
        for words in ("scores", "differences")
    },
    **{
        f"study-gpu-{epochs}-{words}": functools.partial(
            study, f"fleet-stl10-small-{epochs}", words, folder="all_decoded"
        )
        for words in ("scores", "differences")
        for epochs in (10, 5)
    },
    **{
        f"study-long-{words}": functools.partial(study, "fleet-stl10-small-40", words)
        for words in ("scores", "differences", "attention")
    },
    **{
        f"study-scenes-{words}": functools.partial(study, "study-scenes-small224-24", words)
        for words in ("scores", "differences")
    },
    "study-lengths": study_lengths,
    "study-label-weights": label_weights,
    "time-to-quality": time_to_quality,
    "estimate": estimates,
    "weights": weights,
    "knn-of-weights": knn_of_weights,
    "defaults": default_scores,
    "starts": starts,
    "rates": rates,
    "costs": costs,
}


# Figures in sentences


def figures() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Page, pattern and what its groups are to hold."""
    steps = {dtype: {row["contender"]: row for row in rows(f"step-{dtype}")} for dtype in ("float32", "bfloat16")}
    ours, everything = f"C2FMAE {DEFAULT_RATIO} sdpa", "C2FMAE 1.0 sdpa"
    single, half = (f"{steps[dtype][ours]['times ViTMAE']:.1f}" for dtype in ("float32", "bfloat16"))
    measured = place(record("step-float32")["machine"])
    yield "README.md", r"processes ([\d.]+) times as many images", (single,)
    yield "README.md", r"speed is of (\d.+?, torch [\d.]+, [\d-]+)\.", (measured,)
    yield (
        "docs/pretraining.md",
        r"pixels: ([\d.]+) times its images/s by default \(float32\), ([\d.]+) times with all masked patches "
        r"decoded, ([\d.]+) times in bfloat16",
        (single, f"{steps['float32'][everything]['times ViTMAE']:.1f}", half),
    )
    yield "docs/pretraining.md", r"slowest and the fastest turn\. ([^;]+);", (measured,)
    (shipped, mae, _), number = weights_scores().values(), r"([\d.]+)"

    def mean(cell: str) -> str:
        return cell.partition(" ")[0]

    yield (
        "README.md",
        rf"a linear probe of {number} %, k-NN of {number} % and a mean IoU of {number} % on STL-10, whose classes its "
        rf"label maps name; a MAE of the same size and compute reaches {number}, {number} and {number} % \(",
        tuple(mean(one[place]) for one in (shipped, mae) for place in (0, 1, 3)),
    )
    ahead = [float(mean(mine)) - float(mean(theirs)) for mine, theirs in zip(shipped, mae)]
    yield (
        "docs/evidence.md",
        rf"gains {number} points in the linear probe, {number} in k-NN, {number} in mean IoU and {number} in the "
        rf"linear probe on Caltech-101",
        tuple(f"{ahead[place]:.0f}" for place in (0, 1, 3, 2)),
    )
    yield (
        "docs/evidence.md",
        r"AP of boxes is ([\d.]+ ± [\d.]+) against ([\d.]+ ± [\d.]+) \(",
        (shipped[4], mae[4]),
    )
    shares = [f"{row['epochs'] / 20:.2f}" for row in rows("time_to_quality") if row["peer_epochs"] == 20]
    yield (
        "docs/evidence.md",
        rf"k-NN of a MAE of 20 epochs \(one seed\) with {number} of its compute, and its linear probe with {number}.*?"
        rf" weights it takes {number} and {number} ",
        tuple(shares[place] for place in (2, 0, 3, 1)),
    )
    records = [STUDY / f"results/{name}.json" for name in WEIGHTS["MAE"][0]]
    both = sorted(
        json.loads(path.read_text(encoding="utf-8"))["results"]["caltech101_linear_probe"] for path in records
    )
    yield (
        "README.md",
        rf"its linear probe reaches {number} %, those of MAE {number} and {number} %",
        (shipped[2], *(f"{100 * score:.1f}" for score in both)),
    )
    yield from (("docs/evidence.md", pattern, values) for pattern, values in study_figures())
    whole = [
        next(row for row in rows(name) if row["what"] == "three granularities")
        for name in ("loading-256-stride4", "loading-256")
    ]
    times = tuple(digits(row["ms a sample"]) for row in whole)
    yield "docs/pretraining.md", r"with both maps in ([\d.]+) to ([\d.]+) ms", times
    times = tuple(f"{row['times image alone']:.1f}" for row in whole)
    yield "docs/faq.md", r"takes ([\d.]+) to ([\d.]+) times as long to load as an image alone", times
    memory = rows("memory-run")
    yield (
        "docs/long_runs.md",
        r"took ([\d]+) MiB in the first tenth and ([\d]+) MiB in the last, two workers together ([\d]+) and "
        r"([\d]+) MiB",
        tuple(f"{memory[tenth][name]:.0f}" for name in ("trainer, MiB", "workers together, MiB") for tenth in (0, -1)),
    )


def study_figures() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Patterns of the figures with a spread in docs/evidence.md, and what their groups are to hold."""
    folder, summarise = STUDY / "results", study_module("summarise")
    runs_of, number = summarise.load(folder), r"([+-]?[\d.]+ ± [\d.]+)"
    ten, forty, scenes = "study-stl10-small-10", "fleet-stl10-small-40", "study-scenes-small224-24"

    def score(group: str, variant: str, metric: str) -> str:
        found = [run["results"][metric] for run in runs_of[group] if run["variant"] == variant]
        return summarise.shown(summarise.cell(found))

    def difference(group: str, one: str, other: str, metric: str) -> str:
        runs = runs_of[group]
        found = summarise.difference(summarise.common(runs, one, other), summarise.summarise(runs, {}), metric)
        return found.replace("*", "")

    yield rf"three patches get {number} %", (score(ten, "mae", "attention_to_three_patches"),)
    yield rf"\({number} % with the curriculum\)", (score(ten, "curriculum", "attention_in_object"),)
    yield (
        rf"better k-NN \({number} against {number}\) and mean IoU \({number} against {number}\) than MAE after 40",
        tuple(
            score(group, variant, metric)
            for metric in ("knn", "patch_mean_iou")
            for group, variant in ((ten, "curriculum_labels_less"), (forty, "mae"))
        ),
    )
    yield (
        rf"\(three seeds\) has a higher mean IoU, {number}, and a lower mean in Caltech-101's linear probe, {number}",
        tuple(
            difference(ten, "class_token", "curriculum", metric)
            for metric in ("patch_mean_iou", "caltech101_linear_probe")
        ),
    )
    classical, annotated = "classical_labels_less", "curriculum_labels_less"
    yield (
        rf"mean IoU is higher than MAE's, {number}, .*?: k-NN {number}, linear probe {number}\. "
        rf".*? mean IoU gains {number},",
        (
            difference(ten, classical, "mae", "patch_mean_iou"),
            difference(ten, annotated, classical, "knn"),
            difference(ten, annotated, classical, "linear_probe"),
            difference(ten, classical, "image", "patch_mean_iou"),
        ),
    )
    floor = json.loads((folder / "encoder-untrained-mae-0-scenes-small224-24.json").read_text(encoding="utf-8"))
    metrics = ("coco_mean_iou", "camvid_mean_iou", "coco_panoptic_accuracy")
    yield (
        r"COCO mean IoU of ([\d.]+) %, a CamVid mean IoU of ([\d.]+) % and an accuracy of ([\d.]+) % on those maps, "
        r"MAE ([\d.]+), ([\d.]+) and ([\d.]+) %",
        (
            *(f"{100 * floor['results'][metric]:.1f}" for metric in metrics),
            *(score(scenes, "mae", metric).partition(" ")[0] for metric in metrics),
        ),
    )
    yield (
        rf"COCO mean IoU {number}, CamVid mean IoU {number}\. "
        rf".*? accuracy is lower, {number}, and .*? better, {number};",
        tuple(
            difference(scenes, annotated, "mae", metric)
            for metric in ("coco_mean_iou", "camvid_mean_iou", "coco_panoptic_accuracy", "coco_votes_near_centre")
        ),
    )


# Pages


def find_figures(page: str, text: str) -> Iterator[tuple[tuple[int, int], str]]:
    """
    Places of the page's figures, and what they are to hold.

    Raises:
        `ValueError`: if a pattern of a figure is not found once.
    """
    for name, pattern, values in figures():
        if name != page:
            continue
        found = list(re.finditer(pattern.replace(" ", r"\s+"), text, flags=re.DOTALL))
        if len(found) != 1:
            raise ValueError(f"{page}: expected the figure {pattern!r} once, found it {len(found)} times")
        for group, value in enumerate(values, 1):
            yield found[0].span(group), value


def render(page: str, text: str) -> str:
    """The page with its tables and figures as the records have them."""

    def table(match: re.Match[str]) -> str:
        results = os.path.relpath(RESULTS, (ROOT / page).parent)
        found = TABLES[match[1]]().replace("](results/", f"]({results}/")
        found = found.replace("](representation/", f"]({os.path.dirname(results)}/representation/")
        return f"<!-- table: {match[1]} -->\n{found}\n<!-- end of table -->\n"

    text = re.sub(TABLE, table, text, flags=re.DOTALL)
    for (start, stop), value in sorted(find_figures(page, text), reverse=True):
        if " ".join(text[start:stop].split()) != value:
            text = text[:start] + value + text[stop:]
    return text


CHART = "docs/figures/evidence/study.png"


def update_chart(check: bool) -> bool:
    """Draw the chart of the main rows unless it shows these scores; whether it differs."""
    summarise = study_module("summarise")
    runs = summarise.load(STUDY / "results")["study-stl10-small-10"]
    scores = summarise.scores_to_draw(runs, summarise.summarise(runs, {}))
    with Image.open(ROOT / CHART) as chart:
        differs = json.loads(chart.text.get("Scores", "{}")) != scores  # type: ignore[attr-defined]
    if differs and not check:
        summarise.draw(scores, ROOT / CHART)
    return differs


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page differs")
    options = parser.parse_args(args)
    differs = 0
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = render(page, text)
        if new == text:
            continue
        differs = 1
        if options.check:
            pairs = itertools.zip_longest(text.splitlines(), new.splitlines())
            line, (old, changed) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            print(f"{page}, line {line}: expected\n{changed}\ngot\n{old}", file=sys.stderr)
        else:
            path.write_text(new, encoding="utf-8")
            print(page)
    if update_chart(options.check):
        differs = 1
        print(f"{CHART}: expected other scores" if options.check else CHART)
    return differs if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
