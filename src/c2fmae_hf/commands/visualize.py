"""
Draw what a checkpoint sees, predicts and attends to, on a folder of photographs or a labelled dataset: PNGs, and one
HTML page that holds them all.

    python examples/visualize.py --model runs/demo/c2fmae-vit-tiny-pretraining --images photos/ --output_dir runs/1
    python examples/visualize.py --model runs/demo/c2fmae-vit-tiny-pretraining --dataset_name "data/*.parquet" ...
    python examples/visualize.py --model runs/a/model --compare_model runs/b/model --images one.jpg two.png ...

Of a pre-training checkpoint: reconstructions under each masking strategy, the masking curriculum as a film strip,
predicted semantics and instances with and without gaps, attention of chosen patches by layer and head, attention
inside known objects, features as colours. Of an encoder, which has no decoder: attention and features alone.

Semantic and instance masking need regions. They are the dataset's maps; without any, `--maps auto` takes those that
the model itself predicts or, if it predicts none, those of the classical labeller, which knows nothing of objects.
Captions say which. Eight photographs with a ViT-Tiny take 16 seconds of one CPU core's time. Needs
`pip install "c2fmae-hf[viz]"`, and for classical maps `"c2fmae-hf[label]"`.
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
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..data.rows import MAP_COLUMNS, semantic_id2label, undecoded
from ..data.splits import load_splits
from ..images import expand_label_map, open_image, to_label_map, to_rgb
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
from ..pictures.gallery import GENERATOR, Section, write_gallery
from ..pictures.panels import draw_comparison, draw_curriculum, draw_maps, draw_strategies
from ..pictures.views import (
    Photo,
    ViewedModel,
    count_masked,
    load_viewed_model,
    prepare_photo,
    with_predicted_maps,
)
from ..publishing.redaction import hide_folders, hide_tokens
from .arguments import parse_arguments


logger = logging.getLogger(__name__)
# Where a photograph's maps come from, as captions say it.
FROM_DATASET = "of the dataset"
FROM_CLASSICAL = "of the classical labeller (regions of similar colour, not objects)"


@dataclass
class GalleryArguments:
    """Gallery."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a pre-training checkpoint, or of an encoder."}
    )
    compare_model: str | None = field(default=None, metadata={"help": "Another one, to be drawn side by side."})
    images: list[str] | None = field(
        default=None, metadata={"help": "Photographs: files, and folders of them with all folders below."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Instead of images: a folder written by save_to_disk or label_images.py, Parquet files (wildcards "
            "allowed, in quotes), or what datasets.load_dataset takes. Columns: image; semantic and instance if known."
        },
    )
    split: str | None = field(
        default=None, metadata={"help": "Of the dataset; by default validation, else test, else the first one."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where to write; made if it is not there."})
    num_images: int = field(default=8, metadata={"help": "So many, evenly spread over the folder or the split."})
    indices: list[int] | None = field(default=None, metadata={"help": "These instead, counted from 0."})
    on_bad_row: str = field(
        default="raise",
        metadata={"help": "Of a photograph that cannot be read: stop, or leave it out.", "choices": ["raise", "skip"]},
    )
    seed: int = field(default=0, metadata={"help": "Of the masks."})
    mask_ratio: float | None = field(default=None, metadata={"help": "By default the model's."})
    curriculum: str = field(default="linear", metadata={"help": "Of the film strip.", "choices": ["linear", "step"]})
    maps: str = field(
        default="auto",
        metadata={
            "help": "Regions for photographs without label maps: what the model predicts, or the classical labeller.",
            "choices": ["auto", "predicted", "classical"],
        },
    )
    patches: list[str] | None = field(
        default=None,
        metadata={
            "help": "Whose attention is drawn: ROW,COLUMN from 1, such as 8,8 4,11. By default two: the middles of "
            "the largest known objects, else of the photograph and of its upper left quarter."
        },
    )
    layers: list[int] | None = field(default=None, metadata={"help": "From 1; by default four, evenly spread."})
    heads: list[int] | None = field(default=None, metadata={"help": "From 1; by default up to four, evenly spread."})
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


def choose(number: int, args: GalleryArguments) -> list[int]:
    """Which of so many rows or files are drawn."""
    if args.indices is None:
        return spread(number, args.num_images)
    wrong = [index for index in args.indices if not 0 <= index < number]
    if wrong:
        raise ValueError(f"indices: expected numbers from 0 to {number - 1}, got {wrong}")
    return args.indices


def find_files(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names for captions and paths."""
    found = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            source = FolderSource(path)
            found += [(one.image_id, one.value) for part in source.parts(1000) for one in source.read(part)]
        elif path.is_file():
            found.append((path.name, str(path)))
        else:
            raise FileNotFoundError(f"images: expected a file or a folder at {name!r}, found nothing")
    return found


def read_rows(args: GalleryArguments) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Undecoded rows with a `name`, and the names of the dataset's classes."""
    if args.images is not None:
        files = find_files(args.images)
        return [{"name": files[i][0], "image": files[i][1]} for i in choose(len(files), args)], {}
    splits = load_splits(args.dataset_name)
    split = args.split or next((name for name in ("validation", "test") if name in splits), next(iter(splits)))
    if split not in splits:
        raise ValueError(f"split: expected one of {sorted(splits)}, got {split!r}")
    rows = splits[split]
    if "image" not in rows.column_names:
        raise ValueError(f"dataset: expected a column 'image', got {rows.column_names}")
    if len(rows) == 0:
        raise ValueError(f"dataset {args.dataset_name!r}: split {split!r} has no rows")
    columns = [name for name in ("image", *MAP_COLUMNS, "image_id") if name in rows.column_names]
    chosen = choose(len(rows), args)
    picked = undecoded(rows.select_columns(columns)).select(chosen)
    named = [{**row, "name": str(row.get("image_id") or f"{split}, row {i}")} for i, row in zip(chosen, picked)]
    return named, semantic_id2label(rows.features) or {}


@dataclass
class Original:
    """A photograph as it was read, before it is prepared for a model, and where its maps come from."""

    name: str
    image: Image.Image
    maps: dict[str, np.ndarray]
    maps_from: str = ""


def read_originals(rows: Sequence[dict[str, Any]], on_bad_row: str) -> tuple[list[Original], list[str]]:
    """Decoded photographs and maps, and what was left out and why; errors name the row and the column."""
    found, left_out = [], []
    for row in tqdm(rows, desc="Reading", unit=" images", mininterval=1):
        column = "image"
        try:
            image = to_rgb(open_image(row["image"]))
            maps = {}
            for column in MAP_COLUMNS:
                if row.get(column) is not None:
                    label_map = to_label_map(open_image(row[column]))
                    maps[column] = expand_label_map(label_map, (image.height, image.width))
        except ValueError as error:
            message = f"{row['name']}, {column}: {error}"
            if on_bad_row == "raise":
                raise ValueError(f"{message} (--on_bad_row skip leaves it out)") from error
            logger.warning("Left out: %s", message)
            left_out.append(message)
            continue
        found.append(Original(row["name"], image, maps, FROM_DATASET if maps else ""))
    if not found:
        raise ValueError("images: expected photographs that can be read, got none")
    return found, left_out


def label_classically(originals: Sequence[Original]) -> None:
    """Give maps to photographs that have none."""
    try:
        from ..labelling.labellers.classical import ClassicalLabeller
        from ..labelling.records import resample_label_map

        for num_classes in (8, 4, 2, 1):  # a few plain photographs have few regions
            labeller = ClassicalLabeller(num_classes)
            try:
                labeller.fit(original.image for original in originals)
                break
            except ValueError:
                if num_classes == 1:
                    raise
    except ImportError as error:
        raise ImportError('classical maps need scikit-image: pip install "c2fmae-hf[label]"') from error
    for original in originals:
        maps = labeller.label(original.image)
        size = (original.image.height, original.image.width)
        original.maps = {name: resample_label_map(getattr(maps, name), size, 1) for name in MAP_COLUMNS}
        original.maps_from = FROM_CLASSICAL


def prepare(originals: Sequence[Original], viewed: ViewedModel, label_names: dict[int, str]) -> list[Photo]:
    """The photographs for one model."""
    highest = max((int(own.maps["semantic"].max()) for own in originals if "semantic" in own.maps), default=0)
    is_same = not label_names or not viewed.label_names or label_names == viewed.label_names
    is_same = is_same and highest < viewed.config.num_semantic_classes
    photos = []
    for original in originals:
        are_known = original.maps_from == FROM_DATASET
        photo = prepare_photo(
            original.name,
            original.image,
            viewed.config,
            original.maps.get("semantic"),
            original.maps.get("instance"),
            maps_from=original.maps_from,
            are_known=are_known,
            label_names=label_names if are_known else {},
            shares_classes=are_known and is_same,
        )
        photos.append(photo)
    return photos


def load_photos(args: GalleryArguments, models: Sequence[ViewedModel]) -> tuple[list[list[Photo]], list[str]]:
    """
    The photographs, prepared for each model, and what was left out. What regions those without maps get depends on the
    first model.
    """
    rows, label_names = read_rows(args)
    originals, left_out = read_originals(rows, args.on_bad_row)
    bare = [original for original in originals if not original.maps]
    first = models[0]
    predicts = "semantic" in first.granularities
    if args.maps == "predicted" and not predicts:
        raise ValueError(f"maps: expected a model that predicts semantics for 'predicted', got {first.name}")
    if bare and first.whole is not None and (args.maps == "classical" or (args.maps == "auto" and not predicts)):
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
    wrong = [number for number in numbers or [] if not 1 <= number <= count]
    if wrong:
        raise ValueError(f"{name}: expected numbers from 1 to {count}, got {wrong}")
    return [number - 1 for number in numbers] if numbers else None


def file_stem(position: int, name: str) -> str:
    return f"{position + 1:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', Path(name).stem).strip('-')[:40] or 'photo'}"


def draw(
    args: GalleryArguments, models: Sequence[ViewedModel], photos: Sequence[Sequence[Photo]], folder: Path
) -> Iterator[tuple[str, Picture]]:
    """Every picture with the title of its section."""
    first = models[0]
    config = first.config
    layers = zero_based("layers", args.layers, config.num_hidden_layers)
    heads = zero_based("heads", args.heads, config.num_attention_heads)
    given = [parse_patch(text, config.grid_size) for text in args.patches or []]
    masks = {"seed": args.seed, "mask_ratio": args.mask_ratio}
    features = [feature_pictures(viewed, own).pictures for viewed, own in zip(models, photos)] if models[1:] else []

    section = "All photographs"
    if first.whole is not None:
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
    """The head of the page."""
    notes = ["Photographs are shown as a model sees them: their middle, at its size."]
    for viewed in models:
        config = viewed.config
        size = " x ".join(str(side) for side in config.image_height_width)
        notes.append(
            f"{viewed.name}: {config.num_hidden_layers} blocks of width {config.hidden_size}, {size} pixels, patches "
            f"of {config.patch_size}; "
            + (
                f"predicts {', '.join(viewed.granularities)}; masks {count_masked(config, args.mask_ratio)} of "
                f"{config.num_patches} patches."
                if viewed.whole is not None
                else "an encoder without a decoder: it predicts nothing, so that attention and features are all."
            )
        )
    origins = list(dict.fromkeys(photo.maps_from for photo in photos if photo.maps_from))
    if models[0].whole is not None:
        notes.append(f"Label maps, whose regions guide masking: {'; '.join(origins) or 'none, all masks are random'}.")
    return notes


def run(args: GalleryArguments, words: Sequence[str]) -> list[Path]:
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # PyTorch's ways of saying that there is none
        raise ValueError(f"device: {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    models = [load_viewed_model(name, device) for name in (args.model, args.compare_model) if name is not None]
    if len(models) > 1 and models[0].name == models[1].name:  # the same name in two folders
        names = [Path(args.model), Path(args.compare_model)]
        models = [
            replace(viewed, name=f"{path.resolve().parent.name}/{viewed.name}") for viewed, path in zip(models, names)
        ]
    photos, left_out = load_photos(args, models)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sections: dict[str, Section] = {}
    for title, picture in draw(args, models, photos, folder):
        sections.setdefault(title, Section(title)).pictures.append(picture)
    # A page may be shown to others.
    command = f"python examples/{hide_folders({'command': hide_tokens(['visualize.py', *words])})['command']}"
    title = " and ".join(viewed.name for viewed in models)
    page = folder / "index.html"
    notes = describe(models, photos[0], args) + [f"Left out: {message}." for message in left_out]
    earlier = pictures_of_earlier_run(folder)
    write_gallery(page, title, list(sections.values()), command, notes)
    written = [page, *(picture.path for section in sections.values() for picture in section.pictures)]
    for path in earlier - set(written):
        path.unlink()
    return written


def pictures_of_earlier_run(folder: Path) -> set[Path]:
    """By their names, and only in a folder with a page of ours: they would pass for those of this run."""
    page = folder / "index.html"
    if not page.is_file() or GENERATOR not in page.read_text(encoding="utf-8", errors="replace"):
        return set()
    kinds = r"\d\d+-.+-(strategies|maps|attention|heads-\d+-\d+|comparison)|curriculum|features|attention_in_objects"
    return {path for path in folder.glob("*.png") if re.fullmatch(kinds, path.stem)}


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
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    written = run(args, words)
    logger.info(f"\n{len(written) - 1} pictures, and all of them in\n  {written[0]}")
    return written
