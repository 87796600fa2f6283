"""
Odd photographs, label maps and COCO files through the commands that read them: what each command says, and whether
what it used is what was stored.

    python tests/odd_files.py > docs/odd_files.md

A row of the table is a dataset of six images of which one is odd. Whatever `label` stores is compared with the truth;
`pretrain`, `segment` and `detect` train a step on it, and their samples are compared with the truth, too.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from bad_rows import claiming
from c2fmae_hf import C2FMAEConfig, C2FMAEModel
from c2fmae_hf.commands import main as command
from c2fmae_hf.images import expand_label_map, open_image, to_label_map, to_rgb
from c2fmae_hf.transfer.objects import CocoObjects


WIDTH, HEIGHT, ODD = 64, 48, 2
ENCODER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = {f"decoder_{name}": value for name, value in {**ENCODER, "num_hidden_layers": 1}.items()}
CONFIG = {"image_size": 32, "patch_size": 8, **ENCODER, **DECODER}
NAMES = ["ground", "red", "green", "blue", "grey"]


# The truth


def photograph(seed: int = ODD) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def maps(seed: int = ODD) -> tuple[np.ndarray, np.ndarray]:
    """Five classes in stripes, an instance on each but the ground's, something ignored."""
    semantic = np.zeros((HEIGHT, WIDTH), np.int32)
    for label in range(1, 5):
        semantic[8 + seed : 36 + seed, 12 * label : 12 * label + 8] = label
    instance = semantic.copy()
    semantic[:4], instance[:4] = -100, -100
    return semantic, instance


def stored(label_map: np.ndarray, ignore: int = 255, dtype: type = np.uint8) -> np.ndarray:
    return np.where(label_map == -100, ignore, label_map).astype(dtype)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# Odd photographs: their bytes, and the truth if it is not the photograph's


