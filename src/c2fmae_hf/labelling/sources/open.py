"""Whatever a user may name as a source of images."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.splits import load_splits
from .base import ImageSource
from .folder import FolderSource
from .rows import DatasetSource, StreamSource, _ColumnReader
from .tar import TarSource


def _open_parquet(files: Sequence[str], label_column: str, columns: Sequence[str]) -> StreamSource:
    """Parquet files that have the needed columns; what else they have may differ."""
    reader: _ColumnReader | None = None
    features = datasets.Features()
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"source: expected a Parquet file, got {file}: {error}") from error
        if reader is None:
            features = datasets.Features.from_arrow_schema(schema)
            reader = _ColumnReader(features, label_column, columns)
        missing = [name for name in reader.needed if name not in schema.names]
        if missing:
            raise ValueError(f"source: expected the columns {reader.needed} in every file, {file} lacks {missing}")
    assert reader is not None, "there are files"
    rows = datasets.load_dataset(
        "parquet", data_files=list(files), split="train", streaming=True, columns=reader.needed
    )
    source = StreamSource(rows, label_column, columns, files)
    source.features = features
    return source


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
    The source behind a name.

    Args:
        name (`str`): Tar files or Parquet files (wildcards allowed); a folder written by `save_to_disk`, one that
            holds Parquet files, or else one of images; or the name of a dataset on the Hub.
        split (`str`, *optional*): Split of a dataset; by default its only one, or `train`.
        config_name (`str`, *optional*): Configuration of a dataset on the Hub.
        streaming (`bool`): Whether a dataset on the Hub is read as it is needed.
        class_folders (`bool`): Of a folder of images: the first folder below names the class of the whole image.
        label_column, columns: Of datasets, see [`DatasetSource`].

    Raises:
        `FileNotFoundError`: if there is nothing of that name.
        `ValueError`: if the split does not exist or there is no column of images.
    """
    path = Path(name).expanduser()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return TarSource(name)
    if name.endswith(".parquet"):
        files = sorted(glob.glob(str(path)))
        if not files:
            raise FileNotFoundError(f"source: expected Parquet files at {name!r}, found none")
        return _open_parquet(files, label_column, columns)
    is_saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    holds_parquet = any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))
    if (path.is_dir() and not is_saved and not holds_parquet) or (
        not path.exists() and name.startswith((".", "/", "~"))
    ):
        return FolderSource(path, class_folders)
    # Local Parquet is read in place: `datasets` would make a copy of it.
    splits = load_splits(str(path) if path.exists() else name, config_name, streaming or holds_parquet)
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
    if split not in splits:
        raise ValueError(f"source split: expected one of {sorted(splits)}, got {split!r}")
    rows = splits[split]
    source_class = StreamSource if isinstance(rows, datasets.IterableDataset) else DatasetSource
    return source_class(rows, label_column, columns)
