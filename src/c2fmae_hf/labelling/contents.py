"""Checksums of images and annotations, to notice changes when a job continues."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from ..utils.files import file_sha256
from .records import SourceRecord, read_bytes


def load_record(record: SourceRecord, files: Sequence[Path] = ()) -> tuple[SourceRecord, str]:
    """
    Read a record's image.

    Args:
        record: As a source delivers it.
        files: Further files that its row depends on, such as annotations.

    Returns:
        The record with its encoded image or an error, and a checksum of image, id, label, columns and files (16
        hexadecimal digits).
    """
    checksum = hashlib.sha256(f"{record.image_id}\0{record.label}\0".encode())
    if record.error is None:
        try:
            record = replace(record, value=read_bytes(record.value))
            checksum.update(record.value)
        except ValueError as error:
            record = replace(record, value=None, error=str(error))
    if record.error is not None:
        checksum.update(record.error.encode("utf-8", "backslashreplace"))
    for name, value in (record.row or {}).items():
        try:
            content = read_bytes(value)
        except ValueError as error:
            content = str(error).encode()
        checksum.update(f"\0{name}\0".encode() + content)
    for path in files:
        checksum.update((file_sha256(path) if path.is_file() else "no file").encode())
    return record, checksum.hexdigest()[:16]


def check_unchanged(before: Iterable[str], now: Iterable[tuple[SourceRecord, str]], done: str) -> None:
    """
    Check that images are the same as before.

    Args:
        before: Checksums of the images that were used.
        now: The images now, with their checksums.
        done (`str`): What was made from them, for the message.

    Raises:
        `ValueError`: naming the first image that has changed.
    """
    for earlier, found in zip_longest(before, now):
        if found is None or found[1] != earlier:
            where = "the source" if found is None else found[0].location
            raise ValueError(
                f"{where}: image, annotations, label or id have changed since {done} was made. Restore them, choose "
                "another output, or begin this one again"
            )
