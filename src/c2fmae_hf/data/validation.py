"""Read a multi-granular dataset back: is it whole, what is in it, what does it look like."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..constants import IGNORE_INDEX, NO_INSTANCE
from ..images import expand_label_map, map_stride, open_image, to_label_map, to_rgb
from ..utils.files import file_sha256
from .rows import MAP_COLUMNS, semantic_id2label, undecoded
from .splits import load_splits


# Fewer pixels of a second class than this are no contradiction: an outline is never exact.
_SPANNING_SHARE = 0.01
# Broken rows that are named; all are counted.
_NAMED_ROWS = 1000


@dataclass
class RowReport:
    """What one row says of itself."""

    error: str | None = None
    image_size: tuple[int, int] = (0, 0)
    bytes: dict[str, int] = field(default_factory=dict)
    stride: int | None = None
    class_cells: np.ndarray | None = None
    ignored: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    instances: int = 0
    spanning: int = 0


@dataclass
class ValidationReport:
    """
    What a split of a dataset holds.

    Attributes:
        name (`str`), split (`str`): Which.
        rows (`int`): All rows, broken ones included.
        broken (`list[dict]`): `row`, `image_id` and `reason` of rows that cannot be used, the first 1000 of them.
        num_broken (`int`): All of them.
        duplicate_ids (`int`): Rows whose `image_id` an earlier row has.
        shards: What the manifest says that is not so; `None` if there is no manifest.
        classes: Per class `id`, `name`, `images` that hold it, and its `share` of all labelled cells.
        ...: See `to_dict`.
    """

    name: str
    split: str
    rows: int = 0
    num_broken: int = 0
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
    """Instances of whose cells at least 1 % lie in a second class."""
    classes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """Whether every row can be used and every shard is as the manifest says."""
        return self.rows > 0 and self.num_broken == 0 and self.duplicate_ids == 0 and not self.shards

    def to_dict(self) -> dict[str, Any]:
        return {"is_valid": self.is_valid, **self.__dict__}

    def __str__(self) -> str:
        lines = [f"{self.name}, split {self.split}: {self.rows} rows, {self.num_broken} broken"]
        if self.shards is not None:
            lines.append("shards: as in the manifest" if not self.shards else f"shards: {'; '.join(self.shards)}")
        if self.duplicate_ids:
            lines.append(f"image_id: {self.duplicate_ids} rows repeat one")
        lines += [f"  row {entry['row']} ({entry['image_id']}): {entry['reason']}" for entry in self.broken[:10]]
        if self.num_broken > 10:
            lines.append(f"  and {self.num_broken - 10} more")
        if self.rows == self.num_broken:
            return "\n".join(lines)
        lines += [
            f"images: height {_range(self.image_height)}, width {_range(self.image_width)} pixels",
            "bytes per image: "
            + ", ".join(f"{column} {number:.0f}" for column, number in self.bytes_per_image.items())
            + f"; maps add {self._map_share():.1%}",
            "pixels per cell of the maps: " + ", ".join(f"{s} ({n} rows)" for s, n in self.map_stride.items()),
            f"instances per image: {_range(self.instances_per_image)}, mean {self.instances_per_image['mean']:.2f}; "
            f"{self.images_without_instances} images without; {self.spanning_instances} span several classes",
            "ignored: " + ", ".join(f"{column} {share:.2%}" for column, share in self.ignored_share.items()),
        ]
        if self.missing_maps:
            lines.append("rows without map: " + ", ".join(f"{c} {n}" for c, n in self.missing_maps.items()))
        used = [entry for entry in self.classes if entry["images"] > 0]
        lines.append(f"classes: {len(used)} of {len(self.classes)} occur")
        for entry in sorted(used, key=lambda entry: -entry["share"])[:20]:
            lines.append(f"  {entry['id']:>4} {entry['name']:<28} {entry['share']:7.2%}  in {entry['images']} images")
        if len(used) > 20:
            lines.append(f"  and {len(used) - 20} more")
        return "\n".join(lines)

    def _map_share(self) -> float:
        maps = sum(number for column, number in self.bytes_per_image.items() if column != "image")
        return maps / self.bytes_per_image["image"]


def _range(summary: Mapping[str, float]) -> str:
    return f"{summary['min']:.0f} to {summary['max']:.0f} (median {summary['median']:.0f})"


def inspect_row(row: Mapping[str, Any], num_classes: int | None) -> RowReport:
    """Decode a row (encoded images) and measure it; what makes it unusable is in `error`."""
    report = RowReport()
    column = "image"
    try:
        image = to_rgb(open_image(row["image"]))
        report.image_size = (image.height, image.width)
        maps: dict[str, np.ndarray] = {}
        for column in ("image", *MAP_COLUMNS):
            value = row.get(column)
            if isinstance(value, Mapping):
                report.bytes[column] = len(value["bytes"] or b"")
            if column == "image":
                continue
            if value is None:
                report.missing.append(column)
                continue
            stored = to_label_map(open_image(value))
            maps[column] = expand_label_map(stored, report.image_size)
            report.stride = map_stride((stored.shape[0], stored.shape[1]), report.image_size)
            report.ignored[column] = float((stored == IGNORE_INDEX).mean())
        column = "semantic"
        if "semantic" in maps:
            semantic = maps["semantic"]
            if num_classes is not None and semantic.max() >= num_classes:
                raise ValueError(f"expected class ids in [0, {num_classes}) or the ignore value, got {semantic.max()}")
            report.class_cells = np.bincount(semantic[semantic >= 0], minlength=num_classes or 0)
        if "instance" in maps:
            report.instances = len(np.unique(maps["instance"][maps["instance"] > NO_INSTANCE]))
            if "semantic" in maps:
                report.spanning = count_spanning(maps["semantic"], maps["instance"])
    except ValueError as error:
        report.error = f"column {column!r}: {error}"
    return report


def count_spanning(semantic: np.ndarray, instance: np.ndarray) -> int:
    """Instances of which at least 1 % of the labelled pixels lie outside their commonest class."""
    place = (instance > NO_INSTANCE) & (semantic >= 0)
    if not place.any():
        return 0
    width = int(semantic.max()) + 1
    pairs, counts = np.unique(instance[place].astype(np.int64) * width + semantic[place], return_counts=True)
    total: dict[int, int] = collections.Counter()
    commonest: dict[int, int] = {}
    for pair, count in zip((pairs // width).tolist(), counts.tolist()):
        total[pair] += count
        commonest[pair] = max(commonest.get(pair, 0), count)
    return sum(0 < total[i] - commonest[i] >= _SPANNING_SHARE * total[i] for i in total)


def check_manifest(root: str | Path, split: str) -> list[str] | None:
    """Which shards of a labelled dataset are not as its manifest says; `None` if it has no manifest."""
    root = Path(root)
    path = root / "manifest.jsonl"
    if not path.is_file():
        return None
    problems = []
    listed = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
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
    Read every row of a split.

    Args:
        name (`str`): As for [`load_splits`].
        split (`str`): Which split.
        num_classes (`int`, *optional*): Class ids are checked against it; by default the dataset's own number.
        num_threads (`int`): Threads that decode.
        num_drawn (`int`): Rows to return for [`draw_contact_sheet`], evenly spaced.

    Returns:
        The report, and rows with `image`, `semantic`, `instance` as arrays and `image_id`.

    Raises:
        `FileNotFoundError`: if there is no such dataset.
        `ValueError`: if there is no such split.
    """
    problems = check_manifest(name, split)
    splits = load_splits(name, streaming=True)
    if split not in splits:
        raise ValueError(f"split: expected one of {sorted(splits)}, got {split!r}")
    rows = undecoded(splits[split])
    names = semantic_id2label(rows.features)
    if num_classes is None and names is not None:
        num_classes = len(names)
    report = ValidationReport(name, split, shards=problems)
    kept: list[Mapping[str, Any]] = []
    spacing = 1
    totals = _Totals()
    seen: set[str] = set()
    with ThreadPoolExecutor(num_threads) as pool, tqdm(desc="Validating", unit=" rows", mininterval=1) as progress:
        pending: collections.deque = collections.deque()

        def take(limit: int) -> None:
            while len(pending) > limit:
                number, image_id, future = pending.popleft()
                result = future.result()
                if result.error is not None:
                    report.num_broken += 1
                    if len(report.broken) < _NAMED_ROWS:
                        report.broken.append({"row": number, "image_id": image_id, "reason": result.error})
                else:
                    totals.add(result)
                progress.update()

        for number, row in enumerate(rows):
            image_id = row.get("image_id")
            if image_id is not None:
                report.duplicate_ids += image_id in seen
                seen.add(image_id)
            report.rows += 1
            pending.append((number, image_id, pool.submit(inspect_row, row, num_classes)))
            # Evenly spaced rows of a stream of unknown length: keep every n-th, and double n when there are too many.
            if num_drawn > 0 and number % spacing == 0:
                kept.append(row)
                if len(kept) > 2 * num_drawn:
                    kept, spacing = kept[::2], 2 * spacing
            take(limit=8 * num_threads)
        take(limit=0)
    totals.write(report, names)
    step = max(len(kept) / max(num_drawn, 1), 1)
    drawn = [kept[int(i * step)] for i in range(min(num_drawn, len(kept)))]
    return report, [sample for row in drawn if (sample := _decode_row(row)) is not None]


