"""Check that a multi-granular dataset is complete and readable, and measure its contents."""

from __future__ import annotations

import collections
import functools
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..constants import IGNORE_INDEX, NO_INSTANCE
from ..images import expand_label_map, map_stride, open_image, to_label_map, to_rgb
from ..utils.files import file_sha256, read_lines
from .rows import MAP_COLUMNS, ONE_CLASS, semantic_id2label, undecoded
from .splits import load_splits


# An instance may have a smaller share of pixels in a second class: outlines are never exact.
_SPANNING_SHARE = 0.01


@dataclass
class RowReport:
    """Measurements of one row."""

    error: str | None = None
    """Why the row cannot be used."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width."""
    bytes: dict[str, int] = field(default_factory=dict)
    """Bytes by column."""
    stride: int | None = None
    """Pixels per cell of the maps."""
    class_pixels: dict[int, int] = field(default_factory=dict)
    """Labelled pixels by class."""
    ignored: dict[str, float] = field(default_factory=dict)
    """Share of ignored cells by column."""
    instances: int = 0
    spanning: int = 0
    """Instances that lie in several classes."""


@dataclass
class ValidationReport:
    """
    Contents of a dataset's split.

    Attributes:
        rows (`int`): All rows, broken ones included.
        broken (`list[dict]`): `row`, `image_id` and `reason` of rows that cannot be used.
        duplicate_ids (`int`): Rows that repeat an earlier row's `image_id`.
        shards (`list[str]`, *optional*): Differences from the manifest; `None` if there is no manifest.
        spanning_instances (`int`): Instances with at least 1 % of their pixels in a second class.
        classes: Per class `id`, `name`, number of `images`, and mean `share` of an image's labelled pixels.
    """

    name: str
    split: str
    rows: int = 0
    broken: list[dict[str, Any]] = field(default_factory=list)
    duplicate_ids: int = 0
    shards: list[str] | None = None
    image_height: dict[str, float] = field(default_factory=dict)
    image_width: dict[str, float] = field(default_factory=dict)
    bytes_per_image: dict[str, float] = field(default_factory=dict)
    map_stride: dict[str, int] = field(default_factory=dict)
    missing_maps: dict[str, int] = field(default_factory=dict)
    ignored_share: dict[str, float] = field(default_factory=dict)
    instances_per_image: dict[str, float] = field(default_factory=dict)
    images_without_instances: int = 0
    spanning_instances: int = 0
    classes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_broken(self) -> int:
        return len(self.broken)

    @property
    def is_valid(self) -> bool:
        """Whether every row can be used and every shard is as the manifest says."""
        return self.rows > 0 and self.num_broken == 0 and self.duplicate_ids == 0 and not self.shards

    def to_dict(self) -> dict[str, Any]:
        return {"is_valid": self.is_valid, "num_broken": self.num_broken, **self.__dict__}

    def __str__(self) -> str:
        lines = [f"{self.name}, split {self.split}: {self.rows} rows, {self.num_broken} broken"]
        if self.shards is not None:
            lines.append("shards: as in the manifest" if not self.shards else f"shards: {'; '.join(self.shards)}")
        if self.duplicate_ids:
            lines.append(f"image_id: {self.duplicate_ids} rows repeat one")
        lines += [f"  row {entry['row']} ({entry['image_id']}): {entry['reason']}" for entry in self.broken[:10]]
        if self.num_broken > 10:
            lines.append(f"  and {self.num_broken - 10} more")
        if self.rows == 0:
            lines.append("expected at least one row, got none")
        if self.rows == self.num_broken:
            return "\n".join(lines)
        maps = sum(self.bytes_per_image[column] for column in MAP_COLUMNS)
        lines += [
            f"images: height {_range(self.image_height)}, width {_range(self.image_width)} pixels",
            "bytes per image: "
            + ", ".join(f"{column} {number:.0f}" for column, number in self.bytes_per_image.items())
            + f"; maps add {maps / self.bytes_per_image['image']:.1%}",
            "pixels per cell of the maps: " + ", ".join(f"{s} ({n} rows)" for s, n in self.map_stride.items()),
            f"instances per image: {_range(self.instances_per_image)}, mean {self.instances_per_image['mean']:.2f}; "
            f"{self.images_without_instances} images without; {self.spanning_instances} span several classes",
            "ignored: " + ", ".join(f"{column} {share:.2%}" for column, share in self.ignored_share.items()),
        ]
        if self.missing_maps:
            lines.append("rows without map: " + ", ".join(f"{c} {n}" for c, n in self.missing_maps.items()))
        used = [entry for entry in self.classes if entry["images"] > 0]
        absent = [entry["name"] for entry in self.classes if entry["images"] == 0]
        more = ", ..." if len(absent) > 20 else ""
        without = f"; without a pixel: {', '.join(absent[:20])}{more}" if absent else ""
        lines.append(f"classes: {len(used)} of {len(self.classes)} occur{without}")
        if len(used) < 2:
            lines.append(f"  expected at least two classes; {ONE_CLASS}")
        for entry in sorted(used, key=lambda entry: -entry["share"])[:20]:
            lines.append(f"  {entry['id']:>4} {entry['name']:<28} {entry['share']:7.2%}  in {entry['images']} images")
        if len(used) > 20:
            lines.append(f"  and {len(used) - 20} more")
        return "\n".join(lines)


