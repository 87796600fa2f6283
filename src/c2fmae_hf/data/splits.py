"""Splits of a dataset, wherever it is: a folder, Parquet files or the Hub."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

import datasets


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
