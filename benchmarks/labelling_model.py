"""
Speed of labelling with a Mask2Former of full size (Swin-L, 200 queries, 133 classes). Its weights are random, so
nothing has to be downloaded; the maps mean nothing, but take as long to compute.

    python benchmarks/labelling_model.py --images 256 --batch_sizes 4 16
    python benchmarks/labelling_model.py --images 4 --batch_sizes 2 --tiny

Photographs are random fields of colour at 500 x 375 pixels, as JPEG files. Time covers `label_images`: loading the
checkpoint, reading, the model, its post-processing and writing; "of it the model" is the share of the model with its
post-processing. All 200 queries pass the threshold, more than in a real photograph. Memory is the peak of allocations
on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_common_arguments, report, synchronize
from PIL import Image
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.panoptic import PanopticLabeller
from c2fmae_hf.labelling.records import LabelMaps, PreparedImage
from c2fmae_hf.labelling.sources.folder import FolderSource


CLASSES, THINGS = 133, 80
SIZES = {
    "large": {
        "backbone": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
        "model": {"num_queries": 200},
        "shortest_edge": 800,
    },
    "tiny": {
        "backbone": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
        "model": {
            **{"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16},
            **{"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16},
            "num_queries": 8,
        },
        "shortest_edge": 64,
    },
}


def save_checkpoint(folder: Path, size: str) -> None:
    sizes: dict[str, Any] = SIZES[size]
    names = {index: f"class {index}" for index in range(CLASSES)}
    backbone = SwinConfig(**sizes["backbone"], out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(
        backbone_config=backbone,
        id2label=names,
        label2id={name: index for index, name in names.items()},
        **sizes["model"],
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    edge = sizes["shortest_edge"]
    Mask2FormerImageProcessor(
        size={"shortest_edge": edge, "longest_edge": edge * 5 // 3}, size_divisor=32
    ).save_pretrained(folder)


def save_photographs(folder: Path, number: int) -> None:
    generator = np.random.default_rng(0)
    for index in range(number):
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg")


class TimedLabeller(PanopticLabeller):
    """Keeps the seconds of its calls. The job labels with a copy, which shares the list."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        started = time.perf_counter()
        maps = super().__call__(batch)
        synchronize(self.model.device.type)
        self.seconds.append(time.perf_counter() - started)
        return maps


def label(photos: Path, checkpoint: Path, batch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    things = f"0-{THINGS - 1}"
    labeller = TimedLabeller(str(checkpoint), things, threshold=0.0, batch_size=batch_size, device=args.device)
    on_gpu = args.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        summary = label_images(FolderSource(photos), labeller, folder, num_threads=args.threads)
    return {
        "batch": batch_size,
        "images": summary.rows,
        "images/s": summary.rows / summary.seconds,
        "of it the model, %": 100 * sum(labeller.seconds) / summary.seconds,
        "peak memory, MiB": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--threads", type=int, default=2, help="threads that decode and encode")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    add_common_arguments(parser, rounds=1)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, photos = Path(folder) / "model", Path(folder) / "photos"
        photos.mkdir()
        save_checkpoint(checkpoint, "tiny" if args.tiny else "large")
        save_photographs(photos, args.images)
        for batch_size in args.batch_sizes:
            rows.append(label(photos, checkpoint, batch_size, args))
            print(f"batch {batch_size}: {rows[-1]['images/s']:.2f} images/s", file=sys.stderr)
    report(args, rows)


if __name__ == "__main__":
    main()
