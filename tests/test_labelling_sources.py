"""Sources yield every image once, in a fixed order, and can resume anywhere in a part."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import datasets
import pytest

from c2fmae_hf.labelling.records import OutputOptions, Reject, prepare_image
from c2fmae_hf.labelling.sources.base import of_split
from c2fmae_hf.labelling.sources.folder import FolderSource
from c2fmae_hf.labelling.sources.open import open_source
from c2fmae_hf.labelling.sources.rows import StreamSource
from c2fmae_hf.labelling.sources.tar import TarSource
from labelling_utils import encode, photograph, write_photographs
from testing_utils import make_rows


def ids(source, records_per_part: int = 4, skip: int = 0) -> list[list[str]]:
    return [[record.image_id for record in source.read(part, skip)] for part in source.parts(records_per_part)]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def records_of(path: Path | str, **options) -> list:
    source = open_source(str(path), **options)
    return [record for part in source.parts(100) for record in source.read(part)]


def test_folders_are_searched_recursively(tmp_path):
    paths = write_photographs(tmp_path / "photos", 10)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "LICENSE").write_text("no image")
    (tmp_path / "photos" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "photos" / ".cache").mkdir()
    (tmp_path / "photos" / ".cache" / "thumbnail.jpg").write_bytes(b"")
    deep = tmp_path / "elsewhere" / "a" / "b"
    write_photographs(deep, 2)
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "linked" / "round").symlink_to(tmp_path / "photos")

    source = FolderSource(tmp_path / "photos")
    found = [name for part in ids(source) for name in part]
    expected = sorted(str(path.relative_to(tmp_path / "photos")) for path in paths)
    assert [name for name in found if not name.startswith("linked")] == expected
    assert sum(name.startswith("linked/a/b/folder_") for name in found) == 2
    assert len(found) == len(set(found)) == 12
    assert source.passed_over == {"files .txt": 1, "files without ending": 1}
    assert [len(part) for part in ids(source)] == [4, 4, 4]
    assert source.num_records(4) == 12


def test_a_source_can_be_pickled_and_resumed_at_any_image(tmp_path):
    write_photographs(tmp_path / "photos", 10)
    rows = make_rows(10)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for index in range(10):
            add(tar, f"a/{index:03d}.jpg", encode(photograph(index)))
    for name in ("photos", "rows.parquet", "saved", "photos.tar"):
        source = open_source(str(tmp_path / name))
        parts = source.parts(4)
        copy = pickle.loads(pickle.dumps(source))
        for part in pickle.loads(pickle.dumps(parts)):
            records = [(r.image_id, r.label) for r in source.read(part)]
            assert [(r.image_id, r.label) for r in copy.read(part)] == records
            for skip in range(len(records) + 1):
                assert [(r.image_id, r.label) for r in copy.read(part, skip)] == records[skip:]
        everything = [record for part in parts for record in source.read(part)]
        assert len({record.image_id for record in everything}) == 10
        assert not any(isinstance(prepare_image(record, OutputOptions()), Reject) for record in everything)
        assert {r.image_id for r in source.sample(4)} == {record.image_id for record in everything}
        assert [r.image_id for r in source.sample(4)] == [r.image_id for r in source.sample(4)]
        assert source.num_records(4) == (None if name.endswith("tar") else 10)
        assert source.fingerprint() == open_source(str(tmp_path / name)).fingerprint()


def test_class_folders_give_labels(tmp_path):
    write_photographs(tmp_path / "photos", 6)
    source = open_source(str(tmp_path / "photos"), class_folders=True)
    assert source.label_feature.names == ["folder_0", "folder_1", "folder_2"]
    labels = [record.label for part in source.parts(100) for record in source.read(part)]
    assert labels == [0, 0, 1, 1, 2, 2]
    (tmp_path / "photos" / "stray.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"class_folders: .* got 'stray.jpg'"):
        FolderSource(tmp_path / "photos", class_folders=True)


def test_a_changed_folder_has_another_fingerprint(tmp_path):
    paths = write_photographs(tmp_path, 4)
    before = FolderSource(tmp_path).fingerprint()
    content = paths[0].read_bytes()
    paths[0].write_bytes(content + b"\0")
    assert FolderSource(tmp_path).fingerprint() != before
    paths[0].write_bytes(content)
    assert FolderSource(tmp_path).fingerprint() == before
    paths[0].rename(paths[0].with_name("other.jpg"))
    assert FolderSource(tmp_path).fingerprint() != before


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_webdataset_tar_files(tmp_path, ending):
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}{ending}", "w:gz" if ending.endswith("gz") else "w") as tar:
            for index in range(5):
                kind = ("jpg", "png", "webp")[index % 3]
                encoded = encode(photograph(index), {"jpg": "JPEG"}.get(kind, kind.upper()))
                # The label comes before or after the image.
                files = [(f"n/{index:04d}.{kind}", encoded), (f"n/{index:04d}.cls", str(index % 2).encode())]
                for name, content in files[:: 1 if index % 2 else -1]:
                    add(tar, name, content)
                add(tar, f"n/{index:04d}.json", b"{}")
            add(tar, "n/._0000.jpg", b"of another system") if number else None
    source = open_source(str(tmp_path / f"shard-*{ending}"))
    assert isinstance(source, TarSource)
    assert source.label_feature == datasets.Value("int64")
    records = [record for part in source.parts(100) for record in source.read(part)]
    assert [record.label for record in records] == [0, 1, 0, 1, 0] * 2
    assert records[1].image_id == f"shard-0{ending}/n/0001.png"
    assert [prepare_image(record, OutputOptions()).image.size for record in records] == [(64, 48)] * 10


def test_a_tar_file_cannot_reach_outside_files(tmp_path):
    """Names with `..` are plain image names, links are left out, and no file is written."""
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encode(photograph(9)))
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/photos.tar", "w") as tar:
        for name in ("../../climbing.jpg", "/tmp/absolute.jpg", "C:\\windows.jpg", "a/../../b.jpg"):
            add(tar, name, encode(photograph(1)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link-{kind.decode()}.jpg")
            link.type, link.linkname = kind, str(secret)
            tar.addfile(link)
        device = tarfile.TarInfo("device.jpg")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    before = sorted(tmp_path.rglob("*"))
    source = open_source(str(tmp_path / "tars/photos.tar"))
    records = [record for part in source.parts(10) for record in source.read(part)]
    assert [record.image_id for record in records] == [
        "../../climbing.jpg",
        "/tmp/absolute.jpg",
        "C:\\windows.jpg",
        "a/../../b.jpg",
    ]
    assert all(record.value == encode(photograph(1)) for record in records)
    assert sorted(tmp_path.rglob("*")) == before


def test_members_of_tar_files_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("c2fmae_hf.labelling.sources.tar.MAX_FILE_BYTES", 100_000)
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        add(tar, "a.jpg", encode(photograph(1)))
        add(tar, "large.jpg", bytes(1_000_000))
        add(tar, "c.jpg", encode(photograph(2)))
    first, large, last = records_of(tmp_path / "photos.tar.gz")
    assert first.value
    assert last.value
    assert (large.value, large.error) == (None, "expected at most 100000 bytes, got 1000000")


def test_images_before_the_damage_of_a_tar_file_are_kept(tmp_path):
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for index in range(6):
            add(tar, f"{index}.jpg", encode(photograph(index, 96, 96)))
    content = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "damaged.tar").write_bytes(content[: len(content) // 2])
    (tmp_path / "no.tar").write_bytes(b"this is no tar file at all" * 100)
    source = open_source(str(tmp_path / "damaged.tar"))
    (part,) = source.parts(100)
    records = list(source.read(part))
    good = [record for record in records if record.error is None]
    assert 1 <= len(good) < 6
    assert records[-1].image_id == "damaged.tar: rest"
    assert "cannot be read on" in records[-1].error
    for skip in range(len(records) + 1):
        assert [r.image_id for r in source.read(part, skip)] == [r.image_id for r in records[skip:]]
    source = open_source(str(tmp_path / "no.tar"))
    assert [record.error is None for part in source.parts(1) for record in source.read(part)] == [False]


def test_a_damaged_header_is_not_the_end_of_a_tar_file(tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            add(tar, name, encode(photograph(1)))
    with tarfile.open(tmp_path / "photos.tar") as tar:
        second = tar.getmember("b.jpg").offset
    content = bytearray((tmp_path / "photos.tar").read_bytes())
    content[second] = ord("?")
    for damaged in (bytes(content), bytes(content[:second])):
        (tmp_path / "photos.tar").write_bytes(damaged)
        first, rest = records_of(tmp_path / "photos.tar")
        assert first.value == encode(photograph(1))
        assert (rest.image_id, rest.value) == ("photos.tar: rest", None)
        assert "images may be missing" in rest.error


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_images_before_the_damage_of_a_compressed_tar_file_are_kept(tmp_path, share):
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        for index in range(6):
            add(tar, f"{index}.jpg", encode(photograph(index, 96, 96)))
    content = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "damaged.tar.gz").write_bytes(content[: int(share * len(content))])
    *good, rest = records_of(tmp_path / "damaged.tar.gz")
    assert 1 <= len(good) < 6
    assert [record.value for record in good] == [encode(photograph(i, 96, 96)) for i in range(len(good))]
    assert rest.image_id == "damaged.tar.gz: rest"
    assert "cannot be read on" in rest.error


def test_labels_of_tar_files_that_are_not_64_bit_integers(tmp_path):
    texts = ["7", " 12\n", "²", "-1", "", "9" * 64, str(2**63)]
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for index, text in enumerate(texts):
            add(tar, f"{index}.cls", text.encode())
            add(tar, f"{index}.jpg", encode(photograph(1)))
    assert [record.label for record in records_of(tmp_path / "photos.tar")] == [7, 12, *[None] * 5]


def test_columns_of_datasets(tmp_path):
    rows = make_rows(6).rename_columns({"image": "picture", "image_id": "name"})
    rows = rows.add_column("label", [0, 1, 2, 0, 1, 2]).cast_column("label", datasets.ClassLabel(names=list("abc")))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"source split: expected one of \['test', 'train'\], got 'validation'"):
        open_source(str(tmp_path / "saved"), split="validation")
    # With several image columns `image` is used, or else the first.
    source = open_source(str(tmp_path / "saved"))
    assert source.read_row.image == "picture"
    assert source.label_feature.names == list("abc")
    records = [record for part in source.parts(4) for record in source.read(part)]
    assert [record.label for record in records] == [0, 1, 2, 0, 1, 2]
    assert [record.image_id for record in records] == [f"{index:09d}" for index in range(6)]
    rows.select_columns(["label"]).save_to_disk(tmp_path / "no_images")
    with pytest.raises(ValueError, match=r"source: expected a column of images, got the columns \['label'\]"):
        open_source(str(tmp_path / "no_images"))
    with pytest.raises(ValueError, match=r"source: expected the columns \['depth'\]"):
        open_source(str(tmp_path / "saved"), columns=["depth"])


def test_parquet_is_read_in_place(tmp_path):
    for number in range(3):
        make_rows(4).to_parquet(tmp_path / f"part-{number}.parquet")
    for name in (f"{tmp_path}/*.parquet", str(tmp_path)):
        source = open_source(name)
        assert len(source.parts(100)) == 3
        records = [record for part in source.parts(100) for record in source.read(part)]
        assert len(records) == 12
        assert records[0].value["bytes"]


def test_a_split_of_files_is_that_of_their_names(tmp_path, caplog):
    make_rows(5).to_parquet(tmp_path / "train.parquet")
    make_rows(2).to_parquet(tmp_path / "validation.parquet")
    for name, number in (("a.tar", 3), ("a_val.tar", 1)):
        (tmp_path / "tars").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tars" / name, "w") as tar:
            for index in range(number):
                add(tar, f"{index}.jpg", encode(photograph(1)))
    parquet, tars = f"{tmp_path}/*.parquet", f"{tmp_path}/tars/*.tar"
    for source, expected in ((parquet, [5, 5, 2]), (tars, [3, 3, 1]), (tmp_path / "tars", [3, 3, 1])):
        caplog.clear()
        assert [len(records_of(source, split=split)) for split in (None, "train", "validation")] == expected
        assert caplog.messages == ["Only the files of the split 'train' are read, not the others (1 of validation)."]
        with pytest.raises(ValueError, match=r"source split: expected one of \['train', 'validation'\], .*'nonsense'"):
            open_source(str(source), "nonsense")
    with pytest.raises(
        ValueError, match=r"source split: expected one of \['test', 'validation'\], .* no files of train"
    ):
        of_split(["a_val.tar", "a_test.tar"], None)
    for source in (parquet, tars):
        with pytest.raises(ValueError, match=r"class_folders: expected a folder of images, got (tar|Parquet) files"):
            open_source(source, class_folders=True)
    write_photographs(tmp_path / "photos", 3)
    with pytest.raises(ValueError, match="source split: expected none of a folder of images"):
        open_source(str(tmp_path / "photos"), "train")


def test_images_of_a_streamed_archive(tmp_path):
    """`datasets` names them by a path into the archive."""
    paths = write_photographs(tmp_path / "photos", 3)
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"photos/{path.name}")
    rows = datasets.load_dataset(
        "imagefolder", data_files={"train": str(tmp_path / "train.zip")}, split="train", streaming=True
    )
    source = StreamSource(rows)
    records = [record for part in source.parts(10) for record in source.read(part)]
    prepared = [prepare_image(record, OutputOptions()) for record in records]
    assert sorted(one.encoded for one in prepared) == sorted(path.read_bytes() for path in paths)


def test_photographs_below_a_tar_file_are_read(tmp_path):
    write_photographs(tmp_path / "photos", 3)
    with tarfile.open(tmp_path / "photos" / "old.tar", "w") as tar:
        add(tar, "0.jpg", encode(photograph(1)))
    source = open_source(str(tmp_path / "photos"))
    assert source.num_records(10) == 3
    assert source.passed_over == {"files .tar": 1}


def test_parquet_files_may_differ_in_unused_columns(tmp_path):
    make_rows(4).to_parquet(tmp_path / "a.parquet")
    make_rows(3).remove_columns(["semantic", "instance"]).to_parquet(tmp_path / "b.parquet")
    source = open_source(f"{tmp_path}/*.parquet")
    assert [len(part) for part in ids(source)] == [4, 3]
    with pytest.raises(ValueError, match=r"in every file, .*b\.parquet lacks \['semantic'\]"):
        open_source(f"{tmp_path}/*.parquet", columns=["semantic"])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not quite")
    with pytest.raises(ValueError, match=r"source: expected a Parquet file, got .*c\.parquet"):
        open_source(f"{tmp_path}/*.parquet")


@pytest.mark.parametrize("name", ["/no/such/folder", "/no/*.parquet", "/no/*.tar", "./nothing"])
def test_a_source_that_does_not_exist_is_an_error(name):
    with pytest.raises(FileNotFoundError, match="source: expected"):
        open_source(name)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"expected images in .*, found none"):
        open_source(str(tmp_path))
    assert Path(tmp_path).is_dir()
