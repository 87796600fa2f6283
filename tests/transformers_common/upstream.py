"""
transformers' own common tests, out of the source distribution of the installed version.

The wheel does not hold them. They are fetched once with pip and kept in the user's cache; the variable
C2FMAE_TRANSFORMERS_SDIST may name the archive instead. Its modules import sub-packages that the distribution leaves
out; those are stubbed, each with its reason.
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
from pathlib import Path

import pytest
import transformers


PACKAGE = "transformers_upstream_tests"


def find_tests() -> Path:
    """The folder of the installed version's tests; skips the calling module where it cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "c2fmae_hf"
    folder = cache / f"transformers-{transformers.__version__}-tests"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        with tarfile.open(_find_archive(temporary)) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and Path(m.name).parts[1] == "tests"]
            archive.extractall(temporary, members=members, filter="data")
        unpacked = next(Path(temporary).glob("transformers-*/tests"))
        (unpacked / "__init__.py").touch()  # read by a module, but not distributed
        unpacked.rename(folder)
    return folder


def _find_archive(temporary: str) -> Path:
    if given := os.environ.get("C2FMAE_TRANSFORMERS_SDIST"):
        return Path(given)
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", requirement]
    subprocess.run([*command, "-d", temporary], capture_output=True, timeout=600)
    archives = list(Path(temporary).glob("transformers-*.tar.gz"))
    if not archives:
        pytest.skip(
            f"the source distribution of {requirement} could not be fetched; set C2FMAE_TRANSFORMERS_SDIST to its "
            "archive",
            allow_module_level=True,
        )
    return archives[0]


def _stub(name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module


def _install_stubs() -> None:
    for package in ("exporters", "generation", "utils"):
        _stub(f"{PACKAGE}.{package}", __path__=[])
    # Exporters to other runtimes; torch.export is covered by test_modeling_c2fmae.py.
    _stub(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("Export", (), {}))
    # Text generation.
    _stub(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("Generation", (), {}))
    # Values that differ from the defaults of every configuration.
    _stub(
        f"{PACKAGE}.utils.test_configuration_utils",
        config_common_kwargs={
            "return_dict": False,
            "output_hidden_states": True,
            "chunk_size_feed_forward": 5,
            "architectures": ["BertModel"],
            "problem_type": "regression",
            "dtype": "float16",
        },
    )
    # A cache of files on the Hub; nothing here reads them.
    _stub("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)


def load(module: str) -> types.ModuleType:
    """An upstream test module, by its name without `.py`."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(find_tests())]
        package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
        sys.modules[PACKAGE] = package
        _install_stubs()
    return importlib.import_module(f"{PACKAGE}.{module}")
