"""
Where images come from. A source is cut into parts; a part is read in order, by one process, and always yields the same
records, so that labelling can be spread over processes and machines, stopped, and gone on with.
"""

from __future__ import annotations

import abc
import glob
import hashlib
import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..dataset import load_splits, undecoded
from .records import SourceRecord


# Files with these endings are taken for images; those that cannot be read end among the rejects.
IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".avif",
        ".tga",
        ".heic",
        ".heif",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
    ]
)
# In a compressed tar file, gigabytes may be a few bytes.
MAX_FILE_BYTES = 1 << 30
# Of all headers of one file in a tar file: names of any length, comments, sparse maps.
MAX_TAR_HEADER_BYTES = 1 << 20
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


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


def _raise(error: OSError) -> None:
    raise error


def _spans(number: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, number)) for start in range(0, number, size)]


def _text(path: str) -> str:
    """A path as text that can be stored, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _shuffled(number: int) -> list[int]:
    return np.random.default_rng(0).permutation(number).tolist()


class FolderSource(ImageSource):
    """
    Images of a folder and all folders below it, in the order of their paths. An image's id is its path relative to the
    folder. Hidden files are passed over, and so are files whose names do not end like an image's; these are counted.

    Args:
        root: The folder.
        class_folders (`bool`): Whether the first folder below `root` names the class of the whole image.
        paths (`list[str]`, *optional*): Only these, relative to `root`, with `/` between folders.

    Raises:
        `FileNotFoundError`: if there is no such folder, or no image in it.
        `OSError`: if a folder below it cannot be read.
        `ValueError`: if there are images outside the folders of classes.
    """

    def __init__(
        self, root: str | os.PathLike, class_folders: bool = False, paths: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"source: expected a folder at {str(root)!r}, found none")
        self._paths = sorted(paths) if paths is not None else sorted(self._walk())
        if not self._paths:
            raise FileNotFoundError(f"source: expected images in {str(root)!r}, found none")
        if class_folders:
            names = {path.split("/")[0] for path in self._paths if "/" in path}
            stray = next((path for path in self._paths if "/" not in path), None)
            if stray is not None:
                raise ValueError(f"class_folders: expected every image in the folder of its class, got {stray!r}")
            self.label_feature = datasets.ClassLabel(names=sorted(names))

    def _walk(self) -> Iterator[str]:
        seen = set()
        with tqdm(desc=f"Listing {self.root}", unit=" files", disable=None) as progress:
            # A folder that cannot be read is an error: its images would be lost silently.
            for folder, subfolders, files in os.walk(self.root, onerror=_raise, followlinks=True):
                # Links are followed, since class folders often are links, but never round in circles.
                identity = os.path.realpath(folder)
                if identity in seen:
                    subfolders.clear()
                    continue
                seen.add(identity)
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                relative = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
                for name in files:
                    progress.update()
                    if name.startswith("."):
                        continue
                    suffix = os.path.splitext(name)[1].lower()
                    if suffix in IMAGE_SUFFIXES:
                        yield str(relative / name)
                    else:
                        kind = f"files {suffix}" if suffix else "files without ending"
                        self.passed_over[kind] = self.passed_over.get(kind, 0) + 1

    def fingerprint(self) -> dict[str, Any]:
        listing = hashlib.sha256()
        for path in self._paths:
            try:
                size = os.stat(self.root / path).st_size
            except OSError:
                size = -1
            listing.update(f"{_text(path)}\0{size}\n".encode())
        return {
            "kind": "folder",
            "images": len(self._paths),
            "names_and_sizes_sha256": listing.hexdigest(),
            "class_folders": self.label_feature is not None,
        }

    def parts(self, records_per_part: int) -> Sequence[Part]:
        return [
            Part(index, self._paths[start:stop], stop - start)
            for index, (start, stop) in enumerate(_spans(len(self._paths), records_per_part))
        ]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        return map(self._record, part.where[skip:])

    def sample(self, records_per_part: int) -> Iterator[SourceRecord]:
        """Every record, in a fixed random order."""
        return (self._record(self._paths[index]) for index in _shuffled(len(self._paths)))

    def _record(self, path: str) -> SourceRecord:
        label = None if self.label_feature is None else self.label_feature.str2int(path.split("/")[0])
        return SourceRecord(_text(path), _text(str(self.root / path)), str(self.root / path), label)

    def __getstate__(self) -> dict[str, Any]:
        # Parts carry their own paths; a million of them need not travel to every process.
        return {**self.__dict__, "_paths": []}


class _DamagedTarError(tarfile.TarError):
    """No `ReadError`, after which `tarfile` would try other compressions."""


class _HeaderReader:
    """What `tarfile` reads headers through: no more than a limit, since it takes the sizes that they claim."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file, self._left = file, MAX_TAR_HEADER_BYTES

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise _DamagedTarError(f"expected headers of at most {MAX_TAR_HEADER_BYTES} bytes before a file, got more")
        self._left -= size
        return self._file.read(size)


