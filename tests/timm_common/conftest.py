"""Leave this folder alone where slow tests are not asked for: collecting it fetches timm's tests."""

from __future__ import annotations

import conformity


def pytest_ignore_collect(collection_path, config):
    return True if "not slow" in config.option.markexpr else None


# Markers of the upstream tests.
UPSTREAM_MARKERS = "base forward backward cfg cfg_nonstd torchscript features fxforward fxbackward timeout"


def pytest_configure(config):
    conformity.install(config)
    for marker in UPSTREAM_MARKERS.split():
        config.addinivalue_line("markers", f"{marker}: of timm's own tests")
