"""
Where images come from. A source is cut into parts; a part is read in order, by one process, and always yields the same
records, so that labelling can be spread over processes and machines, stopped, and gone on with.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ..records import SourceRecord


@dataclass(frozen=True)
class Part:
    """A piece of a source: its number, what its source needs to find it, and its number of records if known."""

    index: int
    where: Any
    num_records: int | None


class ImageSource(abc.ABC):
    """
    A source can be pickled: parts are read in other processes and on other machines, which see the same files.

    Attributes:
        label_feature (*optional*): The `datasets` feature of the class of whole images, if the source has such labels.
        passed_over (`dict[str, int]`): Files that are no images, counted by what they are.
    """

    label_feature: datasets.ClassLabel | datasets.Value | None = None

    def __init__(self) -> None:
        self.passed_over: dict[str, int] = {}

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What must be the same when labelling goes on: JSON values."""

    @abc.abstractmethod
    def parts(self, records_per_part: int) -> Sequence[Part]:
        """All parts. Sources that can be cut anywhere make parts of so many records."""

    @abc.abstractmethod
    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        """The records of a part, without the first `skip`."""

    def sample(self, records_per_part: int) -> Iterator[SourceRecord]:
        """Records from all over the source, always the same: here the first ones of up to 64 parts, in turns."""
        parts = self.parts(records_per_part)
        number = min(len(parts), 64)
        readers = [self.read(parts[i * len(parts) // number]) for i in range(number)]
        while readers:
            for reader in list(readers):
                record = next(reader, None)
                if record is None:
                    readers.remove(reader)
                else:
                    yield record

    def num_records(self, records_per_part: int) -> int | None:
        """Records of all parts, if known."""
        counts = [part.num_records for part in self.parts(records_per_part)]
        return None if None in counts else sum(count for count in counts if count is not None)


def spans(number: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, number)) for start in range(0, number, size)]


def path_text(path: str) -> str:
    """A path as text that can be stored, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shuffled(number: int) -> list[int]:
    return np.random.default_rng(0).permutation(number).tolist()
