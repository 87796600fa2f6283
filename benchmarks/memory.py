"""
Memory over a long run, and peak memory of each size.

    python benchmarks/memory.py --steps 20000
    python benchmarks/memory.py --peaks --sizes tiny small base --batch_sizes 16 64

The first command trains a very small model on embedded photographs, with two data-loading workers, checkpoints and
evaluation, and samples the resident memory of the trainer and its workers; the table has the mean of each tenth of the
run. The second runs two steps of each size and batch in its own process (224 pixels, float32, AdamW).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import psutil
import torch
from common import add_common_arguments, peak_memory, report
from PIL import Image
from transformers import TrainerCallback

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.transforms import evaluation_transform, training_transform
from c2fmae_hf.training.trainer import C2FMAETrainer
from c2fmae_hf.training.training_args import C2FMAETrainingArguments


TENTHS = 10


class WatchMemory(TrainerCallback):
    """Resident memory in MiB of the trainer, and the sum over its child processes."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.process = psutil.Process()
        self.readings: list[tuple[int, float, float, int]] = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every:
            return
        children = [child for child in self.process.children(recursive=True) if child.is_running()]
        own, theirs = (sum(one.memory_info().rss for one in group) / 2**20 for group in ([self.process], children))
        self.readings.append((state.global_step, own, theirs, len(children)))


def make_rows(number: int) -> list[dict[str, Any]]:
    """Photographs with discs drawn on them, and their maps."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    rows = []
    for index in range(number):
        instance = np.zeros((48, 48), np.uint8)
        for name in (1, 2, 3):
            centre = generator.uniform(8, 40, 2)
            instance[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 80] = name
        image = generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        maps = {"semantic": Image.fromarray(np.minimum(instance, 2)), "instance": Image.fromarray(instance)}
        rows.append({"image": Image.fromarray(image), **maps, "image_id": f"disc {index}"})
    return rows


def watch(steps: int) -> list[dict[str, Any]]:
    config = C2FMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=1,
        decoder_intermediate_size=32,
        num_semantic_classes=3,
    )
    rows, watcher = make_rows(512), WatchMemory(max(steps // 200, 1))
    options = {"num_semantic_classes": 3}
    with tempfile.TemporaryDirectory() as folder:
        args = C2FMAETrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            dataloader_num_workers=2,
            eval_strategy="steps",
            eval_steps=max(steps // 20, 1),
            save_steps=max(steps // 20, 1),
            save_total_limit=2,
            logging_steps=max(steps // 100, 1),
            use_cpu=True,
            report_to="none",
        )
        C2FMAETrainer(
            model=C2FMAEForPreTraining(config),
            args=args,
            train_dataset=C2FMAEDataset(rows, training_transform((32, 32)), progress=SharedProgress(), **options),
            eval_dataset=C2FMAEDataset(rows[:64], evaluation_transform((32, 32)), **options),
            data_collator=DataCollatorForC2FMAE(config, curriculum=args.get_curriculum()),
            callbacks=[watcher],
        ).train()
    found = []
    for tenth in range(TENTHS):
        part = [one for one in watcher.readings if tenth * steps < one[0] * TENTHS <= (tenth + 1) * steps]
        found.append(
            {
                "until step": (tenth + 1) * steps // TENTHS,
                "trainer, MiB": statistics.mean(one[1] for one in part),
                "workers together, MiB": statistics.mean(one[2] for one in part),
                "most processes": max(one[3] for one in part),
            }
        )
    return found


def measure_peak(size: str, batch_size: int) -> float:
    """Peak memory in MiB of two steps in this process."""
    config = C2FMAEConfig.from_size(size)
    height, width = config.image_height_width
    cells = (height // config.label_stride, width // config.label_stride)

    def steps() -> None:
        model = C2FMAEForPreTraining(config).train()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            batch = {
                "pixel_values": torch.randn(batch_size, 3, height, width),
                "semantic_labels": torch.randint(0, config.num_semantic_classes, (batch_size, *cells)),
                "instance_labels": torch.rand(batch_size, 3, *cells).round(),
            }
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return peak_memory("cpu", steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--peaks", action="store_true", help="measure the peak memory of each size instead")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "BATCH"), help=argparse.SUPPRESS)
    add_common_arguments(parser, rounds=1)
    args = parser.parse_args()
    if args.one:
        print(measure_peak(args.one[0], int(args.one[1])))
        return
    if not args.peaks:
        report(args, watch(args.steps))
        return
    rows = []
    for size in args.sizes:
        row: dict[str, Any] = {"size": size}
        for batch_size in args.batch_sizes:
            command = [sys.executable, __file__, "--one", size, str(batch_size)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=True)
            row[f"batch {batch_size}, MiB"] = float(done.stdout.split()[-1])
        rows.append(row)
    report(args, rows)


if __name__ == "__main__":
    main()
