"""Opening a source of images by name: a path, a pattern or a dataset."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from huggingface_hub import HfApi

from ...data.splits import check_parquet, load_splits
from ...data.tars import TAR_SUFFIXES, find_tars
from ...utils.files import match_files
from .base import ImageSource, of_split
from .folder import IMAGE_SUFFIXES, FolderSource
from .rows import ColumnReader, DatasetSource, StreamSource
from .tar import TarSource


def open_source(
    name: str,
    split: str | None = None,
    config_name: str | None = None,
    streaming: bool = False,
    class_folders: bool = False,
    label_column: str = "label",
    columns: Sequence[str] = (),
) -> ImageSource:
    """
    Open a source of images.

    Args:
        name (`str`): Tar or Parquet files (wildcards allowed), a folder of images, of tar or of Parquet files, or
            written by `save_to_disk`, or a dataset on the Hub.
        split (`str`, *optional*): Split of a dataset; of tar and Parquet files, those whose names tell it. Default:
            the only one, or `train`.
        config_name (`str`, *optional*): Configuration of a dataset on the Hub.
        streaming (`bool`): Read a dataset on the Hub as it is needed instead of downloading it first.
        class_folders (`bool`): In a folder of images, the first folder below it is the class of the whole image.
        label_column, columns: Of a dataset, see [`DatasetSource`].

    Raises:
        `FileNotFoundError`: if there is nothing of that name.
        `ValueError`: if the split does not exist or there is no column of images; for a split of a folder of images,
            or folders of classes of anything else.
    """
    path = Path(name).expanduser()
    if name.endswith(TAR_SUFFIXES):
        _refuse_class_folders(class_folders, "tar files")
        return TarSource(name, split)
    if name.endswith(".parquet"):
        files = match_files(path)
        if not files:
            raise FileNotFoundError(f"source: expected Parquet files at {name!r}, found none")
        _refuse_class_folders(class_folders, "Parquet files")
        return _open_parquet(of_split(files, split), label_column, columns)
    is_saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    holds_parquet = any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))
    if (path.is_dir() and not is_saved and not holds_parquet) or (
        not path.exists() and name.startswith((".", "/", "~"))
    ):
        if find_tars(name) and not class_folders and not _has_photographs(path):
            return TarSource(name, split)
        if split is not None:
            raise ValueError(f"source split: expected none of a folder of images, {name!r}, got {split!r}")
        return FolderSource(path, class_folders)
    _refuse_class_folders(class_folders, "a dataset")
    # Local Parquet is read in place: `datasets` would make a copy of it.
    splits = load_splits(str(path) if path.exists() else name, config_name, streaming or holds_parquet)
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
    if split not in splits:
        raise ValueError(f"source split: expected one of {sorted(splits)}, got {split!r}")
    rows = splits[split]
    source_class = StreamSource if isinstance(rows, datasets.IterableDataset) else DatasetSource
    source = source_class(rows, label_column, columns)
    if streaming and not path.exists():
        revision = HfApi().dataset_info(name).sha
        source.origin = {"name": name, "config": config_name, "split": split, "revision": revision}
    return source


def _has_photographs(folder: Path) -> bool:
    """Whether there is an image in a folder or below it."""
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*"))


def _refuse_class_folders(class_folders: bool, what: str) -> None:
    if class_folders:
        raise ValueError(f"class_folders: expected a folder of images, got {what}, whose classes are a column")


def _open_parquet(files: Sequence[str], label_column: str, columns: Sequence[str]) -> StreamSource:
    """Parquet files that have the needed columns; their other columns may differ."""
    check_parquet(files, "source")
    schemas = [pq.read_schema(file) for file in files]
    features = datasets.Features.from_arrow_schema(schemas[0])
    needed = ColumnReader(features, label_column, columns).needed
    for file, schema in zip(files, schemas):
        missing = [name for name in needed if name not in schema.names]
        if missing:
            raise ValueError(f"source: expected the columns {needed} in every file, {file} lacks {missing}")
    data_files = [glob.escape(file) for file in files]
    rows = datasets.load_dataset("parquet", data_files=data_files, split="train", streaming=True, columns=needed)
    source = StreamSource(rows, label_column, columns, files)
    source.features = features
    return source
