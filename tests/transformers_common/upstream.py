"""
transformers' own common tests, out of the source distribution of the installed version.

Its modules import sub-packages that the distribution leaves out; those are stubbed, each with its reason.
"""

from __future__ import annotations

import sys
import types

import source_distributions


PACKAGE = "transformers_upstream_tests"


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
    if f"{PACKAGE}.utils" not in sys.modules:
        _install_stubs()
    return source_distributions.load("transformers", module)
