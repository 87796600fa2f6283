"""
A stream read by one, two and four gloo processes: the rows of each, whether an epoch has every row once, and images/s
of the loader, compared with accelerate's dispatch, in which the first process reads for all.

    python benchmarks/streams.py

Photographs are JPEGs of 500 x 375 made of noise, in Parquet shards. Loaders read one epoch, in turns; then a very
small model trains one epoch. Processes decode by themselves (no workers), so that images/s grow until all cores work.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate.utils import gather_object
from common import add_common_arguments, report
from PIL import Image

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining
from c2fmae_hf.data.data_collator import decode_image_ids
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.training.trainer import C2FMAETrainer
from c2fmae_hf.training.training_args import C2FMAETrainingArguments


def write_shards(folder: Path, num_shards: int, rows_per_shard: int) -> None:
    generator = np.random.default_rng(0)
    datasets.disable_progress_bars()

    def encode(array: np.ndarray, form: str) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(array).resize((500, 375), Image.Resampling.NEAREST).save(file, form)
        return {"bytes": file.getvalue(), "path": None}

    images = {name: datasets.Image() for name in ("image", "semantic", "instance")}
    features = datasets.Features(**images, image_id=datasets.Value("string"))
    for shard in range(num_shards):
        rows = []
        for row in range(rows_per_shard):
            regions = generator.integers(0, 5, (4, 5), dtype=np.uint8)
            photograph = generator.integers(0, 255, (94, 125, 3), dtype=np.uint8)
            maps = {name: encode(regions, "PNG") for name in ("semantic", "instance")}
            rows.append({"image": encode(photograph, "JPEG"), **maps, "image_id": f"{shard}-{row}"})
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"train-{shard:02d}.parquet")


def summary(names: list[list[str]]) -> dict[str, Any]:
    """Counts of the rows that processes read in an epoch."""
    all_names = [name for share in names for name in share]
    return {"rows_per_process": [len(share) for share in names], "distinct_rows": len(set(all_names))}


def in_process(args: argparse.Namespace) -> None:
    """One of the processes."""
    config = C2FMAEConfig(
        image_size=64,
        patch_size=16,
        num_semantic_classes=5,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        decoder_hidden_size=32,
        decoder_num_attention_heads=2,
    )
    training_args = C2FMAETrainingArguments(
        str(args.folder / "run"),
        max_steps=args.images // args.batch_size // args.processes,
        per_device_train_batch_size=args.batch_size,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
        logging_steps=1000,
    )
    rows = load_splits(str(args.folder / "*.parquet"), streaming=True)["train"]
    trainer = C2FMAETrainer(C2FMAEForPreTraining(config), training_args, train_dataset=rows)
    trainer.train_dataset.progress.start_epoch(0, 0.0, 0.0)
    wait = trainer.accelerator.wait_for_everyone

    def read(dispatched: bool) -> tuple[float, list[str]]:
        if dispatched:
            trainer.train_dataset.process_index, trainer.train_dataset.num_processes = 0, 1
        get = super(C2FMAETrainer, trainer).get_train_dataloader if dispatched else trainer.get_train_dataloader
        batches, names = iter(get()), []
        wait()
        started = time.perf_counter()
        for _ in range(training_args.max_steps):
            names += decode_image_ids(next(batches)["image_ids"])
        wait()
        return time.perf_counter() - started, names

    rates: dict[str, list[float]] = {"own": [], "dispatched": []}
    for _ in range(args.rounds):
        for name, values in rates.items():
            seconds, names = read(name == "dispatched")
            values.append(args.images / seconds)
            if name == "own":
                shares = gather_object([names])
    seen: list[str] = []
    compute_loss = trainer.compute_loss

    def watched(model, inputs, *others, **options):
        seen.extend(decode_image_ids(inputs["image_ids"]))
        return compute_loss(model, inputs, *others, **options)

    trainer.compute_loss = watched
    trainer.train()
    trained = gather_object([seen])
    if training_args.process_index == 0:
        content = {"rates": rates, "loader": summary(shares), "training": summary(trained)}
        (args.folder / "result.json").write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, rounds=1)
    parser.add_argument("--num_processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--num_shards", type=int, default=16)
    parser.add_argument("--rows_per_shard", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16, help="of each process")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        return in_process(args)
    images = args.num_shards * args.rows_per_shard
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_shards(folder, args.num_shards, args.rows_per_shard)
        for number in args.num_processes:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
            command += [__file__, "--folder", temporary, "--processes", str(number), "--images", str(images)]
            command += ["--batch_size", str(args.batch_size), "--rounds", str(args.rounds)]
            subprocess.run(command, check=True)
            result = json.loads((folder / "result.json").read_text())
            own, dispatched = result["rates"]["own"], result["rates"]["dispatched"]
            table.append(
                {
                    "processes": number,
                    "images/s, own shards": statistics.median(own),
                    "slowest": min(own),
                    "images/s, dispatched": statistics.median(dispatched),
                    "slowest dispatched": min(dispatched),
                    "rows of each process": result["loader"]["rows_per_process"],
                    "distinct rows": result["loader"]["distinct_rows"],
                    "rows of each, trained": result["training"]["rows_per_process"],
                    "distinct, trained": result["training"]["distinct_rows"],
                }
            )
    report(args, table, rows_of_an_epoch=images)


if __name__ == "__main__":
    main()
