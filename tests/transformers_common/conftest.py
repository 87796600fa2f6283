"""Leave this folder alone where slow tests are not asked for: collecting it fetches transformers' tests."""

from __future__ import annotations

import os

import conformity


os.environ.setdefault("RUN_SLOW", "1")  # transformers' word for its own slow tests; none of them takes long here


def pytest_ignore_collect(collection_path, config):
    return True if "not slow" in config.option.markexpr else None


# Markers of the upstream tests.
UPSTREAM_MARKERS = (
    "accelerate_tests flash_attn_test flash_attn_3_test flash_attn_4_test torch_compile_test torch_export_test "
    "not_device_test is_staging_test is_pipeline_test agent_tests generate all_flash_attn_test"
)


def pytest_configure(config):
    conformity.install(config)
    for marker in UPSTREAM_MARKERS.split():
        config.addinivalue_line("markers", f"{marker}: of transformers' own tests")
