r"""
Fine-tune saved encoders for detection on Penn-Fudan, with several seeds: a small Mask R-CNN, 200 steps of 4
photographs at 168 pixels. Encoders of this width get the package's narrow heads.

    python benchmarks/representation/judge_detection.py --data shared/data --untrained \
        model_cards/c2fmae-vit-tiny-stl10

Writes `detection-pennfudan.json` into `--output`; runs of other encoders that it already has stay. Runs that are done
are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from judge import by_name

from c2fmae_hf.commands import detect
from c2fmae_hf.publishing.redaction import hide_tokens
from c2fmae_hf.utils.files import write_json


sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import machine


SETTINGS = (
    "--image_size 168 --max_steps 200 --per_device_train_batch_size 4 --per_device_eval_batch_size 4 "
    "--learning_rate 1e-3 --weight_decay 0.05 --lr_scheduler_type cosine --warmup_steps 0.1 --logging_steps 20 "
    "--eval_strategy no --save_strategy no --dataloader_num_workers 0 --num_drawn 0"
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", type=Path, help="folders of C2FMAE's encoders or pre-training models")
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--untrained", action="store_true", help="also the first encoder's architecture, untrained")
    parser.add_argument("--steps", type=int, help="train for fewer steps, to try it out")
    parser.add_argument("--work", type=Path, default=Path("runs/representation/detection"))
    parser.add_argument("--output", type=Path, default=Path("runs/representation/results"))
    args = parser.parse_args(arguments)
    settings = [*shlex.split(SETTINGS), "--dataset_name", str(args.data / "pennfudan_*.parquet")]
    settings += ["--max_steps", str(args.steps)] if args.steps else []
    runs = [(name, path, ["--layer_decay", "0.75"]) for name, path in by_name(parser, args.encoders).items()]
    if args.untrained:
        runs.append(("untrained", args.encoders[0], ["--from_scratch", "--layer_decay", "1.0"]))
    found = []
    for name, path, options in runs:
        for seed in args.seeds:
            folder = args.work / f"{name}-{seed}"
            if not (folder / "results.json").is_file():
                detect.main([str(path), "--output_dir", str(folder), "--seed", str(seed), *options, *settings])
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            known = {"results": results["results"], "settings": {**results["settings"], "model": name}}
            found.append(
                {"name": name, "seed": seed, **known, "command": hide_tokens(sys.argv), "machine": machine("cpu")}
            )
            print(f"{name}, seed {seed}: AP of boxes {100 * found[-1]['results']['bbox_map']:.1f}", flush=True)
    path = args.output / "detection-pennfudan.json"
    before = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    names = {name for name, _, _ in runs}
    found += [run for run in before if run["name"] not in names]
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(path, {"runs": found})


if __name__ == "__main__":
    main()
