"""
Rows of a multi-granular dataset to samples for the collator: decoding, checks, and each sample's own randomness.

A row holds `image` and, as far as they are needed, the label maps `semantic` and `instance` (single-channel PNG of the
image's size, or of that size at a stride; a row without one holds `None`); `image_id` is used in messages if present.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm

from .constants import IGNORE_INDEX
from .decoding import expand_label_map, open_image, to_label_map, to_rgb
from .progress import SharedProgress
from .randomness import sample_seeds
from .transforms import JointTransform


logger = logging.getLogger(__name__)

MAP_COLUMNS = ("semantic", "instance")
OnBadRow = Literal["raise", "skip"]
# So many bad rows one after another are no accident.
MAX_SKIPPED = 1000
# So many bad rows are named in the log; what was named is kept in memory.
MAX_TOLD = 1000
# A list of `ClassLabel`: the classes that occur in a row. Its feature carries the names of all classes.
CLASSES_COLUMN = "semantic_classes"


class SampleKey(NamedTuple):
    """What determines a sample: its row, and where it stands in training (`progress` is `None` in evaluation)."""

    index: int  # type: ignore[assignment]
    epoch: int
    progress: float | None


class EpochSampler(Sampler[SampleKey]):
    """
    A new order of the rows in every epoch, each with its epoch and its own training progress. They travel to
    DataLoader workers with the index, so that samples do not depend on how far ahead a worker is.

    Args:
        num_rows (`int`): Rows of the dataset.
        progress ([`SharedProgress`]): Read whenever an epoch starts.
        seed (`int`): The order is a function of (seed, epoch).
    """

    def __init__(self, num_rows: int, progress: SharedProgress, seed: int) -> None:
        self.num_rows, self.progress, self.seed = num_rows, progress, seed

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.progress.epoch
        generator = torch.Generator().manual_seed(int(sample_seeds(self.seed, [epoch], [-1])[0]) >> 1)
        for position, index in enumerate(torch.randperm(self.num_rows, generator=generator).tolist()):
            yield SampleKey(index, epoch, self.progress.at(position))


class RowReader:
    """Decodes and checks one row; shared by the map-style and the streaming dataset."""

    def __init__(
        self,
        transform: JointTransform,
        map_columns: Sequence[str],
        num_semantic_classes: int | None,
        seed: int,
        on_bad_row: OnBadRow,
    ) -> None:
        if on_bad_row not in get_args(OnBadRow):
            raise ValueError(f"on_bad_row: expected one of {get_args(OnBadRow)}, got {on_bad_row!r}")
        self.on_bad_row = on_bad_row
        self.told: set[Hashable] = set()
        self.transform = transform
        self.map_columns = tuple(map_columns)
        self.num_semantic_classes = num_semantic_classes
        self.seed = seed

    def check_columns(self, column_names: Sequence[str]) -> None:
        missing = [name for name in ("image", *self.map_columns) if name not in column_names]
        if missing:
            raise ValueError(
                f"dataset: expected the columns {['image', *self.map_columns]}, got {list(column_names)}; "
                f"missing {missing}. Rename the columns, or, for lack of label maps, pre-train with "
                'granularities=("image",) and random masking.'
            )

    def __call__(
        self, row: Mapping[str, Any], key: SampleKey, index: int | None = None, num_skipped: int = 0
    ) -> dict[str, Any]:
        """The sample of a row; `index` is the row's own number where it stands in for another."""
        index = key.index if index is None else index
        label = f"row {index}" + (f" ({row['image_id']})" if row.get("image_id") else "")
        column = "image"
        try:
            image = to_rgb(open_image(row["image"]))
            maps = {}
            for column in self.map_columns:
                if row[column] is None:
                    continue
                label_map = to_label_map(open_image(row[column]))
                if column == "semantic":
                    self._check_classes(label_map)
                maps[column] = expand_label_map(label_map, (image.height, image.width))
        except ValueError as error:
            raise ValueError(f"{label}, column {column!r}: {error}") from error
        # torch's seeds are signed.
        seed = int(sample_seeds(self.seed, [key.epoch], [key.index])[0]) >> 1
        return {
            **self.transform(image, maps.get("semantic"), maps.get("instance"), seed),
            "sample_key": key,
            "image_id": str(row.get("image_id") or f"row {index}"),
            "num_skipped": num_skipped,
        }

    def pass_over(self, row: Hashable, number: int, error: ValueError) -> None:
        """
        Go on after a bad row, or raise its error.

        Args:
            row: What tells it from others, so that each is logged once by each worker process, up to `MAX_TOLD` rows.
            number (`int`): Of bad rows one after another.
        """
        if self.on_bad_row == "raise":
            raise error
        if number >= MAX_SKIPPED:
            raise ValueError(f"dataset: expected rows that can be read, got {number} bad ones in a row: {error}")
        if row in self.told or len(self.told) >= MAX_TOLD:
            return
        self.told.add(row)
        logger.warning("Skipped: %s", error)
        if len(self.told) == MAX_TOLD:
            logger.warning("Skipped %d rows: no more are named, they are counted only", MAX_TOLD)

    def _check_classes(self, semantic: np.ndarray) -> None:
        if self.num_semantic_classes is not None and semantic.max() >= self.num_semantic_classes:
            raise ValueError(
                f"expected class ids in [0, num_semantic_classes={self.num_semantic_classes}) or the ignore value, "
                f"got {semantic.max()}"
            )


