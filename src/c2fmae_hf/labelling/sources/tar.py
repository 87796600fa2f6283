"""WebDataset tar files."""

from __future__ import annotations

import glob
import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from ..records import SourceRecord
from .base import ImageSource, Part, path_text
from .folder import IMAGE_SUFFIXES


# In a compressed tar file, gigabytes may be a few bytes.
MAX_FILE_BYTES = 1 << 30
# Of all headers of one file in a tar file: names of any length, comments, sparse maps.
MAX_TAR_HEADER_BYTES = 1 << 20
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


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
                            path, where = path_text(member.name), f"{part.where}: {path_text(member.name)}"
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