class _Totals:
    """Sums over rows, so that memory does not grow with what a row holds."""

    def __init__(self) -> None:
        self.sizes: dict[str, list[int]] = {"height": [], "width": [], "instances": []}
        self.bytes: collections.Counter[str] = collections.Counter()
        self.strides: collections.Counter[str] = collections.Counter()
        self.missing: collections.Counter[str] = collections.Counter()
        self.ignored: collections.Counter[str] = collections.Counter()
        self.maps: collections.Counter[str] = collections.Counter()
        self.spanning = 0
        self.class_share = np.zeros(0)
        self.class_images = np.zeros(0, dtype=int)

    def add(self, row: RowReport) -> None:
        for name, value in zip(self.sizes, (*row.image_size, row.instances)):
            self.sizes[name].append(value)
        self.bytes.update(row.bytes)
        self.missing.update(row.missing)
        for column, share in row.ignored.items():
            self.ignored[column] += share  # type: ignore[assignment]
            self.maps[column] += 1
        if row.stride is not None:
            self.strides[str(row.stride)] += 1
        self.spanning += row.spanning
        if row.class_cells is not None:
            longer = max(len(row.class_cells) - len(self.class_share), 0)
            self.class_share = np.pad(self.class_share, (0, longer))
            self.class_images = np.pad(self.class_images, (0, longer))
            number = len(row.class_cells)
            self.class_share[:number] += row.class_cells / max(row.class_cells.sum(), 1)
            self.class_images[:number] += row.class_cells > 0

    def write(self, report: ValidationReport, names: Mapping[int, str] | None) -> None:
        number = len(self.sizes["height"])
        if number == 0:
            return
        height, width, instances = (
            {
                "min": float(np.min(values)),
                "median": float(np.median(values)),
                "mean": float(np.mean(values)),
                "max": float(np.max(values)),
            }
            for values in self.sizes.values()
        )
        report.image_height, report.image_width, report.instances_per_image = height, width, instances
        report.images_without_instances = self.sizes["instances"].count(0)
        report.bytes_per_image = {column: self.bytes[column] / number for column in ("image", *MAP_COLUMNS)}
        report.map_stride = dict(sorted(self.strides.items()))
        report.missing_maps = dict(sorted(self.missing.items()))
        report.ignored_share = {column: self.ignored[column] / max(self.maps[column], 1) for column in MAP_COLUMNS}
        report.spanning_instances = self.spanning
        longer = max(len(names or ()) - len(self.class_share), 0)
        share = np.pad(self.class_share, (0, longer)) / max(self.class_share.sum(), 1e-12)
        images = np.pad(self.class_images, (0, longer))
        report.classes = [
            {
                "id": index,
                "name": (names or {}).get(index, f"class {index}"),
                "images": int(images[index]),
                "share": float(share[index]),
            }
            for index in range(len(share))
        ]


def _decode_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        image = to_rgb(open_image(row["image"]))
        sample: dict[str, Any] = {"image": np.asarray(image), "image_id": row.get("image_id") or ""}
        for column in MAP_COLUMNS:
            if row.get(column) is not None:
                sample[column] = expand_label_map(to_label_map(open_image(row[column])), (image.height, image.width))
    except ValueError:
        return None  # in the report
    return sample
