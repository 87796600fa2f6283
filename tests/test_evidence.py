"""The documents state the study's results as its records have them."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest


FIGURE = r"[+-]?\d+\.\d ± \d+\.\d"


@pytest.fixture
def tables(repository, monkeypatch):
    for name in ("benchmarks", "benchmarks/representation"):
        monkeypatch.syspath_prepend(str(repository / name))
    import tables

    yield tables
    for name in ("tables", "summarise", "variants", "answers", "data"):
        sys.modules.pop(name, None)


def test_figures_in_sentences_are_measured(tables, repository):
    measured = set(re.findall(FIGURE, "".join(make() for name, make in tables.TABLES.items() if "study" in name)))
    for name in ("docs/evidence.md", "README.md", "model_cards/README.md"):
        text = re.sub(tables.TABLE, "", (repository / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        assert set(re.findall(FIGURE, text.replace("\n", " "))) <= measured, name


def test_another_score_of_a_run_changes_the_documents(tables, repository, tmp_path, monkeypatch):
    shutil.copytree(tables.STUDY / "results", tmp_path / "results")
    monkeypatch.setattr(tables, "STUDY", tmp_path)
    path = tmp_path / "results/curriculum-0-stl10-small-10.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["results"]["knn"] += 0.1
    path.write_text(json.dumps(content), encoding="utf-8")
    for page in ("docs/evidence.md", "benchmarks/representation/README.md"):
        text = (repository / page).read_text(encoding="utf-8")
        assert tables.render(page, text) != text, page


def test_the_page_is_short_and_begins_with_the_verdicts(repository):
    text = (repository / "docs/evidence.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert re.findall(r"^## (.*)", text, flags=re.MULTILINE)[0] == "Verdicts"
