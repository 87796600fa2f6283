"""WebDataset tar files with photographs and label maps: `a.jpg`, `a.semantic.png`, `a.instance.png`."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from ..images import IMAGE_FORMATS
from ..utils.files import match_files
from .rows import MAP_COLUMNS


TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)
# Members of each file whose names tell its columns.
_MEMBERS = 48


def find_tars(name: str) -> list[str]:
    """Tar files at a path (wildcards allowed) or directly in a folder, sorted; none for any other name."""
    path = Path(name).expanduser()
    if path.is_dir():
        return sorted(str(file) for file in path.iterdir() if file.name.endswith(TAR_SUFFIXES) and file.is_file())
    if not name.endswith(TAR_SUFFIXES):
        return []
    return match_files(path)


def tar_columns(file: str) -> dict[str, str]:
    """
    Columns by WebDataset field (what follows the first dot of a member's file name), from the first members of a tar
    file: `{"jpg": "image", "semantic.png": "semantic"}`.

    Raises:
        `ValueError`: if the file is damaged, or holds no photographs.
    """
    try:
        with open(file, "rb") as content:
            content.seek(-min(2 * tarfile.BLOCKSIZE, os.path.getsize(file)), os.SEEK_END)
            is_whole = not file.endswith(".tar") or not any(content.read())
        with tarfile.open(file) as tar:
            names = [member.name for member in itertools.islice(tar, _MEMBERS) if member.isfile()]
    except TAR_ERRORS as error:
        raise ValueError(f"dataset: expected a tar file, got {file}: {error}") from None
    if not is_whole:
        raise ValueError(
            f"dataset: expected a whole tar file, got {file}, which lacks the mark of its end. Copy it again"
        )
    matches = (re.fullmatch(r"[^.]+\.(.+)", os.path.basename(name)) for name in names)
    columns = name_columns([match[1] for match in matches if match])
    if "image" not in columns.values():
        raise ValueError(
            f"dataset: expected photographs in {file} (a.jpg), with or without label maps (a.semantic.png, "
            f"a.instance.png), got {names[:4] or 'no files'}"
        )
    return columns


def hold_maps(files: Sequence[str]) -> bool:
    """
    Whether any tar file holds label maps.

    Raises:
        `ValueError`: if none can be used, naming the first.
    """
    errors = []
    for file in files:
        try:
            if len(tar_columns(file)) > 1:
                return True
        except ValueError as error:
            errors.append(error)
    if errors and len(errors) == len(files):
        raise errors[0]
    return False


def name_columns(fields: Sequence[str]) -> dict[str, str]:
    """Names of our columns by WebDataset field, in the order of the fields; others are left out."""
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in IMAGE_FORMATS}
    columns = {}
    for field in dict.fromkeys(fields):
        kind, _, ending = field.rpartition(".")
        if f".{ending.lower()}" in suffixes and kind in ("", *MAP_COLUMNS):
            columns[field] = kind or "image"
    return columns


def load_tars(files: Mapping[str, Sequence[str]], streaming: bool) -> dict[str, Any]:
    """
    Load tar files as rows of `image`, the label maps that they hold, and `image_id`, a sample's path in its tar file.

    Args:
        files: Tar files by split.
        streaming (`bool`): Whether to read rows on demand. Otherwise `datasets` copies them to its cache.

    Raises:
        `ValueError`: naming the file, if one is damaged, holds no photographs, or has other formats than the others.
    """
    columns: dict[str, str] = {}
    for file in itertools.chain(*files.values()):
        for field, column in tar_columns(file).items():
            earlier = next((name for name, other in columns.items() if other == column), field)
            if earlier != field:
                raise ValueError(
                    f"dataset: expected one kind of member for each column, got .{earlier} and, in {file}, .{field} "
                    f"for {column!r}. Write them in one format"
                )
            columns[field] = column
    # Given here, so that `datasets` does not ask that the first samples all have the same maps.
    features = {name: datasets.Value("string") for name in ("__key__", "__url__")}
    features |= {field: datasets.Image() for field in columns}
    escaped = {split: [glob.escape(file) for file in names] for split, names in files.items()}
    splits = datasets.load_dataset(
        "webdataset", data_files=escaped, features=datasets.Features(features), streaming=streaming
    )
    return {split: as_rows(rows) for split, rows in splits.items()}


def as_rows(rows: Any) -> Any:
    """Rename the columns of a WebDataset to ours; other rows are returned unchanged."""
    names = rows.column_names or []
    if "__key__" not in names:
        return rows
    columns = {field: column for field, column in name_columns(names).items() if column not in names}
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"dataset: expected one field for each of image, semantic and instance, got {list(columns)}")
    if "image_id" not in names:
        columns["__key__"] = "image_id"
    return rows.rename_columns(columns).remove_columns(["__url__"] if "__url__" in names else [])