def undecoded(rows: Any) -> Any:
    """The same rows with image columns left encoded, so that a corrupt one is reported with its row."""
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image) and feature.decode:
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


class C2FMAEDataset(Dataset):
    """
    A map-style dataset for pre-training.

    Args:
        rows (`datasets.Dataset`, or a sequence of dictionaries): See this module's head.
        transform ([`JointTransform`]): Of images and maps.
        map_columns: Which label maps are read; a column that is not there is an error.
        num_semantic_classes (`int`, *optional*): Class ids are checked against it.
        seed (`int`): Crops and flips are a function of (seed, epoch, row).
        progress ([`SharedProgress`], *optional*): Given for training. Without it the dataset is for evaluation:
            every epoch sees the same samples.
        on_bad_row (`str`): `raise`, or `skip`: the next good row stands in for one that cannot be used, with crops and
            masks of its own; a sample's `num_skipped` counts the bad ones, and the log names each once for each
            worker process that meets it.

    Raises:
        `ValueError`: if there are no rows or columns are missing; on access, if a row cannot be decoded or its maps do
            not fit, naming row and column.
    """

    def __init__(
        self,
        rows: datasets.Dataset | Sequence[Mapping[str, Any]],
        transform: JointTransform,
        map_columns: Sequence[str] = MAP_COLUMNS,
        num_semantic_classes: int | None = None,
        seed: int = 0,
        progress: SharedProgress | None = None,
        on_bad_row: OnBadRow = "raise",
    ) -> None:
        if len(rows) == 0:
            raise ValueError("dataset: expected at least one row, got an empty dataset")
        self.read_row = RowReader(transform, map_columns, num_semantic_classes, seed, on_bad_row)
        self.on_bad_row = on_bad_row
        if isinstance(rows, datasets.Dataset):
            self.read_row.check_columns(rows.column_names)
            rows = undecoded(rows)
        else:
            self.read_row.check_columns(list(rows[0]))
        self.rows = rows
        self.progress = progress

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """A sample; for a plain index, at the current epoch and progress."""
        if not isinstance(key, SampleKey):
            index = int(key)
            key = SampleKey(index, 0, None)
            if self.progress is not None:
                key = SampleKey(index, self.progress.epoch, self.progress.current)
        for num_skipped in range(len(self.rows)):
            index = (key.index + num_skipped) % len(self.rows)
            try:
                return self.read_row(self.rows[index], key, index, num_skipped)
            except ValueError as error:
                self.read_row.pass_over(index, num_skipped + 1, error)
        raise ValueError(f"dataset: expected rows that can be read, got {len(self.rows)} that all cannot")


