"""Validation of datasets, and the contact sheet."""

from __future__ import annotations

import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from c2fmae_hf.data.validation import count_spanning, validate_dataset
from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from c2fmae_hf.labelling.records import OutputOptions
from c2fmae_hf.labelling.sources.folder import FolderSource
from c2fmae_hf.pictures import contact_sheet
from c2fmae_hf.pictures.contact_sheet import draw_contact_sheet, sheet_cells
from labelling_utils import encode, photograph, write_photographs
from testing_utils import load_command, make_rows, png


@pytest.fixture
def labelled(tmp_path):
    write_photographs(tmp_path / "photos", 13)
    options = OutputOptions(rows_per_shard=5)
    label_images(
        FolderSource(tmp_path / "photos"), ClassicalLabeller(4, fit_images=5), tmp_path / "set", options=options
    )
    return tmp_path / "set"


def test_a_whole_dataset(labelled):
    report, samples = validate_dataset(str(labelled), num_drawn=4)
    assert report.is_valid
    assert (report.rows, report.num_broken, report.duplicate_ids, report.shards) == (13, 0, 0, [])
    assert report.image_height["median"] == 48
    assert report.map_stride == {"2": 13}
    assert report.ignored_share == {"semantic": 0, "instance": 0}
    assert [entry["name"] for entry in report.classes] == [f"cluster {i}" for i in range(4)]
    assert sum(entry["share"] for entry in report.classes) == pytest.approx(1)
    assert report.instances_per_image["max"] > 1
    assert len(samples) == 4
    assert len({sample["image_id"] for sample in samples}) == 4
    assert samples[0]["semantic"].shape == (48, 64)
    json.dumps(report.to_dict())
    assert "13 rows, 0 broken" in str(report)


def test_a_folder_of_files(tmp_path, monkeypatch):
    """`datasets` leaves photographs and maps in their files, and gives paths."""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("image", "semantic", "instance")
    (tmp_path / "set" / "train").mkdir(parents=True)
    lines = []
    for index, row in enumerate(make_rows(4)):
        for name in names:
            row[name].save(tmp_path / "set/train" / f"{index}.{name}.png")
        lines.append(json.dumps({f"{name}_file_name": f"{index}.{name}.png" for name in names}))
    (tmp_path / "set/train/metadata.jsonl").write_text("\n".join(lines))
    report, _ = validate_dataset("~/set")
    assert (report.rows, report.num_broken) == (4, 0)
    sizes = [(tmp_path / "set/train" / f"{index}.image.png").stat().st_size for index in range(4)]
    assert report.bytes_per_image["image"] == pytest.approx(sum(sizes) / 4)
    assert "maps add" in str(report)


def test_the_home_folder_has_a_manifest_too(labelled, monkeypatch):
    monkeypatch.setenv("HOME", str(labelled.parent))
    next((labelled / "data").iterdir()).unlink()
    report, _ = validate_dataset("~/set")
    assert "is missing" in report.shards[0]


def test_shards_that_differ_from_the_manifest(labelled):
    shards = sorted((labelled / "data").iterdir())
    shutil.copy(shards[0], labelled / "data" / "train-00009-0000.parquet")
    shards[2].unlink()
    shards[1].write_bytes(shards[0].read_bytes())
    report, _ = validate_dataset(str(labelled))
    assert not report.is_valid
    assert report.shards == [
        "data/train-00001-0000.parquet has another checksum",
        "data/train-00002-0000.parquet is missing",
        "data/train-00009-0000.parquet is not in the manifest",
    ]
    assert report.duplicate_ids == 10


