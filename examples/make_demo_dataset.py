"""
Make the demonstration's dataset, offline: tiles of the photographs that ship inside the wheels of scikit-image and
scikit-learn, with label maps from a classical segmentation.

    python examples/make_demo_dataset.py runs/demo/dataset

It takes about 20 seconds on two CPU cores. The maps are a demonstration of the format and nothing more: regions of
similar colour (Felzenszwalb and Huttenlocher's method) stand for instances, and clusters of regions of similar colour
and texture for semantic classes. They know nothing of objects. Held-out tiles are other parts of the same photographs:
they share no pixel with training tiles, but they are no test of generalisation to other photographs.
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
from skimage import color, data, segmentation
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images


# Of scikit-image; those that need no download.
PHOTOGRAPHS = "astronaut brick camera chelsea coffee coins grass gravel hubble_deep_field rocket"
TILE_SIZE = 192
NUM_CLASSES = 8
# The right-hand part of every photograph, as wide as a tile, is held out.
STRIDE = {"train": 48, "validation": 96}
# A region is an instance if it covers this share of its photograph; larger ones are background.
INSTANCE_AREA = (0.002, 0.12)


def load_photographs() -> dict[str, np.ndarray]:
    """The photographs by name, `(height, width, 3)` uint8."""
    photographs = {name: getattr(data, name)() for name in PHOTOGRAPHS.split()}
    photographs["motorcycle"] = data.stereo_motorcycle()[0]
    samples = load_sample_images()
    for filename, image in zip(samples.filenames, samples.images):
        photographs[Path(filename).stem] = image
    return {
        name: color.gray2rgb(image).astype(np.uint8) if image.ndim == 2 else image
        for name, image in photographs.items()
    }


def segment(photograph: np.ndarray) -> np.ndarray:
    """Regions of similar colour, `(height, width)`, numbered from 0."""
    return segmentation.felzenszwalb(photograph, scale=250, sigma=0.8, min_size=250)


def describe_regions(photograph: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each region's Lab colour, `(regions, 6)`, and its share of the photograph, `(regions,)`."""
    lab = color.rgb2lab(photograph).reshape(-1, 3)
    ids, size = regions.ravel(), np.bincount(regions.ravel())
    mean = np.stack([np.bincount(ids, lab[:, i]) / size for i in range(3)], axis=1)
    square = np.stack([np.bincount(ids, lab[:, i] ** 2) / size for i in range(3)], axis=1)
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    return np.concatenate([mean, 2 * spread], axis=1), size / ids.size


def tile_origins(height: int, width: int, split: str) -> Iterator[tuple[int, int]]:
    """Upper left corners of a split's tiles."""
    left, right = (0, width - 2 * TILE_SIZE) if split == "train" else (width - TILE_SIZE, width - TILE_SIZE)
    for top in range(0, height - TILE_SIZE + 1, STRIDE[split]):
        for x in range(left, max(right, left) + 1, STRIDE[split]):
            yield top, x


def encode_png(label_map: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(label_map).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def encode_jpeg(image: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=92)
    return {"bytes": buffer.getvalue(), "path": None}


def make_dataset() -> datasets.DatasetDict:
    photographs = {name: image for name, image in load_photographs().items() if image.shape[1] >= 2 * TILE_SIZE}
    regions = {name: segment(image) for name, image in photographs.items()}
    described = {name: describe_regions(image, regions[name]) for name, image in photographs.items()}
    clustering = KMeans(NUM_CLASSES, n_init=4, random_state=0)
    clustering.fit(
        np.concatenate([descriptors for descriptors, _ in described.values()]),
        sample_weight=np.concatenate([np.sqrt(share) for _, share in described.values()]),
    )

    classes = datasets.ClassLabel(names=[f"cluster {i}" for i in range(NUM_CLASSES)])
    features = datasets.Features(
        image=datasets.Image(),
        semantic=datasets.Image(),
        instance=datasets.Image(),
        semantic_classes=datasets.List(classes),
        image_id=datasets.Value("string"),
    )
    rows: dict[str, list[dict]] = {"train": [], "validation": []}
    for name, photograph in photographs.items():
        descriptors, share = described[name]
        semantic = clustering.predict(descriptors)[regions[name]].astype(np.uint8)
        is_instance = (share >= INSTANCE_AREA[0]) & (share <= INSTANCE_AREA[1])
        instance = np.where(is_instance[regions[name]], regions[name] + 1, 0).astype(np.uint16)
        for split, split_rows in rows.items():
            for top, left in tile_origins(*photograph.shape[:2], split):
                tile = np.s_[top : top + TILE_SIZE, left : left + TILE_SIZE]
                split_rows.append(
                    {
                        "image": encode_jpeg(photograph[tile]),
                        "semantic": encode_png(semantic[tile]),
                        "instance": encode_png(instance[tile]),
                        "semantic_classes": np.unique(semantic[tile]).tolist(),
                        "image_id": f"{name}_{top}_{left}",
                    }
                )
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
