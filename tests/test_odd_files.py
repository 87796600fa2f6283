"""The table of odd files: complete, without anything used wrongly, and made again for one file of each kind."""

from __future__ import annotations

import re

import pytest

from odd_files import COCO_FILES, LABEL_MAPS, PHOTOGRAPHS, Table


SECTIONS = (("Photographs", PHOTOGRAPHS, 30), ("Label maps", LABEL_MAPS, 30), ("COCO files", COCO_FILES, 40))


@pytest.fixture(scope="module")
def page(repository) -> list[str]:
    return (repository / "docs/odd_files.md").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Table:
    return Table(tmp_path_factory.mktemp("odd"))


def row_of(page: list[str], title: str, kind: str) -> str:
    section = page[page.index(f"## {title}") + 1 :]
    return next(line for line in section if line.startswith(f"| {kind} | "))


def without_versions(row: str) -> str:
    """A row without what Pillow's version decides."""
    return re.sub(r"(cannot be (opened|decoded)): [^|]*", r"\1 ", row)


def test_every_file_has_a_row_and_none_is_used_wrongly(page):
    rows = [line for line in page if line.startswith("| ") and not line.startswith("| ---")]
    assert len(rows) - 3 == len(PHOTOGRAPHS) + len(LABEL_MAPS) + len(COCO_FILES)
    for title, kinds, fewest in SECTIONS:
        assert len(kinds) >= fewest
        for kind in kinds:
            assert "**" not in row_of(page, title, kind)


@pytest.mark.parametrize("kind", ["JPEG, EXIF orientation 6"])
def test_a_photograph(table, page, kind):
    assert without_versions(table.photograph_row(kind)) == without_versions(row_of(page, "Photographs", kind))


@pytest.mark.parametrize("kind", ["class 5 of 5"])
def test_a_label_map(table, page, kind):
    assert without_versions(table.map_row(kind)) == without_versions(row_of(page, "Label maps", kind))


@pytest.mark.parametrize("kind", ["segmentation: two points", "an unknown image"])
def test_a_coco_file(table, page, kind):
    assert without_versions(table.coco_row(kind)) == without_versions(row_of(page, "COCO files", kind))


@pytest.mark.slow
def test_all_of_them(table, page):
    makers = (table.photograph_row, table.map_row, table.coco_row)
    for (title, kinds, _), make in zip(SECTIONS, makers):
        for kind in kinds:
            assert without_versions(make(kind)) == without_versions(row_of(page, title, kind))
