"""
Make the study's tables and charts from the result files of `study.py` and `fleet.py`.

    python benchmarks/representation/summarise.py

A group is `study-<source>-<encoder>-<epochs>`, the runs of `study.py` with these settings (`-steps` if at equal
steps), or a file `fleet-<source>-<encoder>-<epochs>.json`. Prints each group's tables and, over all folders of
results, the differences that lighter label losses make. Writes for each folder `evidence.json` (mean, standard
deviation and number of seeds of every cell) and a chart of each group to `<output>/<folder>`. `benchmarks/tables.py`
writes the same tables, and the chart of the main rows, into the documents.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from answers import unpack_answers
from scipy.stats import t as student
from variants import ENCODERS, MAIN, VARIANTS

from c2fmae_hf.utils.files import write_json


PUBLISHED = Path(__file__).parent / "results"
METRICS = {
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "caltech101_linear_probe": "Caltech-101 probe",
    "caltech101_knn": "Caltech-101 k-NN",
    "patch_mean_iou": "mean IoU",
    "fine_tuned_mean_iou": "mean IoU, fine-tuned",
    "attention_in_object": "attention in object",
    "coco_mean_iou": "COCO mean IoU",
    "coco_panoptic_quality": "COCO panoptic quality",
    "coco_foreground_iou": "COCO foreground IoU",
    "coco_votes_near_centre": "COCO votes near centre",
    "coco_panoptic_accuracy": "COCO panoptic maps, accuracy",
    "camvid_mean_iou": "CamVid mean IoU",
}
# Metrics whose spread differs too much between variants to pool it.
UNEQUAL = ("attention_in_object",)
# Metrics that store an answer for every photograph.
CLASSED = ("linear_probe", "knn", "caltech101_linear_probe", "caltech101_knn")
DRAWN = ("linear_probe", "knn", "caltech101_linear_probe", "patch_mean_iou")
DRAWN_OF_SCENES = ("coco_mean_iou", "coco_foreground_iou", "coco_panoptic_accuracy", "camvid_mean_iou")
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
# The name of a difference, and the two variants it is taken of.
COMPARISONS = (
    ("default vs MAE", "curriculum_labels_less", "mae"),
    ("cascade with curriculum vs MAE", "curriculum", "mae"),
    ("cascade with random masks vs MAE", "cascade", "mae"),
    ("random masks, label losses weighted 1/3, vs MAE", "labels_less", "mae"),
    ("parallel decoders with curriculum vs MAE", "parallel_curriculum", "mae"),
    ("cascade vs parallel decoders, curriculum", "curriculum", "parallel_curriculum"),
    ("cascade vs parallel decoders, random masks", "cascade", "parallel"),
    ("curriculum vs random masks, cascade", "curriculum", "cascade"),
    ("curriculum vs random masks, label losses weighted 1/3", "curriculum_labels_less", "labels_less"),
    ("curriculum vs random masks, parallel decoders", "parallel_curriculum", "parallel"),
    ("coarse to fine vs fine to coarse", "curriculum", "reversed"),
    ("equal shares vs whole regions", "curriculum", "curriculum_whole"),
    ("equal shares vs shares by area", "curriculum", "curriculum_area"),
    ("half decoded vs a quarter", "half_decoded", "cascade"),
    ("an eighth decoded vs a quarter", "eighth_decoded", "cascade"),
    ("two masks per crop vs one", "repeated_masks", "cascade"),
    ("blocks applied twice vs once", "shared_blocks", "curriculum"),
    ("predictions of visible patches fed on vs not", "feeds_memory", "curriculum"),
    ("class token predicts the classes' shares vs not", "class_token", "curriculum"),
    ("one label per patch vs nine", "label_a_patch", "curriculum"),
    ("loss weights follow the curriculum vs fixed", "losses_follow", "curriculum"),
    ("label losses weighted 1/3 vs 1, curriculum", "curriculum_labels_less", "curriculum"),
    ("half the learning rate, curriculum", "curriculum_slow", "curriculum"),
    ("default with the classical labeller's maps vs MAE", "classical_labels_less", "mae"),
    ("default with the classical labeller's maps vs pixels only", "classical_labels_less", "image"),
    ("default: classical labeller's maps vs annotated", "classical_labels_less", "curriculum_labels_less"),
    ("classical labeller's maps vs annotated, curriculum", "classical_curriculum", "curriculum"),
    ("classical labeller's maps vs MAE", "classical_curriculum", "mae"),
    ("classical labeller's maps vs pixels only", "classical_curriculum", "image"),
    ("classical labeller's maps vs annotated, random masks", "classical", "cascade"),
    ("maps without classes vs MAE", "objects", "mae"),
    ("maps without classes vs with classes", "objects", "cascade"),
    ("our decoder vs MAE's, pixels only", "image", "mae"),
    ("supervised by the class vs cascade", "supervised", "cascade"),
    ("no instance stage vs with it", "no_instance", "cascade"),
    ("labels of visible patches predicted too vs not", "visible", "cascade"),
    ("encoder sees all granularities vs the image only", "all_inputs", "cascade"),
    ("predictions fed on without gradient vs with it", "detached", "cascade"),
    ("predictions not fed on vs fed on", "no_feedback", "cascade"),
    ("label queries attend to each other vs not", "self_attention", "cascade"),
    ("two blocks per stage vs one", "deep_stages", "cascade"),
    ("label losses weighted 1/3 vs 1, random masks", "labels_less", "cascade"),
    ("label losses weighted 3 vs 1, random masks", "labels_more", "cascade"),
    ("half the learning rate, random masks", "cascade_slow", "cascade"),
    ("twice the learning rate, random masks", "cascade_fast", "cascade"),
    ("MAE: half the learning rate", "mae_slow", "mae"),
    ("MAE: twice the learning rate", "mae_fast", "mae"),
    ("MAE: decoder of five blocks vs two", "mae_deep", "mae"),
)

# Twins: the same variant with label losses weighted 1/3, and 1.
LABEL_WEIGHTS = (
    ("curriculum_labels_less", "curriculum"),
    ("classical_labels_less", "classical_curriculum"),
    ("labels_less", "cascade"),
)


def load(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Load the runs, by group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            groups[path.stem] = [run for group in content for run in group["runs"]]
        elif "variant" in content:
            group = f"study-{content['source']}-{content['encoder']}-{content['mae_epochs']:g}"
            group += ("" if content["equal"] == "compute" else "-steps") + "-bf16" * content.get("bf16", False)
            groups.setdefault(group, []).append(content)
    return groups


def step_times(folder: Path, encoder: str) -> dict[str, float]:
    """Cost of a step relative to MAE's, by variant, as measured in a folder for an encoder, or else as published."""
    paths = (place / f"calibration-{encoder}.json" for place in (folder, PUBLISHED))
    path = next((path for path in paths if path.is_file()), None)
    return {"mae": 1.0, **({} if path is None else json.loads(path.read_text(encoding="utf-8"))["times_mae"])}