def turned(orientation: int, format: str = "JPEG", **options: Any) -> bytes:
    """Stored so that a viewer shows the photograph."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph().transpose(back[orientation]), format, exif=exif, **options)


def grey_truth() -> np.ndarray:
    return np.asarray(photograph().convert("L").convert("RGB"))


def over_white() -> tuple[bytes, np.ndarray]:
    image = photograph().convert("RGBA")
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, :20] = 0
    image.putalpha(Image.fromarray(alpha))
    truth = np.asarray(photograph()).copy()
    truth[:, :20] = 255
    return encoded(image), truth


def deep(values: np.ndarray, format: str = "PNG") -> bytes:
    return encoded(Image.fromarray(values), format)


def frames(format: str) -> bytes:
    others = [photograph(7), photograph(8)]
    return encoded(photograph(), format, save_all=True, append_images=others)


GREYS = np.asarray(photograph().convert("L"))
EXACT, LOSSY = 2.0, 12.0
Photo = tuple[Callable[[], Any], Callable[[], np.ndarray] | None, float]


def photo(make: Callable[[], Any], truth: Callable[[], np.ndarray] | None = None, tolerance: float = EXACT) -> Photo:
    return make, truth, tolerance


def rgb() -> np.ndarray:
    return np.asarray(photograph())


PHOTOGRAPHS: dict[str, Photo] = {
    **{f"JPEG, EXIF orientation {n}": photo(lambda n=n: turned(n, quality=98), rgb, LOSSY) for n in range(2, 9)},
    "PNG, EXIF orientation 6": photo(lambda: turned(6, "PNG"), rgb),
    "WebP, EXIF orientation 8": photo(lambda: turned(8, "WEBP", lossless=True), rgb),
    "TIFF, orientation 3": photo(lambda: turned(3, "TIFF"), rgb),
    "transparent on the left": photo(lambda: over_white()[0], lambda: over_white()[1]),
    "grey with alpha": photo(lambda: encoded(photograph().convert("LA")), grey_truth),
    "palette": photo(lambda: encoded(photograph().quantize(200)), rgb, LOSSY),
    "one bit": photo(
        lambda: encoded(photograph().convert("1")), lambda: np.asarray(photograph().convert("1").convert("RGB"))
    ),
    "16 bits, grey": photo(lambda: deep(GREYS.astype(np.uint16) * 257), grey_truth),
    "16 bits, grey, big-endian TIFF": photo(lambda: deep(GREYS.astype(">u2") * 257, "TIFF"), grey_truth),
    "floating point, 0 to 1": photo(lambda: deep((GREYS / 255).astype(np.float32), "TIFF"), grey_truth),
    "floating point, 0 to 255": photo(lambda: deep(GREYS.astype(np.float32), "TIFF")),
    "floating point, NaN": photo(lambda: deep(np.full((HEIGHT, WIDTH), np.nan, np.float32), "TIFF")),
    "32 bits, up to a million": photo(lambda: deep(GREYS.astype(np.int32) * 4000, "TIFF")),
    "CMYK": photo(lambda: encoded(photograph().convert("CMYK"), "JPEG", quality=98), rgb, LOSSY),
    "Lab": photo(lambda: encoded(photograph().convert("LAB"), "TIFF"), rgb, 40.0),
    "GIF of three frames": photo(lambda: frames("GIF"), rgb, LOSSY),
    "TIFF of three pages": photo(lambda: frames("TIFF"), rgb),
    "PNG, animated": photo(lambda: frames("PNG"), rgb),
    "JPEG with a second picture": photo(lambda: frames("MPO"), rgb, LOSSY),
    "JPEG 2000": photo(lambda: encoded(photograph(), "JPEG2000"), rgb),
    "AVIF": photo(lambda: encoded(photograph(), "AVIF"), rgb, LOSSY),
    "TGA": photo(lambda: encoded(photograph(), "TGA"), rgb),
    "bitmap": photo(lambda: encoded(photograph(), "BMP"), rgb),
    "JPEG, cut off": photo(lambda: encoded(photograph(), "JPEG")[:700]),
    "PNG, cut off": photo(lambda: encoded(photograph())[:900]),
    "PNG that claims 60000 x 60000": photo(lambda: claiming(60_000, 60_000)),
    "zero bytes": photo(lambda: b""),
    "a web page": photo(lambda: b"<!DOCTYPE html><html>404</html>"),
    "PostScript": photo(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    "HEIC": photo(lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)),
    "no image": photo(lambda: None),
    "a path to no file": photo(lambda: {"bytes": None, "path": "/no/such/photograph.jpg"}),
    "one pixel": photo(lambda: encoded(Image.new("RGB", (1, 1)))),
}


# Odd label maps, all of them of the same ids: what is stored as the semantic map


def grey_png(bits: int) -> bytes:
    """A PNG of few bits a pixel, as other programs write them; Pillow does not."""
    ids = np.minimum(stored(maps()[0], ignore=0), 2**bits - 1)
    packed = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in ids]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
        + chunk(b"IEND", b"")
    )


def palette(shuffled: bool = False, **options: Any) -> bytes:
    image = Image.frombytes("P", (WIDTH, HEIGHT), stored(maps()[0]).tobytes())
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(colours.tobytes())
    return encoded(image, **options)


def small_palette() -> bytes:
    image = Image.frombytes("P", (WIDTH, HEIGHT), stored(maps()[0], 0).tobytes())
    image.putpalette(range(48))
    return encoded(image, bits=4)


def pgm(highest: int) -> bytes:
    ids = stored(maps()[0], ignore=min(highest, 255) if highest < 65535 else 65535, dtype=np.uint16)
    body = ids.astype(">u2").tobytes() if highest > 255 else ids.astype(np.uint8).tobytes()
    return b"P5\n%d %d\n%d\n" % (WIDTH, HEIGHT, highest) + body


def grey_map(format: str = "PNG", **options: Any) -> bytes:
    return encoded(Image.fromarray(stored(maps()[0])), format, **options)


def exif_6() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_id(number: int) -> bytes:
    ids = stored(maps()[0])
    ids[20, 20] = number
    return encoded(Image.fromarray(ids))


def at_stride(stride: int) -> bytes:
    return encoded(Image.fromarray(stored(maps()[0])[stride // 2 :: stride, stride // 2 :: stride]))


LABEL_MAPS: dict[str, Callable[[], Any]] = {
    "8-bit grey PNG": grey_map,
    "16-bit PNG, 65535 = ignore": lambda: encoded(Image.fromarray(stored(maps()[0], 65535, np.uint16))),
    "16-bit PNG, 255 for ignore": lambda: encoded(Image.fromarray(stored(maps()[0], 255, np.uint16))),
    "palette PNG, any colours": palette,
    "palette PNG with transparency": lambda: palette(transparency=1),
    "palette PNG of 4 bits": small_palette,
    "1-bit grey PNG": lambda: grey_png(1),
    "2-bit grey PNG": lambda: grey_png(2),
    "4-bit grey PNG": lambda: grey_png(4),
    "PGM up to 255": lambda: pgm(255),
    "PGM up to 15": lambda: pgm(15),
    "PGM up to 65535": lambda: pgm(65535),
    "PGM up to 1000": lambda: pgm(1000),
    "TIFF": lambda: grey_map("TIFF"),
    "TIFF, LZW": lambda: grey_map("TIFF", compression="tiff_lzw"),
    "TIFF, JPEG": lambda: grey_map("TIFF", compression="jpeg"),
    "TIFF of 32 bits": lambda: encoded(Image.fromarray(stored(maps()[0], 65535, np.int32)), "TIFF"),
    "TIFF of 32 bits, -1 = ignore": lambda: encoded(Image.fromarray(stored(maps()[0], -1, np.int32)), "TIFF"),
    "TIFF of floating point": lambda: encoded(Image.fromarray(stored(maps()[0], 255, np.float32)), "TIFF"),
    "bitmap": lambda: grey_map("BMP"),
    "TGA": lambda: grey_map("TGA"),
    "GIF": lambda: grey_map("GIF"),
    "JPEG": lambda: grey_map("JPEG"),
    "WebP, without losses": lambda: grey_map("WEBP", lossless=True),
    "AVIF": lambda: grey_map("AVIF"),
    "RGB": lambda: encoded(Image.fromarray(stored(maps()[0])).convert("RGB")),
    "grey with alpha": lambda: encoded(Image.fromarray(stored(maps()[0])).convert("LA")),
    "EXIF orientation 6": lambda: grey_map(exif=exif_6()),
    "a stride of 2": lambda: at_stride(2),
    "half as wide": lambda: encoded(Image.fromarray(stored(maps()[0])[:, ::2])),
    "a pixel too wide": lambda: encoded(Image.fromarray(np.pad(stored(maps()[0]), ((0, 0), (0, 1))))),
    "on its side": lambda: encoded(Image.fromarray(stored(maps()[0]).T)),
    "12000 x 12000": lambda: encoded(Image.new("L", (12_000, 12_000))),
    "class 5 of 5": lambda: with_id(5),
    "class 254": lambda: with_id(254),
    "cut off": lambda: grey_map()[:80],
    "zero bytes": lambda: b"",
    "a web page": lambda: b"<html>",
    "none": lambda: None,
}


# Odd COCO files: a change of the content; the odd image is the first of the file


def polygon(label: int) -> list[list[float]]:
    left, top = 12.0 * label, 8.0 + ODD
    return [[left, top, left + 8, top, left + 8, top + 28, left, top + 28]]


def coco() -> dict[str, Any]:
    images, annotations = [], []
    for number in range(6):
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
        for label in (1, 2):
            box = [12.0 * label, 8.0 + ODD, 8.0, 28.0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": 10 * label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": polygon(label),
                }
            )
    categories = [{"id": 10, "name": "red"}, {"id": 20, "name": "green"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def set_first(**fields: Any) -> Callable[[dict], Any]:
    return lambda content: content["annotations"][0].update(fields)


def drop_first(name: str) -> Callable[[dict], Any]:
    return lambda content: drop(content["annotations"][0], name)


def drop(entry: dict, name: str) -> None:
    del entry[name]


def set_image(**fields: Any) -> Callable[[dict], Any]:
    return lambda content: content["images"][0].update(fields)


def run_lengths(compressed: bool) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8 + ODD : 36 + ODD, 12:20] = 1
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    if compressed:
        return {"size": [HEIGHT, WIDTH], "counts": text}
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, flat.size]).tolist()}


COCO_FILES: dict[str, Callable[[dict], Any]] = {
    "as it should be": lambda content: None,
    "compressed run lengths": set_first(segmentation=run_lengths(True)),
    "run lengths as numbers": set_first(segmentation=run_lengths(False)),
    "no iscrowd": drop_first("iscrowd"),
    "no area": drop_first("area"),
    "no bbox": drop_first("bbox"),
    "a bbox of three numbers": set_first(bbox=[1, 2, 3]),
    "a bbox of negative width": set_first(bbox=[30, 10, -8, 28]),
    "a bbox of text": set_first(bbox="12 10 8 28"),
    "a bbox of NaN": set_first(bbox=[float("nan"), 1, 2, 3]),
    "no segmentation": drop_first("segmentation"),
    "segmentation: null": set_first(segmentation=None),
    "segmentation: an empty list": set_first(segmentation=[]),
    "segmentation: an empty polygon": set_first(segmentation=[[]]),
    "segmentation: two points": set_first(segmentation=[[1, 2, 3, 4]]),
    "segmentation: an odd number of numbers": set_first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
    "segmentation: pairs": set_first(segmentation=[[[1, 2], [3, 4], [5, 6]]]),
    "segmentation: a point at 1e9": set_first(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
    "segmentation: infinite": set_first(segmentation=[[0, 0, float("inf"), 0, 5, 5]]),
    "segmentation: text": set_first(segmentation="polygon"),
    "run lengths of another size": set_first(segmentation={"size": [4, 4], "counts": [16]}),
    "run lengths of 1e9 pixels": set_first(segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 10**9]}),
    "run lengths below zero": set_first(segmentation={"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}),
    "run lengths without a size": set_first(segmentation={"counts": [HEIGHT * WIDTH]}),
    "run lengths of other text": set_first(segmentation={"size": [HEIGHT, WIDTH], "counts": "~~~"}),
    "an unknown category": set_first(category_id=99),
    "a category as text": set_first(category_id="10"),
    "no category": drop_first("category_id"),
    "an unknown image": set_first(image_id=77),
    "no image_id": drop_first("image_id"),
    "an annotation twice": lambda content: content["annotations"].append(dict(content["annotations"][0])),
    "an image without annotations": lambda content: content.update(annotations=content["annotations"][2:]),
    "no height": lambda content: drop(content["images"][0], "height"),
    "height and width exchanged": set_image(height=WIDTH, width=HEIGHT),
    "a height of 0": set_image(height=0),
    "a height of 1e9": set_image(height=10**9),
    "a name that leads out": set_image(file_name="../outside.png"),
    "an absolute name": set_image(file_name="/etc/hostname"),
    "no name": lambda content: drop(content["images"][0], "file_name"),
    "a name of no file": set_image(file_name="nowhere.png"),
    "an image's id twice": set_image(id=2),
    "an image's name twice": set_image(file_name="1.png"),
    "a category's id twice": lambda content: content["categories"][1].update(id=10),
    "no categories": lambda content: drop(content, "categories"),
    "images: a number": lambda content: content.update(images=3),
    "a list instead of an object": lambda content: "[]",
    "cut off": lambda content: json.dumps(content)[:400],
    "not UTF-8": lambda content: b"\xff\xfe{}",
}


# Commands


def run(name: str, *words: object) -> tuple[int, str]:
    """Exit code and everything that was said."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = command.run(name, [str(word) for word in words])
            except SystemExit as error:
                code = error.code
            except Exception as error:  # a fault of ours
                said.write(f"TRACEBACK {type(error).__name__}: {error}")
                code = 70
    finally:
        logging.getLogger().removeHandler(handler)
    return code, said.getvalue()


