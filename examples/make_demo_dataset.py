"""
Make the demonstration's dataset, offline: tiles of the photographs that ship inside the wheels of scikit-image and
scikit-learn, with label maps from a classical segmentation.

    python examples/make_demo_dataset.py runs/demo/dataset

It takes about 20 seconds on two CPU cores. The label maps come from `ClassicalLabeller`, which needs no trained model:
they are a demonstration of the format and know nothing of objects. (`label_images.py` does the same for a folder of
images of your own.) Held-out tiles are other parts of the same photographs: they share no pixel with training tiles,
but they are no test of generalisation to other photographs.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from c2fmae_hf.labelling.classical import ClassicalLabeller
from c2fmae_hf.labelling.records import encode_label_map, number_instances
from c2fmae_hf.labelling.shards import dataset_features
from c2fmae_hf.photographs import embedded_photographs


TILE_SIZE = 192
NUM_CLASSES = 8
# The right-hand part of every photograph, as wide as a tile, is held out.
STRIDE = {"train": 32, "validation": 64}


def tile_origins(height: int, width: int, split: str) -> Iterator[tuple[int, int]]:
    """Upper left corners of a split's tiles."""
    left, right = (0, width - 2 * TILE_SIZE) if split == "train" else (width - TILE_SIZE, width - TILE_SIZE)
    for top in range(0, height - TILE_SIZE + 1, STRIDE[split]):
        for x in range(left, max(right, left) + 1, STRIDE[split]):
            yield top, x


def encode_jpeg(image: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=92)
    return {"bytes": buffer.getvalue(), "path": None}


def make_dataset() -> datasets.DatasetDict:
    photographs = {name: image for name, image in embedded_photographs().items() if image.width >= 2 * TILE_SIZE}
    # Whole photographs are labelled, at their own size, so that tiles of one agree.
    labeller = ClassicalLabeller(NUM_CLASSES, working_size=1024, scale=100).fit(photographs.values())
    rows: dict[str, list[dict]] = {"train": [], "validation": []}
    for name, photograph in photographs.items():
        maps = labeller.label(photograph)
        for split, split_rows in rows.items():
            for top, left in tile_origins(photograph.height, photograph.width, split):
                tile = np.s_[top : top + TILE_SIZE, left : left + TILE_SIZE]
                semantic, instance = maps.semantic[tile], number_instances(maps.instance[tile])
                split_rows.append(
                    {
                        "image": encode_jpeg(np.asarray(photograph)[tile]),
                        "semantic": {"bytes": encode_label_map(semantic), "path": None},
                        "instance": {"bytes": encode_label_map(instance), "path": None},
                        "semantic_classes": np.unique(semantic).tolist(),
                        "image_id": f"{name}_{top}_{left}",
                    }
                )
    features = dataset_features(labeller.id2label, label_feature=None)
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(split_rows, features=features) for split, split_rows in rows.items()}
    )


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder to write; it must not exist")
    output_dir = parser.parse_args(args).output_dir
    if output_dir.exists():
        parser.error(f"{output_dir} exists already; remove it or choose another folder")
    dataset = make_dataset()
    temporary = output_dir.with_name(f".{output_dir.name}.tmp-{os.getpid()}")
    try:
        dataset.save_to_disk(str(temporary))
        temporary.rename(output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{output_dir}: {len(dataset['train'])} training and {len(dataset['validation'])} held-out tiles")


if __name__ == "__main__":
    main()
