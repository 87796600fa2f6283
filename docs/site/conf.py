"""
The site: `make docs` builds it from the documents of this repository as they stand, with Sphinx and MyST.

Its sources are README's neighbours too (benchmarks, model cards, CONTRIBUTING), so that a link works alike on the site
and where the repository is read; the source directory is therefore the root of the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))
import c2fmae_hf  # noqa: E402


project = "c2fmae-hf"
author = "the c2fmae-hf authors"
copyright = f"{author}, Apache-2.0"
release = version = c2fmae_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "docs/**.rst",
    "examples/README.md",
    "benchmarks/**/README.md",
    "benchmarks/README.md",
    "model_cards/**.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
# Where a document asks for one (`page.md#heading`), a heading must be there.
myst_heading_anchors = 4
# A warning is an error (`make docs` gives --fail-on-warning), and so is a [`Name`] in a docstring that is nowhere;
# types in signatures are not looked up.
nitpicky = True
nitpick_ignore_regex = [(r"py:(?!obj).*", r".*")]

html_theme = "furo"
html_title = "c2fmae-hf"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style, pygments_dark_style = "tango", "monokai"
# The start page of the site's folder leads to that of the documents.
html_additional_pages = {"index": "start.html"}
templates_path = ["."]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # of transformers, whose marks are others
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False
python_maximum_signature_line_length = 88

SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
# Names of other libraries in docstrings.
OTHERS = {"transformers", "evaluate", "datasets", "trainer_utils", "Trainer", "BatchFeature"}

# The pages by part, in reading order. Those that are not there yet are left out; one that is there and is not named
# here is an error of Sphinx.
NAVIGATION = {
    "Start": ["quickstart", "concepts", "comparison", "gallery", "app", "faq", "glossary"],
    "Data": ["datasets", "labelling", "bad_rows", "odd_files"],
    "Training": ["pretraining", "imagenet", "long_runs", "transfer"],
    "Models": ["models", "hub", "hub_faults", "../model_cards/README"],
    "Evidence": ["evidence", "conformity", "../benchmarks/README", "../benchmarks/representation/README"],
    "Development": [
        "extending",
        "../examples/README",
        "reference/index",
        "../CONTRIBUTING",
        "../CHANGELOG",
    ],
}
# Where a page's own title is long.
TITLES = {
    "imagenet": "From ImageNet to the Hub",
    "hub": "Hub, conversion, export",
    "../benchmarks/representation/README": "The study",
}


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Trees of contents, which would be noise where the documents are read as they are."""
    if docname == root_doc:
        for part, pages in NAVIGATION.items():
            files = ((page, ROOT / "docs" / page) for page in pages)
            there = [page for page, file in files if any(file.with_suffix(end).is_file() for end in (".md", ".rst"))]
            there = [f"{TITLES[page]} <{page}>" if page in TITLES else page for page in there]
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {part}", "", *there, "```", ""])
    elif docname == "model_cards/README":
        cards = [f"{path.parent.name}/README" for path in sorted((ROOT / "model_cards").glob("*/README.md"))]
        cards += [path.stem for path in sorted((ROOT / "model_cards").glob("c2fmae-*.md"))]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", "", *cards, "```", ""])


def leave_out(app: Sphinx, docname: str, source: list[str]) -> None:
    """A card's metadata, which MyST would take for settings of its own, and links to Markdown that is no document."""
    if docname.startswith("model_cards/"):
        source[0] = re.sub(r"\A---\n.*?\n---\n", "", source[0], flags=re.DOTALL)
        source[0] = re.sub(r"\[([^]]+)\]\((?:\.\./)+src/[^)]+\.md\)", r"\1", source[0])


def translate_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """From transformers' marks (`code`, [`Name`], fences) to reStructuredText, before napoleon reads the sections."""
    text = "\n".join(line for line in lines if not line.strip().startswith("```"))

    text = re.sub(r"^(\s+)`([\w.]+)`: ", r"\1\2: ", text, flags=re.MULTILINE)  # what is raised

    def reference(match: re.Match) -> str:
        name = match[1].removeprefix("~")
        return f":py:obj:`~{'' if name.startswith('c2fmae_hf.') else '.'}{name}`"

    text = re.sub(r"\[`([\w.~]+)`\]", reference, text)
    # What backticks of Markdown enclose may touch a letter afterwards (`id`s), which needs an escaped blank.
    code = re.compile(r"(?<![`:\w])`([^`\n]+(?:\n\s*[^`\n]+)?)`(?!`)(\w?)")
    text = code.sub(lambda match: f"``{' '.join(match[1].split())}``" + (f"\\ {match[2]}" if match[2] else ""), text)
    text = re.sub(r"(?<![`\w])\|(?=\w)", r"\\|", text)  # |2t - 1| is no substitution
    lines[:] = text.splitlines()


def shorten_signature(app, what, name, obj, options, signature: str | None, return_annotation):
    """Shorten signatures of configurations and arguments, whose fields are listed below them."""
    is_long = what == "class" and signature is not None and signature.count(": ") > 30
    return ("(**fields)", None) if is_long else None


def skip_aliases(app: Sphinx, what, name, obj, skip, options) -> bool | None:
    """Fields of a named tuple, whose generated docstrings say nothing."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def names_of_others(app: Sphinx, env, node, contnode):
    """[`Trainer`] and its like stand as code, and so do our own names that have no entry of their own."""
    if node.get("reftype") != "obj":
        return None
    name = node["reftarget"].lstrip(".")
    is_ours = re.search(rf"^(class |def )?{re.escape(name.split('.')[-1])}\b", SOURCES, re.MULTILINE)
    return contnode if is_ours or name.split(".")[0] in OTHERS else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("source-read", leave_out)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-skip-member", skip_aliases)
    app.connect("missing-reference", names_of_others)
    app.connect("autodoc-process-docstring", translate_docstring, priority=400)
