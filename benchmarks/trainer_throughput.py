"""
Images/s of a training run with `C2FMAETrainer` by number of data-loading workers, and the share of time that it waits
for data, from the end of one step to the beginning of the next.

    python benchmarks/trainer_throughput.py --dataset_name "photos/*.parquet"

Runs take turns and train the same model on the same samples. Their first steps, in which workers start, do not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from common import add_common_arguments, report
from transformers import TrainerCallback

from c2fmae_hf import SIZES, C2FMAEConfig, C2FMAEForPreTraining
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.rows import count_semantic_classes
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.data.transforms import training_transform
from c2fmae_hf.training.trainer import C2FMAETrainer
from c2fmae_hf.training.training_args import C2FMAETrainingArguments


class Stopwatch(TrainerCallback):
    """Records the seconds of each step and of the wait before it."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.steps: list[float] = []
        self._begun = self._ended = 0.0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._begun = time.perf_counter()
        if self._ended:
            self.waits.append(self._begun - self._ended)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ended = time.perf_counter()
        self.steps.append(self._ended - self._begun)


def run(rows: Any, config: C2FMAEConfig, workers: int, args: argparse.Namespace) -> Stopwatch:
    torch.manual_seed(0)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        training_args = C2FMAETrainingArguments(
            folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            dataloader_num_workers=workers,
            logging_steps=args.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=args.device == "cpu",
            bf16=args.dtype == "bfloat16",
        )
        transform = training_transform(config.image_height_width, label_stride=config.label_stride)
        trainer = C2FMAETrainer(
            model=C2FMAEForPreTraining(config),
            args=training_args,
            train_dataset=C2FMAEDataset(rows, transform, progress=SharedProgress()),
            data_collator=DataCollatorForC2FMAE(config),
            callbacks=[watch],
        )
        trainer.train()
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prediction_ratio", type=float, default=0.25)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_common_arguments(parser, rounds=3)
    args = parser.parse_args()

    rows = load_splits(args.dataset_name)[args.split]
    config = C2FMAEConfig.from_size(
        args.size,
        num_semantic_classes=count_semantic_classes([rows]),
        decoder_prediction_ratio=args.prediction_ratio,
        attn_implementation=args.attention,
    )
    measured: dict[int, list[tuple[float, float]]] = {workers: [] for workers in args.workers}
    for _ in range(args.rounds):
        for workers, results in measured.items():
            watch = run(rows, config, workers, args)
            skipped = 4
            steps, waits = watch.steps[skipped:], watch.waits[skipped - 1 :]
            total = sum(steps) + sum(waits)
            results.append((len(steps) * args.batch_size / total, sum(waits) / total))
    report(
        args,
        [
            {
                "workers": workers,
                "images/s": statistics.median(speed for speed, _ in results),
                "slowest": min(speed for speed, _ in results),
                "fastest": max(speed for speed, _ in results),
                "waits for data, % of the time": 100 * statistics.median(share for _, share in results),
            }
            for workers, results in measured.items()
        ],
        settings=f"{args.size}, batch {args.batch_size}, {args.dtype}, {args.attention}",
        prediction_ratio=args.prediction_ratio,
    )


if __name__ == "__main__":
    main()
