"""
The tests of libraries, out of the source distributions of the installed versions: wheels do not hold them.

Each is fetched once with pip and kept in the user's cache. The variable C2FMAE_TRANSFORMERS_SDIST or C2FMAE_TIMM_SDIST
may name the archive instead.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

import pytest


def find_tests(library: str) -> Path:
    """The folder `tests` of the installed version; skips the calling module where it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "c2fmae_hf"
    folder = cache / f"{library}-{version(library)}-tests"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        with tarfile.open(_find_archive(library, temporary)) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and Path(m.name).parts[1] == "tests"]
            archive.extractall(temporary, members=members, filter="data")
        unpacked = next(Path(temporary).glob(f"{library}-*/tests"))
        (unpacked / "__init__.py").touch()  # read by a module of transformers', but not distributed
        unpacked.rename(folder)
    return folder


def _find_archive(library: str, temporary: str) -> Path:
    variable = f"C2FMAE_{library.upper()}_SDIST"
    if given := os.environ.get(variable):
        return Path(given)
    requirement = f"{library}=={version(library)}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", requirement]
    subprocess.run([*command, "-d", temporary], capture_output=True, timeout=600)
    archives = list(Path(temporary).glob(f"{library}-*.tar.gz"))
    if not archives:
        pytest.skip(
            f"the source distribution of {requirement} could not be fetched; set {variable} to its archive",
            allow_module_level=True,
        )
    return archives[0]


def load(library: str, module: str) -> types.ModuleType:
    """A module of the library's tests, by its name without `.py`; they are a package `<library>_upstream_tests`."""
    package_name = f"{library}_upstream_tests"
    if package_name not in sys.modules:
        package = types.ModuleType(package_name)
        package.__path__ = [str(find_tests(library))]
        package.__spec__ = importlib.machinery.ModuleSpec(package_name, None, is_package=True)
        sys.modules[package_name] = package
    return importlib.import_module(f"{package_name}.{module}")