class _StrangersTarFile(tarfile.TarFile):
    """A tar file that may be damaged or hostile: headers are bounded, and what is wrong with them is a `TarError`."""

    def next(self) -> tarfile.TarInfo | None:
        file = self.fileobj
        self.fileobj = _HeaderReader(file)  # type: ignore[assignment]
        try:
            member = super().next()
        except _TAR_ERRORS:
            raise
        except Exception as error:  # on damaged headers `tarfile` fails in ways of its own
            raise _DamagedTarError(f"a header is damaged: {type(error).__name__}: {error}") from error
        finally:
            self.fileobj = file
        self.members.clear()  # or the headers of all files would be kept
        if sum(len(name) + len(value) for name, value in self.pax_headers.items()) > MAX_TAR_HEADER_BYTES:
            raise _DamagedTarError(f"expected headers of all files of at most {MAX_TAR_HEADER_BYTES} bytes, got more")
        if member is not None and not member.offset < self.offset:
            raise _DamagedTarError("a header is damaged: it leads back to what comes before it")
        return member


class TarSource(ImageSource):
    """
    Images of WebDataset tar files, read in place: nothing is extracted. A sample's key is its path up to the first dot
    of the file name; `.cls` holds the label as a number. A part is a tar file. An image's id is its path in the tar
    file, preceded by the tar file's name where there are several. Sparse files are refused.

    Args:
        pattern (`str`): A path, wildcards allowed.

    Raises:
        `FileNotFoundError`: if the pattern matches nothing.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.files = sorted(glob.glob(os.path.expanduser(pattern)))
        if not self.files:
            raise FileNotFoundError(f"source: expected tar files at {pattern!r}, found none")
        self.label_feature = datasets.Value("int64") if self._has_labels() else None
        names = [Path(file).name for file in self.files]
        if len(set(names)) < len(names):
            raise ValueError(f"source: expected tar files of different names, since ids hold them, got {names}")

    def _has_labels(self) -> bool:
        """Whether there is a `.cls` among the first files of the first tar file."""
        try:
            with _StrangersTarFile.open(self.files[0]) as tar:
                return any(member.name.endswith(".cls") for member in itertools.islice(tar, 16))
        except _TAR_ERRORS:
            return False

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tar", "files": [[Path(file).name, os.path.getsize(file)] for file in self.files]}

    def parts(self, records_per_part: int) -> Sequence[Part]:
        return [Part(index, file, None) for index, file in enumerate(self.files)]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        prefix = f"{Path(part.where).name}/" if len(self.files) > 1 else ""
        count = 0
        key = None
        images: list[SourceRecord] = []
        label: int | None = None
        try:
            with _StrangersTarFile.open(part.where) as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    if not member.isfile() or name.startswith("."):
                        continue
                    if (folder, name.split(".")[0]) != key:
                        yield from (replace(image, label=label) for image in images)
                        key, images, label = (folder, name.split(".")[0]), [], None
                    # Content is read as it passes: going back would decompress a .tar.gz again and again.
                    if name.endswith(".cls"):
                        label = self._parse_label(tar, member)
                    elif PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                        count += 1
                        if count > skip:
                            path, where = _text(member.name), f"{part.where}: {_text(member.name)}"
                            error = self._refusal(member)
                            if error is not None:
                                images.append(SourceRecord(prefix + path, where, None, error=error))
                            else:
                                images.append(SourceRecord(prefix + path, where, _extract(tar, member)))
                yield from (replace(image, label=label) for image in images)
                images = []
                tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
                if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # type: ignore[union-attr]
                    raise tarfile.ReadError("it ends without the mark of its end, images may be missing")
        except _TAR_ERRORS as error:
            yield from (replace(image, label=label) for image in images)
            # What could be read was; the rest of the file is lost, which must be seen.
            if count >= skip:
                name = Path(part.where).name
                yield SourceRecord(f"{name}: rest", part.where, None, error=f"the tar file cannot be read on: {error}")

    @staticmethod
    def _parse_label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int | None:
        if member.size > 64 or member.issparse():
            return None
        text = _extract(tar, member).decode("utf-8", "replace").strip()
        # "²" is a digit as well; and the column of labels has 64 bits.
        label = int(text) if text.isascii() and text.isdecimal() else None
        return None if label is None or label >= 1 << 63 else label

    @staticmethod
    def _refusal(member: tarfile.TarInfo) -> str | None:
        """Why a file's content is not read."""
        if member.size > MAX_FILE_BYTES:
            return f"expected at most {MAX_FILE_BYTES} bytes, got {member.size}"
        # A kilobyte may claim a gigabyte of holes, in pieces that take days to put together.
        return "expected a file stored whole, got a sparse one" if member.issparse() else None


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "a regular file has content"
    return file.read()


