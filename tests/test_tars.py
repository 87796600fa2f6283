"""WebDataset tar files as a source of pre-training."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest

from c2fmae_hf.commands.photographs import open_photographs
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.rows import undecoded
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.data.streaming import C2FMAEIterableDataset
from c2fmae_hf.data.transforms import evaluation_transform
from c2fmae_hf.data.validation import validate_dataset
from c2fmae_hf.labelling.sources.tar import TarSource


TRANSFORM = evaluation_transform((32, 32))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(file: Path, rows: datasets.Dataset, left_out: tuple[str, ...] = (), more: tuple = ()) -> Path:
    """Rows as members; `left_out` names some (`r1.semantic.png`), and `more` adds others to each row."""
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as tar:
        for row in undecoded(rows):
            members = {"png": row["image"]["bytes"]}
            members |= {f"{name}.png": row[name]["bytes"] for name in ("semantic", "instance")}
            for ending, content in [*members.items(), *more]:
                name = f"{row['image_id']}.{ending}"
                if name in left_out or f"*.{ending}" in left_out:
                    continue
                info = tarfile.TarInfo(f"a/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_tar_files_are_a_dataset(rows, tmp_path, ending, is_folder):
    more = (("json", b'{"caption": "discs"}'), ("cls", b"3"), ("txt", b"discs"))
    write(tmp_path / f"tars/train-0{ending}", rows.select(range(5)), ("r1.instance.png",), more)
    write(tmp_path / f"tars/train-1{ending}", rows.select(range(5, 10)))
    write(tmp_path / f"tars/val{ending}", rows.select([10, 11]))
    name = str(tmp_path / "tars" if is_folder else tmp_path / f"tars/*{ending}")
    splits = load_splits(name)
    assert {split: len(part) for split, part in splits.items()} == {"train": 10, "validation": 2}
    assert set(splits["train"].column_names) == {"image", "semantic", "instance", "image_id"}
    train = C2FMAEDataset(splits["train"], TRANSFORM, num_semantic_classes=5)
    expected = C2FMAEDataset(rows, TRANSFORM)
    stream = load_splits(name, streaming=True)["train"]
    assert stream.num_shards == 2
    streamed = list(C2FMAEIterableDataset(stream, TRANSFORM, num_semantic_classes=5))
    assert len(streamed) == 10
    for index in range(10):
        for sample in (train[index], streamed[index]):
            assert sample["image_id"] == f"a/r{index}"
            for part in ("pixel_values", "semantic", "instance"):
                is_same = np.array_equal(sample[part], expected[index][part])
                assert is_same is ((index, part) != (1, "instance"))
    assert open_photographs(name) is None
    report, _ = validate_dataset(name)
    assert (report.rows, report.broken, report.missing_maps) == (10, [], {"instance": 1})


def test_tar_files_of_photographs_are_labelled_first(rows, tmp_path):
    for number in range(2):
        write(tmp_path / f"tars/{number}.tar", rows.select(range(3)), ("*.semantic.png", "*.instance.png"))
    for name in ("tars", "tars/*.tar"):
        source = open_photographs(str(tmp_path / name))
        assert isinstance(source, TarSource)
        records = [record for part in source.parts(10) for record in source.read(part)]
        assert [record.image_id for record in records] == [f"{n}.tar/a/r{i}.png" for n in range(2) for i in range(3)]
    # Labelling reads only the photographs of labelled tar files, too.
    labelled = TarSource(str(write(tmp_path / "labelled.tar", rows.select(range(3)))))
    assert [record.image_id for record in labelled.read(labelled.parts(10)[0])] == [f"a/r{i}.png" for i in range(3)]
    # Photographs beside tar files are not overlooked.
    (tmp_path / "tars/b.png").write_bytes(undecoded(rows)[0]["image"]["bytes"])
    assert not isinstance(open_photographs(str(tmp_path / "tars")), TarSource)


def test_what_cannot_be_a_dataset_is_said(rows, tmp_path):
    rows = rows.select(range(3))
    write(tmp_path / "maps/a.tar", rows, ("*.png",))
    with pytest.raises(ValueError, match=r"expected photographs in .*a.tar \(a.jpg\), .*got \['a/r0.semantic.png'"):
        load_splits(str(tmp_path / "maps"))
    with pytest.raises(ValueError, match=r"expected photographs in .*a.tar"):
        open_photographs(str(tmp_path / "maps"))
    write(tmp_path / "mixed/a.tar", rows)
    write(tmp_path / "mixed/b.tar", rows, ("*.semantic.png",), (("semantic.bmp", b""),))
    with pytest.raises(ValueError, match=r"got .semantic.png and, in .*b.tar, .semantic.bmp for 'semantic'"):
        load_splits(str(tmp_path / "mixed"))
    whole = write(tmp_path / "whole.tar", rows).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for content, message in (
        (whole[:3000], "expected a tar file, got .*broken.tar: unexpected end of data"),
        (whole[:end], "lacks the mark of its end. Copy it again"),
        (b"no tar", "expected a tar file, got .*broken.tar: file could not be opened successfully"),
        (b"", "expected a tar file"),
    ):
        (tmp_path / "broken.tar").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_splits(str(tmp_path / "broken.tar"))
    for name in ("nothing.tar", "nothing-*.tgz"):
        with pytest.raises(FileNotFoundError, match="expected a folder, Parquet or tar files"):
            load_splits(str(tmp_path / name))
        with pytest.raises(FileNotFoundError, match="expected tar files at"):
            TarSource(str(tmp_path / name))