def error_of(code: int, said: str) -> str:
    if code == 70:
        return f"**{said[said.index('TRACEBACK') :]}**"
    lines = [line.partition("error: ")[2] for line in said.splitlines() if "error: " in line]
    return f"error: {lines[-1]}" if lines else f"**exit code {code} without a word**"


def clean(text: str, folder: Path) -> str:
    text = text.replace(f"{folder}/", "").replace(str(folder), "").replace(" (C2FMAE_TRACEBACK=1 shows where)", "")
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("|", "\\|").replace("\n", " ")


def write_rows(path: Path, image: Any = "good", semantic: Any = "good") -> None:
    rows = []
    for index in range(6):
        own_semantic, own_instance = maps(index % 3)
        row = {
            "image": {"bytes": encoded(photograph(index)), "path": None},
            "semantic": {"bytes": encoded(Image.fromarray(stored(own_semantic))), "path": None},
            "instance": {"bytes": encoded(Image.fromarray(stored(own_instance))), "path": None},
            "image_id": f"r{index}",
            "semantic_classes": [0, 1, 2, 3, 4],
        }
        if index == ODD:
            for name, value in (("image", image), ("semantic", semantic)):
                if not isinstance(value, str):
                    row[name] = {"bytes": value, "path": None} if isinstance(value, bytes) else value
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    features = {name: datasets.Image(decode=False) for name in ("image", "semantic", "instance")}
    features["image_id"] = datasets.Value("string")
    features["semantic_classes"] = datasets.List(datasets.ClassLabel(names=NAMES))
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    for name in ("image", "semantic", "instance"):
        dataset = dataset.cast_column(name, datasets.Image())
    pq.write_table(dataset.data.table, path)  # `to_parquet` would look for the files that are not there


