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
    """Each has a pattern that names the variant and the score; the documents hold what the records give."""
    for name in ("docs/evidence.md", "README.md", "model_cards/README.md"):
        text = (repository / name).read_text(encoding="utf-8")
        known = [place for place, _ in tables.find_figures(name, text)]
        known += [match.span() for match in re.finditer(tables.TABLE, text, flags=re.DOTALL)]
        for figure in re.finditer(FIGURE, text):
            start, stop = figure.span()
            assert any(first <= start and stop <= last for first, last in known), f"{name}: {figure[0]}"


def test_scores_that_change_are_told(tables, repository, tmp_path, monkeypatch, capsys):
    """In the tables, in the sentences that name them, and in the chart."""
    shutil.copytree(tables.STUDY / "results", tmp_path / "results")
    monkeypatch.setattr(tables, "STUDY", tmp_path)
    path = tmp_path / "results/classical_labels_less-0-stl10-small-10.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["results"]["knn"] += 0.03
    path.write_text(json.dumps(content), encoding="utf-8")
    page = "docs/evidence.md"
    lines = (repository / page).read_text(encoding="utf-8").splitlines()
    changed = tables.render(page, "\n".join(lines)).splitlines()
    changed = [new for old, new in zip(lines, changed) if old != new]
    rows = {line.split(" | ")[0].removeprefix("| ") for line in changed if line.startswith("|")}
    words = "cascade, curriculum, maps of the classical labeller, label losses weighted 1/3"
    assert {words, "default: classical labeller's maps vs annotated"} <= rows
    assert any("k-NN +6.4 ± " in line for line in changed if not line.startswith("|"))
    assert tables.update_chart(check=True)
    assert tables.main(["--check"]) == 1
    assert f"{tables.CHART}: expected other scores" in capsys.readouterr().out


def test_every_table_is_printed(tables, repository, tmp_path, capsys):
    """`summarise.py` prints the rows of the study's tables in the documents."""
    import summarise

    summarise.main(["--output", str(tmp_path)])
    printed = set(capsys.readouterr().out.splitlines())
    for name in ("study-differences", "study-attention", "study-gpu-5-scores", "study-label-weights"):
        rows = [line for line in tables.TABLES[name]().splitlines() if "±" in line]
        assert rows
        assert set(rows) <= printed, name
    assert {path.parent.name for path in tmp_path.rglob("evidence.json")} == {"results", "all_decoded"}


def test_the_page_is_short_and_begins_with_the_verdicts(repository):
    text = (repository / "docs/evidence.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert re.findall(r"^## (.*)", text, flags=re.MULTILINE)[0] == "Verdicts"
