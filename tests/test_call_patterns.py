"""Runs tests/call_patterns.py on our models, and holds the table of docs/conformity.md to its record."""

from __future__ import annotations

import json

import pytest

import call_patterns
from call_patterns import PATTERNS, RECORD, Absent, Ours, render, run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {side: Ours(f"{side} px", side, folder / str(side)) for side in call_patterns.PATCH_SIZES}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
@pytest.mark.parametrize(
    "side", [pytest.param(64, marks=pytest.mark.slow), 96, pytest.param(224, marks=pytest.mark.slow)]
)
def test_people_can_do(models, side, pattern, tmp_path):
    try:
        run(pattern, models[side], tmp_path)
    except Absent as error:
        pytest.skip(str(error))


def test_the_document_has_the_record_s_table(repository):
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert list(record["results"]) == list(PATTERNS.values())
    for found in record["results"].values():
        ours = [text for name, text in found.items() if name.startswith("C2FMAE")]
        assert len(ours) == 3
        assert all(text == "works" or text.startswith("skipped: needs") for text in ours)
    text = (repository / "docs/conformity.md").read_text(encoding="utf-8")
    assert "\n".join(render(record)) in text
