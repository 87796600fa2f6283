"""
The study's tables and figure, from the files of `study.py`.

    python benchmarks/representation/summarise.py

Writes `evidence.json` (every cell of the table: mean, standard deviation, number of seeds) and `evidence.png` beside
the results, and prints the table that `docs/evidence.md` has.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from variants import VARIANTS

from c2fmae_hf.files import write_json


METRICS = {
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "caltech101_linear_probe": "Caltech-101 probe",
    "caltech101_knn": "Caltech-101 k-NN",
    "patch_mean_iou": "mean IoU",
    "attention_in_object": "attention in object",
}
DRAWN = ("linear_probe", "knn", "caltech101_linear_probe", "patch_mean_iou")
# Okabe and Ito's colours, which colour-blind people tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def load(folder: Path, equal: str) -> dict[str, list[dict[str, Any]]]:
    """The runs by variant, in the table's order."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-*.json"))]
    chosen = [run for run in runs if run.get("equal") == equal]
    return {name: found for name in VARIANTS if (found := [run for run in chosen if run["variant"] == name])}


def cell(values: Sequence[float]) -> dict[str, float]:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return {"mean": statistics.mean(values), "deviation": spread, "seeds": len(values)}


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        name: {
            "words": found[0]["words"],
            "images": found[0]["images"],
            "step_times_mae": found[0]["step_times_mae"],
            **{metric: cell([run["results"][metric] for run in found]) for metric in METRICS},
        }
        for name, found in runs.items()
    }


def shown(found: dict[str, float]) -> str:
    spread = f" ± {100 * found['deviation']:.1f}" if found["seeds"] > 1 else ""
    return f"{100 * found['mean']:.1f}{spread}"


def table(rows: dict[str, Any]) -> str:
    head = ["variant", "seeds", "images seen", "cost of a step", *METRICS.values()]
    cells = [
        [
            row["words"],
            str(row["linear_probe"]["seeds"]),
            f"{row['images'] / 1000:.0f} k",
            f"{row['step_times_mae']:.2f}",
            *(shown(row[metric]) for metric in METRICS),
        ]
        for row in rows.values()
    ]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: dict[str, Any], path: Path) -> None:
    """Bars with spread: one panel a metric, one bar a variant."""
    figure, panels = plt.subplots(1, len(DRAWN), figsize=(12, 0.5 + 0.34 * len(rows)), sharey=True)
    names = list(rows)
    for panel, metric, colour in zip(panels, DRAWN, COLOURS):
        means = [100 * rows[name][metric]["mean"] for name in names]
        spreads = [100 * rows[name][metric]["deviation"] if rows[name][metric]["seeds"] > 1 else 0 for name in names]
        panel.barh(names, means, xerr=spreads, color=colour, height=0.7, capsize=2)
        panel.set_title(METRICS[metric] + ", %", fontsize=10)
        panel.set_xlim(0.85 * min(means), 1.03 * max(mean + spread for mean, spread in zip(means, spreads)))
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), [rows[name]["words"] for name in names], fontsize=9)
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--equal", choices=("compute", "steps"), default="compute")
    options = parser.parse_args(args)
    rows = summarise(load(options.results, options.equal))
    if not rows:
        raise SystemExit(f"{options.results}: expected files of study.py, found none")
    write_json(options.results / "evidence.json", rows)
    draw(rows, options.results / "evidence.png")
    print(table(rows))


if __name__ == "__main__":
    main()
