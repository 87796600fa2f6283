"""Faults between a user and a Hub: nothing is lost or half published, and the table shows what the user sees."""

from __future__ import annotations

import re

import huggingface_hub
import pytest
from packaging.version import Version

from hub_faults import CASES, HEAD, observe


@pytest.fixture(scope="module")
def table(repository):
    text = (repository / "docs/hub_faults.md").read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    rows = text.removeprefix(HEAD).strip().splitlines()
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def test_the_table_has_a_row_for_each_case(table):
    assert list(table) == [case.kind for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind.replace(" ", "-"))
def test_fault(case, hub_scene, table):
    found, expected = observe(case, hub_scene).row, table[case.kind]
    if Version(huggingface_hub.__version__) < Version("2"):  # which words some messages differently
        found, expected = (re.sub(r"`.*`", "", row) for row in (found, expected))
    assert found == expected
