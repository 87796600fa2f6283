"""The study's data, made of files in the layouts of STL-10, of its masks and of Caltech-101."""

from __future__ import annotations

import json
import sys

import datasets
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def build_data(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks/representation"))
    import build_data

    yield build_data
    sys.modules.pop("build_data")


@pytest.fixture
def public_files(tmp_path):
    """Three photographs of train and two of test, as STL-10 stores them: by columns, one channel after the other."""
    rng = np.random.default_rng(0)
    photographs = {part: rng.integers(0, 256, (n, 6, 6, 3)).repeat(16, 1).repeat(16, 2) for part, n in PARTS.items()}
    for folder in ("stl10", "masks", "caltech101/llama"):
        (tmp_path / folder).mkdir(parents=True)
    for part, images in photographs.items():
        images.astype(np.uint8).transpose(0, 3, 2, 1).tofile(tmp_path / f"stl10/{part}_X.bin")
        np.array([2, 1, 2][: len(images)], dtype=np.uint8).tofile(tmp_path / f"stl10/{part}_y.bin")
    bird = {"bird_0": [[0, 0], [1, 0], [2, 0], [2, 16]], "bird_1": [[2, 0], [2, 1]]}
    (tmp_path / "masks/stl10_train_bird.json").write_text(json.dumps({"0": bird, "2": {"bird_0": [[15, 3]]}}))
    (tmp_path / "masks/stl10_train_airplane.json").write_text(json.dumps({}))
    Image.new("RGB", (300, 200), (200, 30, 90)).save(tmp_path / "caltech101/llama/image_0007.jpg")
    split = {
        "stl10": {"train": {"stl10_seg_train": [2, 0]}, "test": {"stl10_images_train": [1]}},
        "caltech101": {"classes": ["crab", "llama"], "files": {"caltech101_val": ["llama/0007"]}},
    }
    (tmp_path / "split.json").write_text(json.dumps(split))
    return photographs


PARTS = {"train": 3, "test": 2}


def command(folder):
    options = {"stl10": "stl10", "masks": "masks", "caltech101": "caltech101", "split": "split.json", "output": "out"}
    return [word for name, path in options.items() for word in (f"--{name}", str(folder / path))]


def test_the_data_is_made_of_the_public_files(build_data, public_files, tmp_path):
    build_data.main(command(tmp_path))
    masked, unmasked, caltech = (
        datasets.load_dataset("parquet", data_files=str(tmp_path / f"out/{name}.parquet"), split="train")
        for name in ("stl10_seg_train", "stl10_images_train", "caltech101_val")
    )
    assert masked["image_id"] == ["stl10_train_00002", "stl10_train_00000"]
    assert masked["label"] == [1, 1]
    assert masked.features["label"].names[1] == "bird"
    for row, index in zip(masked, (2, 0)):
        difference = np.asarray(row["image"]).astype(int) - public_files["train"][index]
        assert np.abs(difference).mean() < 12  # JPEG, whose colours have half the resolution
    semantic, instance = (np.asarray(masked[1][name])[::6, ::6] for name in ("semantic", "instance"))
    # The smaller bird covers a square of the larger one; a mark beyond the edge is left out.
    assert instance[:2, :4].tolist() == [[1, 1, 2, 0], [0, 0, 2, 0]]
    assert instance.astype(bool).sum() == 4
    assert semantic[:2, :4].tolist() == [[2, 2, 2, 0], [0, 0, 2, 0]]
    assert np.asarray(masked[0]["instance"])[18:24, 90:].tolist() == [[1] * 6] * 6
    assert unmasked["image_id"] == ["stl10_test_00001"]
    assert unmasked["label"] == [0]
    assert unmasked.column_names == ["image", "label", "image_id"]
    assert caltech["image_id"] == ["caltech101_llama_0007"]
    assert caltech["label"] == [1]
    assert caltech[0]["image"].size == (216, 144)


def test_what_is_missing_is_named(build_data, public_files, tmp_path):
    (tmp_path / "masks/stl10_train_bird.json").write_text(json.dumps({"0": {"bird_0": [[1, 1]]}}))
    with pytest.raises(ValueError, match=r"stl10_train_bird.json: expected marks of photograph 2, found none"):
        build_data.main(command(tmp_path))
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "masks/stl10_train_bird.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"stl10_train_bird.json: expected the marks"):
        build_data.main(command(tmp_path))
    with (tmp_path / "stl10/train_X.bin").open("ab") as file:
        file.write(b"1")
    with pytest.raises(ValueError, match=r"train_X.bin: expected 82944 bytes"):
        build_data.main(command(tmp_path))
    (tmp_path / "stl10/train_X.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_X.bin: expected a file of STL-10"):
        build_data.main(command(tmp_path))


def test_the_split_is_that_of_the_files_used(build_data, shared_data):
    split = json.loads(build_data.SPLIT.read_text(encoding="utf-8"))
    files = {name: (part, rows) for part in PARTS for name, rows in split["stl10"][part].items()}
    for name, (part, rows) in files.items():
        table = datasets.load_dataset("parquet", data_files=str(shared_data / f"{name}.parquet"), split="train")
        assert table["image_id"] == [f"stl10_{part}_{index:05d}" for index in rows]
        assert table.features["label"].names == build_data.STL10_CLASSES
    for name, rows in split["caltech101"]["files"].items():
        table = datasets.load_dataset("parquet", data_files=str(shared_data / f"{name}.parquet"), split="train")
        assert table["image_id"] == [f"caltech101_{row.replace('/', '_')}" for row in rows]
        assert table.features["label"].names == split["caltech101"]["classes"]
