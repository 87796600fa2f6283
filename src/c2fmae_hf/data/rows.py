"""Rows of a multi-granular dataset: decoding, checks that name a row, and the names of semantic classes.

A row holds `image` and, as far as they are needed, the label maps `semantic` and `instance` (single-channel PNG of the
image's size, or of that size at a stride; a row without one holds `None`); `image_id` is used in messages if present.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import datasets
import numpy as np
from tqdm.auto import tqdm

from ..constants import IGNORE_INDEX
from ..images import open_image, open_photograph, to_label_map
from .randomness import sample_seeds
from .sampling import SampleKey
from .transforms import JointTransform


logger = logging.getLogger(__name__)

MAP_COLUMNS = ("semantic", "instance")
OnBadRow = Literal["raise", "skip"]
# Reading stops after this many consecutive bad rows.
MAX_SKIPPED = 1000
# The log names this many bad rows; their keys are kept in memory.
MAX_LOGGED = 1000
# A list of `ClassLabel`: the classes that occur in a row. Its feature carries the names of all classes.
CLASSES_COLUMN = "semantic_classes"


class RowReader:
    """Decodes and checks one row; shared by the map-style and the streaming dataset."""

    def __init__(
        self,
        transform: JointTransform,
        map_columns: Sequence[str],
        num_semantic_classes: int | None,
        seed: int,
        on_bad_row: OnBadRow,
    ) -> None:
        if on_bad_row not in get_args(OnBadRow):
            raise ValueError(f"on_bad_row: expected one of {get_args(OnBadRow)}, got {on_bad_row!r}")
        self.on_bad_row = on_bad_row
        self.logged: set[Hashable] = set()
        self.transform = transform
        self.map_columns = tuple(map_columns)
        self.num_semantic_classes = num_semantic_classes
        self.seed = seed

    def check_columns(self, column_names: Sequence[str]) -> None:
        missing = [name for name in ("image", *self.map_columns) if name not in column_names]
        if missing:
            raise ValueError(
                f"dataset: expected the columns {['image', *self.map_columns]}, got {list(column_names)}; "
                f"missing {missing}. Rename the columns; or label the images, c2fmae label SOURCE OUTPUT_DIR; or, "
                'without maps, pre-train with granularities=("image",) and random masking.'
            )

    def __call__(
        self,
        row: Mapping[str, Any],
        key: SampleKey,
        index: int | None = None,
        num_skipped: int = 0,
        place: str | None = None,
    ) -> dict[str, Any]:
        """
        Decode a row to a sample. `index` is the row's own number if it replaces the bad row of `key`; messages say
        `place` instead.
        """
        index = key.index if index is None else index
        label = (place or f"row {index}") + (f" ({row['image_id']})" if row.get("image_id") else "")
        column = "image"
        # torch's seeds are signed.
        seed = int(sample_seeds(self.seed, [key.epoch], [key.index])[0]) >> 1
        try:
            image, size = open_photograph(row["image"], lambda size: self.transform.reduction(size, seed))
            maps = {}
            for column in self.map_columns:
                if row[column] is None:
                    continue
                maps[column] = to_label_map(open_image(row[column], image_size=size))
                if column == "semantic":
                    self._check_classes(maps[column])
        except ValueError as error:
            raise ValueError(f"{label}, column {column!r}: {error}") from error
        return {
            **self.transform(image, maps.get("semantic"), maps.get("instance"), seed, size),
            "sample_key": key,
            "image_id": str(row.get("image_id") or f"row {index}"),
            "num_skipped": num_skipped,
        }

    def pass_over(self, row: Hashable, number: int, error: ValueError) -> None:
        """
        Skip a bad row, or raise its error.

        Args:
            row: Identifies the row. Each worker process logs a row once, up to `MAX_LOGGED` rows.
            number (`int`): Number of consecutive bad rows.
        """
        if self.on_bad_row == "raise":
            raise error
        if number >= MAX_SKIPPED:
            raise ValueError(f"dataset: expected readable rows, got {number} consecutive bad ones: {error}")
        if row in self.logged or len(self.logged) >= MAX_LOGGED:
            return
        self.logged.add(row)
        logger.warning("Skipped: %s", error)
        if len(self.logged) == MAX_LOGGED:
            logger.warning("Skipped %d rows: further ones are counted, not named", MAX_LOGGED)

    def _check_classes(self, semantic: np.ndarray) -> None:
        if self.num_semantic_classes is not None and semantic.max() >= self.num_semantic_classes:
            raise ValueError(
                f"expected class ids in [0, num_semantic_classes={self.num_semantic_classes}) or the ignore value, "
                f"got {semantic.max()}"
            )


def undecoded(rows: Any) -> Any:
    """
    Return the rows as Python objects with images left encoded, so that a corrupt image is reported with its row. A
    function of `with_transform` is not applied; the log warns of it.
    """
    if isinstance(rows, datasets.IterableDataset):
        rows = rows.with_format(None)
    elif isinstance(rows, datasets.Dataset) and rows.format["type"] is not None:
        if rows.format["type"] == "custom":
            logger.warning("The dataset's with_transform is not applied; change the rows with rows.map(...) instead.")
        rows = rows.with_format(None)
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image) and feature.decode:
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def semantic_id2label(features: datasets.Features | None) -> dict[int, str] | None:
    """
    Names of the semantic classes, from the `ClassLabel` of the column `semantic_classes` (a list of the classes that
    occur in a row); `None` if the dataset has none.
    """
    feature = (features or {}).get(CLASSES_COLUMN)
    class_label = getattr(feature, "feature", None)
    if not isinstance(class_label, datasets.ClassLabel):
        return None
    return dict(enumerate(class_label.names))


def find_semantic_classes(parts: Sequence[datasets.Dataset], on_bad_row: OnBadRow = "raise") -> set[int]:
    """
    Find the semantic classes that occur, by reading every semantic map once.

    Args:
        parts: Rows with a column `semantic`, such as those of two splits.
        on_bad_row (`str`): `raise`, or `skip` for maps that cannot be decoded.

    Raises:
        `ValueError`: if a map cannot be decoded, naming the row, or if all of them are empty.
    """
    found: set[int] = set()
    for rows in parts:
        maps = undecoded(rows.select_columns(["semantic"]))
        for index, row in enumerate(tqdm(maps, desc="Finding semantic classes", unit=" maps")):
            if row["semantic"] is None:
                continue
            try:
                found.update(np.unique(to_label_map(open_image(row["semantic"]))).tolist())
            except ValueError as error:
                if on_bad_row == "raise":
                    raise ValueError(f"row {index}, column 'semantic': {error}") from error
    found.discard(IGNORE_INDEX)
    if not found:
        raise ValueError("dataset, column 'semantic': expected at least one class id, got only the ignore value")
    return found


def count_semantic_classes(parts: Sequence[datasets.Dataset], on_bad_row: OnBadRow = "raise") -> int:
    """Number of semantic classes of a dataset without their names: one more than the highest id in its maps."""
    return max(find_semantic_classes(parts, on_bad_row)) + 1


ONE_CLASS = (
    "in 8-bit maps 255 marks pixels to ignore, so that a mask of 0 and 255 has one class: store its objects as 1"
)


def check_named_classes(rows: datasets.Dataset, id2label: Mapping[int, str], part: str) -> None:
    """
    Warn of named classes that no pixel of a dataset has.

    Args:
        rows: Rows with a column `semantic`.
        id2label: Names by class id.
        part (`str`): Name of the rows in messages.

    Raises:
        `ValueError`: if fewer than two classes occur.
    """
    found = find_semantic_classes([rows])
    if len(found) < 2:
        raise ValueError(f"{part}: expected pixels of at least two classes, got only class {min(found)}; {ONE_CLASS}")
    absent = [name for label, name in id2label.items() if label not in found]
    if absent:
        more = f" and {len(absent) - 20} more" if len(absent) > 20 else ""
        names = ", ".join(absent[:20])
        logger.warning(f"{part}: {len(absent)} of {len(id2label)} classes have no pixel: {names}{more}")
