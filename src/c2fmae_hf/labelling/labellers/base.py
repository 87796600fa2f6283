"""The interface of labellers."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from ..records import LabelMaps, PreparedImage


class Labeller(abc.ABC):
    """
    Gives each image of a batch a semantic and an instance map.

    A labeller is built where a job starts, cheaply and without loading weights; it is then pickled to the processes
    that label, each of which calls [`~Labeller.start`] once. The maps of an image should depend on nothing but the
    batch that it is in: batches are the same however often a job is stopped.

    Attributes:
        name (`str`): One word; recorded with the dataset.
        libraries (`tuple[str, ...]`): Distributions whose version is recorded.
        id2label (`dict[int, str]`): Names of the semantic classes, 0, 1, ... without gaps.
        batch_size (`int`): Images per call.
        summary (`str`): What the labels are worth, for the dataset card.
    """

    name: str
    libraries: tuple[str, ...] = ()
    summary: str
    id2label: dict[int, str]
    batch_size: int = 8

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that the labels depend on, as JSON values; a job goes on only with the same settings."""

    def start(self, worker: int = 0) -> None:  # noqa: B027
        """Load what labelling needs. `worker` counts processes of a machine, and so picks among its accelerators."""

    @abc.abstractmethod
    def __call__(self, batch: Sequence[PreparedImage]) -> list[LabelMaps]:
        """
        The maps of each image of a batch, at any resolution.

        Raises:
            `ValueError`: if an image cannot be labelled. Called for that image alone, this rejects it; any other
                exception stops the job.
        """

    def prepare(self, images: Iterator[Image.Image], folder: Path) -> None:  # noqa: B027
        """
        Fit to the data, if that is needed; called once, where a job starts, before the labeller is pickled.

        Args:
            images: From all over the source, as many as it has; take what is needed.
            folder: Of the dataset, for what was fitted: it is taken from there when labelling goes on.
        """

    def versions(self) -> dict[str, str]:
        """Of this package and of the libraries that the labels depend on."""
        return {library: version(library) for library in ("c2fmae-hf", "pillow", "numpy", *self.libraries)}


def unique_names(id2label: dict[int, str]) -> dict[int, str]:
    """Names without gaps or repetitions, as a `ClassLabel` needs them: a repeated or missing one gets its id."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for index in range(max(id2label) + 1):
        name = id2label.get(index, f"class {index}")
        names[index] = name if name not in taken else f"{name} ({index})"
        taken.add(names[index])
    return names