LEFT_OUT = re.compile(r"left out \d+ (of \d+ images|annotations of images that it does not list).*")
SMALL = ("--use_cpu", "--report_to", "none", "--num_drawn", 0, "--dataloader_num_workers", 0, "--disable_tqdm")


def truth_of(kind: str) -> np.ndarray:
    """The semantic map that is stored: in a few bits nothing is ignored."""
    truth = maps()[0]
    if kind == "palette PNG of 4 bits":
        return np.where(truth == -100, 0, truth)
    if kind == "1-bit grey PNG":
        return np.minimum(np.where(truth == -100, 0, truth), 1)
    if kind == "a stride of 2":
        return truth[1::2, 1::2].repeat(2, 0).repeat(2, 1)
    return truth


class Table:
    """The rows, and what went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wrong = folder, []
        self.encoder = folder / "encoder"
        C2FMAEModel(C2FMAEConfig(**CONFIG)).save_pretrained(self.encoder)
        (folder / "names.txt").write_text("\n".join(NAMES))
        write_rows(folder / "good.parquet")
        self.number = 0

    def new(self) -> Path:
        self.number += 1
        return self.folder / f"out-{self.number}"

    def verdict(self, is_right: bool | None) -> str:
        if is_right:
            return "used"
        return "used" if is_right is None else "**used, and wrong**"

    def label(self, source: Path, *words: object) -> tuple[Path, str | None]:
        """The dataset, and what it lacks and why."""
        out = self.new()
        code, said = run("label", source, out, "--label_stride", 1, *words)
        if code == 3:
            entries = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
            return out, f"rejected: {'; '.join(entry['reason'] for entry in entries)}"
        left_out = LEFT_OUT.search(said)
        if code == 0 and left_out:
            return out, left_out.group()
        return out, None if code == 0 else error_of(code, said)

    def pretrain(self, folder: Path) -> str | None:
        code, said = run(
            *("pretrain", folder, "--output_dir", self.new(), "--config_overrides", json.dumps(CONFIG)),
            *("--max_steps", 1, "--per_device_train_batch_size", 6, *SMALL),
        )
        return None if code == 0 else error_of(code, said)

    def segment(self, folder: Path) -> str | None:
        code, said = run(
            *("segment", self.encoder, folder, "--output_dir", self.new(), "--head", "light", "--image_size", 32),
            *(
                "--class_names",
                self.folder / "names.txt",
                "--max_steps",
                1,
                "--per_device_train_batch_size",
                6,
                *SMALL,
            ),
        )
        return None if code == 0 else error_of(code, said)

    def detect(self, *words: object) -> tuple[str | None, str]:
        options = {"pyramid_channels": 16, "box_hidden_size": 32, "num_mask_convolutions": 1}
        code, said = run(
            *("detect", self.encoder, *words, "--output_dir", self.new(), "--image_size", 32),
            *("--detector_options", json.dumps(options)),
            *("--max_steps", 1, "--per_device_train_batch_size", 6, *SMALL),
        )
        return (None if code == 0 else error_of(code, said)), said

    def dataset(self, **odd: Any) -> Path:
        folder = self.new()
        folder.mkdir()
        write_rows(folder / "train.parquet", **odd)
        write_rows(folder / "validation.parquet")
        return folder

    def cells(self, kind: str, folder: Path, found: list[str | None], rights: list[bool | None]) -> str:
        """Cells of a row; what is used is right, or the table says that it is wrong."""
        cells = [text or self.verdict(is_right) for text, is_right in zip(found, rights)]
        if any("**" in cell for cell in cells):
            self.wrong.append((kind, cells))
        return f"| {kind} | " + " | ".join(clean(cell, folder) for cell in cells) + " |"

    def photograph_row(self, kind: str) -> str:
        make, truth, tolerance = PHOTOGRAPHS[kind]
        folder = self.dataset(image=make())
        out, said = self.label(folder / "train.parquet", "--num_classes", 3)
        right = None
        if said is None and truth is not None:
            right = self.close(self.stored_row(out, "image"), truth(), tolerance)
        elif said is None:
            right = False  # nobody can tell what it shows
        samples = None
        if truth is not None:
            samples = self.close(self.sample(folder, "image"), truth(), tolerance)
        results = [said, self.pretrain(folder), self.segment(folder), self.detect(folder)[0]]
        return self.cells(kind, folder, results, [right, samples, samples, samples])

    def map_row(self, kind: str) -> str:
        folder = self.dataset(semantic=LABEL_MAPS[kind]())
        names = ("--class_names", self.folder / "names.txt")
        out, said = self.label(folder / "train.parquet", "--labeller", "annotations", "--layout", "columns", *names)
        right = None
        if said is None:
            found = to_label_map(open_image(self.stored_row(out, "semantic")))
            right = bool(np.array_equal(found, truth_of(kind)))
        results = [said, self.pretrain(folder), self.segment(folder), self.detect(folder)[0]]
        used = None
        if results[1] is None and LABEL_MAPS[kind]() is not None:
            found = expand_label_map(to_label_map(open_image(self.sample(folder, "semantic"))), (HEIGHT, WIDTH))
            used = bool(np.array_equal(found, truth_of(kind)))
        return self.cells(kind, folder, results, [right, used, used, used])

    @staticmethod
    def stored_row(out: Path, column: str) -> Any:
        rows = datasets.load_dataset(str(out), split="train").cast_column(column, datasets.Image(decode=False))
        return rows[ODD][column]

    @staticmethod
    def sample(folder: Path, column: str) -> Any:
        rows = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")
        return rows.cast_column(column, datasets.Image(decode=False))[ODD][column]

    @staticmethod
    def close(value: Any, truth: np.ndarray, tolerance: float) -> bool:
        pixels = np.asarray(to_rgb(open_image(value)))
        return pixels.shape == truth.shape and float(np.abs(pixels.astype(int) - truth).mean()) <= tolerance

    def coco_row(self, kind: str) -> str:
        root = self.new()
        for part in ("train2017", "val2017"):
            (root / part).mkdir(parents=True)
            for number in range(6):
                (root / part / f"{number}.png").write_bytes(encoded(photograph(number)))
        (root / "outside.png").write_bytes(encoded(photograph(9)))
        (root / "annotations").mkdir()
        content = coco()
        (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
        odd = copy.deepcopy(content)
        changed = COCO_FILES[kind](odd)
        path = root / "annotations/instances_train2017.json"
        if isinstance(changed, (str, bytes)):
            path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        else:
            path.write_text(json.dumps(odd))
        out, said = self.label(
            root / "train2017", "--labeller", "annotations", "--layout", "coco", "--annotations", path
        )
        right: bool | None = None
        if said is None or said.startswith(("rejected", "left out")):
            right = self.right_maps(out, lost=(said or "").startswith("rejected"))
            if said is not None and not right:
                said = f"**{said}, and other images are wrong**"
        found, words = self.detect("--coco_dir", root)
        used = None
        left_out = LEFT_OUT.search(words)
        if found is None and left_out:
            found = left_out.group()
        elif found is None:
            masks = CocoObjects(root / "train2017", path)[0][1]["masks"]
            used = masks.sum(axis=(1, 2)).tolist() in ([224, 224], [224], [], [224, 224, 224])
        return self.cells(kind, root, [said, found], [right, used])

    def right_maps(self, out: Path, lost: bool) -> bool:
        rows = datasets.load_dataset(str(out), split="train")
        if len(rows) != (5 if lost else 6):
            return False
        for row in rows:
            semantic = np.asarray(row["semantic"])
            counts = [int((semantic == label).sum()) for label in (1, 2)]
            expected = ([224, 224],) if row["image_id"] != "0.png" else ([224, 224], [0, 224], [0, 0])
            if counts not in expected:
                return False
        return True


HEAD = """# Odd files

