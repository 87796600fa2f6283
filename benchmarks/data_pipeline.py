"""
Time to load a sample of three granularities, stage by stage, compared with an image alone, in one process on one core.

    python benchmarks/data_pipeline.py --dataset_name "photos/*.parquet"
    python benchmarks/data_pipeline.py --dataset_name "photos/*.parquet" --photograph_size 4000 3000 --rows 16

`--photograph_size` first enlarges photographs and maps to that size (JPEG of quality 90, maps as `c2fmae label` writes
them; maps that are smaller than their photograph stay so). The peers load the same JPEGs with the same crop, flip and
normalisation: torchvision's v2 transforms on tensors, as ours, and timm's own training transform on PIL images. All
start from encoded bytes in memory and end with a batch. Our stages are timed one by one, on the same rows in turns.
"Masks and targets" is the time per sample for the curriculum's masks and the centre-offset targets, "curriculum" the
time that its strategies add to random masks.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from common import add_common_arguments, compare, in_turns, report
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from c2fmae_hf import C2FMAEConfig
from c2fmae_hf.constants import IMAGENET_MEAN, IMAGENET_STD
from c2fmae_hf.data.data_collator import DataCollatorForC2FMAE
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.rows import MAP_COLUMNS, count_semantic_classes, undecoded
from c2fmae_hf.data.sampling import SampleKey
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.data.transforms import training_transform
from c2fmae_hf.images import open_image, open_photograph, to_label_map, to_rgb
from c2fmae_hf.labelling.records import encode_label_map
from c2fmae_hf.masking import MaskingCurriculum
from c2fmae_hf.targets import instance_labels_from_map


PEER = "image alone (torchvision)"


def image_alone(rows: Sequence[dict[str, Any]], transform: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    return torch.stack([transform(image) for image in images])


def resized(row: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The row with a photograph of this width and height, and maps that are in the same proportion to it."""
    image = to_rgb(open_image(row["image"]))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    found = {**row, "image": {"bytes": buffer.getvalue(), "path": None}}
    for name in MAP_COLUMNS:
        label_map = Image.fromarray(to_label_map(open_image(row[name])))
        stride = round(image.width / label_map.width)
        larger = label_map.resize([-(-side // stride) for side in size], Image.Resampling.NEAREST)
        found[name] = {"bytes": encode_label_map(np.asarray(larger)), "path": None}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--rows", type=int, default=256, help="rows per turn, from the first")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--photograph_size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    add_common_arguments(parser, rounds=9)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in a data-loading worker

    stored = undecoded(load_splits(args.dataset_name)[args.split])
    rows = [stored[index] for index in range(min(args.rows, len(stored)))]
    if args.photograph_size:
        rows = [resized(row, tuple(args.photograph_size)) for row in rows]
    config = C2FMAEConfig.from_size(
        "base", image_size=args.image_size, num_semantic_classes=count_semantic_classes([stored])
    )
    size = config.image_height_width
    transform = training_transform(size, label_stride=config.label_stride)
    dataset = C2FMAEDataset(rows, transform, num_semantic_classes=config.num_semantic_classes)
    keys = [SampleKey(index, 0, index / len(rows)) for index in range(len(rows))]
    collators = {
        "curriculum": DataCollatorForC2FMAE(config),
        "random": DataCollatorForC2FMAE(config, MaskingCurriculum("constant", (0.0, 0.0, 1.0))),
    }
    torchvision_transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(size, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    timm_transform = create_transform(
        size, is_training=True, scale=(0.2, 1.0), color_jitter=None, interpolation="bicubic"
    )

    samples = [dataset[key] for key in keys]

    def decode_maps(row: dict[str, Any]) -> list[np.ndarray]:
        return [to_label_map(open_image(row[name])) for name in MAP_COLUMNS]

    def decode_image(number: int) -> tuple[Image.Image, tuple[int, int]]:
        return open_photograph(rows[number]["image"], lambda size: transform.reduction(size, number))

    decoded = []
    for number, row in enumerate(rows):
        image, shape = decode_image(number)
        decoded.append((image, *decode_maps(row), number, shape))
    starts = range(0, len(rows), args.batch_size)

    def in_batches(function: Callable[[int, int], Any]) -> Callable[[], None]:
        def run() -> None:
            for start in starts:
                function(start, start + args.batch_size)

        return run

    def load(collator: DataCollatorForC2FMAE, start: int, stop: int) -> None:
        collator([dataset[key] for key in keys[start:stop]])

    contenders = {
        PEER: in_batches(lambda start, stop: image_alone(rows[start:stop], torchvision_transform)),
        "image alone (timm)": in_batches(lambda start, stop: image_alone(rows[start:stop], timm_transform)),
        "three granularities": in_batches(lambda start, stop: load(collators["curriculum"], start, stop)),
        "three granularities, random masks": in_batches(lambda start, stop: load(collators["random"], start, stop)),
        "stage: decode the image": lambda: [decode_image(number) for number in range(len(rows))],
        "stage: decode the maps": lambda: [decode_maps(row) for row in rows],
        "stage: joint crop, flip, normalisation": lambda: [transform(*one) for one in decoded],
        "stage: collation, curriculum": in_batches(lambda a, b: collators["curriculum"](samples[a:b])),
        "stage: collation, random masks": in_batches(lambda a, b: collators["random"](samples[a:b])),
        "of it: stacking": in_batches(
            lambda a, b: [torch.stack([s[name] for s in samples[a:b]]) for name in ("pixel_values", *MAP_COLUMNS)]
        ),
        "of it: instance targets": in_batches(
            lambda a, b: instance_labels_from_map(torch.stack([s["instance"] for s in samples[a:b]]))
        ),
    }
    seconds = in_turns(contenders, args.rounds, args.warmup)
    speeds = compare(seconds, len(rows), PEER)
    milliseconds = {name: 1000 / speed["per_second"] for name, speed in speeds.items()}
    whole = milliseconds["three granularities"]
    rows_of_table = [
        {
            "what": name,
            "ms a sample": milliseconds[name],
            "range": f"{1000 / speed['fastest']:.2f} to {1000 / speed['slowest']:.2f}",
            "times image alone": None if ":" in name else 1 / speed["times_peer"],
            "share of three granularities, %": 100 * milliseconds[name] / whole,
        }
        for name, speed in speeds.items()
    ]
    by_turn = list(zip(*(seconds[name] for name in contenders)))
    index = {name: position for position, name in enumerate(contenders)}
    masks = [turn[index["stage: collation, curriculum"]] - turn[index["of it: stacking"]] for turn in by_turn]
    added = [
        turn[index["stage: collation, curriculum"]] - turn[index["stage: collation, random masks"]] for turn in by_turn
    ]
    report(
        args,
        rows_of_table,
        masks_and_targets_ms_a_sample=round(1000 * float(np.median(masks)) / len(rows), 3),
        curriculum_over_random_ms_a_sample=round(1000 * float(np.median(added)) / len(rows), 3),
        classes=config.num_semantic_classes,
    )


if __name__ == "__main__":
    main()