def _range(summary: Mapping[str, float]) -> str:
    return f"{summary['min']:.0f} to {summary['max']:.0f} (median {summary['median']:.0f})"


def inspect_row(row: Mapping[str, Any], num_classes: int | None) -> RowReport:
    """Decode and measure a row of encoded images."""
    report = RowReport()
    column = "image"
    try:
        image = to_rgb(open_image(row["image"]))
        report.image_size = (image.height, image.width)
        report.bytes["image"] = _num_bytes(row["image"])
        maps: dict[str, np.ndarray] = {}
        for column in MAP_COLUMNS:
            if row.get(column) is None:
                continue
            stored = to_label_map(open_image(row[column], image_size=report.image_size))
            maps[column] = expand_label_map(stored, report.image_size)
            report.bytes[column] = _num_bytes(row[column])
            report.stride = map_stride((stored.shape[0], stored.shape[1]), report.image_size)
            report.ignored[column] = float((stored == IGNORE_INDEX).mean())
        if "semantic" in maps:
            column, semantic = "semantic", maps["semantic"]
            if num_classes is not None and semantic.max() >= num_classes:
                raise ValueError(f"expected class ids in [0, {num_classes}) or the ignore value, got {semantic.max()}")
            ids, pixels = np.unique(semantic[semantic >= 0], return_counts=True)
            report.class_pixels = dict(zip(ids.tolist(), pixels.tolist()))
        if "instance" in maps:
            report.instances = len(np.unique(maps["instance"][maps["instance"] > NO_INSTANCE]))
        if len(maps) == len(MAP_COLUMNS):
            report.spanning = count_spanning(maps["semantic"], maps["instance"])
    except ValueError as error:
        report.error = f"column {column!r}: {error}"
    return report


def _num_bytes(value: Any) -> int:
    if not isinstance(value, Mapping):
        return 0
    return os.path.getsize(value["path"]) if value["bytes"] is None else len(value["bytes"])


def count_spanning(semantic: np.ndarray, instance: np.ndarray) -> int:
    """Count instances with at least 1 % of their labelled pixels outside their most frequent class."""
    place = (instance > NO_INSTANCE) & (semantic >= 0)
    by_instance: dict[int, list[int]] = collections.defaultdict(list)
    pairs, counts = np.unique(np.stack([instance[place], semantic[place]]), axis=1, return_counts=True)
    for number, count in zip(pairs[0].tolist(), counts.tolist()):
        by_instance[number].append(count)
    return sum(0 < sum(c) - max(c) >= _SPANNING_SHARE * sum(c) for c in by_instance.values())


def check_manifest(root: str | Path, split: str) -> list[str] | None:
    """List the differences between a dataset's shards and its manifest; `None` if it has no manifest."""
    root = Path(root).expanduser()
    path = root / "manifest.jsonl"
    if not path.is_file():
        return None
    problems = []
    listed = set()
    for number, line in enumerate(read_lines(path, "manifest: expected the list of shards"), start=1):
        try:
            entry = json.loads(line)
            entry["split"], entry["file"], entry["sha256"]
        except (ValueError, TypeError, KeyError):
            return [f"line {number} of {path.name} is damaged"]
        if entry["split"] != split:
            continue
        listed.add(entry["file"])
        file = root / entry["file"]
        if not file.is_file():
            problems.append(f"{entry['file']} is missing")
        elif file_sha256(file) != entry["sha256"]:
            problems.append(f"{entry['file']} has another checksum")
    present = {f"data/{file.name}" for file in (root / "data").glob(f"{split}-*.parquet")}
    problems += [f"{name} is not in the manifest" for name in sorted(present - listed)]
    return problems


