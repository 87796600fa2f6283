"""WebDataset tar files."""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from ...data.rows import MAP_COLUMNS
from ...data.tars import TAR_ERRORS, find_tars
from ..records import MAX_FILE_BYTES, SourceRecord
from .base import ImageSource, Part, of_split, path_text
from .folder import IMAGE_SUFFIXES


class TarSource(ImageSource):
    """
    Images of WebDataset tar files, read in place. A sample's key is its path up to the first dot of the file name;
    `.cls` holds its label as a number. Label maps (`.semantic.png`, `.instance.png`) are no images. A part
    is a tar file. An image's id is its path in the tar file, preceded by the tar file's name if there are several. The
    unreadable rest of a damaged file is one record with an error.

    Args:
        pattern (`str`): A path, wildcards allowed, or a folder.
        split (`str`, *optional*): Only the files whose names tell this split; by default the only one, or `train`.

    Raises:
        `FileNotFoundError`: if the pattern matches nothing.
        `ValueError`: if two tar files have the same name, or there is none of this split.
    """

    def __init__(self, pattern: str, split: str | None = None) -> None:
        super().__init__()
        self.files = find_tars(pattern)
        if not self.files:
            raise FileNotFoundError(f"source: expected tar files at {pattern!r}, found none")
        self.files = of_split(self.files, split)
        names = [Path(file).name for file in self.files]
        if len(set(names)) < len(names):
            raise ValueError(f"source: expected tar files of different names, since ids hold them, got {names}")
        self.label_feature = datasets.Value("int64") if self._has_labels() else None

    def _has_labels(self) -> bool:
        """Whether there is a `.cls` among the first 16 members of the first tar file."""
        try:
            with tarfile.open(self.files[0]) as tar:
                return any(member.name.endswith(".cls") for member in itertools.islice(tar, 16))
        except TAR_ERRORS:
            return False

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tar", "files": [[Path(file).name, os.path.getsize(file)] for file in self.files]}

    def parts(self, records_per_part: int) -> Sequence[Part]:
        return [Part(index, file, None) for index, file in enumerate(self.files)]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        return itertools.islice(self._read(part.where, skip), skip, None)

    def _read(self, file: str, skip: int) -> Iterator[SourceRecord]:
        """All records of a tar file; the first `skip` without their content."""
        name = Path(file).name
        prefix = f"{name}/" if len(self.files) > 1 else ""
        number = 0
        key, label = None, None
        images: list[SourceRecord] = []  # of one sample: its label may follow them
        error = None
        try:
            with tarfile.open(file) as tar:
                for member in tar:
                    tar.members = []  # or the headers of all members are kept
                    folder, _, base = member.name.rpartition("/")
                    if not member.isfile() or base.startswith("."):
                        continue
                    if (folder, base.split(".")[0]) != key:
                        yield from (replace(image, label=label) for image in images)
                        key, label, images = (folder, base.split(".")[0]), None, []
                    # Content is read in passing: going back would decompress a .tar.gz again and again.
                    if base.endswith(".cls"):
                        label = _parse_label(_extract(tar, member))
                    elif _is_photograph(base):
                        path = path_text(member.name)
                        image = SourceRecord(prefix + path, f"{file}: {path}", None)
                        if member.size > MAX_FILE_BYTES:
                            image = replace(image, error=f"expected at most {MAX_FILE_BYTES} bytes, got {member.size}")
                        elif number >= skip:
                            image = replace(image, value=_extract(tar, member))
                        images.append(image)
                        number += 1
                tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
                if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # type: ignore[union-attr]
                    error = "it ends without the mark of its end, images may be missing"
        except TAR_ERRORS as damage:
            error = str(damage)
        yield from (replace(image, label=label) for image in images)
        if error is not None:
            yield SourceRecord(f"{name}: rest", file, None, error=f"the tar file cannot be read on: {error}")


def _is_photograph(name: str) -> bool:
    *_, kind, suffix = ("", "", *PurePosixPath(name).suffixes)
    return suffix.lower() in IMAGE_SUFFIXES and kind.removeprefix(".") not in MAP_COLUMNS


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "a regular file has content"
    return file.read()


def _parse_label(content: bytes) -> int | None:
    """A number that fits into the 64 bits of its column, or `None`."""
    text = content.decode("utf-8", "replace").strip()
    return int(text) if text.isdecimal() and len(text) < 19 else None
