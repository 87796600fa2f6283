"""Map-style dataset for pre-training: rows of a multi-granular dataset as samples for the collator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from torch.utils.data import Dataset

from .progress import SharedProgress
from .rows import MAP_COLUMNS, OnBadRow, RowReader, undecoded
from .sampling import SampleKey
from .transforms import JointTransform


class C2FMAEDataset(Dataset):
    """
    A map-style dataset for pre-training.

    Args:
        rows (`datasets.Dataset`, or a sequence of dictionaries): See [`~c2fmae_hf.data.rows`].
        transform ([`JointTransform`]): Transform of images and maps.
        map_columns: Label maps to read; a missing column is an error.
        num_semantic_classes (`int`, *optional*): Class ids must be below it.
        seed (`int`): Crops and flips are a function of (seed, epoch, row).
        progress ([`SharedProgress`], *optional*): Given for training. Without it the dataset is for evaluation:
            every epoch sees the same samples.
        on_bad_row (`str`): `raise`, or `skip` to replace a bad row by the next good one, with crops and masks drawn
            for the bad row. A sample's `num_skipped` counts the bad rows; each worker process logs each of them once.

    Raises:
        `ValueError`: if there are no rows or columns are missing; on access, if a row cannot be decoded or its maps do
            not fit, naming row and column.
    """

    def __init__(
        self,
        rows: datasets.Dataset | Sequence[Mapping[str, Any]],
        transform: JointTransform,
        map_columns: Sequence[str] = MAP_COLUMNS,
        num_semantic_classes: int | None = None,
        seed: int = 0,
        progress: SharedProgress | None = None,
        on_bad_row: OnBadRow = "raise",
    ) -> None:
        if len(rows) == 0:
            raise ValueError("dataset: expected at least one row, got an empty dataset")
        self.read_row = RowReader(transform, map_columns, num_semantic_classes, seed, on_bad_row)
        self.on_bad_row = on_bad_row
        if isinstance(rows, datasets.Dataset):
            self.read_row.check_columns(rows.column_names)
            rows = undecoded(rows)
        else:
            self.read_row.check_columns(list(rows[0]))
        self.rows = rows
        self.progress = progress

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """
        A sample; for a plain index, at the current epoch and progress.

        Raises:
            `IndexError`: if there is no such row.
        """
        if not isinstance(key, SampleKey):
            index = int(key)
            if not -len(self) <= index < len(self):
                raise IndexError(f"dataset: expected an index below {len(self)}, got {index}")
            index %= len(self)
            key = SampleKey(index, 0, None)
            if self.progress is not None:
                self.progress.warn_if_no_epoch_started()
                key = SampleKey(index, self.progress.epoch, self.progress.current)
        for num_skipped in range(len(self.rows)):
            index = (key.index + num_skipped) % len(self.rows)
            try:
                return self.read_row(self.rows[index], key, index, num_skipped)
            except ValueError as error:
                self.read_row.pass_over(index, num_skipped + 1, error)
        raise ValueError(f"dataset: expected readable rows, got {len(self.rows)} rows that are all bad")