def validate_dataset(
    name: str, split: str = "train", num_classes: int | None = None, num_threads: int = 2, num_drawn: int = 12
) -> tuple[ValidationReport, list[dict[str, Any]]]:
    """
    Read and measure every row of a split.

    Args:
        name (`str`): A dataset, as for [`load_splits`].
        split (`str`): Name of the split.
        num_classes (`int`, *optional*): Class ids must be below it. Default: the dataset's number of classes.
        num_threads (`int`): Decoding threads.
        num_drawn (`int`): Rows to return for [`draw_contact_sheet`], evenly spaced.

    Returns:
        The report, and rows with `image`, `semantic`, `instance` as arrays and `image_id`.

    Raises:
        `FileNotFoundError`: if there is no such dataset.
        `ValueError`: if there is no such split, or a column is missing.
    """
    report = ValidationReport(name, split, shards=check_manifest(name, split))
    splits = load_splits(name, streaming=True)
    if split not in splits:
        raise ValueError(f"split: expected one of {sorted(splits)}, got {split!r}")
    rows = undecoded(splits[split])
    columns = rows.column_names or []
    missing = [name for name in ("image", *MAP_COLUMNS) if name not in columns]
    if missing:
        raise ValueError(
            f"dataset: expected the columns {['image', *MAP_COLUMNS]}, got {columns}. c2fmae label makes such a "
            "dataset"
        )
    names = semantic_id2label(rows.features) or {}
    inspect = functools.partial(inspect_row, num_classes=num_classes or len(names) or None)
    totals = _Totals()
    seen: set[str] = set()
    kept: list[Mapping[str, Any]] = []
    spacing = 1
    with ThreadPoolExecutor(num_threads) as pool, tqdm(desc="Validating", unit=" rows", mininterval=1) as progress:
        for block in rows.iter(8 * num_threads):
            batch = [dict(zip(block, values)) for values in zip(*block.values())]
            for row, result in zip(batch, pool.map(inspect, batch)):
                image_id = row.get("image_id")
                if image_id is not None:
                    report.duplicate_ids += image_id in seen
                    seen.add(image_id)
                if result.error is None:
                    totals.add(result)
                else:
                    report.broken.append({"row": report.rows, "image_id": image_id, "reason": result.error})
                # Evenly spaced rows of a stream of unknown length: keep every n-th, and double n if they are too many.
                if num_drawn > 0 and report.rows % spacing == 0:
                    kept.append(row)
                    if len(kept) > 2 * num_drawn:
                        kept, spacing = kept[::2], 2 * spacing
                report.rows += 1
                progress.update()
    totals.write(report, names)
    step = max(len(kept) / max(num_drawn, 1), 1)
    drawn = [kept[int(i * step)] for i in range(min(num_drawn, len(kept)))]
    return report, [sample for row in drawn if (sample := _decode_row(row)) is not None]


class _Totals:
    """Sums over rows, so that memory hardly grows with their number."""

    def __init__(self) -> None:
        self.sizes: dict[str, list[int]] = {"image_height": [], "image_width": [], "instances_per_image": []}
        self.bytes: dict[str, int] = collections.Counter()
        self.strides: dict[str, int] = collections.Counter()
        self.ignored: dict[str, list[float]] = {column: [] for column in MAP_COLUMNS}
        self.spanning = 0
        self.class_share: dict[int, float] = collections.defaultdict(float)
        self.class_images: dict[int, int] = collections.Counter()

    def add(self, row: RowReport) -> None:
        for values, value in zip(self.sizes.values(), (*row.image_size, row.instances)):
            values.append(value)
        for column, number in row.bytes.items():
            self.bytes[column] += number
        for column, share in row.ignored.items():
            self.ignored[column].append(share)
        if row.stride is not None:
            self.strides[str(row.stride)] += 1
        self.spanning += row.spanning
        for index, pixels in row.class_pixels.items():
            self.class_share[index] += pixels / sum(row.class_pixels.values())
            self.class_images[index] += 1

    def write(self, report: ValidationReport, names: Mapping[int, str]) -> None:
        number = len(self.sizes["image_height"])
        if number == 0:
            return
        for name, values in self.sizes.items():
            low, middle, high = np.percentile(values, [0, 50, 100]).tolist()
            setattr(report, name, {"min": low, "median": middle, "mean": float(np.mean(values)), "max": high})
        report.images_without_instances = self.sizes["instances_per_image"].count(0)
        report.bytes_per_image = {column: self.bytes[column] / number for column in ("image", *MAP_COLUMNS)}
        report.map_stride = dict(sorted(self.strides.items()))
        report.missing_maps = {c: number - len(shares) for c, shares in self.ignored.items() if len(shares) < number}
        report.ignored_share = {column: float(np.mean(shares or 0)) for column, shares in self.ignored.items()}
        report.spanning_instances = self.spanning
        total = sum(self.class_share.values()) or 1
        report.classes = [
            {
                "id": index,
                "name": names.get(index, f"class {index}"),
                "images": self.class_images[index],
                "share": self.class_share[index] / total,
            }
            for index in range(max([*names, *self.class_images], default=-1) + 1)
        ]


def _decode_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Decode a row to arrays; `None` for a broken one, which the report lists."""
    try:
        image = to_rgb(open_image(row["image"]))
        sample: dict[str, Any] = {"image": np.asarray(image), "image_id": row.get("image_id") or ""}
        for column in MAP_COLUMNS:
            if row.get(column) is not None:
                sample[column] = expand_label_map(to_label_map(open_image(row[column])), (image.height, image.width))
    except ValueError:
        return None
    return sample