def cell(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": spread, "seeds": len(values)}


def summarise(runs: Sequence[dict[str, Any]], ratios: dict[str, float]) -> dict[str, Any]:
    """Results by variant, in the order of `VARIANTS`; variants that no longer exist come last."""
    rows = {}
    for name in dict.fromkeys([*VARIANTS, *(run["variant"] for run in runs)]):
        found = [run for run in runs if run["variant"] == name]
        if found:
            if len({run["images"] for run in found}) > 1:
                raise SystemExit(f"{name}: expected runs of as many images, found {[run['images'] for run in found]}")
            known = [*METRICS, *(f"{metric}_balanced" for metric in CLASSED)]
            metrics = [metric for metric in known if all(metric in run["results"] for run in found)]
            rows[name] = {
                "words": VARIANTS[name].words if name in VARIANTS else found[0]["words"],
                "seeds": len(found),
                "images": found[0]["images"],
                # Steps of equal compute were set by the cost that the run knew.
                "step_times_mae": (found[0].get("equal") == "compute" and found[0]["step_times_mae"])
                or ratios.get(name),
                **{metric: cell([run["results"][metric] for run in found]) for metric in metrics},
            }
    return rows


def shown(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    spread = f" ± {100 * found['deviation']:.1f}" if found["seeds"] > 1 else ""
    return f"{100 * found['mean']:.1f}{spread}"


def table(rows: dict[str, Any]) -> str:
    metrics = [metric for metric in METRICS if any(metric in row for row in rows.values())]
    head = ["variant", "seeds", "images seen", "cost of a step", *(METRICS[metric] for metric in metrics)]
    cells = [
        [
            row["words"],
            str(row["seeds"]),
            f"{row['images'] / 1000:.0f} k",
            "" if row["step_times_mae"] is None else f"{row['step_times_mae']:.2f}",
            *(shown(row.get(metric)) for metric in metrics),
        ]
        for row in rows.values()
    ]
    return markdown([head, ["---"] * len(head), *cells])


def table_by_class(rows: dict[str, Any]) -> str:
    """Table of mean accuracies over classes."""
    lines = [
        [row["words"], *(shown(row[f"{metric}_balanced"]) for metric in CLASSED)]
        for row in rows.values()
        if all(f"{metric}_balanced" in row for metric in CLASSED)
    ]
    head = ["variant, mean over classes", *(METRICS[metric] for metric in CLASSED)]
    return markdown([head, ["---"] * len(head), *lines])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of_attention(runs: Sequence[dict[str, Any]], names: Collection[str]) -> str:
    """Table of the attention of the last two layers: inside the object, and on the three patches that get most."""
    scores = {"attention_in_object": "inside the object", "attention_to_three_patches": "on three patches"}
    lines = []
    for name in names:
        found = [run["results"] for run in runs if run["variant"] == name and all(map(run["results"].get, scores))]
        if found:
            cells = [shown(cell([one[score] for one in found])) for score in scores]
            lines.append([VARIANTS[name].words, str(len(found)), *cells])
    even = statistics.mean(run["results"]["object_area"] for run in runs)
    encoder = ENCODERS[runs[0]["encoder"]]
    patches = (encoder["image_size"] // encoder["patch_size"]) ** 2
    lines.append(["even attention", "", f"{100 * even:.1f}", f"{300 / patches:.1f}"])
    return markdown([["variant", "seeds", *scores.values()], ["---"] * 4, *lines])


def compare(runs: Sequence[dict[str, Any]], rows: dict[str, Any], names: Collection[str] = ()) -> str:
    """
    Table of differences between two variants, in points, with 95 % intervals; bold where zero is outside.

    A difference is of the seeds that both variants have. Intervals are over seeds and, for the probes and k-NN of runs
    that store their answers, over photographs: the two variances are added. Seed noise is in both, so these intervals
    are somewhat too wide. The spread between seeds is pooled over all variants of the group, since two or three seeds
    are too few to estimate it, except for `UNEQUAL` metrics, which have Welch's intervals.

    Args:
        names: Variants of which the first of a comparison must be one, by default all.
    """
    metrics = [metric for metric in METRICS if any(metric in row for row in rows.values())]
    lines = []
    for words, one, other in COMPARISONS:
        if one in rows and other in rows and (not names or one in names):
            pair = common(runs, one, other)
            if pair[0]:
                lines.append([words, str(len(pair[0])), *(difference(pair, rows, metric) for metric in metrics)])
    head = ["difference", "seeds", *(METRICS[metric] for metric in metrics)]
    return markdown([head, ["---"] * len(head), *lines])


def common(runs: Sequence[dict[str, Any]], *names: str) -> list[list[dict[str, Any]]]:
    """Runs of each of these variants, of the seeds that all of them have."""
    seeds = set.intersection(*({run["seed"] for run in runs if run["variant"] == name} for name in names))
    return [[run for run in runs if run["variant"] == name and run["seed"] in seeds] for name in names]


def difference(pair: Sequence[Sequence[dict[str, Any]]], rows: dict[str, Any], metric: str) -> str:
    """
    A difference in points as a table cell: empty if it was not measured, without interval if that is not known, with
    `*` if the interval leaves out photographs, since runs have no answers, although other runs of the group have.
    """
    if any(metric not in run["results"] for runs in pair for run in runs):
        return ""
    scores = [cell([run["results"][metric] for run in runs]) for runs in pair]
    value = scores[0]["mean"] - scores[1]["mean"]
    over_seeds = seed_interval(scores, rows, metric)
    if over_seeds is None:
        return f"{100 * value:+.1f}"
    over_photographs = photograph_interval(pair, metric)
    width = (over_seeds**2 + (over_photographs or 0.0) ** 2) ** 0.5
    words = f"{100 * value:+.1f} ± {100 * width:.1f}"
    is_partial = over_photographs is None and any(f"{metric}_balanced" in row for row in rows.values())
    return f"{words}*" if is_partial else f"**{words}**" if abs(value) > width else words


def seed_interval(scores: Sequence[dict[str, Any]], rows: dict[str, Any], metric: str) -> float | None:
    """Half the width of the 95 % interval over seeds of the difference of two means."""
    if metric in UNEQUAL:
        if min(score["seeds"] for score in scores) < 2:
            return None
        variances = [score["deviation"] ** 2 / score["seeds"] for score in scores]
        parts = [variance**2 / (score["seeds"] - 1) for variance, score in zip(variances, scores)]
        return float(student.ppf(0.975, sum(variances) ** 2 / sum(parts))) * sum(variances) ** 0.5
    known = [row[metric] for row in rows.values() if metric in row and row[metric]["seeds"] > 1]
    freedom = sum(score["seeds"] - 1 for score in known)
    if freedom < 2:
        return None
    pooled = sum((score["seeds"] - 1) * score["deviation"] ** 2 for score in known) / freedom
    return float(student.ppf(0.975, freedom)) * (pooled * sum(1 / score["seeds"] for score in scores)) ** 0.5


def photograph_interval(pair: Sequence[Sequence[dict[str, Any]]], metric: str) -> float | None:
    """
    Half the width of the 95 % interval over photographs of a difference of accuracies; 0 for other scores, `None`
    without stored answers.

    Raises:
        `ValueError`: if runs have scored different numbers of photographs.
    """
    if metric not in CLASSED:
        return 0.0
    answers = [[run.get("answers", {}).get(metric) for run in runs] for runs in pair]
    if any(None in one for one in answers):
        return None
    one, other = (np.mean([unpack_answers(found) for found in given], axis=0) for given in answers)
    if len(one) != len(other):
        names = " and ".join(runs[0]["variant"] for runs in pair)
        raise ValueError(f"{names}: expected answers of the same photographs, got {len(one)} and {len(other)}")
    return float(1.96 * (one - other).std(ddof=1) / len(one) ** 0.5)


def pairs_of_twins(groups: Sequence[Sequence[dict[str, Any]]]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Scores with label losses weighted 1/3, and with 1, of the pairs of STL-10's runs that are otherwise alike."""
    return [
        (one["results"], other["results"])
        for runs in groups
        for twins in LABEL_WEIGHTS
        for one in runs
        for other in runs
        if (one["variant"], other["variant"]) == twins
        and one["seed"] == other["seed"]
        and one.get("source", "stl10") == "stl10"  # older files name none
    ]


def compare_twins(groups: Sequence[Sequence[dict[str, Any]]]) -> str:
    """
    Table of scores with label losses weighted 1/3 minus those with 1: means over the pairs of runs, of any group, that
    are otherwise alike, and 95 % intervals over these pairs (Student's).
    """
    metrics = {name: METRICS[name] for name in METRICS if name in (*CLASSED, "patch_mean_iou")}
    pairs = pairs_of_twins(groups)
    cells = []
    for metric in metrics:
        found = [100 * (one[metric] - other[metric]) for one, other in pairs]
        width = float(student.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / len(found) ** 0.5
        words = f"{statistics.mean(found):+.1f} ± {width:.1f}"
        cells.append(f"**{words}**" if abs(statistics.mean(found)) > width else words)
    ahead = [f"{sum(one[metric] > other[metric] for one, other in pairs)} of {len(pairs)}" for metric in metrics]
    lines = [["difference", *cells], ["pairs that are ahead", *ahead]]
    return markdown([["", *metrics.values()], ["---"] * (1 + len(metrics)), *lines])


def scores_to_draw(runs: Sequence[dict[str, Any]], rows: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Scores in % of each seed, by variant and metric: of the main rows if there are two of them, else of all."""
    names = [name for name in rows if name in MAIN]
    names = names if len(names) > 1 else list(rows)
    drawn = next(metrics for metrics in (DRAWN, DRAWN_OF_SCENES) if any(metrics[0] in row for row in rows.values()))
    return {
        name: {
            metric: [round(100 * run["results"][metric], 2) for run in runs if run["variant"] == name]
            for metric in drawn
        }
        for name in names
    }


def draw(scores: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw scores, a panel per metric: a ring for each seed, a dot for the mean. The file names the scores, too."""
    metrics = next(iter(scores.values()))
    figure, panels = plt.subplots(1, len(metrics), figsize=(12, 1.0 + 0.34 * len(scores)), sharey=True)
    for panel, metric, colour in zip(panels, metrics, COLOURS):
        for place, found in enumerate(scores.values()):
            panel.plot(
                found[metric], [place] * len(found[metric]), "o", color=colour, markerfacecolor="white", markersize=5
            )
            panel.plot(statistics.mean(found[metric]), place, "o", color=colour, markersize=9, alpha=0.8)
        panel.set_title(METRICS[metric] + ", %", fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    words = [VARIANTS[name].words if name in VARIANTS else name for name in scores]
    panels[0].set_yticks(range(len(scores)), words, fontsize=9)
    panels[0].set_ylim(len(scores) - 0.5, -0.5)
    figure.text(0.01, 0.01, "Rings: seeds; dots: their means.", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Scores": json.dumps(scores)})
    plt.close(figure)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", default=[PUBLISHED, PUBLISHED / "all_decoded"])
    parser.add_argument("--output", type=Path, default=Path("runs/representation/tables"))
    options = parser.parse_args(args)
    if len({folder.name for folder in options.results}) < len(options.results):
        parser.error("--results: expected folders of different names, since tables are written by name")
    everything = []
    for folder in options.results:
        runs = load(folder)
        groups = {name: summarise(theirs, step_times(folder, theirs[0]["encoder"])) for name, theirs in runs.items()}
        if not groups:
            raise SystemExit(f"{folder}: expected files of study.py or fleet.py, found none")
        output = options.output / folder.name
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "evidence.json", groups)
        for name, rows in groups.items():
            draw(scores_to_draw(runs[name], rows), output / f"{name}.png")
            tables = [table(rows), compare(runs[name], rows), table_by_class(rows)]
            if any("attention_in_object" in row for row in rows.values()):
                tables.append(table_of_attention(runs[name], rows))
            print(f"## {folder.name}: {name}\n\n" + "".join(f"{t}\n\n" for t in tables if t.count("\n") > 1))
        everything += runs.values()
    if len(pairs_of_twins(everything)) > 1:
        print(f"## Label losses weighted 1/3 vs 1\n\n{compare_twins(everything)}")


if __name__ == "__main__":
    main()
