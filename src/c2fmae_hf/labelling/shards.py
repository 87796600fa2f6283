"""
The dataset on disk. Each shard is a Parquet file that appears when it is complete, and beside it a small JSON file of
what went into it, written last: only a shard with both is done. All of it is a function of source, labeller and
options, so that an interrupted job ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.rows import CLASSES_COLUMN
from ..utils.files import file_sha256, replace_file
from .records import Reject


# Small enough that a stream starts fast, large enough that Parquet's own bytes do not matter.
ROWS_PER_GROUP = 100


def dataset_features(
    id2label: Mapping[int, str], label_feature: datasets.ClassLabel | datasets.Value | None
) -> datasets.Features:
    """Columns of a multi-granular dataset."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "semantic": datasets.Image(),
            "instance": datasets.Image(),
            CLASSES_COLUMN: datasets.List(datasets.ClassLabel(names=list(id2label.values()))),
            "image_id": datasets.Value("string"),
        }
    )
    if label_feature is not None:
        features["label"] = label_feature
    return features


@dataclass
class ShardInfo:
    """What is known of a finished shard."""

    name: str
    part: int
    chunk: int
    records: int
    """Images that the source gave, rejects included."""
    is_last: bool
    """Whether the part ends with it."""
    rows: int = 0
    bytes: int = 0
    sha256: str | None = None
    """Of the Parquet file; `None` if every image was rejected and there is no file."""
    image_bytes: int = 0
    map_bytes: int = 0
    rejects: list[Reject] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ShardInfo:
        values = json.loads(text)
        return cls(**{**values, "rejects": [Reject(**reject) for reject in values["rejects"]]})


class ShardStore:
    """
    Shards of one split of a dataset.

    Args:
        root: The dataset's folder.
        split (`str`): Name of the split.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root), split
        self.data = self.root / "data"
        self.state = self.root / ".labelling" / split

    def create_folders(self) -> None:
        for folder in (self.data, self.state / "shards"):
            folder.mkdir(parents=True, exist_ok=True)

    def remove_leftovers(self) -> None:
        """Temporary files of a process that was killed."""
        for folder in (self.root, self.data, self.state, self.state / "shards"):
            for path in folder.glob(".*.tmp-*"):
                path.unlink()

    def remove(self) -> None:
        """Delete the split."""
        for path in self.data.glob(f"{self.split}-*.parquet"):
            path.unlink()
        shutil.rmtree(self.state, ignore_errors=True)

    def shard_name(self, part: int, chunk: int) -> str:
        return f"{self.split}-{part:05d}-{chunk:04d}"

    def shard_path(self, name: str) -> Path:
        return self.data / f"{name}.parquet"

    def _info_path(self, name: str) -> Path:
        return self.state / "shards" / f"{name}.json"

    def find(self, part: int, chunk: int) -> ShardInfo | None:
        """A finished shard, or `None`. One whose Parquet file is gone or has another size is not finished."""
        name = self.shard_name(part, chunk)
        path = self._info_path(name)
        if not path.is_file():
            return None
        info = ShardInfo.from_json(path.read_text(encoding="utf-8"))
        if info.sha256 is not None:
            file = self.shard_path(name)
            if not file.is_file() or file.stat().st_size != info.bytes:
                return None
        return info

    def finished(self) -> Iterator[ShardInfo]:
        """All finished shards, in order."""
        for path in sorted((self.state / "shards").glob("*.json")):
            info = ShardInfo.from_json(path.read_text(encoding="utf-8"))
            found = self.find(info.part, info.chunk)
            if found is not None:
                yield found

    @contextmanager
    def write(self, info: ShardInfo, features: datasets.Features) -> Iterator[ShardWriter]:
        """Write a shard; it appears when the block ends, with what the block wrote into `info`."""
        path = self.shard_path(info.name)
        with replace_file(path) as temporary:
            writer = ShardWriter(temporary, features, info)
            yield writer
            writer.close()
            if info.rows > 0:
                info.bytes, info.sha256 = temporary.stat().st_size, file_sha256(temporary)
        if info.rows == 0:
            path.unlink()
        with replace_file(self._info_path(info.name)) as temporary:
            temporary.write_text(info.to_json() + "\n", encoding="utf-8")


class ShardWriter:
    """Collects rows and writes them in groups, so that memory does not grow with the shard."""

    def __init__(self, path: Path, features: datasets.Features, info: ShardInfo) -> None:
        self.features, self.info = features, info
        self.rows: list[Mapping[str, Any]] = []
        # Pictures are compressed already, and no two are the same.
        self.parquet = pq.ParquetWriter(path, features.arrow_schema, compression="none", use_dictionary=False)

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.info.rows += 1
        self.info.image_bytes += len(row["image"]["bytes"])
        self.info.map_bytes += sum(len(row[name]["bytes"]) for name in ("semantic", "instance") if row[name])
        if len(self.rows) == ROWS_PER_GROUP:
            self._flush()

    def reject(self, reject: Reject) -> None:
        self.info.rejects.append(reject)

    def _flush(self) -> None:
        if self.rows:
            columns = {name: [row.get(name) for row in self.rows] for name in self.features}
            self.parquet.write_table(pa.table(columns, schema=self.features.arrow_schema))
            self.rows = []

    def close(self) -> None:
        self._flush()
        self.parquet.close()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A text file that appears whole."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