def test_broken_rows_are_named(tmp_path):
    rows = make_rows(8)
    for column in ("image", "semantic", "instance"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    items = list(rows)
    photo = encode(photograph(0, 48, 48))
    items[1]["image"] = {"bytes": photo[:-200], "path": None}
    items[2]["semantic"] = png(np.full((48, 48), 9, np.uint8))
    items[3]["instance"] = png(np.zeros((48, 40), np.uint8))
    items[4]["semantic"] = None
    items[5]["image_id"] = "r0"
    items[6]["semantic"] = png(np.full((48, 48), 255, np.uint8))
    datasets.Dataset.from_list(items, features=rows.features).to_parquet(tmp_path / "rows.parquet")
    report, _ = validate_dataset(str(tmp_path / "rows.parquet"), num_classes=5)
    assert not report.is_valid
    assert report.shards is None
    assert [(entry["row"], entry["image_id"]) for entry in report.broken] == [(1, "r1"), (2, "r2"), (3, "r3")]
    reasons = [entry["reason"] for entry in report.broken]
    assert "column 'image': cannot be decoded" in reasons[0]
    assert "column 'semantic': expected class ids in [0, 5)" in reasons[1]
    assert "column 'instance': expected the image's size" in reasons[2]
    assert report.missing_maps == {"semantic": 1}
    assert report.duplicate_ids == 1
    assert report.ignored_share["semantic"] > 0.25


def test_instances_that_span_classes():
    semantic = np.zeros((10, 20), np.int32)
    semantic[:, 10:] = 3
    instance = np.zeros((10, 20), np.int32)
    instance[:5, 5:15] = 1  # half in each class
    instance[5:, :10] = 2  # in one class
    instance[5:, 12:] = 3
    assert count_spanning(semantic, instance) == 1
    semantic[:, 10:] = -100
    assert count_spanning(semantic, instance) == 0
    assert count_spanning(semantic, np.zeros_like(instance)) == 0


def test_a_missing_split_or_folder_is_an_error(labelled):
    with pytest.raises(ValueError, match=r"split: expected one of \['train'\], got 'test'"):
        validate_dataset(str(labelled), split="test")
    with pytest.raises(FileNotFoundError):
        validate_dataset("/no/such/folder")


@pytest.mark.parametrize("number", [1, 5])
def test_contact_sheet(labelled, tmp_path, number):
    _, samples = validate_dataset(str(labelled), num_drawn=number)
    draw_contact_sheet(samples, tmp_path / "sheet.png", {i: f"cluster {i}" for i in range(4)}, "title")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.std() > 20
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200


def test_the_contact_sheet_is_aligned(tmp_path, monkeypatch):
    sizes = [(40, 90), (90, 40), (50, 50), (20, 200), (200, 20)]  # height, width
    samples = [
        {
            "image_id": str(index),
            "image": np.full((*size, 3), 100, np.uint8),
            "semantic": np.full(size, 5 - index),
            "instance": np.ones(size, int),
        }
        for index, size in enumerate(sizes)
    ]
    del samples[2]["instance"]
    cells, names = sheet_cells(samples, columns=2)
    assert names == [["", "0", "", "", "1", ""], ["", "2", "", "", "3", ""], ["", "4", "", "", "", ""]]
    for (height, width), picture in zip(sizes, [row[start] for row in cells for start in (0, 3)]):
        assert picture.shape[1] == 320  # so that columns are aligned
        assert picture.shape[0] == round(320 * min(height / width, 1))
        grey = np.argwhere((picture == 100).all(axis=-1))
        left, right = grey[:, 1].min(), 319 - grey[:, 1].max()
        assert abs(left - right) <= 1
        assert right + 1 - left + 319 - 2 * right == pytest.approx(320 * min(width / height, 1), abs=3)
    for row in cells:
        photograph, semantic, instance = row[:3]
        assert photograph.shape == semantic.shape == instance.shape
    assert cells[2][3:] == [None] * 3
    assert (cells[1][2] == 222).all()  # no instance map: ignored

    drawn = {}
    monkeypatch.setattr(contact_sheet, "draw_grid", lambda cells, path, **options: drawn.update(options))
    draw_contact_sheet(samples, tmp_path / "sheet.png", {i: f"class {i}" for i in range(9)})
    assert list(drawn["legend"]) == [f"class {i}" for i in range(1, 6)]  # by id, those that occur
    assert len(drawn["column_names"]) == len(drawn["cell_names"][0]) == 6


def test_the_command(labelled, tmp_path, capsys):
    example = load_command("validate")
    report = example.main([str(labelled), "--num_drawn", "3", "--output_dir", str(tmp_path / "checked")])
    assert report.is_valid
    assert json.loads((tmp_path / "checked" / "validation-train.json").read_text())["rows"] == 13
    assert (tmp_path / "checked" / "contact_sheet-train.png").stat().st_size > 10_000
    assert "shards: as in the manifest" in capsys.readouterr().out
