"""
Does coarse-to-fine learning work? Pre-train variants with several seeds and equal compute, then evaluate encoders.

    python benchmarks/representation/study.py --data shared/data
    python benchmarks/representation/study.py --data shared/data --variants mae cascade curriculum --seeds 0 1 2
    python benchmarks/representation/study.py --data shared/data --source scenes --variants mae cascade
    python benchmarks/representation/study.py --data shared/data --calibrate

Every variant gets the compute of `--epochs` of MAE. `--calibrate` measures the time of its step relative to MAE's, in
turns, on an otherwise idle machine (`calibration-<encoder>.json`); this ratio sets its number of steps. `--equal
steps` gives all variants the same number of steps instead.

Each run writes `<output>/<variant>-<seed>-<source>-<encoder>-<epochs>.json` (at equal steps `-steps.json`, in mixed
precision `-bf16.json`) and is skipped if that file exists; an interrupted run resumes. `summarise.py` makes the
tables and figures. The results of docs/evidence.md are in `results` beside this script, with the step times that are
used unless `--calibrate` has measured others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from data import SOURCES, SceneData, StudyData, load_study_data
from pretrain import BATCH_SIZE, make_trainer, pretrain
from protocols import evaluate, summary
from variants import DEFAULT_ENCODERS, ENCODERS, MAIN, VARIANTS, Variant, check_source


sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import in_turns, machine

from c2fmae_hf.publishing.redaction import hide_tokens
from c2fmae_hf.utils.files import write_json


CALIBRATION = "calibration-{}.json"
# The results of docs/evidence.md.
PUBLISHED = Path(__file__).parent / "results"


def step_of(variant: str, data: StudyData | SceneData, folder: Path, encoder: str) -> Callable[[], None]:
    """Make a function that runs one training step on one batch, without data loading."""
    trainer = make_trainer(VARIANTS[variant], 0, data, 10, folder, 0, encoder)
    model = trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    for name in ("mask_strategy", "image_ids"):
        batch.pop(name, None)
    optimizer = trainer.create_optimizer()

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def calibrate(args: argparse.Namespace, data: StudyData | SceneData) -> dict[str, Any]:
    """Measure step times relative to MAE's in the same turn, as medians over the turns."""
    wanted = [name for name in VARIANTS if name in ("mae", *(args.variants or VARIANTS))]
    # Variants with other maps cost what the same variant with annotated ones does.
    measured = {name: twin_with_annotated_maps(name) for name in wanted}
    names = [name for name in VARIANTS if name in measured.values()]
    if data.source == "scenes":
        names = [name for name in names if name != "supervised"]
    small = replace(data, pretraining=data.pretraining[: 2 * BATCH_SIZE])
    work = args.work / "calibration"
    seconds = in_turns({name: step_of(name, small, work, args.encoder) for name in names}, args.rounds, 2)
    ratios = {
        name: float(torch.tensor([own / mae for own, mae in zip(values, seconds["mae"])]).median())
        for name, values in seconds.items()
    }
    ratios.update({name: ratios[twin] for name, twin in measured.items() if twin in ratios})
    medians = {name: float(torch.tensor(values).median()) for name, values in seconds.items()}
    return {"machine": machine("cpu"), "seconds": medians, "times_mae": ratios, "rounds": args.rounds}


def twin_with_annotated_maps(name: str) -> str:
    """The variant that differs from this one in its maps only."""

    def others(variant: Variant) -> dict[str, Any]:
        return {key: value for key, value in asdict(variant).items() if key not in ("words", "maps")}

    if VARIANTS[name].maps == "annotated":
        return name
    twins = (key for key, one in VARIANTS.items() if one.maps == "annotated" and others(one) == others(VARIANTS[name]))
    return next(twins)


def parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--source", choices=list(SOURCES), default="stl10", help="photographs to pre-train on")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="default: " + ", ".join(MAIN))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--encoder", choices=list(ENCODERS), help="default: small, for scenes small224")
    parser.add_argument("--epochs", type=float, default=20, help="epochs of MAE, whose compute every variant gets")
    parser.add_argument("--equal", choices=("compute", "steps"), default="compute")
    parser.add_argument("--calibrate", action="store_true", help="only measure step times, by default of all variants")
    parser.add_argument("--rounds", type=int, default=15, help="turns of the calibration")
    parser.add_argument("--num_workers", type=int, default=1, help="data-loading workers")
    parser.add_argument("--threads", type=int, help="compute threads; by default all")
    parser.add_argument("--fine_tune", action="store_true", help="also fine-tune each encoder for segmentation")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--work", type=Path, default=Path("runs/representation"), help="checkpoints and encoders")
    parser.add_argument("--output", type=Path, default=Path("runs/representation/results"))
    options = parser.parse_args(args)
    options.encoder = options.encoder or DEFAULT_ENCODERS[options.source]
    check_source(parser, options)
    return options


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    data = load_study_data(args.data, args.source)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.calibrate:
        found = calibrate(args, data)
        path = args.output / CALIBRATION.format(args.encoder)
        write_json(path, with_others(found, path))
        print("\n".join(f"{name}: {ratio:.2f} times MAE's step" for name, ratio in found["times_mae"].items()))
        return
    variants = args.variants or MAIN
    ratios = read_ratios(args, variants)
    for seed in args.seeds:
        for name in variants:
            run(args, data, name, seed, ratios[name])


def with_others(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Step times together with those that the file has of other variants."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found | {name: before.get(name, {}) | found[name] for name in ("seconds", "times_mae")}


def read_ratios(args: argparse.Namespace, variants: Sequence[str]) -> dict[str, float]:
    """Cost of a step relative to MAE's, by variant; 1 for all at equal steps."""
    if args.equal == "steps":
        return dict.fromkeys(variants, 1.0)
    name, ratios = CALIBRATION.format(args.encoder), {"mae": 1.0}
    path = next((folder / name for folder in (args.output, PUBLISHED) if (folder / name).is_file()), None)
    if path is not None:
        ratios.update(json.loads(path.read_text(encoding="utf-8"))["times_mae"])
    missing = [variant for variant in variants if variant not in ratios]
    if missing:
        raise SystemExit(
            f"--encoder {args.encoder}: expected the step times of {', '.join(missing)} in "
            f"{path or args.output / name}; measure them with --calibrate, or use --equal steps"
        )
    return ratios


def run(args: argparse.Namespace, data: StudyData | SceneData, name: str, seed: int, ratio: float) -> None:
    suffix = ("" if args.equal == "compute" else "-steps") + "-bf16" * args.bf16
    path = args.output / f"{name}-{seed}-{args.source}-{args.encoder}-{args.epochs:g}{suffix}.json"
    if path.is_file():
        if args.fine_tune and "fine_tuned_mean_iou" not in json.loads(path.read_text(encoding="utf-8"))["results"]:
            raise SystemExit(f"{path}: scored without --fine_tune; remove it, or choose another --output")
        print(f"{path}: there already", flush=True)
        return
    folder = args.work / path.stem
    steps = round(args.epochs * len(data.pretraining) / BATCH_SIZE / ratio)
    variant = VARIANTS[name]
    started = time.perf_counter()
    options = {"bf16": args.bf16, **({} if torch.cuda.is_available() else {"use_cpu": True})}
    encoder, known = pretrain(variant, seed, data, steps, folder, args.num_workers, args.encoder, **options)
    encoder.cpu().save_pretrained(folder / "encoder")
    judged = evaluate(encoder, data, seed, args.fine_tune)
    content = {
        "variant": name,
        "words": variant.words,
        "seed": seed,
        "source": args.source,
        "encoder": args.encoder,
        "equal": args.equal,
        "bf16": args.bf16,
        "mae_epochs": args.epochs,
        "step_times_mae": ratio,
        **known,
        **judged,
        "all_seconds": round(time.perf_counter() - started, 1),
        "command": hide_tokens(sys.argv),
        "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
    }
    write_json(path, content)
    print(f"{name}, seed {seed}: {summary(judged['results'])}", flush=True)


if __name__ == "__main__":
    main()