class _ColumnReader:
    """Rows of a dataset to records."""

    def __init__(self, features: datasets.Features | None, label_column: str, columns: Sequence[str]) -> None:
        features = features or datasets.Features()
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        # Parquet files written without `datasets` hold bare bytes, or a structure of bytes and path.
        images += [name for name in ("image", "img", "jpg", "png", "webp", "bytes") if name in features]
        if not images:
            raise ValueError(f"source: expected a column of images, got the columns {list(features)}")
        self.image = "image" if "image" in images else images[0]
        self.label = label_column if label_column in features else None
        self.image_id = next((name for name in ("image_id", "__key__") if name in features), None)
        self.columns = tuple(columns)
        missing = [name for name in self.columns if name not in features]
        if missing:
            raise ValueError(f"source: expected the columns {missing}, got {list(features)}")
        self.label_feature = None
        if self.label is not None:
            feature = features[self.label]
            if isinstance(feature, datasets.ClassLabel):
                self.label_feature = feature
            elif isinstance(feature, datasets.Value) and "int" in feature.dtype:
                self.label_feature = datasets.Value("int64")
            else:
                self.label = None
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
    Images of a `datasets.Dataset`, which can be cut anywhere.

    Args:
        rows: With a column of images; `image_id` (or `__key__`) and `label` are taken over.
        label_column (`str`): The class of the whole image.
        columns: Further columns that a labeller needs.

    Raises:
        `ValueError`: if columns are missing or there are no rows.
    """

    def __init__(self, rows: datasets.Dataset, label_column: str = "label", columns: Sequence[str] = ()) -> None:
        super().__init__()
        if len(rows) == 0:
            raise ValueError("source: expected at least one row, got an empty dataset")
        self.features = rows.features
        self.read_row = _ColumnReader(rows.features, label_column, columns)
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
            Part(index, span, span[1] - span[0]) for index, span in enumerate(_spans(len(self.rows), records_per_part))
        ]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        return map(self._record, range(part.where[0] + skip, part.where[1]))

    def sample(self, records_per_part: int) -> Iterator[SourceRecord]:
        """Every record, in a fixed random order."""
        return map(self._record, _shuffled(len(self.rows)))

    def _record(self, index: int) -> SourceRecord:
        return self.read_row(self.rows[index], f"{index:09d}")


class StreamSource(ImageSource):
    """
    Images of a `datasets.IterableDataset`: Parquet files, read in place, or a dataset on a hub. A part is one of its
    shards (a file).

    Args:
        rows, label_column, columns: As for [`DatasetSource`].
        files (`list[str]`, *optional*): The Parquet files behind the stream, from which rows are counted.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        label_column: str = "label",
        columns: Sequence[str] = (),
        files: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.features: datasets.Features | None
        if rows.features is None:
            rows = rows._resolve_features()
        self.features = rows.features
        self.read_row = _ColumnReader(rows.features, label_column, columns)
        self.label_feature = self.read_row.label_feature
        self.rows = undecoded(rows.select_columns(self.read_row.needed))
        self.files = list(files) if files is not None else None

    def fingerprint(self) -> dict[str, Any]:
        files = None
        if self.files is not None:
            files = [[Path(file).name, os.path.getsize(file)] for file in self.files]
        return {"kind": "stream", "shards": self.rows.num_shards, "files": files}

    def parts(self, records_per_part: int) -> Sequence[Part]:
        counts: list[int | None] = [None] * self.rows.num_shards
        if self.files is not None and len(self.files) == self.rows.num_shards:
            counts = [pq.read_metadata(file).num_rows for file in self.files]
        return [Part(index, index, count) for index, count in enumerate(counts)]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        shard = self.rows.shard(num_shards=self.rows.num_shards, index=part.where)
        for position, row in enumerate(shard.skip(skip) if skip else shard, start=skip):
            yield self.read_row(row, f"{part.index:05d}-{position:09d}")


