"""A folder of image files, with all folders below it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from tqdm.auto import tqdm

from ..records import SourceRecord
from .base import ImageSource, Part, path_text, shuffled, spans


# Files with these endings count as images; those that cannot be read are rejected.
# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga", ".heic", ".heif", ".dng", ".cr2", ".nef", ".arw",
))
# fmt: on


def _raise(error: OSError) -> None:
    raise error


class FolderSource(ImageSource):
    """
    Images of a folder and all folders below it, in the order of their paths. An image's id is its path relative to the
    folder. Hidden files are skipped; so are, with a count, files whose names do not end like an image's.

    Args:
        root: The folder.
        class_folders (`bool`): Whether the first folder below `root` names the class of the whole image.
        paths (`list[str]`, *optional*): Only these, relative to `root`, with `/` between folders.
        errors (`dict[str, str]`, *optional*): Paths among these that must not be read, with the reason.

    Raises:
        `FileNotFoundError`: if there is no such folder, or no image in it.
        `OSError`: if a folder below it cannot be read.
        `ValueError`: if there are images outside the folders of classes.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        class_folders: bool = False,
        paths: Sequence[str] | None = None,
        errors: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.errors = dict(errors or {})
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
            # A folder that cannot be read is an error: its images would be lost unnoticed.
            for folder, subfolders, files in os.walk(self.root, onerror=_raise, followlinks=True):
                # Links are followed, since class folders often are links, but not in circles.
                if os.path.realpath(folder) in seen:
                    subfolders.clear()
                    continue
                seen.add(os.path.realpath(folder))
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
            file = self.root / path
            size = file.stat().st_size if path not in self.errors and file.exists() else -1
            listing.update(f"{path_text(path)}\0{size}\n".encode())
        return {
            "kind": "folder",
            "images": len(self._paths),
            "names_and_sizes_sha256": listing.hexdigest(),
            "class_folders": self.label_feature is not None,
        }

    def parts(self, records_per_part: int) -> Sequence[Part]:
        return [
            Part(index, self._paths[start:stop], stop - start)
            for index, (start, stop) in enumerate(spans(len(self._paths), records_per_part))
        ]

    def read(self, part: Part, skip: int = 0) -> Iterator[SourceRecord]:
        return map(self._record, part.where[skip:])

    def sample(self, records_per_part: int) -> Iterator[SourceRecord]:
        """Every record, in a fixed random order."""
        return (self._record(self._paths[index]) for index in shuffled(len(self._paths)))

    def _record(self, path: str) -> SourceRecord:
        label = None if self.label_feature is None else self.label_feature.str2int(path.split("/")[0])
        file = str(self.root / path)
        return SourceRecord(path_text(path), path_text(file), file, label, error=self.errors.get(path))

    def __getstate__(self) -> dict[str, Any]:
        # Parts hold their own paths, so a million of them need not be sent to every process.
        return {**self.__dict__, "_paths": []}
