"""
The dataset on disk. A shard is a Parquet file, which appears when it is complete, and then a small JSON file that
describes it; a shard with both is finished. Both depend only on source, labeller and options, so an interrupted job
ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import itertools
import json
import logging
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


logger = logging.getLogger(__name__)

# Small enough for a stream to start fast, large enough for Parquet's overhead not to matter.
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
    """Contents of a shard."""

    name: str
    part: int
    chunk: int
    records: int = 0
    """Images of the source, rejects included."""
    is_last: bool = False
    """Whether the part ends with this shard."""
    rows: int = 0
    bytes: int = 0
    sha256: str | None = None
    """Checksum of the Parquet file; `None` if every image was rejected and there is no file."""
    image_bytes: int = 0
    map_bytes: int = 0
    rejects: list[Reject] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    """Checksums of the images, rejects included, see [`~c2fmae_hf.labelling.contents.load_record`]."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ShardInfo:
        """
        Read what `to_json` wrote.

        Raises:
            `ValueError`: if the text does not describe a shard, or its numbers do not agree.
        """
        try:
            values = json.loads(text)
            info = cls(**{**values, "rejects": [Reject(**reject) for reject in values["rejects"]]})
            numbers = (info.part, info.chunk, info.records, info.rows, info.bytes, info.image_bytes, info.map_bytes)
            is_sound = all(isinstance(number, int) for number in numbers) and isinstance(info.contents, list)
            is_sound = is_sound and info.rows + len(info.rejects) == info.records == len(info.contents)
        except (TypeError, KeyError, AttributeError):
            is_sound = False
        if not is_sound:
            raise ValueError("expected the description of a shard, got something else")
        return info


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
        self.infos = self.state / "shards"

    def create_folders(self) -> None:
        for folder in (self.data, self.infos):
            folder.mkdir(parents=True, exist_ok=True)

    def remove_leftovers(self) -> None:
        """Delete temporary files of processes that were killed."""
        own = (folder.glob(".*.tmp-*") for folder in (self.root, self.data, self.root / "labeller"))
        for path in [*self.state.parent.rglob(".*.tmp-*"), *itertools.chain(*own)]:
            if path.is_file():
                path.unlink()

    def remove(self) -> None:
        """Delete the split's shards."""
        for path in self.data.glob(f"{self.split}-{5 * '[0-9]'}-{4 * '[0-9]'}.parquet"):
            path.unlink()
        shutil.rmtree(self.infos, ignore_errors=True)

    def shard_name(self, part: int, chunk: int) -> str:
        return f"{self.split}-{part:05d}-{chunk:04d}"

    def shard_path(self, name: str) -> Path:
        return self.data / f"{name}.parquet"

    def find(self, part: int, chunk: int) -> ShardInfo | None:
        """A finished shard, or `None`. A shard whose Parquet file is gone or has another size is not finished."""
        return self._read(self.infos / f"{self.shard_name(part, chunk)}.json")

    def finished(self) -> list[ShardInfo]:
        """All finished shards, in order."""
        infos = map(self._read, sorted(self.infos.glob("*.json")))
        return [info for info in infos if info is not None]

    def _read(self, path: Path) -> ShardInfo | None:
        if not path.is_file():
            return None
        try:
            info = ShardInfo.from_json(path.read_text(encoding="utf-8"))
        except ValueError:
            logger.warning("%s is damaged: its shard is labelled again.", path)
            path.unlink()
            return None
        file = self.shard_path(info.name)
        is_whole = info.rows == 0 or (file.is_file() and file.stat().st_size == info.bytes)
        return info if is_whole else None

    def drop(self, info: ShardInfo) -> None:
        """Delete the JSON file of a shard, so that it is no longer finished."""
        (self.infos / f"{info.name}.json").unlink()

    @contextmanager
    def write(self, info: ShardInfo, features: datasets.Features) -> Iterator[ShardWriter]:
        """Write a shard. It appears when the block ends; `info` is filled in."""
        path = self.shard_path(info.name)
        with replace_file(path) as temporary:
            writer = ShardWriter(temporary, features, info)
            yield writer
            writer.close()
            if info.rows > 0:
                info.bytes, info.sha256 = temporary.stat().st_size, file_sha256(temporary)
        if info.rows == 0:
            path.unlink()
        write_lines(self.infos / f"{info.name}.json", [info.to_json()])


class ShardWriter:
    """Collects rows and writes them in groups, so that memory does not grow with the shard."""

    def __init__(self, path: Path, features: datasets.Features, info: ShardInfo) -> None:
        self.features, self.info = features, info
        self.rows: list[Mapping[str, Any]] = []
        # PNG and JPEG do not compress further, and no two images are the same.
        self.parquet = pq.ParquetWriter(path, features.arrow_schema, compression="none", use_dictionary=False)

    def add(self, row: Mapping[str, Any] | Reject) -> None:
        self.info.records += 1
        if isinstance(row, Reject):
            self.info.rejects.append(row)
            return
        self.rows.append(row)
        self.info.rows += 1
        self.info.image_bytes += len(row["image"]["bytes"])
        self.info.map_bytes += sum(len(row[name]["bytes"]) for name in ("semantic", "instance") if row[name])
        if len(self.rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            columns = {name: [row.get(name) for row in self.rows] for name in self.features}
            self.parquet.write_table(pa.table(columns, schema=self.features.arrow_schema))
            self.rows = []

    def close(self) -> None:
        self._flush()
        self.parquet.close()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file that appears whole."""
    with replace_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
