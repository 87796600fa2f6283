"""
Build the study's photographs from the public files of STL-10 (binary files), its masks and Caltech-101.

    python benchmarks/representation/build_data.py --stl10 stl10_binary --masks STL10_Segmentation \\
        --caltech101 101_ObjectCategories --output shared/data

`--stl10` takes `train_X.bin`, `train_y.bin`, `test_X.bin` and `test_y.bin` (https://cs.stanford.edu/~acoates/stl10, or
`torchvision.datasets.STL10`), `--masks` files `stl10_<part>_<class>.json`
(https://github.com/semihyagli/STL10_Segmentation), `--caltech101` a folder per class with `image_0001.jpg`, ...
(https://data.caltech.edu/records/mzrjq-6wc02).

`split.json` lists the photographs of each file in order. It leaves out about a fifth of each source, and
near-duplicates. Photographs are stored as JPEG (quality 95; for Caltech-101 quality 90 and a shorter side of at most
144 pixels), so pixels may differ slightly from ours with another JPEG encoder. `build_scenes.py` builds the scenes of
`--source scenes` (COCO, CamVid).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from c2fmae_hf.images import to_rgb
from c2fmae_hf.labelling.records import encode_label_map, number_instances
from c2fmae_hf.utils.files import replace_file


SPLIT = Path(__file__).parent / "split.json"
# In the order of STL-10's labels, which start at 1.
STL10_CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
STL10_SIDE = 96
MARKS_PER_SIDE = 16
CALTECH101_SIDE = 144


def encode_jpeg(image: Image.Image, quality: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return {"bytes": buffer.getvalue(), "path": None}


def encode_map(squares: np.ndarray) -> dict[str, Any]:
    """Encode the ids `(16, 16)` of a photograph's squares as a PNG of 96 x 96 pixels."""
    step = STL10_SIDE // MARKS_PER_SIDE
    return {"bytes": encode_label_map(squares.repeat(step, axis=0).repeat(step, axis=1)), "path": None}


class STL10:
    """One split, `train` or `test`, of STL-10."""

    def __init__(self, folder: Path, part: str) -> None:
        self.part = part
        self.labels = read_bytes(folder / f"{part}_y.bin").astype(np.int64) - 1
        pixels = read_bytes(folder / f"{part}_X.bin")
        expected = len(self.labels) * 3 * STL10_SIDE**2
        if len(pixels) != expected:
            raise ValueError(
                f"{folder / part}_X.bin: expected {expected} bytes, three channels of {STL10_SIDE} x {STL10_SIDE} of "
                f"{len(self.labels)} photographs, got {len(pixels)}"
            )
        # STL-10 stores images column by column.
        self.images = pixels.reshape(-1, 3, STL10_SIDE, STL10_SIDE).transpose(0, 3, 2, 1)

    def row(self, index: int) -> dict[str, Any]:
        image = Image.fromarray(np.ascontiguousarray(self.images[index]))
        name = f"stl10_{self.part}_{index:05d}"
        return {"image": encode_jpeg(image, quality=95), "label": int(self.labels[index]), "image_id": name}


def read_bytes(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of STL-10, found nothing")
    return np.fromfile(path, dtype=np.uint8)


class Marks:
    """Marked squares of the objects in one split of STL-10."""

    def __init__(self, folder: Path, part: str) -> None:
        self.part = part
        self.folder = folder
        self._by_class: dict[str, dict[str, dict[str, list[list[int]]]]] = {}

    def maps(self, index: int, label: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Classes and instances `(16, 16)` of a photograph's squares. Where marks overlap, the smaller object is on top.

        Raises:
            `FileNotFoundError`: if the class has no file of marks.
            `ValueError`: if the photograph has no marks.
        """
        name = STL10_CLASSES[label]
        path = self.folder / f"stl10_{self.part}_{name}.json"
        if name not in self._by_class:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: expected the marks of the class, found nothing")
            self._by_class[name] = json.loads(path.read_text(encoding="utf-8"))
        objects = self._by_class[name].get(str(index))
        if not objects:
            raise ValueError(f"{path}: expected marks of photograph {index}, found none")
        instance = np.zeros((MARKS_PER_SIDE, MARKS_PER_SIDE), dtype=np.int64)
        numbered = enumerate(objects.values(), start=1)
        for number, squares in sorted(numbered, key=lambda one: len(one[1]), reverse=True):
            for x, y in squares:
                if 0 <= x < MARKS_PER_SIDE and 0 <= y < MARKS_PER_SIDE:  # a few marks lie beyond the edge
                    instance[y, x] = number
        return np.where(instance > 0, label + 1, 0), number_instances(instance)


def stl10_rows(stl10: STL10, indices: Sequence[int], marks: Marks | None) -> Iterator[dict[str, Any]]:
    for index in indices:
        row = stl10.row(index)
        if marks is not None:
            semantic, instance = marks.maps(index, row["label"])
            row.update(semantic=encode_map(semantic), instance=encode_map(instance))
        yield row


def caltech101_rows(folder: Path, names: Sequence[str], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Photographs of Caltech-101 by names such as `llama/0078`."""
    for name in names:
        kind, number = name.split("/")
        path = folder / kind / f"image_{number}.jpg"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a photograph of Caltech-101, found nothing")
        with Image.open(path) as file:
            image = to_rgb(file)
        yield {
            "image": encode_jpeg(shrink(image, CALTECH101_SIDE), quality=90),
            "label": classes.index(kind),
            "image_id": f"caltech101_{kind}_{number}",
        }


def shrink(image: Image.Image, shorter: int) -> Image.Image:
    """Make an image smaller, to this shorter side in pixels; a smaller one stays."""
    scale = shorter / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(round(scale * side), shorter) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def write(path: Path, rows: Iterable[dict[str, Any]], number: int, classes: list[str] | None, maps: bool) -> None:
    """Write rows as a Parquet file; without `classes` labels are plain numbers."""
    columns = ["image", *(["semantic", "instance"] if maps else []), "label", "image_id"]
    label = datasets.Value("int64") if classes is None else datasets.ClassLabel(names=classes)
    kinds = {"label": label, "image_id": datasets.Value("string")}
    features = datasets.Features({name: kinds.get(name, datasets.Image()) for name in columns})
    found = list(tqdm(rows, desc=path.name, total=number, unit=" photographs"))
    table = datasets.Dataset.from_list(found, features=features)
    with replace_file(path) as temporary:
        table.to_parquet(str(temporary))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stl10", type=Path, required=True, help="folder of STL-10's binary files")
    parser.add_argument("--masks", type=Path, required=True, help="folder of STL10_Segmentation's JSON files")
    parser.add_argument("--caltech101", type=Path, required=True, help="folder of Caltech-101's classes")
    parser.add_argument("--split", type=Path, default=SPLIT, help="which photographs are in which file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to, `--data` of the study")
    args = parser.parse_args(arguments)
    split = json.loads(args.split.read_text(encoding="utf-8"))
    args.output.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        stl10, marks = STL10(args.stl10, part), Marks(args.masks, part)
        for name, indices in split["stl10"][part].items():
            known = marks if "_seg_" in name else None
            rows = stl10_rows(stl10, indices, known)
            write(args.output / f"{name}.parquet", rows, len(indices), STL10_CLASSES, maps=known is not None)
    classes = split["caltech101"]["classes"]
    for name, photographs in split["caltech101"]["files"].items():
        rows = caltech101_rows(args.caltech101, photographs, classes)
        write(args.output / f"{name}.parquet", rows, len(photographs), classes, maps=False)


if __name__ == "__main__":
    main()