def semantic_id2label(features: datasets.Features | None) -> dict[int, str] | None:
    """
    The names of the semantic classes, if the dataset carries them: the `ClassLabel` of its column `semantic_classes`
    (a list of the classes that occur in a row).
    """
    feature = (features or {}).get(CLASSES_COLUMN)
    class_label = getattr(feature, "feature", None)
    if not isinstance(class_label, datasets.ClassLabel):
        return None
    return dict(enumerate(class_label.names))


def count_semantic_classes(rows: datasets.Dataset, on_bad_row: OnBadRow = "raise") -> int:
    """
    Number of semantic classes of a dataset that does not carry their names: one more than the highest id in its maps.
    Reads every semantic map once.

    Args:
        rows: With a column `semantic`.
        on_bad_row (`str`): `raise`, or `skip` for maps that cannot be decoded.

    Raises:
        `ValueError`: if a map cannot be decoded, naming the row, or if all of them are empty.
    """
    highest = IGNORE_INDEX
    maps = undecoded(rows.select_columns(["semantic"]))
    for index, row in enumerate(tqdm(maps, desc="Counting semantic classes", unit=" maps")):
        if row["semantic"] is None:
            continue
        try:
            highest = max(highest, int(to_label_map(open_image(row["semantic"])).max()))
        except ValueError as error:
            if on_bad_row == "raise":
                raise ValueError(f"row {index}, column 'semantic': {error}") from error
    if highest < 0:
        raise ValueError("dataset, column 'semantic': expected at least one class id, got only the ignore value")
    return highest + 1


def _stream(rows: datasets.Dataset) -> datasets.IterableDataset:
    """With enough shards for data-loading workers to share."""
    return rows.to_iterable_dataset(num_shards=max(min(64, len(rows)), 1))


def load_splits(name: str, config_name: str | None = None, streaming: bool = False) -> dict[str, Any]:
    """
    The splits of a dataset, wherever it is.

    Args:
        name (`str`): A folder written by `save_to_disk`; Parquet files (a path, wildcards allowed), where a file name
            with `val` or `test` between separators tells the split and everything else is `train`; or whatever
            `datasets.load_dataset` takes: a folder, or the name of a dataset on the Hub.
        config_name (`str`, *optional*): Configuration of a dataset on the Hub.
        streaming (`bool`): Whether rows are read as they are needed.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset` by split name.

    Raises:
        `FileNotFoundError`: if a path or pattern matches nothing.
    """
    path = Path(name)
    if name.endswith(".parquet"):
        files: dict[str, list[str]] = {}
        for file in sorted(glob.glob(name)):
            words = re.split(r"[^a-z]+", Path(file).stem.lower())
            is_validation = any(word in words for word in ("val", "valid", "validation", "dev"))
            files.setdefault("validation" if is_validation else "test" if "test" in words else "train", []).append(
                file
            )
        if not files:
            raise FileNotFoundError(f"dataset: expected Parquet files at {name!r}, found none")
        return dict(datasets.load_dataset("parquet", data_files=files, streaming=streaming))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(name)
        splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return {split: _stream(rows) for split, rows in splits.items()} if streaming else splits
    if name.startswith((".", "/", "~")) and not path.exists():
        raise FileNotFoundError(f"dataset: expected a folder or Parquet files at {name!r}, found nothing")
    return dict(datasets.load_dataset(name, config_name, streaming=streaming))


def load_train_and_validation(
    name: str,
    train_split: str = "train",
    validation_split: str = "validation",
    max_train_samples: int | None = None,
    seed: int = 0,
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    The two splits that fine-tuning needs.

    Args:
        name (`str`): As for [`load_splits`].
        train_split, validation_split (`str`): Their names.
        max_train_samples (`int`, *optional*): So many training rows, drawn at random.
        seed (`int`): Of that draw.

    Raises:
        `ValueError`: if a split is not there.
    """
    splits = load_splits(name)
    for split in (train_split, validation_split):
        if split not in splits:
            raise ValueError(f"dataset: expected the split {split!r}, got {sorted(splits)}")
    train, validation = splits[train_split], splits[validation_split]
    if max_train_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(max_train_samples, len(train))))
    return train, validation
