"""
Make the study's tables and figures from the result files of `study.py` and `fleet.py`.

    python benchmarks/representation/summarise.py

A group is `study-<source>-<encoder>-<epochs>`, the runs of `study.py` with these settings (`-steps` if at equal
steps), or a file `fleet-<source>-<encoder>-<epochs>.json`. Prints each group's table and comparisons for
`docs/evidence.md`, and writes beside the results `evidence.json` (mean, standard deviation and number of seeds of
every cell), a bar chart of each group, and `compute.png`: scores over compute for STL-10's groups of the small encoder
that include MAE.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from answers import unpack_answers
from scipy.stats import t as student
from variants import VARIANTS

from c2fmae_hf.utils.files import write_json


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
    "coco_recognition_quality": "COCO recognition quality",
    "coco_segmentation_quality": "COCO segmentation quality",
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
LINES = {"mae": "o-", "parallel": "^:", "cascade": "s-", "curriculum": "D--"}
# A question, the variant that should be better, and the variant to compare it with.
COMPARISONS = (
    ("the paper's method, cascade with curriculum, against MAE", "curriculum", "mae"),
    ("cascade with random masks, against MAE", "cascade", "mae"),
    ("the same of objects without classes, against MAE", "objects", "mae"),
    ("our decoder of the image alone, against MAE's", "image", "mae"),
    ("MAE, five blocks of decoder, against two", "mae_deep", "mae"),
    ("cascade, against parallel decoders", "cascade", "parallel"),
    ("curriculum, against random masks", "curriculum", "cascade"),
    ("coarse to fine, against fine to coarse", "curriculum", "reversed"),
    ("semantic-guided masks, against random", "cascade_semantic", "cascade"),
    ("instance-guided masks, against random", "cascade_instance", "cascade"),
    ("curriculum in three steps, against linear", "curriculum_step", "curriculum"),
    ("curriculum in the first half, against throughout", "curriculum_short", "curriculum"),
    ("curriculum in the first half, against random masks", "curriculum_short", "cascade"),
    ("curriculum, 4 patches of every region visible, against none", "curriculum_kept", "curriculum"),
    ("curriculum, 4 patches of every region visible, against random masks", "curriculum_kept", "cascade"),
    ("curriculum, regions mingle, against hardly", "curriculum_soft", "curriculum"),
    ("curriculum with parallel decoders, against random masks", "parallel_curriculum", "parallel"),
    ("maps of the classical labeller, against annotators'", "classical", "cascade"),
    ("curriculum with classical maps, against random masks", "classical_curriculum", "classical"),
    ("supervised by the class alone, against the cascade", "supervised", "cascade"),
    ("labels of visible patches too", "visible", "cascade"),
    ("the same with the curriculum", "visible_curriculum", "curriculum"),
    ("predictions fed on, against not", "cascade", "no_feedback"),
    ("with their gradient, against without", "cascade", "detached"),
    ("instances, against none", "cascade", "no_instance"),
    ("classes, against objects alone", "cascade", "objects"),
    ("labels weigh a third", "labels_less", "cascade"),
    ("labels weigh three times", "labels_more", "cascade"),
    ("queries attend to each other", "self_attention", "cascade"),
    ("two blocks a stage", "deep_stages", "cascade"),
    ("encoder shown all granularities", "all_inputs", "cascade"),
    ("half the learning rate", "cascade_slow", "cascade"),
    ("twice the learning rate", "cascade_fast", "cascade"),
    ("MAE: half the learning rate", "mae_slow", "mae"),
    ("MAE: twice the learning rate", "mae_fast", "mae"),
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
            group += "" if content["equal"] == "compute" else "-steps"
            groups.setdefault(group, []).append(content)
    return groups


def step_times(folder: Path, encoder: str) -> dict[str, float]:
    """Cost of a step relative to MAE's, by variant, as measured for an encoder."""
    path = folder / f"calibration-{encoder}.json"
    return {"mae": 1.0, **(json.loads(path.read_text(encoding="utf-8"))["times_mae"] if path.is_file() else {})}