This page shows what the commands do with unusual photographs, label maps and COCO files. Each was one of six images of
a dataset. `label` rejects a bad image (`rejects.jsonl`) and continues with the other five. Training stops and names
it. Detection on COCO's files leaves it out with a warning. "Used" means that the values read were compared with the
values stored, and are the same (for lossy photographs: nearly).

Made by `python tests/odd_files.py > docs/odd_files.md`, {number} files; none was misread in silence.
"""


def main() -> int:
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sections = (
        ("Photographs", ("label", "pretrain", "segment", "detect"), PHOTOGRAPHS, Table.photograph_row),
        ("Label maps", ("label", "pretrain", "segment", "detect"), LABEL_MAPS, Table.map_row),
        ("COCO files", ("label", "detect"), COCO_FILES, Table.coco_row),
    )
    chosen = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="odd-files-") as temporary:
        table = Table(Path(temporary))
        print(HEAD.format(number=sum(len(kinds) for _, _, kinds, _ in sections)))
        for title, columns, kinds, row in sections:
            print(f"## {title}\n\n| {title.lower()} | " + " | ".join(f"`{name}`" for name in columns) + " |")
            print("| --- " * (len(columns) + 1) + "|")
            for kind in kinds:
                if not chosen or any(word in kind for word in chosen):
                    print(row(table, kind), flush=True)
            print()
        for kind, cells in table.wrong:
            print(kind, *cells, sep="\n  ", file=sys.stderr)
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
