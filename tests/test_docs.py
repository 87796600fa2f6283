"""The documents' site and figures."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check_site():
    return load(DOCS / "site/check_site.py")


def test_the_reference_has_every_module():
    package = ROOT / "src/c2fmae_hf"
    modules = set()
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules.add(".".join(parts).removesuffix(".__init__"))
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.rst")]
    named = [name for page in pages for name in re.findall(r"^\.\. automodule:: (\S+)$", page, re.MULTILINE)]
    assert len(named) == len(set(named))
    # Rooms, commands (their docstrings are `--help`), and what needs Gradio.
    modules = {name for name in modules if not name.startswith("c2fmae_hf.commands.")}
    rooms = {name for name in modules if (package.parent.joinpath(*name.split(".")) / "__init__.py").is_file()}
    assert modules - set(named) == (rooms - {"c2fmae_hf.metrics"}) | {"c2fmae_hf.__main__", "c2fmae_hf.app.page"}
    assert set(named) <= modules
    index = (DOCS / "reference/index.rst").read_text(encoding="utf-8")
    assert set(re.findall(r"^   (\w+)$", index, re.MULTILINE)) == {
        path.stem for path in (DOCS / "reference").glob("*.rst") if path.stem != "index"
    }


PAGE = '<a href="b.html#{anchor}">b</a><img src="{picture}"><a href="https://example.org">elsewhere</a>'


@pytest.mark.parametrize(
    ("anchor", "picture", "style", "fault"),
    [
        ("here", "p.png", "", None),
        ("there", "p.png", "", r"a\.html: b\.html#there has no such anchor"),
        ("here", "q.png", "", r"a\.html: q\.png leads nowhere"),
        ("here", "https://example.org/p.png", "", r"a\.html: loads https://example\.org/p\.png"),
        ("here", "//example.org/p.png", "", r"a\.html: loads //example\.org/p\.png"),
        ("here", "p.png", "@import url('https://fonts.example.org/f');", r"s\.css: loads "),
        ("here", "p.png", "p { background: url(//example.org/p) }", r"s\.css: loads "),
    ],
)
def test_faults_of_a_site_are_found(check_site, tmp_path, capsys, anchor, picture, style, fault):
    (tmp_path / "a.html").write_text(PAGE.format(anchor=anchor, picture=picture), encoding="utf-8")
    (tmp_path / "b.html").write_text('<p id="here">b</p><a href="#here">up</a>', encoding="utf-8")
    (tmp_path / "s.css").write_text(style, encoding="utf-8")
    (tmp_path / "p.png").touch()
    assert check_site.main([str(tmp_path)]) == (fault is not None)
    if fault is not None:
        assert re.match(fault, capsys.readouterr().out)


def test_no_site_is_a_fault(check_site, tmp_path):
    assert check_site.main([str(tmp_path)]) == 1


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(check_site, tmp_path):
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason='needs the extra "docs"')
    options = ["--quiet", "--fail-on-warning", "-c", str(DOCS / "site"), "-d", str(tmp_path / "doctrees")]
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(ROOT), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert check_site.find_faults(tmp_path / "site") == []
    pages = {path.stem: path.read_text("utf-8") for path in (tmp_path / "site/docs/reference").glob("*.html")}
    assert 'id="c2fmae_hf.masking.mask_regions"' in pages["method"]
    for name, page in pages.items():  # docstrings are in another markup than the pages
        article = page.partition("<article")[2].partition("</article>")[0]
        assert "`" not in re.sub(r"<pre>.*?</pre>", "", article, flags=re.DOTALL), name


@pytest.mark.slow
def test_figures_are_those_that_the_script_draws(tmp_path):
    """But for what another version of a library draws differently."""
    load(DOCS / "figures.py").main(["--output_dir", str(tmp_path)])
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in (DOCS / "figures").glob("*.png"))
    for name in drawn:
        new, old = (
            np.asarray(Image.open(folder / name).convert("RGB").resize((90, 60)), dtype=float)
            for folder in (tmp_path, DOCS / "figures")
        )
        assert np.abs(new - old).mean() < 8, name