def cell(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": spread, "seeds": len(values)}


def summarise(runs: Sequence[dict[str, Any]], ratios: dict[str, float]) -> dict[str, Any]:
    """Results by variant, in the order of `VARIANTS`; variants that no longer exist come last."""
    rows = {}
    for name in dict.fromkeys([*VARIANTS, *(run["variant"] for run in runs)]):
        found = [run for run in runs if run["variant"] == name]
        if found:
            known = [*METRICS, *(f"{metric}_balanced" for metric in CLASSED)]
            metrics = [metric for metric in known if all(metric in run["results"] for run in found)]
            rows[name] = {
                "words": VARIANTS[name].words if name in VARIANTS else found[0]["words"],
                "seeds": len(found),
                "images": found[0]["images"],
                "step_times_mae": ratios.get(name),
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


def table_by_class(rows: dict[str, Any]) -> str | None:
    """Table of mean accuracies over classes, if at least two variants have them."""
    lines = [
        [row["words"], *(shown(row[f"{metric}_balanced"]) for metric in CLASSED)]
        for row in rows.values()
        if all(f"{metric}_balanced" in row for metric in CLASSED)
    ]
    head = ["variant, mean over classes", *(METRICS[metric] for metric in CLASSED)]
    return markdown([head, ["---"] * len(head), *lines]) if len(lines) > 1 else None


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pairs(rows: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Comparisons whose two variants have several seeds each."""
    for words, one, other in COMPARISONS:
        if all(name in rows and rows[name]["seeds"] > 1 for name in (one, other)):
            yield words, one, other


def compare_by_class(rows: dict[str, Any]) -> str | None:
    """Like [`compare`], for mean accuracies over classes."""
    known = {name: row for name, row in rows.items() if f"{CLASSED[0]}_balanced" in row}
    lines = [
        [words, *(difference(known, one, other, f"{metric}_balanced") for metric in CLASSED)]
        for words, one, other in pairs(known)
    ]
    head = ["question, mean over classes", *(METRICS[metric] for metric in CLASSED)]
    return markdown([head, ["---"] * len(head), *lines]) if lines else None


def compare(rows: dict[str, Any]) -> str | None:
    """
    Differences of means with 95 % intervals over seeds, in points. The spread between seeds is pooled over all
    variants of a group, since two or three seeds are too few to estimate it, except for `UNEQUAL` metrics, which have
    Welch's intervals.
    """
    metrics = [
        metric for metric in METRICS if any(metric in row and row[metric]["seeds"] > 1 for row in rows.values())
    ]
    if not metrics:
        return None
    lines = [
        [words, *(difference(rows, one, other, metric) for metric in metrics)] for words, one, other in pairs(rows)
    ]
    head = ["question", *(METRICS[metric] for metric in metrics)]
    return markdown([head, ["---"] * len(head), *lines]) if lines else None


def shares_right(runs: Sequence[dict[str, Any]], variant: str) -> dict[str, np.ndarray] | None:
    """Share of a variant's seeds that classify each photograph correctly, by metric; `None` without answers."""
    found = [run.get("answers") for run in runs if run["variant"] == variant]
    if not found or not all(found):
        return None
    return {metric: np.mean([unpack_answers(one[metric]) for one in found], axis=0) for metric in CLASSED}


def compare_photographs(runs: Sequence[dict[str, Any]], rows: dict[str, Any]) -> str | None:
    """
    Like [`compare`], for variants with stored answers. Intervals cover new seeds and new photographs of the same kind:
    the variances over seeds and photographs are added. Seed noise is in both, so the intervals are somewhat too wide;
    the choice of the probes' training photographs is in neither.

    Raises:
        `ValueError`: if runs have scored different numbers of photographs.
    """
    known = {name: found for name in rows if (found := shares_right(runs, name)) is not None}
    lines = []
    for words, one, other in pairs(rows):
        if one not in known or other not in known:
            continue
        cells = []
        for metric in CLASSED:
            sizes = [len(known[name][metric]) for name in (one, other)]
            if sizes[0] != sizes[1]:
                raise ValueError(f"{one}, {other}: expected answers of the same photographs, got {sizes} of them")
            apart = known[one][metric] - known[other][metric]
            over_photographs = 1.96 * apart.std(ddof=1) / len(apart) ** 0.5
            value, over_seeds = interval(rows, one, other, metric)
            cells.append(told(value, (over_seeds**2 + over_photographs**2) ** 0.5))
        lines.append([words, *cells])
    head = ["question, over seeds and photographs", *(METRICS[metric] for metric in CLASSED)]
    return markdown([head, ["---"] * len(head), *lines]) if lines else None


def difference(rows: dict[str, Any], one: str, other: str, metric: str) -> str:
    """A difference as a table cell, empty if one of the two was not measured."""
    if any(metric not in rows[name] for name in (one, other)):
        return ""
    return told(*interval(rows, one, other, metric))


def told(value: float, width: float) -> str:
    """A difference in percentage points as text, bold if zero is outside the interval."""
    words = f"{100 * value:+.1f} ± {100 * width:.1f}"
    return f"**{words}**" if abs(value) > width else words


def interval(rows: dict[str, Any], one: str, other: str, metric: str) -> tuple[float, float]:
    """A difference of means, and half the width of its 95 % interval over seeds."""
    pair = [rows[name][metric] for name in (one, other)]
    if metric in UNEQUAL:
        variances = [one["deviation"] ** 2 / one["seeds"] for one in pair]
        freedom = sum(variances) ** 2 / sum(v**2 / (one["seeds"] - 1) for v, one in zip(variances, pair))
        error = sum(variances) ** 0.5
    else:
        known = [row[metric] for row in rows.values() if metric in row and row[metric]["seeds"] > 1]
        freedom = sum(one["seeds"] - 1 for one in known)
        pooled = sum((one["seeds"] - 1) * one["deviation"] ** 2 for one in known) / freedom
        error = (pooled * sum(1 / one["seeds"] for one in pair)) ** 0.5
    width = float(student.ppf(0.975, freedom)) * error
    return pair[0]["mean"] - pair[1]["mean"], width


def draw(rows: dict[str, Any], path: Path) -> None:
    """Draw bars with spread: one panel per metric, one bar per variant."""
    drawn = next(metrics for metrics in (DRAWN, DRAWN_OF_SCENES) if any(metrics[0] in row for row in rows.values()))
    figure, panels = plt.subplots(1, len(drawn), figsize=(12, 0.8 + 0.34 * len(rows)), sharey=True)
    names = list(rows)
    for panel, metric, colour in zip(panels, drawn, COLOURS):
        means = [100 * rows[name][metric]["mean"] for name in names]
        # With one seed there is no whisker.
        spreads = [100 * (rows[name][metric]["deviation"] or float("nan")) for name in names]
        panel.barh(names, means, xerr=spreads, color=colour, height=0.7, capsize=2)
        panel.set_title(METRICS[metric] + ", %", fontsize=10)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), [rows[name]["words"] for name in names], fontsize=9)
    panels[0].invert_yaxis()
    figure.text(0.01, 0.01, "Whiskers: standard deviation over the seeds; without, one seed.", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_compute(groups: dict[str, dict[str, Any]], path: Path) -> None:
    """
    Draw scores over compute for the variants in `LINES`, one point per group; hollow points have one seed. The unit
    is the compute that MAE spends on a photograph. Points of a fleet are not joined by lines, since their scores come
    from other photographs.
    """
    figure, panels = plt.subplots(1, len(DRAWN), figsize=(12, 3.4))
    for panel, metric in zip(panels, DRAWN):
        for (name, style), colour in zip(LINES.items(), COLOURS):
            for kind, drawn in (("study", style), ("fleet", style[0])):
                found = sorted(
                    (rows[name]["images"] * (rows[name]["step_times_mae"] or 1.0) / 1000, rows[name][metric])
                    for group, rows in groups.items()
                    if group.startswith(kind) and name in rows
                )
                spreads = [100 * (score["deviation"] or float("nan")) for _, score in found]
                points = [compute for compute, _ in found], [100 * score["mean"] for _, score in found]
                label = VARIANTS[name].words if kind == "study" else None
                panel.errorbar(*points, spreads, fmt=drawn, color=colour, capsize=2, label=label)
                single = [(compute, 100 * score["mean"]) for compute, score in found if score["seeds"] == 1]
                panel.plot(
                    *zip(*single) if single else ([], []), style[0], c=colour, markerfacecolor="white", zorder=5
                )
        panel.set_xscale("log")
        ticks = sorted({rows["mae"]["images"] / 1000 for rows in groups.values()})
        panel.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        panel.minorticks_off()
        panel.set_title(METRICS[metric] + ", %", fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.text(0.5, 0.11, "compute, in thousands of photographs of MAE", ha="center", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--figures", type=Path, help="folder of the figures, by default beside the results")
    options = parser.parse_args(args)
    runs = load(options.results)
    groups = {
        name: summarise(theirs, step_times(options.results, theirs[0]["encoder"])) for name, theirs in runs.items()
    }
    if not groups:
        raise SystemExit(f"{options.results}: expected files of study.py or fleet.py, found none")
    figures = options.figures or options.results
    figures.mkdir(parents=True, exist_ok=True)
    write_json(options.results / "evidence.json", groups)
    for name, rows in groups.items():
        draw(rows, figures / f"{name}.png")
        print(f"## {name}\n\n{table(rows)}\n")
        for more in (
            compare(rows),
            compare_photographs(runs[name], rows),
            table_by_class(rows),
            compare_by_class(rows),
        ):
            if more is not None:
                print(f"{more}\n")
    # For each length, prefer runs of study.py, which have equal compute, to those of a fleet.
    lengths = {
        name.rpartition("-")[2]: name
        for name, rows in sorted(groups.items())
        if "-stl10-small-" in name and not name.endswith("-steps") and "mae" in rows
    }
    if lengths:
        draw_compute({name: groups[name] for name in lengths.values()}, figures / "compute.png")


if __name__ == "__main__":
    main()
