"""The interface of labellers."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from ..records import LabelMaps, PreparedImage, SourceRecord


class Labeller(abc.ABC):
    """
    Base class of labellers, which make a semantic and an instance map for each image of a batch.

    A labeller is built where a job starts, without loading weights. It is then pickled to the processes that label,
    each of which calls [`~Labeller.start`] once. Maps must depend only on the batch: batches are the same, however
    often a job is interrupted.

    Attributes:
        name (`str`): One word, recorded with the dataset.
        libraries (`tuple[str, ...]`): Distributions whose versions are recorded.
        id2label (`dict[int, str]`): Names of the semantic classes 0, 1, ... without gaps.
        batch_size (`int`): Images per call.
        summary (`str`): Source and quality of the labels, for the dataset card.
    """

    name: str
    libraries: tuple[str, ...] = ()
    summary: str
    id2label: dict[int, str]
    batch_size: int = 8

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything the labels depend on, as JSON values. A job continues only with the same settings."""

    def start(self, worker: int = 0) -> None:  # noqa: B027
        """Load weights. `worker` numbers the processes of a machine, to pick among its accelerators."""

    def files(self, record: SourceRecord) -> list[Path]:
        """
        Files from which a record's maps are read.

        Raises:
            `ValueError`: if the files are unknown.
        """
        return []

    @abc.abstractmethod
    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        """
        Maps of each image of a batch, at any resolution.

        Raises:
            `ValueError`: if an image cannot be labelled. The batch is then labelled image by image, and an image that
                raises again is rejected. Any other exception stops the job.
        """

    def prepare(self, images: Iterator[Image.Image], folder: Path) -> None:  # noqa: B027
        """
        Fit the labeller to the data. Called once, where a job starts.

        Args:
            images: All images of the source, in mixed order; take as many as needed.
            folder: Where to save what was fitted, and to load it from when a job continues.
        """

    def versions(self) -> dict[str, str]:
        """Versions of this package and of the libraries that the labels depend on."""
        return {library: version(library) for library in ("c2fmae-hf", "pillow", "numpy", *self.libraries)}


def unique_names(id2label: dict[int, str]) -> dict[int, str]:
    """Fill gaps and append ids to repeated names, because a `ClassLabel` needs unique names."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for index in range(max(id2label) + 1):
        name = id2label.get(index, f"class {index}")
        names[index] = name if name not in taken else f"{name} ({index})"
        taken.add(names[index])
    return names
