"""docs/conformity.md: complete, and what the common tests of transformers and timm do."""

from __future__ import annotations

import re

import pytest

import conformity


def test_document_names_every_suite_and_explains_every_skip(repository):
    text = (repository / "docs/conformity.md").read_text(encoding="utf-8")
    for suite in [*conformity.SUITES, conformity.REFERENCE]:
        counts = re.search(rf"^\| {re.escape(suite.upstream)} \| {re.escape(suite.subject)} \|(.*)\|$", text, re.M)
        total, passed, failed, skipped = map(int, counts[1].split("|"))
        assert total == passed + skipped > 0
        assert failed == 0
    for change in conformity.CHANGES:
        assert change in text
    rows = re.findall(r"^\| (.*) \| \d+: `.*` \| (.*) \|$", text, re.M)
    assert len(rows) > 20
    for reason, explanation in rows:
        assert explanation == conformity.explain(reason)


def test_a_skip_without_an_explanation_is_refused():
    with pytest.raises(KeyError, match=r"moon is full.*no explanation"):
        conformity.explain("the moon is full")


@pytest.mark.slow
def test_document_is_what_is_observed(request, repository):
    """Comes last, after the common tests, if they are run in the same session."""
    recorder = request.config.pluginmanager.get_plugin("conformity")
    if recorder is None or recorder.is_partial or not all(map(recorder.of, conformity.SUITES)):
        pytest.skip("needs all of tests/transformers_common and tests/timm_common in the same run")
    text = (repository / "docs/conformity.md").read_text(encoding="utf-8")
    if (here := conformity.describe_environment()) not in text:
        pytest.skip(f"docs/conformity.md is of other versions or hardware than these: {here}")
    assert conformity.render(recorder) == text, "run `python tests/conformity.py > docs/conformity.md` and look at it"
