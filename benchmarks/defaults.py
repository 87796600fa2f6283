"""
What the commands reach with their defaults, from the weights in this repository:

    python benchmarks/defaults.py --data shared/data
    python benchmarks/defaults.py --data shared/data --runs classify detect

Classification, segmentation and detection, the last two beside their recipes; pre-training from the weights and from
random ones; learning rates of pre-training. `--data` is a folder of Parquet files (docs/evidence.md#data). Writes
`benchmarks/results/defaults.json`, from which `tables.py` makes tables of docs/transfer.md and docs/pretraining.md.
All runs take about an hour on one core. Those that are done are not repeated while `--work` is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from common import machine
from PIL import Image

from c2fmae_hf.publishing.redaction import hide_tokens
from c2fmae_hf.utils.files import write_json


ROOT = Path(__file__).resolve().parents[1]
NAMES = ("airplane", "bird", "car", "cat")
COCO = "pretrain {data}/coco_things_*.parquet --eval_strategy steps --eval_steps 100 --num_drawn 0 --save_strategy no"
START = f"{COCO} --max_steps 300 --per_device_train_batch_size 16 --per_device_eval_batch_size 16"
START += " --image_size 96 --base_learning_rate 1.2e-2 --warmup_steps 0.1 --min_crop_scale 0.4"
START += " --probe_dataset {work}/sixty --probe_steps 150"
TINY = "--size tiny --config_overrides '{{\"patch_size\": 12}}'"
RATE = f"{COCO} {TINY} --image_size 96 --max_steps 200 --per_device_train_batch_size 8"
#: By the name of a run; all are on the CPU with seed 0, unless they say otherwise.
RUNS = {
    **{
        f"{task}-{photographs}-{seed}": f"classify {{weights}} {{work}}/{photographs} --seed {seed}{option}"
        for photographs in ("many", "sixty")
        for task, option in (("classify", ""), ("knn", " --knn"))
        for seed in (range(1) if (task, photographs) == ("knn", "many") else range(3))
    },
    "segment-default": "segment {weights} {data}/camvid_*.parquet",
    "segment-recipe": "segment --recipe camvid-vit-tiny --model {weights} --image_size 96 "
    "--dataset_name {data}/camvid_*.parquet",
    "detect-default": "detect {weights} {data}/pennfudan_*.parquet",
    "detect-recipe": "detect --recipe pennfudan-vit-tiny --model {weights} --dataset_name {data}/pennfudan_*.parquet",
    "pretrain-weights": f"{START} --model_name_or_path {{weights}}",
    "pretrain-random": f"{START} {TINY}",
    "rate-default": RATE,
    "rate-high": f"{RATE} --learning_rate 7.5e-4",
    "rate-root": f"{RATE} --learning_rate 1.06e-4",
    "rate-linear": f"{RATE} --base_learning_rate 1.5e-4",
}


def write_photographs(data: Path, folder: Path) -> None:
    """
    Photographs of four classes in folders: `many`, 48 to train on and 200 to score, and `sixty`, without splits. The
    200 and the sixty were held out of pre-training.
    """
    for source, part, number in (("train", "many/train", 12), ("val", "many/validation", 50), ("val", "sixty", 15)):
        rows = pq.read_table(data / f"stl10_seg_{source}.parquet", columns=["image", "label"]).to_pylist()
        for label, name in enumerate(NAMES):
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            chosen = [row["image"]["bytes"] for row in rows if row["label"] == label][:number]
            for index, content in enumerate(chosen):
                Image.open(io.BytesIO(content)).save(place / f"{index}.png")


def result_of(folder: Path) -> dict[str, Any]:
    """Scores, rows and seconds of a run, from the records that the command left."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    if (folder / "results.json").is_file():
        found = read("results.json")
        return {"results": found["results"], "rows": found["run"]["rows"], "seconds": round(found["seconds"])}
    log = read("trainer_state.json")["log_history"]
    losses = [entry for entry in log if "eval_image_loss" in entry][-1]
    accuracies = [entry["knn_accuracy"] for entry in log if "knn_accuracy" in entry]
    results = {name: losses[f"eval_{name}_loss"] for name in ("semantic", "instance", "image")}
    seconds = round(next(entry["train_runtime"] for entry in log if "train_runtime" in entry))
    return {"results": results, "knn": accuracies, "rows": read("run.json")["rows"], "seconds": seconds}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--runs", nargs="+", help="only runs whose names begin so")
    parser.add_argument("--weights", type=Path, default=ROOT / "model_cards/c2fmae-vit-tiny-stl10")
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/defaults.json")
    args = parser.parse_args(arguments)
    chosen = {n: run for n, run in RUNS.items() if args.runs is None or n.startswith(tuple(args.runs))}
    if not chosen:
        parser.error(f"--runs: expected beginnings of {', '.join(RUNS)}, got {' '.join(args.runs)}")
    write_photographs(args.data, args.work)
    places = {"data": args.data.resolve(), "work": args.work.resolve(), "weights": args.weights.resolve()}
    before = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    found = before.get("runs", {})
    for name, run in chosen.items():
        folder = args.work / name
        words = [word.format(**places) for word in shlex.split(run)]
        words += ["--output_dir", str(folder), "--use_cpu", "--disable_tqdm", "true"]
        words += [] if "--seed" in words else ["--seed", "0"]
        if not (folder / "done").is_file():
            print(f"== {name}: c2fmae {run}", flush=True)
            subprocess.run([sys.executable, "-m", "c2fmae_hf", *words], check=True)
            (folder / "done").touch()
        found[name] = {"command": f"c2fmae {run.format(data='DATA', work='WORK', weights='WEIGHTS')}"}
        found[name] |= result_of(folder)
        content = {"command": hide_tokens(sys.argv), "machine": machine("cpu"), "runs": found}
        write_json(args.output, content)


if __name__ == "__main__":
    main()
