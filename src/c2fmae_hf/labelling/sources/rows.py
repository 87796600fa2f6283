"""Rows of `datasets`, on disk or streamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from ...data.rows import undecoded
from ..records import SourceRecord
from .base import ImageSource, Part, shuffled, spans


class ColumnReader:
    """Turns rows of a dataset into records."""

    def __init__(self, features: datasets.Features | None, label_column: str, columns: Sequence[str]) -> None:
        features = features or datasets.Features()
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        # Parquet files written without `datasets` hold bare bytes, or a structure of bytes and path.
        images += [name for name in ("image", "img", "jpg", "png", "webp", "bytes") if name in features]
        if not images:
            raise ValueError(f"source: expected a column of images, got the columns {list(features)}")
        self.image = "image" if "image" in images else images[0]
        self.image_id = next((name for name in ("image_id", "__key__") if name in features), None)
        self.columns = tuple(columns)
        missing = [name for name in self.columns if name not in features]
        if missing:
            raise ValueError(f"source: expected the columns {missing}, got {list(features)}")
        feature = features.get(label_column)
        self.label_feature: datasets.ClassLabel | datasets.Value | None = None
        if isinstance(feature, datasets.ClassLabel):
            self.label_feature = feature
        elif isinstance(feature, datasets.Value) and "int" in feature.dtype:
            self.label_feature = datasets.Value("int64")
        self.label = label_column if self.label_feature is not None else None
        self.needed = list(dict.fromkeys(filter(None, (self.image, self.label, self.image_id, *self.columns))))

    def __call__(self, row: Mapping[str, Any], name: str) -> SourceRecord:
        image_id = row.get(self.image_id) if self.image_id else None
        return SourceRecord(
            image_id=str(image_id) if image_id is not None else name,
            location=f"row {name}",
            value=row[self.image],
            label=row[self.label] if self.label else None,
            row={column: row[column] for column in self.columns},
        )


class DatasetSource(ImageSource):
    """
    Images of a `datasets.Dataset`.

    Args:
        rows: Has a column of images. Ids come from `image_id` or `__key__`, if there is one.
        label_column (`str`): Class of the whole image: a `ClassLabel` or integers.
        columns: Further columns that the labeller needs.

    Raises:
        `ValueError`: if columns are missing or there are no rows.
    """

    def __init__(self, rows: datasets.Dataset, label_column: str = "label", columns: Sequence[str] = ()) -> None:
        super().__init__()
        if len(rows) == 0:
            raise ValueError("source: expected at least one row, got an empty dataset")
        self.features = rows.features
        self.read_row = ColumnReader(rows.features, label_column, columns)
        self.label_feature = self.read_row.label_feature
        self.rows = undecoded(rows.select_columns(self.read_row.needed))

    def fingerprint(self) -> dict[str, Any]:
        ids = hashlib.sha256()
        column = self.read_row.image_id
        if column is not None:
            for batch in self.rows.select_columns([column]).iter(10_000):
                ids.update("\0".join(map(str, batch[column])).encode("utf-8", "backslashreplace"))
        return {"kind": "dataset", "rows": len(self.rows), "image_ids_sha256": ids.hexdigest()}

    def parts(self, records_per_part: int) -> Sequence[Part]:
        return [
            Part(index, span, span[1] - span[0]) for index, span in enumerate(spans(len(self.rows), records_per_part))
        ]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        return map(self._record, range(part.where[0] + skip, part.where[1]))

    def sample(self, records_per_part: int) -> Iterator[SourceRecord]:
        """Every record, in a fixed random order."""
        return map(self._record, shuffled(len(self.rows)))

    def _record(self, index: int) -> SourceRecord:
        return self.read_row(self.rows[index], f"{index:09d}")


class StreamSource(ImageSource):
    """
    Images of a `datasets.IterableDataset`: Parquet files, read in place, or a dataset on the Hub. A part is one of its
    shards (a file).

    Args:
        rows, label_column, columns: As for [`DatasetSource`].
        files (`list[str]`, *optional*): The Parquet files behind the stream; they tell the number of rows.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        label_column: str = "label",
        columns: Sequence[str] = (),
        files: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if rows.features is None:
            rows = rows._resolve_features()
        self.features = rows.features
        self.read_row = ColumnReader(rows.features, label_column, columns)
        self.label_feature = self.read_row.label_feature
        self.rows = undecoded(rows.select_columns(self.read_row.needed))
        self.files = list(files) if files is not None else None

    def fingerprint(self) -> dict[str, Any]:
        files = None
        if self.files is not None:
            files = [[Path(file).name, os.path.getsize(file)] for file in self.files]
        return {"kind": "stream", "shards": self.rows.num_shards, "files": files, "origin": self.origin}

    def parts(self, records_per_part: int) -> Sequence[Part]:
        counts: list[int | None] = [None] * self.rows.num_shards
        if self.files is not None and len(self.files) == self.rows.num_shards:
            counts = [pq.read_metadata(file).num_rows for file in self.files]
        return [Part(index, index, count) for index, count in enumerate(counts)]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        shard = self.rows.shard(num_shards=self.rows.num_shards, index=part.where)
        for position, row in enumerate(shard.skip(skip) if skip else shard, start=skip):
            yield self.read_row(row, f"{part.index:05d}-{position:09d}")
