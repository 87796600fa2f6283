"""Rows of messy datasets: each is used as it is, or named with its column; and may be skipped."""

from __future__ import annotations

import re

import pytest

from bad_rows import HEAD, KINDS, ROW, observe


def shape_of(row: str) -> str:
    """A row of the table without what depends on the version of Pillow."""
    return re.sub(r"(cannot be (opened|decoded)): .*", r"\1", row)


@pytest.fixture(scope="module")
def table(repository) -> list[str]:
    text = (repository / "docs/bad_rows.md").read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    return text.removeprefix(HEAD).strip().splitlines()


def test_the_table_has_a_row_for_each_kind(table):
    assert [" ".join(row.split(" | ")[:2]).removeprefix("| ") for row in table] == [
        kind.replace(": ", " ", 1) for kind in KINDS
    ]
    assert len(KINDS) >= 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_row(kind, table):
    found = observe(kind)
    assert shape_of(found.row) == shape_of(table[list(KINDS).index(kind)])
    if found.error is None:
        assert found.sample is not None
        assert found.sample["pixel_values"].shape == (3, 32, 32)
        assert found.sample["pixel_values"].isfinite().all()
        assert found.sample["semantic"].shape == found.sample["instance"].shape == (8, 8)
        assert found.skipped == 0
        return
    named = {"both maps": "(semantic|instance)", "image_id": "image"}
    column = kind.partition(": ")[0]
    # An image that is turned shows in its maps.
    columns = "(image|semantic)" if "EXIF" in kind else named.get(column, column)
    assert re.match(rf"row {ROW}( \(.*\))?, column '{columns}': (expected|cannot be)", found.error)
    assert found.skipped == 1
