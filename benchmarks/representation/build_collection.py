"""
Collect all photographs of the study as one labelled dataset: what `--recipe collection-vit-small` trains on.

    python benchmarks/representation/build_collection.py --data shared/data --output runs/collection/dataset

`--data` is the folder of Parquet files that `build_data.py` and `build_scenes.py` make. The photographs for training
are STL-10's with masks, COCO's, CamVid's and Caltech-101's; those to score by are left out. Caltech-101 has no maps:
its rows hold none, and take part in the loss of pixels alone. Semantic classes are those of `--source scenes` (0,
where no class is known; COCO's 133; CamVid's eleven) and deer and monkey; STL-10's other classes are COCO's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from data import CAMVID_OFFSET, SOURCES

from c2fmae_hf.data.rows import CLASSES_COLUMN, MAP_COLUMNS, undecoded
from c2fmae_hf.images import open_image, to_label_map
from c2fmae_hf.labelling.records import encode_label_map


COCO = (Path(__file__).parent / "coco_classes.txt").read_text(encoding="utf-8").splitlines()
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
CLASSES = ["background", *COCO, *(f"{name} (CamVid)" for name in CAMVID), "deer", "monkey"]
# In the order of STL-10's labels.
STL10 = ["background", "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "boat", "truck"]
FEATURES = datasets.Features(
    {
        **{name: datasets.Image() for name in ("image", *MAP_COLUMNS)},
        CLASSES_COLUMN: datasets.List(datasets.ClassLabel(names=CLASSES)),
        "image_id": datasets.Value("string"),
    }
)
STL10_IDS = [CLASSES.index(name) for name in STL10]
CAMVID_IDS = [CAMVID_OFFSET + label for label in range(len(CAMVID))]
# Files of a split, and the collection's class for each class of their maps.
FILES: dict[str, list[tuple[str, list[int] | None]]] = {
    "train": [
        *(("stl10_seg_train", STL10_IDS), ("stl10_seg_test", STL10_IDS)),
        *(("coco_panoptic_train", None), ("coco_things_train", None), ("camvid_train", CAMVID_IDS)),
        ("caltech101_train-*", None),
    ],
    "validation": [
        *(("stl10_seg_val", STL10_IDS), ("coco_panoptic_val", None), ("coco_things_val", None)),
        ("camvid_val", CAMVID_IDS),
    ],
}
assert CAMVID_OFFSET + len(CAMVID) == SOURCES["scenes"].num_classes


def collect(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split. COCO's photographs have the panoptic maps if there are any."""
    known: set[str] = set()
    for name, ids in FILES[split]:
        files = sorted(str(path) for path in folder.glob(f"{name}.parquet"))
        if not files:
            raise FileNotFoundError(f"{folder / name}.parquet: expected the study's data, found nothing")
        for row in undecoded(datasets.load_dataset("parquet", data_files=files, split="train")):
            if row["image_id"] in known:
                continue
            known.add(row["image_id"])
            yield {"image": row["image"], "image_id": row["image_id"], **maps_of(row, ids)}


def maps_of(row: dict[str, Any], ids: list[int] | None) -> dict[str, Any]:
    """A row's maps with the collection's classes, and the classes that occur; nothing for a row without maps."""
    if "semantic" not in row:
        return {**dict.fromkeys(MAP_COLUMNS), CLASSES_COLUMN: []}
    semantic = to_label_map(open_image(row["semantic"]))
    if ids is not None:
        table = np.array(ids)
        semantic = np.where(semantic >= 0, table[semantic.clip(min=0)], semantic)
    present = np.unique(semantic)
    encoded = {"bytes": encode_label_map(semantic), "path": None}
    return {"semantic": encoded, "instance": row["instance"], CLASSES_COLUMN: present[present >= 0].tolist()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    for split in FILES:
        rows = datasets.Dataset.from_list(list(collect(args.data, split)), features=FEATURES)
        rows.to_parquet(args.output / f"{split}-00000.parquet")
        print(f"{split}: {len(rows)} photographs", flush=True)


if __name__ == "__main__":
    main()
