"""
Draw what a checkpoint sees, predicts and attends to, for photographs or a labelled dataset: PNGs, and a page with all.

    c2fmae visualize --model runs/demo/c2fmae-vit-tiny-pretraining --images photos/ --output_dir runs/1
    c2fmae visualize --model runs/demo/c2fmae-vit-tiny-pretraining --dataset_name "data/*.parquet" ...
    c2fmae visualize --model runs/a/model --compare_model runs/b/model --images one.jpg two.png ...

A pre-training checkpoint gives reconstructions under each masking strategy, the masking curriculum as a film strip,
predicted semantics and instances with and without gaps, attention of chosen patches by layer and head, attention
inside known objects, and features as colours. An encoder has no decoder and gives attention and features only.

Semantic and instance masking need regions. They come from the dataset's maps; without maps (`--maps auto`) from the
model's own predictions, or, if it predicts no semantics, from the classical labeller, which finds regions of similar
colour rather than objects. Captions say which. Eight photographs with a ViT-Ti take 14 seconds on one CPU core.
Needs `pip install "c2fmae-hf[all]"`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..data.rows import MAP_COLUMNS, semantic_id2label, undecoded
from ..data.splits import load_splits
from ..images import expand_label_map, open_image, to_label_map, to_rgb
from ..labelling.labellers.classical import ClassicalLabeller
from ..labelling.records import resample_label_map
from ..labelling.sources.folder import FolderSource
from ..masking import MaskingCurriculum
from ..pictures.captions import Picture
from ..pictures.encoder_panels import (
    draw_attention,
    draw_attention_heads,
    draw_attention_in_objects,
    draw_features,
    spread,
)
from ..pictures.encoder_views import choose_patches, feature_pictures, parse_patch
from ..pictures.gallery import write_gallery
from ..pictures.panels import draw_comparison, draw_curriculum, draw_maps, draw_predictions, draw_strategies
from ..pictures.views import (
    Photo,
    ViewedModel,
    count_masked,
    load_viewed_model,
    prepare_photo,
    with_predicted_maps,
)
from ..publishing.redaction import hide_folders, hide_tokens
from ..training.log_lines import counted
from ..utils.files import check_writable
from .arguments import parse_arguments, pick_device
from .console import print_results


logger = logging.getLogger(__name__)
# Where a photograph's maps come from, as captions say it.
FROM_DATASET = "the dataset's maps"
FROM_CLASSICAL = "the classical labeller's maps (regions of similar colour, not objects)"


@dataclass
class GalleryArguments:
    """Gallery."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a pre-training checkpoint, or of an encoder."}
    )
    compare_model: str | None = field(default=None, metadata={"help": "Another model to draw side by side."})
    images: list[str] | None = field(
        default=None, metadata={"help": "Photographs: files, and folders, searched with their subfolders."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Instead of images: a folder written by save_to_disk or c2fmae label, Parquet files (wildcards "
            "allowed, in quotes), or what datasets.load_dataset takes. Columns: image; semantic and instance if known."
        },
    )
    split: str | None = field(
        default=None, metadata={"help": "Split of the dataset; by default validation, else test, else the first."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the pictures and the page."})
    num_images: int = field(
        default=8, metadata={"help": "Number of photographs, spread evenly over the folder or the split."}
    )
    indices: list[int] | None = field(
        default=None, metadata={"help": "Photographs to draw instead of num_images, counted from 0."}
    )
    on_bad_row: str = field(
        default="raise",
        metadata={"help": "Stop at a photograph that cannot be read, or skip it.", "choices": ["raise", "skip"]},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the masks."})
    mask_ratio: float | None = field(
        default=None, metadata={"help": "Share of masked patches; by default the model's."}
    )
    curriculum: str = field(
        default="linear", metadata={"help": "Curriculum of the film strip.", "choices": ["linear", "step"]}
    )
    maps: str = field(
        default="auto",
        metadata={
            "help": "Source of regions for photographs without label maps: the model or the classical labeller.",
            "choices": ["auto", "predicted", "classical"],
        },
    )
    patches: list[str] | None = field(
        default=None,
        metadata={
            "help": "Patches whose attention is drawn, as ROW,COLUMN from 1, such as 8,8 4,11. By default two: in the "
            "middle of the largest known objects, else of the photograph and of its upper left quarter."
        },
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "Layers to draw, from 1; by default four, evenly spaced."}
    )
    heads: list[int] | None = field(
        default=None, metadata={"help": "Heads to draw, counted from 1; by default up to four."}
    )
    device: str | None = field(default=None, metadata={"help": "By default a GPU if there is one, else the CPU."})


GROUPS = (GalleryArguments,)


def find_mistake(args: GalleryArguments) -> str | None:
    if (args.images is None) == (args.dataset_name is None):
        return "expected either --images or --dataset_name"
    if args.num_images < 1:
        return f"num_images: expected at least 1, got {args.num_images}"
    if args.mask_ratio is not None and not 0 < args.mask_ratio < 1:
        return f"mask_ratio: expected a number between 0 and 1, got {args.mask_ratio}"
    return None


# Photographs


def find_files(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a name for captions and a path."""
    found = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            source = FolderSource(path)
            found += [(one.image_id, one.value) for part in source.parts(1000) for one in source.read(part)]
        elif path.is_file():
            found.append((path.name, str(path)))
        else:
            raise FileNotFoundError(f"images: expected a file or folder, found nothing at {name!r}")
    return found


def read_rows(args: GalleryArguments) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Read undecoded rows, each with a `name`, and the names of the dataset's classes."""
    if args.images is not None:
        files = [{"name": name, "image": path} for name, path in find_files(args.images)]
        return [files[index] for index in choose(len(files), args)], {}
    splits = load_splits(args.dataset_name)
    split = args.split or next((name for name in ("validation", "test") if name in splits), next(iter(splits)))
    if split not in splits:
        raise ValueError(f"split: expected one of {sorted(splits)}, got {split!r}")
    rows = splits[split]
    if "image" not in rows.column_names:
        raise ValueError(f"dataset: expected a column 'image', got {rows.column_names}")
    columns = [name for name in ("image", *MAP_COLUMNS, "image_id") if name in rows.column_names]
    chosen = choose(len(rows), args)
    picked = undecoded(rows.select_columns(columns)).select(chosen)
    named = [{**row, "name": str(row.get("image_id") or f"{split}, row {i}")} for i, row in zip(chosen, picked)]
    return named, semantic_id2label(rows.features) or {}


def choose(number: int, args: GalleryArguments) -> list[int]:
    """Choose the indices of the rows or files to draw among `number`."""
    if args.indices is None:
        return spread(number, args.num_images)
    if wrong := [index for index in args.indices if not 0 <= index < number]:
        raise ValueError(f"indices: expected numbers from 0 to {number - 1}, got {wrong}")
    return args.indices


@dataclass
class Original:
    """A decoded photograph, not yet prepared for a model, with its maps and where they come from."""

    name: str
    image: Image.Image
    maps: dict[str, np.ndarray]
    maps_from: str = ""


def read_originals(rows: Sequence[dict[str, Any]], on_bad_row: str) -> tuple[list[Original], list[str]]:
    """Decode photographs and maps. Returns them, and a message for each row that was left out."""
    found, left_out = [], []
    for row in tqdm(rows, desc="Reading", unit=" images", mininterval=1):
        column = "image"
        try:
            image = to_rgb(open_image(row["image"]))
            maps = {}
            for column in MAP_COLUMNS:
                if row.get(column) is not None:
                    label_map = to_label_map(open_image(row[column], image_size=(image.height, image.width)))
                    maps[column] = expand_label_map(label_map, (image.height, image.width))
        except ValueError as error:
            message = f"{row['name']}, {column}: {error}"
            if on_bad_row == "raise":
                raise ValueError(f"{message}. To skip such rows, pass --on_bad_row skip") from error
            logger.warning("Left out: %s", message)
            left_out.append(message)
            continue
        found.append(Original(row["name"], image, maps, FROM_DATASET if maps else ""))
    if not found:
        raise ValueError("images: expected at least one readable photograph, got none")
    return found, left_out


def label_classically(originals: Sequence[Original]) -> None:
    """Add maps of the classical labeller to photographs."""
    labeller = ClassicalLabeller(num_classes=8)
    labeller.fit(original.image for original in originals)
    for original in originals:
        maps = labeller.label(original.image)
        size = (original.image.height, original.image.width)
        original.maps = {name: resample_label_map(getattr(maps, name), size, 1) for name in MAP_COLUMNS}
        original.maps_from = FROM_CLASSICAL


def prepare(originals: Sequence[Original], viewed: ViewedModel, label_names: dict[int, str]) -> list[Photo]:
    """
    Prepare photographs for one model. Classes that the model does not have get ids after the model's, so that they
    have their own colours and names.
    """
    config = viewed.config
    highest = max((int(own.maps["semantic"].max()) for own in originals if "semantic" in own.maps), default=0)
    shares = not label_names or not config.semantic_id2label or label_names == config.semantic_id2label
    shares = shares and highest < config.num_semantic_classes
    photos = []
    for original in originals:
        are_known = original.maps_from == FROM_DATASET
        semantic, names = original.maps.get("semantic"), label_names if are_known else {}
        shares_classes = are_known and shares
        if semantic is not None and not shares_classes:
            number = config.num_semantic_classes
            semantic = np.where(semantic < 0, semantic, semantic + number)
            if are_known:
                own = (int(label) for label in np.unique(original.maps["semantic"]) if label >= 0)
                names = {number + label: f"{label_names.get(label, f'class {label}')} (known)" for label in own}
        photo = prepare_photo(
            original.name,
            original.image,
            config,
            semantic,
            original.maps.get("instance"),
            maps_from=original.maps_from,
            are_known=are_known,
            class_names=names,
            shares_classes=shares_classes,
        )
        photos.append(photo)
    return photos


def load_photos(args: GalleryArguments, models: Sequence[ViewedModel]) -> tuple[list[list[Photo]], list[str]]:
    """
    Load the photographs and prepare them for each model. Returns them, and messages for those that were left out. For
    photographs without maps, the first model determines where regions come from.
    """
    rows, label_names = read_rows(args)
    originals, left_out = read_originals(rows, args.on_bad_row)
    bare = [original for original in originals if not original.maps]
    first = models[0]
    predicts = "semantic" in first.granularities
    if args.maps == "predicted" and not predicts:
        raise ValueError(f"maps: expected a model that predicts semantics for 'predicted', got {first.name}")
    if bare and first.whole is not None and (args.maps == "classical" or not predicts):
        label_classically(bare)
    photos = [prepare(originals, viewed, label_names) for viewed in models]
    if first.whole is not None:
        photos[0] = [
            photo if photo.maps_from else with_predicted_maps(first, photo, args.seed)
            for photo in tqdm(photos[0], desc="Finding regions", unit=" images", mininterval=1)
        ]
    return photos, left_out


# Pictures


def zero_based(name: str, numbers: list[int] | None, count: int) -> list[int] | None:
    if wrong := [number for number in numbers or [] if not 1 <= number <= count]:
        raise ValueError(f"{name}: expected numbers from 1 to {count}, got {wrong}")
    return [number - 1 for number in numbers] if numbers else None


def file_stem(position: int, name: str) -> str:
    return f"{position + 1:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', Path(name).stem).strip('-')[:40] or 'photo'}"


def draw(
    args: GalleryArguments, models: Sequence[ViewedModel], photos: Sequence[Sequence[Photo]], folder: Path
) -> Iterator[tuple[str, Picture]]:
    """Draw every picture, and yield it with the heading of its section."""
    first = models[0]
    config = first.config
    layers = zero_based("layers", args.layers, config.num_hidden_layers)
    heads = zero_based("heads", args.heads, config.num_attention_heads)
    given = [parse_patch(text, config.grid_size) for text in args.patches or []]
    masks = {"seed": args.seed, "mask_ratio": args.mask_ratio}
    features = [feature_pictures(viewed, own).pictures for viewed, own in zip(models, photos)] if models[1:] else []

    section = "All photographs"
    if first.whole is not None:
        yield section, draw_predictions(first, photos[0], folder / "predictions.png", **masks)
        best = max(photos[0], key=lambda photo: len(photo.semantic.unique()) + len(photo.instance.unique()))
        curriculum = MaskingCurriculum(schedule=args.curriculum)
        yield section, draw_curriculum(first, best, folder / "curriculum.png", curriculum, **masks)
    yield section, draw_features(first, photos[0], folder / "features.png")
    inside = draw_attention_in_objects(models, photos, folder / "attention_in_objects.png")
    if inside is not None:
        yield section, inside
    for position, photo in enumerate(tqdm(photos[0], desc="Drawing", unit=" photographs", mininterval=1)):
        section, stem = f"{position + 1}. {photo.name}", file_stem(position, photo.name)
        patches = given or choose_patches(photo, config)
        if first.whole is not None:
            yield section, draw_strategies(first, photo, folder / f"{stem}-strategies.png", **masks)
            if {"semantic", "instance"} & set(first.granularities):
                yield section, draw_maps(first, photo, folder / f"{stem}-maps.png", **masks)
        yield section, draw_attention(first, photo, folder / f"{stem}-attention.png", patches, layers)
        for row, column in patches:
            path = folder / f"{stem}-heads-{row + 1}-{column + 1}.png"
            yield section, draw_attention_heads(first, photo, path, (row, column), layers, heads)
        if models[1:]:
            path = folder / f"{stem}-comparison.png"
            own = [of_model[position] for of_model in photos]
            pca = [pictures[position] for pictures in features]
            yield section, draw_comparison(models, own, path, patches[0], pca, **masks)


def describe(models: Sequence[ViewedModel], photos: Sequence[Photo], args: GalleryArguments) -> list[str]:
    """Notes for the top of the page."""
    notes = ["Photographs are shown as the model sees them: the central crop, at its input size."]
    for viewed in models:
        config = viewed.config
        height, width = config.image_height_width
        predicts = "an encoder without a decoder, so only attention and features are shown."
        if viewed.whole is not None:
            masked = f"{count_masked(config, args.mask_ratio)} of {config.num_patches} patches"
            predicts = f"predicts {', '.join(viewed.granularities)}; masks {masked}."
        notes.append(
            f"{viewed.name}: {config.num_hidden_layers} blocks of width {config.hidden_size}, {height} x {width} "
            f"pixels, patches of {config.patch_size}; {predicts}"
        )
    if models[0].whole is not None:
        origins = list(dict.fromkeys(photo.maps_from for photo in photos if photo.maps_from))
        regions = f"Regions for masking come from {', or '.join(origins)}."
        notes.append(regions if origins else "There are no label maps, so all masks are random.")
    return notes


def run(args: GalleryArguments, words: Sequence[str]) -> list[Path]:
    device = pick_device(args.device)
    folder = Path(args.output_dir)
    check_writable(folder)
    names = [name for name in (args.model, args.compare_model) if name is not None]
    models = [load_viewed_model(name, device) for name in names]
    if len({viewed.name for viewed in models}) < len(models):
        folders = [Path(name).resolve().parent.name for name in names]
        models = [replace(viewed, name=f"{folder}/{viewed.name}") for folder, viewed in zip(folders, models)]
    photos, left_out = load_photos(args, models)
    drawn = " and ".join(viewed.name for viewed in models)
    print(
        f"Drawing what {drawn} sees in {counted(len(photos[0]), 'photograph')}, on {device}. Output folder: {folder}.",
        flush=True,
    )
    sections: dict[str, list[Picture]] = {}
    for heading, picture in draw(args, models, photos, folder):
        sections.setdefault(heading, []).append(picture)
    command = hide_folders({"command": hide_tokens(["c2fmae", "visualize", *words])})["command"]
    notes = describe(models, photos[0], args) + [f"Left out: {message}." for message in left_out]
    page = folder / "index.html"
    write_gallery(page, drawn, sections, command, notes)
    return [page, *(picture.path for pictures in sections.values() for picture in pictures)]


def parse(args: list[str] | None = None) -> tuple:
    return parse_arguments(
        GROUPS,
        args,
        __doc__,
        command="visualize",
        positionals=("model", "images"),
        required=("model", "output_dir"),
        check=find_mistake,
    )


def main(words: list[str] | None = None) -> list[Path]:
    """Returns the page and the pictures."""
    words = sys.argv[1:] if words is None else words
    (args,) = parse(words)
    transformers_logging.set_verbosity_error()
    written = run(args, words)
    print_results([f"{written[0]}: {counted(len(written) - 1, 'picture')}"], [f"open {written[0]} in a browser"])
    return written