def _open_parquet(files: Sequence[str], label_column: str, columns: Sequence[str]) -> StreamSource:
    """Parquet files that have the needed columns; what else they have may differ."""
    reader: _ColumnReader | None = None
    features = datasets.Features()
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"source: expected a Parquet file, got {file}: {error}") from error
        if reader is None:
            features = datasets.Features.from_arrow_schema(schema)
            reader = _ColumnReader(features, label_column, columns)
        missing = [name for name in reader.needed if name not in schema.names]
        if missing:
            raise ValueError(f"source: expected the columns {reader.needed} in every file, {file} lacks {missing}")
    assert reader is not None, "there are files"
    rows = datasets.load_dataset(
        "parquet", data_files=list(files), split="train", streaming=True, columns=reader.needed
    )
    source = StreamSource(rows, label_column, columns, files)
    source.features = features
    return source


def open_source(
    name: str,
    split: str | None = None,
    config_name: str | None = None,
    streaming: bool = False,
    class_folders: bool = False,
    label_column: str = "label",
    columns: Sequence[str] = (),
) -> ImageSource:
    """
    The source behind a name.

    Args:
        name (`str`): Tar files or Parquet files (wildcards allowed); a folder written by `save_to_disk`, one that
            holds Parquet files, or else one of images; or the name of a dataset on the Hub.
        split (`str`, *optional*): Split of a dataset; by default its only one, or `train`.
        config_name (`str`, *optional*): Configuration of a dataset on the Hub.
        streaming (`bool`): Whether a dataset on the Hub is read as it is needed.
        class_folders (`bool`): Of a folder of images: the first folder below names the class of the whole image.
        label_column, columns: Of datasets, see [`DatasetSource`].

    Raises:
        `FileNotFoundError`: if there is nothing of that name.
        `ValueError`: if the split does not exist or there is no column of images.
    """
    path = Path(name).expanduser()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return TarSource(name)
    if name.endswith(".parquet"):
        files = sorted(glob.glob(str(path)))
        if not files:
            raise FileNotFoundError(f"source: expected Parquet files at {name!r}, found none")
        return _open_parquet(files, label_column, columns)
    is_saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    holds_parquet = any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))
    if (path.is_dir() and not is_saved and not holds_parquet) or (
        not path.exists() and name.startswith((".", "/", "~"))
    ):
        return FolderSource(path, class_folders)
    # Local Parquet is read in place: `datasets` would make a copy of it.
    splits = load_splits(str(path) if path.exists() else name, config_name, streaming or holds_parquet)
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
    if split not in splits:
        raise ValueError(f"source split: expected one of {sorted(splits)}, got {split!r}")
    rows = splits[split]
    source_class = StreamSource if isinstance(rows, datasets.IterableDataset) else DatasetSource
    return source_class(rows, label_column, columns)
