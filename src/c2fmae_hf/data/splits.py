"""Load the splits of a dataset from a folder, Parquet files or the Hub."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..utils.files import match_files
from .tars import TAR_SUFFIXES, as_rows, find_tars, load_tars


logger = logging.getLogger(__name__)


def _stream(rows: datasets.Dataset) -> datasets.IterableDataset:
    """Convert to an iterable dataset with enough shards for data-loading workers."""
    return rows.to_iterable_dataset(num_shards=max(min(64, len(rows)), 1))


# Words of file and folder names, the same as those of `datasets`.
SPLIT_WORDS = {
    "validation": {"val", "valid", "validation", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
    "train": {"train", "training"},
}


def by_split(files: Sequence[str]) -> dict[str, list[str]]:
    """
    Files by the split that their names tell, or else the folders below the one that all files share; `train` if
    neither does.
    """
    shared = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    splits: dict[str, list[str]] = {}
    for file in files:
        below = Path(os.path.relpath(file, shared or "."))
        told = (split_of(part) for part in reversed(below.parts))
        splits.setdefault(next(filter(None, told), "train"), []).append(file)
    return splits


def split_of(name: str) -> str | None:
    """The split that a word of a file's or folder's name tells."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in SPLIT_WORDS.items() if words & known), None)


def check_parquet(files: Sequence[str | os.PathLike], what: str) -> None:
    """
    Check that Parquet files can be read and have rows.

    Args:
        files: Parquet files.
        what (`str`): What they are for; messages begin with it.

    Raises:
        `ValueError`: naming the file, if one is damaged, or if they have no rows.
    """
    rows = 0
    for file in files:
        try:
            if not os.path.isfile(file):  # opening a pipe would wait
                raise OSError("it is not a file")
            rows += pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{what}: expected a Parquet file, got {file}: {error}") from None
    if not rows:
        raise ValueError(f"{what}: expected at least one row, got none in {', '.join(map(str, files[:3]))}")


def load_splits(name: str, config_name: str | None = None, streaming: bool = False) -> dict[str, Any]:
    """
    Load the splits of a dataset.

    Args:
        name (`str`): A folder written by `save_to_disk`; Parquet or WebDataset tar files (a path, wildcards allowed),
            see [`by_split`]; a folder of such tar files, see [`load_tars`]; or else what `datasets.load_dataset`
            takes: a folder, or the name of a dataset on the Hub.
        config_name (`str`, *optional*): Configuration of a dataset on the Hub.
        streaming (`bool`): Whether to read rows on demand.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset` by split name.

    Raises:
        `FileNotFoundError`: if a path or pattern matches nothing.
        `ValueError`: naming the file, if a Parquet or tar file is damaged, or if there are no rows.
    """
    path = Path(name).expanduser()
    name = str(path) if name.startswith("~") else name
    if config_name is not None and name.endswith((".parquet", *TAR_SUFFIXES)):
        raise ValueError(f"dataset: expected no configuration of files, {name!r}, got {config_name!r}")
    if name.endswith(".parquet"):
        files = by_split(match_files(name))
        if not files:
            raise FileNotFoundError(f"dataset: expected Parquet files at {name!r}, found none")
        for split, parts in files.items():
            check_parquet(parts, f"dataset, split {split!r}")
            files[split] = [glob.escape(file) for file in parts]
        return dict(datasets.load_dataset("parquet", data_files=files, streaming=streaming))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(name)
        splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return {split: _stream(rows) for split, rows in splits.items()} if streaming else splits
    parquet = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]) if path.is_dir() else []
    if not parquet and (tars := find_tars(name)):
        return load_tars(by_split(tars), streaming)
    if name.endswith(TAR_SUFFIXES) or (name.startswith((".", "/", "~")) and not path.exists()):
        raise FileNotFoundError(f"dataset: expected a folder, Parquet or tar files at {name!r}, found nothing")
    if path.is_file():
        raise ValueError(
            f"dataset: expected a folder, Parquet or tar files or a name on the Hub, got the file {name!r}"
        )
    if parquet:
        check_parquet(parquet, f"dataset {name!r}")
    try:
        loaded = datasets.load_dataset(name, config_name, streaming=streaming)
    except (yaml.YAMLError, UnicodeDecodeError) as error:  # from the card
        raise ValueError(f"dataset: expected {path / 'README.md'} to begin with YAML, or none, got: {error}") from None
    except (ConnectionError, FileNotFoundError) as error:
        if path.exists():
            raise
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"dataset: found no folder {name!r} here, and could not load it from the Hub: {reason}"
        ) from error
    return {split: as_rows(rows) for split, rows in loaded.items()}


def load_train_and_validation(
    name: str,
    train_split: str = "train",
    validation_split: str = "validation",
    max_train_samples: int | None = None,
    seed: int = 0,
    validation_share: float = 0.2,
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    The two splits that fine-tuning needs.

    Args:
        name (`str`): As for [`load_splits`].
        train_split, validation_split (`str`): Their names.
        max_train_samples (`int`, *optional*): Number of training rows to draw at random.
        seed (`int`): Seed of that draw and of held-out rows.
        validation_share (`float`): Share of the training rows to hold out if there is no split `validation`, or it is
            the training split, stratified by `label` if there is one. The log reports it.

    Raises:
        `ValueError`: if a split is not there, or there are too few rows to hold some out.
    """
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"max_train_samples: expected at least 1, got {max_train_samples}")
    splits = load_splits(name)
    for split in (train_split, validation_split):
        if split not in splits and split != "validation":
            raise ValueError(f"dataset: expected the split {split!r}, got {sorted(splits)}")
    train = splits[train_split]
    if validation_split in splits and validation_split != train_split:
        validation = splits[validation_split]
    else:
        train, validation = hold_out(train, validation_share, seed)
        is_same = validation_split == train_split
        logger.warning(
            "%s: %d of the %d rows of %r are held out.",
            f"{name} trains on the split it scores" if is_same else f"{name} has no split {validation_split!r}",
            *(len(validation), len(train) + len(validation), train_split),
        )
    if max_train_samples is not None:
        train = train.shuffle(seed=seed).select(range(min(max_train_samples, len(train))))
    return train, validation


def hold_out(rows: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Hold out a random share of the rows, stratified by `label` if rows have one and every class has enough. Returns the
    rows to train on and the held-out rows.

    Raises:
        `ValueError`: if the share is not in (0, 1), or there are not two rows.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share: expected a number between 0 and 1, got {share}")
    if len(rows) < 2:
        raise ValueError(f"dataset: expected at least 2 rows to hold some out, got {len(rows)}")
    number = min(max(round(share * len(rows)), 1), len(rows) - 1)
    feature = rows.features.get("label")
    if isinstance(feature, datasets.ClassLabel) or "int" in getattr(feature, "dtype", ""):
        labels = rows["label"]
        ranks = {
            label: rank for rank, label in enumerate(sorted(set(labels), key=lambda label: (label is None, label)))
        }
        classes = datasets.ClassLabel(num_classes=len(ranks))
        numbered = datasets.Dataset.from_dict(
            {"row": list(range(len(rows))), "label": [ranks[label] for label in labels]},
            features=datasets.Features(row=datasets.Value("int64"), label=classes),
        )
        try:
            parts = numbered.train_test_split(number, seed=seed, stratify_by_column="label")
            return rows.select(parts["train"]["row"]), rows.select(parts["test"]["row"])
        except ValueError:
            logger.warning("Rows are held out at random, not by class: too few rows for %d classes.", len(ranks))
    parts = rows.train_test_split(number, seed=seed)
    return parts["train"], parts["test"]
