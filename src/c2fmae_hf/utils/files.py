"""Write files and folders completely or not at all; read JSON and text."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write a file completely or not at all. Yields a temporary path beside `path`. When the block ends, that file is
    synced to disk and replaces `path` in one step; after an exception it is removed and `path` stays as it was.

    Raises:
        `FileNotFoundError`: if there is no such folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a path in an existing folder, got one in {path.parent}")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    As [`replace_file`], for a folder. A process killed in between leaves the earlier folder, under its own name or one
    that begins with a dot. The next successful call removes such leftovers.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, earlier = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    try:
        # Left by a killed process of the same number, as in containers. The earlier folder may be all that there is.
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        sync_tree(temporary)
        if path.exists():
            os.replace(path, earlier)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for kind in ("tmp", "old"):
        for left in path.parent.glob(f".{glob.escape(path.name)}.{kind}-*"):
            shutil.rmtree(left, ignore_errors=True)


def match_files(pattern: str | os.PathLike) -> list[str]:
    """Paths that match, sorted; `**` means any folders. A file's own path, which may have brackets, is that file."""
    return [str(pattern)] if os.path.isfile(pattern) else sorted(glob.glob(str(pattern), recursive=True))


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write indented JSON with [`replace_file`]; its folder is created if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_writable(folder: str | os.PathLike, name: str = "output_dir") -> None:
    """
    Check, before long work, that files can be written to a folder; it is created if needed.

    Args:
        folder: The folder.
        name (`str`): Its name in messages.

    Raises:
        `OSError`: with the system's reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)):
            pass
    except OSError as error:
        raise OSError(f"{name}: expected a folder that can be written to, got {folder}: {error.strerror}") from None


def read_json(path: str | os.PathLike, advice: str = "") -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        `ValueError`: naming the file, if it holds anything else; the message ends with `advice`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # from JSON or UTF-8
        raise ValueError(f"{path}: expected JSON, {error}{advice}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}{advice}")
    return content


def read_lines(path: str | os.PathLike, expected: str) -> list[str]:
    """
    Read the lines of a UTF-8 text file.

    Args:
        path: The file.
        expected (`str`): What the file should hold; messages begin with it.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if it is in another encoding.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{expected} in {path}, found no such file")
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{expected} in {path} as UTF-8, got: {error}") from None


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that new names in it survive a power cut; POSIX only."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below a folder, and the folder itself."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def file_sha256(path: str | os.PathLike) -> str:
    """Checksum of a file's content, read in pieces."""
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            checksum.update(piece)
    return checksum.hexdigest()


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
