"""Files that appear whole or not at all."""

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
    A temporary name beside `path` to write to. When the block ends, the file is on disk and takes the place of `path`
    in one step; if it ends with an exception, the temporary file is removed and `path` stays as it was.

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
    As [`replace_file`], of a folder: a temporary one to write to, that takes the place of `path` when it is complete.
    A process that is killed in between leaves the earlier folder, under its name or one that begins with a dot. The
    next attempt that succeeds removes such leftovers.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, earlier = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    try:
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


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Readable JSON, written as [`replace_file`] does, in a folder that is made if it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_writable(folder: str | os.PathLike, name: str = "output_dir") -> None:
    """
    Make a folder if it is not there, and a file in it: before the work whose results it is for.

    Args:
        folder: The folder.
        name (`str`): What messages call it.

    Raises:
        `OSError`: saying what the system answered.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)):
            pass
    except OSError as error:
        raise OSError(f"{name}: expected a folder that can be written to, got {folder}: {error.strerror}") from None


def read_json(path: str | os.PathLike, advice: str = "") -> dict[str, Any]:
    """
    A JSON object.

    Raises:
        `ValueError`: naming the file, if it holds anything else; the message ends with the advice.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"{path}: expected JSON, {error}{advice}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}{advice}")
    return content


def read_lines(path: str | os.PathLike, expected: str) -> list[str]:
    """
    Lines of a text file in UTF-8.

    Args:
        path: The file.
        expected (`str`): Of what messages say, up to what should be in it.

    Raises:
        `FileNotFoundError`: if it is not there.
        `ValueError`: if it is in another encoding.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{expected} in {path}, found no such file")
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{expected} in {path} as UTF-8, got: {error}") from None


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder last through a power cut, where the system can."""
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
