"""
The interface of sources. A source is divided into parts. One process reads a part in order, and a part always yields
the same records, so labelling can run on several processes and machines, stop and continue.
"""

from __future__ import annotations

import abc
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ...data.splits import by_split
from ..records import SourceRecord


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A piece of a source: its number, what the source needs to find it, and its number of records, if known."""

    index: int
    where: Any
    num_records: int | None


def of_split(files: list[str], split: str | None) -> list[str]:
    """
    The files whose names tell a split, by default the only one, or `train`. The log names what is left out.

    Raises:
        `ValueError`: if there are none.
    """
    splits = by_split(files)
    name = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if name not in splits:
        got = "none, and no files of train" if split is None else repr(split)
        raise ValueError(f"source split: expected one of {sorted(splits)}, as the names of the files say, got {got}")
    others = {other: len(found) for other, found in splits.items() if other != name}
    if split is None and others:
        words = ", ".join(f"{number} of {other}" for other, number in others.items())
        logger.warning("Only the files of the split %r are read, not the others (%s).", name, words)
    return splits[name]


class ImageSource(abc.ABC):
    """
    Base class of sources. A source can be pickled; every process and machine that reads its parts sees the same files.

    Attributes:
        label_feature (*optional*): `datasets` feature of the class of a whole image, if the source has such labels.
        passed_over (`dict[str, int]`): Number of skipped files by kind.
        origin (*optional*): Name, configuration, split and revision of a dataset that is streamed from the Hub. Its
            parts are not read again to see if they changed.
    """

    origin: dict[str, str | None] | None = None
    label_feature: datasets.ClassLabel | datasets.Value | None = None

    def __init__(self) -> None:
        self.passed_over: dict[str, int] = {}

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON values that must be the same when an interrupted job continues."""

    @abc.abstractmethod
    def parts(self, records_per_part: int) -> Sequence[Part]:
        """All parts. A source that can be cut anywhere makes parts of `records_per_part` records."""

    @abc.abstractmethod
    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        """Records of a part, without the first `skip`."""

    def sample(self, records_per_part: int) -> Iterator[SourceRecord]:
        """A fixed sample of the source: records of up to 64 parts, in turns."""
        parts = self.parts(records_per_part)
        number = min(len(parts), 64)
        readers = [self.read(parts[i * len(parts) // number]) for i in range(number)]
        for records in itertools.zip_longest(*readers):
            yield from (record for record in records if record is not None)

    def num_records(self, records_per_part: int) -> int | None:
        """Number of records of all parts, if known."""
        counts = [part.num_records for part in self.parts(records_per_part)]
        return None if None in counts else sum(count for count in counts if count is not None)


def spans(number: int, size: int) -> list[tuple[int, int]]:
    """Starts and ends of runs of `size` rows; the last may be shorter."""
    return [(start, min(start + size, number)) for start in range(0, number, size)]


def path_text(path: str) -> str:
    """A path as UTF-8 text; other bytes become escapes."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # of a name that no file has
        return path.encode("utf-8", "backslashreplace").decode()


def shuffled(number: int) -> list[int]:
    """The numbers below `number` in a fixed random order."""
    return np.random.default_rng(0).permutation(number).tolist()
