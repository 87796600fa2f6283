"""
Time to quality: how much compute, and how many seconds, a variant needs to reach MAE's scores after 10 and 20 epochs.

    python benchmarks/representation/study.py --data shared/data --variants mae --epochs 10
    python benchmarks/representation/study.py --data shared/data --variants mae --epochs 20
    python benchmarks/representation/study.py --data shared/data --variants curriculum --epochs 3.333
    ...
    python benchmarks/representation/time_to_quality.py --results runs/representation/results

Each run is a whole schedule of its length. Between two lengths the score is interpolated over the logarithm of the
compute; below the shortest and above the longest nothing is claimed. Seconds are not measured, but compute times the
seconds of MAE's steps on the machine of `calibration-small.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import BATCH_SIZE


sys.path.append(str(Path(__file__).resolve().parents[1]))
from tables import RESULTS as RECORDS
from tables import time_to_quality

from c2fmae_hf.utils.files import write_json


METRICS = {
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "patch_mean_iou": "mean IoU",
    "caltech101_linear_probe": "Caltech-101 probe",
}


def load(folder: Path) -> list[dict[str, Any]]:
    """STL-10's runs of the small encoder at equal compute."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    kept = {"source": "stl10", "encoder": "small", "equal": "compute"}
    return [
        one for one in contents if isinstance(one, dict) and kept.items() <= one.items() and not one.get("bf16", False)
    ]


def curve(runs: Sequence[dict[str, Any]], variant: str, metric: str) -> dict[float, list[float]]:
    """Scores of all seeds by compute, in epochs of MAE."""
    found: dict[float, list[float]] = {}
    for run in runs:
        if run["variant"] == variant:
            found.setdefault(run["mae_epochs"], []).append(run["results"][metric])
    return dict(sorted(found.items()))


def reached_at(points: dict[float, list[float]], score: float) -> tuple[str, float]:
    """At which compute a score is first reached: `=`, `<` if by the shortest run, `>` if by none."""
    before: tuple[float, float] | None = None
    for epochs, values in points.items():
        mean = statistics.mean(values)
        if mean >= score:
            if before is None:
                return "<", epochs
            share = (score - before[1]) / (mean - before[1])
            return "=", math.exp(math.log(before[0]) + share * math.log(epochs / before[0]))
        before = epochs, mean
    return ">", max(points)


def compare(
    runs: Sequence[dict[str, Any]], variants: Sequence[str], calibration: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each variant and score of MAE."""
    photographs = next(run["images"] / run["mae_epochs"] for run in runs if run["variant"] == "mae")
    seconds = photographs / BATCH_SIZE * calibration["seconds"]["mae"]
    rows = []
    for length in (10, 20):
        for metric, words in METRICS.items():
            peer = curve(runs, "mae", metric)[length]
            for variant in variants:
                points = curve(runs, variant, metric)
                sign, epochs = reached_at(points, statistics.mean(peer))
                rows.append(
                    {
                        "score": words,
                        "peer_epochs": length,
                        "peer_score": statistics.mean(peer),
                        "peer_seeds": len(peer),
                        "peer_seconds": length * seconds,
                        "seeds": min(map(len, points.values())),
                        "variant": variant,
                        "sign": sign,
                        "epochs": epochs,
                        "seconds": epochs * seconds,
                        "scores_by_epochs": {f"{compute:g}": values for compute, values in points.items()},
                    }
                )
    return rows


def main(args: Sequence[str] | None = None) -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=here / "results", help="folder of the runs")
    parser.add_argument("--variants", nargs="+", default=["curriculum_labels_less", "curriculum"])
    options = parser.parse_args(args)
    paths = (folder / "calibration-small.json" for folder in (options.results, here / "results"))
    calibration = json.loads(next(path for path in paths if path.is_file()).read_text(encoding="utf-8"))
    rows = compare(load(options.results), options.variants, calibration)
    write_json(RECORDS / "time_to_quality.json", {"machine": calibration["machine"], "rows": rows})
    print(time_to_quality())


if __name__ == "__main__":
    main()
