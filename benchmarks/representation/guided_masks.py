"""
Count the regions in the crops of a dataset, and how many of them stay visible under guided masks.

    python benchmarks/representation/guided_masks.py stl10_seg_val.parquet --image_size 96 --cells_per_side 3
    python benchmarks/representation/guided_masks.py coco_panoptic_train.parquet --image_size 224
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch


sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import table

from c2fmae_hf.constants import MASKING_STRATEGIES
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.data.transforms import training_transform
from c2fmae_hf.masking import combine_regions, mask_by_strategy, patch_regions


LABEL_STRIDE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="as for c2fmae pretrain --dataset_name")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument(
        "--cells_per_side", type=int, default=4, help=f"label cells of {LABEL_STRIDE} pixels per side of a patch"
    )
    parser.add_argument("--mask_ratio", type=float, default=0.75)
    parser.add_argument("--region_masking", choices=("balanced", "whole"), default="balanced")
    parser.add_argument("--max_samples", type=int, default=400)
    args = parser.parse_args()

    (rows,) = load_splits(args.dataset).values()
    dataset = C2FMAEDataset(rows, training_transform((args.image_size, args.image_size), label_stride=LABEL_STRIDE))
    samples = [dataset[index] for index in range(min(len(dataset), args.max_samples))]
    semantic, instance = (torch.stack([sample[name] for sample in samples]) for name in ("semantic", "instance"))
    regions = patch_regions(combine_regions(semantic, instance), args.cells_per_side)
    number, num_patches = regions.shape
    found = []
    for index, strategy in enumerate(MASKING_STRATEGIES):
        masked, _ = mask_by_strategy(
            semantic,
            instance,
            torch.full((number,), index),
            torch.rand(number, 2 * num_patches, generator=torch.Generator().manual_seed(0)),
            num_masked=round(args.mask_ratio * num_patches),
            cells_per_side=args.cells_per_side,
            region_masking=args.region_masking,
        )
        seen = torch.tensor([len(ids[~mask].unique()) for ids, mask in zip(regions, masked)]).double()
        there = torch.tensor([len(ids.unique()) for ids in regions]).double()
        found.append(
            {
                "masks": strategy,
                "regions of a crop": there.mean().item(),
                "of them to be seen": seen.mean().item(),
                "crops that show one alone, %": 100 * (seen == 1).double().mean().item(),
            }
        )
    print(table(found))


if __name__ == "__main__":
    main()
