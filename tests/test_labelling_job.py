"""Labelling jobs: output, rejects, resuming and engines."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from filelock import FileLock
from PIL import Image

from c2fmae_hf.labelling import engine
from c2fmae_hf.labelling.job import label_images
from c2fmae_hf.labelling.labellers.annotations import ColumnsLabeller, MirroredFoldersLabeller
from c2fmae_hf.labelling.labellers.base import Labeller
from c2fmae_hf.labelling.labellers.classical import ClassicalLabeller
from c2fmae_hf.labelling.records import LabelMaps, OutputOptions
from c2fmae_hf.labelling.sources.folder import FolderSource
from c2fmae_hf.labelling.sources.open import open_source
from c2fmae_hf.labelling.sources.rows import DatasetSource
from c2fmae_hf.utils.files import file_sha256, replace_file
from hub_clients import command
from labelling_utils import plant_bad_files, plant_odd_files, tree_checksums, write_photographs
from testing_utils import make_rows


SMALL = OutputOptions(rows_per_shard=5)


class Halves(Labeller):
    """Labels the left half as class 0, and the right half as class 1 and an instance."""

    name = "halves"
    summary = "For tests."
    id2label = {0: "left", 1: "right"}
    batch_size = 3

    def settings(self):
        return {"halves": 2}

    def __call__(self, batch):
        results = []
        for prepared in batch:
            right = np.zeros((prepared.image.height, prepared.image.width), np.int32)
            right[:, prepared.image.width // 2 :] = 1
            results.append(LabelMaps(right, right))
        return results


class Fussy(Halves):
    """Refuses some images, and raises another error at one."""

    refused: tuple[str, ...] = ()
    fatal: str | None = None

    def __call__(self, batch):
        for prepared in batch:
            if prepared.record.image_id == self.fatal:
                raise RuntimeError("the accelerator is gone")
            if prepared.record.image_id in self.refused:
                raise ValueError("I do not like it")
        return super().__call__(batch)


@pytest.fixture
def photos(tmp_path) -> Path:
    write_photographs(tmp_path / "photos", 23)
    return tmp_path / "photos"


def rejects(root: Path) -> dict[str, str]:
    entries = map(json.loads, (root / "rejects.jsonl").read_text(encoding="utf-8").splitlines())
    return {entry["image_id"]: entry["reason"] for entry in entries}


def test_the_written_dataset(photos, tmp_path):
    out = tmp_path / "out"
    summary = label_images(FolderSource(photos, class_folders=True), Halves(), out, options=SMALL)
    assert (summary.records, summary.rows, summary.rejects, summary.shards) == (23, 23, 0, 5)
    for streaming in (False, True):
        rows = load_dataset(str(out), split="train", streaming=streaming)
        assert rows.features["semantic_classes"] == datasets.List(datasets.ClassLabel(names=["left", "right"]))
        assert rows.features["label"].names == ["folder_0", "folder_1", "folder_2"]
        found = list(rows)
        assert [row["image_id"] for row in found] == sorted(
            str(path.relative_to(photos)) for path in photos.rglob("*.jpg")
        )
        for row in found:
            assert (np.asarray(row["semantic"]) == (np.arange(32) >= 16)).all()
            assert row["semantic"].size == row["instance"].size == (32, 24)
            assert row["semantic_classes"] == [0, 1]
            assert row["label"] == int(row["image_id"][7])
    original = photos / found[0]["image_id"]
    stored = rows.cast_column("image", datasets.Image(decode=False))
    assert next(iter(stored))["image"]["bytes"] == original.read_bytes()
    # Row groups are small, shards complete, and the manifest correct.
    entries = list(map(json.loads, (out / "manifest.jsonl").read_text().splitlines()))
    assert sum(entry["rows"] for entry in entries) == 23
    for entry in entries:
        assert file_sha256(out / entry["file"]) == entry["sha256"]
        assert (out / entry["file"]).stat().st_size == entry["bytes"]
        assert pq.read_metadata(out / entry["file"]).num_rows == entry["rows"]
    assert rejects(out) == {}
    card = (out / "README.md").read_text()
    assert "`halves`" in card
    assert "| train | 23 | 0 | 5 |" in card
    assert "0 left, 1 right." in card
    assert not list(out.rglob(".*tmp*"))


def test_another_dataset_in_a_folder_of_the_same_name_is_not_taken_for_this_one(photos, tmp_path):
    for number in (1, 2):
        source = FolderSource(photos, paths=[str(p.relative_to(photos)) for p in photos.rglob(f"*{number}.jpg")])
        label_images(source, Halves(), tmp_path / str(number) / "out")
        ids = load_dataset(str(tmp_path / str(number) / "out"), split="train")["image_id"]
        assert all(name.endswith(f"{number}.jpg") for name in ids)


def test_every_image_is_either_labelled_or_rejected(photos, tmp_path):
    bad, odd = plant_bad_files(photos / "bad"), plant_odd_files(photos / "odd")
    out = tmp_path / "out"
    summary = label_images(FolderSource(photos), Halves(), out, options=SMALL, max_reject_share=0.9)
    assert summary.rejects == len(bad) > 20
    assert summary.rows == 23 + len(odd)
    assert set(rejects(out)) == {f"bad/{name}" for name in bad}
    assert all(reason for reason in rejects(out).values())
    found = [row["image_id"] for row in load_dataset(str(out), split="train").remove_columns(["image"])]
    expected = {str(path.relative_to(photos)) for path in photos.rglob("photo_*.jpg")} | {
        f"odd/{name}" for name in odd
    }
    assert len(found) == len(expected)
    assert set(found) == expected


def test_only_images_that_the_labeller_refuses_are_rejected(photos, tmp_path):
    labeller = Fussy()
    labeller.refused = ("folder_0/photo_003.jpg", "folder_1/photo_010.jpg")
    summary = label_images(FolderSource(photos), labeller, tmp_path / "out", options=SMALL)
    assert (summary.rows, summary.rejects) == (21, 2)
    assert rejects(tmp_path / "out") == dict.fromkeys(labeller.refused, "cannot be labelled: I do not like it")


def test_a_job_stops_if_too_many_images_are_rejected(tmp_path):
    paths = write_photographs(tmp_path / "photos", 80)
    source = FolderSource(tmp_path / "photos")
    for path in paths:
        if path.parent.name == "folder_2":
            path.write_bytes(b"")
    options = OutputOptions(rows_per_shard=40)
    with pytest.raises(
        RuntimeError, match=r"26 of 40 images of shard train-00001-0000 failed, the first, .*max_reject"
    ):
        label_images(source, Halves(), tmp_path / "out", options=options)
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["train-00000-0000.parquet"]
    assert label_images(source, Halves(), tmp_path / "out", options=options, max_reject_share=1.0).rejects == 26


def test_an_error_of_the_labeller_stops_the_job_and_keeps_finished_shards(photos, tmp_path):
    whole = tmp_path / "whole" / "out"
    label_images(FolderSource(photos), Fussy(), whole, options=SMALL)
    labeller = Fussy()
    labeller.fatal = "folder_1/photo_016.jpg"
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="the accelerator is gone"):
        label_images(FolderSource(photos), labeller, out, options=SMALL)
    assert len(list((out / "data").iterdir())) == 2
    assert not list(out.rglob(".*tmp*"))
    summary = label_images(FolderSource(photos), Fussy(), out, options=SMALL)
    assert summary.labelled_now == 13
    assert {name.replace("out", "whole"): value for name, value in tree_checksums(out).items()} == tree_checksums(
        whole
    )
    summary = label_images(FolderSource(photos), Fussy(), out, options=SMALL)
    assert summary.labelled_now == 0
    assert "nothing was left to do" in str(summary)


def test_damaged_shards_are_made_again(photos, tmp_path):
    label_images(FolderSource(photos), Halves(), tmp_path / "1" / "out", options=SMALL)
    label_images(FolderSource(photos), Halves(), tmp_path / "2" / "out", options=SMALL)
    shards = sorted((tmp_path / "2" / "out" / "data").iterdir())
    shards[1].unlink()
    shards[3].write_bytes(shards[3].read_bytes()[:-100])
    (tmp_path / "2" / "out" / "data" / ".train-00000-0000.parquet.tmp-123").write_bytes(b"left by a killed process")
    assert label_images(FolderSource(photos), Halves(), tmp_path / "2" / "out", options=SMALL).labelled_now == 10
    assert tree_checksums(tmp_path / "1" / "out") == tree_checksums(tmp_path / "2" / "out")


def test_a_shard_or_its_note_that_changed_is_made_again(photos, tmp_path, caplog):
    for name in "12":
        label_images(FolderSource(photos), Halves(), tmp_path / name / "out", options=SMALL)
    out = tmp_path / "2" / "out"
    shard = out / "data" / "train-00001-0000.parquet"
    content = bytearray(shard.read_bytes())
    content[200:240] = bytes(40)
    shard.write_bytes(content)
    notes = out / ".labelling" / "train" / "shards"
    (notes / "train-00002-0000.json").write_bytes(b"")
    (notes / "train-00003-0000.json").write_text('{"name": 3}')
    assert label_images(FolderSource(photos), Halves(), out, options=SMALL).labelled_now == 15
    assert tree_checksums(tmp_path / "1" / "out") == tree_checksums(out)
    assert "train-00001-0000.parquet is damaged: it is made again" in caplog.text
    assert "train-00002-0000.json is damaged: its shard is labelled again" in caplog.text


def other_pixels(path: Path) -> None:
    """Change pixels, but not the size of the file."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def test_a_job_does_not_resume_with_other_maps_or_fewer_images(photos, tmp_path):
    """Changed maps in columns, and a tar file of the same size that lost an image."""
    labeller = ColumnsLabeller(dict(enumerate("abcde")))
    options = OutputOptions(rows_per_shard=4)
    for name, changed in (("a", None), ("b", "semantic"), ("c", "instance")):
        items = make_rows(6).cast_column("semantic", datasets.Image(decode=False))
        items = items.cast_column("instance", datasets.Image(decode=False)).to_list()
        if changed:
            items[1][changed] = items[2][changed]
        datasets.Dataset.from_list(items, features=make_rows(6).features).to_parquet(tmp_path / f"{name}.parquet")

    def source(name):
        return DatasetSource(
            load_dataset("parquet", data_files=str(tmp_path / f"{name}.parquet"))["train"], columns=labeller.columns
        )

    label_images(source("a"), labeller, tmp_path / "columns", options=options)
    assert label_images(source("a"), labeller, tmp_path / "columns", options=options).labelled_now == 0
    for name in "bc":
        with pytest.raises(ValueError, match="have changed since shard train-00000-0000"):
            label_images(source(name), labeller, tmp_path / "columns", options=options)

    subprocess.run(["tar", "cf", tmp_path / "a.tar", "--sort=name", "-C", photos, "."], check=True)
    label_images(open_source(str(tmp_path / "a.tar")), Halves(), tmp_path / "tar", options=SMALL)
    content = (tmp_path / "a.tar").read_bytes()
    last = content.rindex(b"photo_")
    (tmp_path / "a.tar").write_bytes(content[: last + 6] + b"x" + content[last + 7 :])  # of a header
    with pytest.raises(ValueError, match="have changed since shard train-"):
        label_images(open_source(str(tmp_path / "a.tar")), Halves(), tmp_path / "tar", options=SMALL)


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "rows", "annotations"])
def test_a_job_does_not_resume_with_other_images(photos, tmp_path, kind):
    """The number, names and file sizes of the images stay the same."""
    victim, labeller = sorted(photos.rglob("*.jpg"))[7], Halves()
    maps = tmp_path / "maps"

    def source():
        if kind == "folder":
            return FolderSource(photos)
        if kind == "tar":
            subprocess.run(["tar", "cf", tmp_path / "a.tar", "--sort=name", "-C", photos, "."], check=True)
            return open_source(str(tmp_path / "a.tar"))
        if kind == "annotations":
            return labeller.source()
        paths = sorted(photos.rglob("*.jpg"))
        rows = datasets.Dataset.from_dict({"image": [{"bytes": path.read_bytes(), "path": None} for path in paths]})
        rows = rows.cast_column("image", datasets.Image(decode=False)).cast_column("image", datasets.Image())
        if kind == "rows":
            return DatasetSource(rows)
        rows.to_parquet(tmp_path / "a.parquet")
        return open_source(str(tmp_path / "a.parquet"))

    if kind == "annotations":
        maps.mkdir()
        photos.rename(maps / "images")
        for path in sorted((maps / "images").rglob("*.jpg")):
            target = maps / "semantic" / path.relative_to(maps / "images").with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", Image.open(path).size, 1).save(target)
        victim = maps / "semantic" / victim.relative_to(photos).with_suffix(".png")
        (maps / "classes.txt").write_text("a\nb")
        labeller = MirroredFoldersLabeller(maps)
    label_images(source(), labeller, tmp_path / "out", options=SMALL)
    assert label_images(source(), labeller, tmp_path / "out", options=SMALL).labelled_now == 0
    before = tree_checksums(tmp_path / "out")
    other_pixels(victim)
    with pytest.raises(
        ValueError, match=r"(photo_021.jpg|0007): image, annotations, label or id have changed since shard train-"
    ):
        label_images(source(), labeller, tmp_path / "out", options=SMALL)
    assert tree_checksums(tmp_path / "out") == before


@pytest.mark.parametrize("loss", ["shard", "note", "bytes", "cut", "first and last"])
@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_lost_shards_of_a_part_are_made_again(photos, tmp_path, loss, num_workers):
    subprocess.run(["tar", "cf", tmp_path / "a.tar", "--sort=name", "-C", photos, "."], check=True)
    for name in "12":
        label_images(open_source(str(tmp_path / "a.tar")), Halves(), tmp_path / name / "out", options=SMALL)
    out = tmp_path / "2" / "out"
    for number in {"first and last": (0, 4)}.get(loss, (1,)):
        shard = out / "data" / f"train-00000-{number:04d}.parquet"
        if loss in ("shard", "first and last"):
            shard.unlink()
        elif loss == "note":
            (out / ".labelling/train/shards" / f"{shard.stem}.json").unlink()
        elif loss == "bytes":
            other_pixels(shard)
        else:
            shard.write_bytes(shard.read_bytes()[:-30])
    source = open_source(str(tmp_path / "a.tar"))
    summary = label_images(source, Halves(), out, options=SMALL, num_workers=num_workers)
    assert summary.rows == 23
    assert tree_checksums(tmp_path / "1" / "out") == tree_checksums(out)


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "train-00001-0000", "rejects": 3}'])
def test_a_note_of_another_shape_is_made_again(photos, tmp_path, text):
    for name in "12":
        label_images(FolderSource(photos), Halves(), tmp_path / name / "out", options=SMALL)
    out = tmp_path / "2" / "out"
    notes = out / ".labelling/train/shards"
    (notes / "train-00000-0000.json").write_text(text)
    note = json.loads((notes / "train-00001-0000.json").read_text())
    (notes / "train-00001-0000.json").write_text(json.dumps({**note, "rows": 0}))
    (notes / "train-00002-0000.json").write_text(json.dumps({**note, "rows": "5"}))
    assert label_images(FolderSource(photos), Halves(), out, options=SMALL).rows == 23
    assert tree_checksums(tmp_path / "1" / "out") == tree_checksums(out)
    (out / ".labelling/train/job.json").write_text("{}")
    with pytest.raises(ValueError, match=r"job\.json: expected the fields \['label_feature', .*overwrite"):
        label_images(FolderSource(photos), Halves(), out, options=SMALL)


def test_a_second_split_needs_the_classes_of_the_first(photos, tmp_path):
    out = tmp_path / "out"
    label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), out)
    fitted = out / "labeller" / "classical.safetensors"
    content = fitted.read_bytes()
    for change in (lambda: fitted.unlink(), lambda: fitted.write_bytes(content[:-8] + bytes(8))):
        change()
        with pytest.raises(ValueError, match="expected what split 'train' was labelled with, got "):
            label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), out, split="validation")
    fitted.write_bytes(content)
    label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), out, split="validation")


@pytest.mark.parametrize("ending", ["parquet", "tar"])
def test_a_part_of_several_shards_resumes_in_the_middle(tmp_path, ending, photos, monkeypatch):
    if ending == "parquet":
        make_rows(12).to_parquet(tmp_path / "source.parquet")
    else:
        subprocess.run(["tar", "cf", tmp_path / "source.tar", "-C", photos, "folder_0"], check=True)
    source = open_source(str(tmp_path / f"source.{ending}"))
    options = OutputOptions(rows_per_shard=3)
    whole = label_images(source, Halves(), tmp_path / "1" / "out", options=options)
    assert whole.shards == (4 if ending == "parquet" else 3)
    writes = []
    write = engine.ShardStore.write

    def interrupted(self, info, features):
        writes.append(info.name)
        if len(writes) == 3:
            raise KeyboardInterrupt
        return write(self, info, features)

    monkeypatch.setattr(engine.ShardStore, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label_images(source, Halves(), tmp_path / "2" / "out", options=options)
    summary = label_images(source, Halves(), tmp_path / "2" / "out", options=options)
    assert summary.records - summary.labelled_now == 6
    assert tree_checksums(tmp_path / "1" / "out") == tree_checksums(tmp_path / "2" / "out")


def test_splits_lie_side_by_side(photos, tmp_path):
    out = tmp_path / "out"
    write_photographs(tmp_path / "other", 4)
    label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), out)
    fitted = (out / "labeller" / "classical.safetensors").read_bytes()
    label_images(FolderSource(tmp_path / "other"), ClassicalLabeller(4, fit_images=5), out, split="validation")
    assert (out / "labeller" / "classical.safetensors").read_bytes() == fitted
    splits = load_dataset(str(out))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 23, "validation": 4}
    with pytest.raises(
        ValueError, match=r"split 'train' of .* was made with another labeller .*num_classes: 4 then, 5"
    ):
        label_images(FolderSource(tmp_path / "other"), ClassicalLabeller(5), out, split="test")
    assert "| validation | 4 |" in (out / "README.md").read_text()


def test_shards_of_different_settings_are_not_mixed(photos, tmp_path):
    out = tmp_path / "out"
    label_images(FolderSource(photos), Halves(), out, options=SMALL)
    with pytest.raises(ValueError, match=r"made with another output .*label_stride: 2 then, 4 now"):
        label_images(FolderSource(photos), Halves(), out, options=OutputOptions(rows_per_shard=5, label_stride=4))
    write_photographs(photos / "more", 1)
    with pytest.raises(ValueError, match=r"made with another source .*images: 23 then, 24 now.*overwrite"):
        label_images(FolderSource(photos), Halves(), out, options=SMALL)
    summary = label_images(FolderSource(photos), Halves(), out, options=SMALL, overwrite=True)
    assert summary.labelled_now == summary.rows == 24
    summary = label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), out, overwrite=True)
    summary = label_images(FolderSource(photos), ClassicalLabeller(3, fit_images=5), out, overwrite=True)
    assert len(load_dataset(str(out), split="train").features["semantic_classes"].feature.names) == 3


def test_a_refused_job_deletes_nothing(photos, tmp_path):
    out = tmp_path / "out"
    for split in ("train", "validation"):
        label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), out, split, SMALL)
    before = tree_checksums(out)
    with pytest.raises(ValueError, match=r"split 'validation' of .* was made with another labeller"):
        label_images(FolderSource(photos), ClassicalLabeller(3, fit_images=5), out, options=SMALL, overwrite=True)
    assert tree_checksums(out) == before
    fitted = out / "labeller" / "classical.safetensors"
    content = fitted.read_bytes()
    fitted.unlink()
    with pytest.raises(ValueError, match=r"Put it back, or label all splits into another output_dir"):
        label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), out, options=SMALL, overwrite=True)
    fitted.write_bytes(content)
    assert tree_checksums(out) == before


def test_overwriting_equals_a_new_dataset(photos, tmp_path):
    others = tmp_path / "others"
    write_photographs(others, 7, height=40, width=80)
    label_images(FolderSource(photos), ClassicalLabeller(4, fit_images=5), tmp_path / "out")
    label_images(FolderSource(others), ClassicalLabeller(4, fit_images=5), tmp_path / "out", overwrite=True)
    label_images(FolderSource(others), ClassicalLabeller(4, fit_images=5), tmp_path / "new" / "out")
    assert tree_checksums(tmp_path / "out") == tree_checksums(tmp_path / "new" / "out")


@pytest.mark.parametrize("name", ["README.md", "manifest.jsonl", "data/train-00000-of-00001.parquet", "labeller/x"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_not_replaced(photos, tmp_path, name, overwrite):
    own = tmp_path / "project" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(
        ValueError, match="output_dir: expected a new folder, or one that a labelling job has begun, got"
    ):
        label_images(FolderSource(photos), Halves(), tmp_path / "project", options=SMALL, overwrite=overwrite)
    assert [path for path in (tmp_path / "project").rglob("*") if path.is_file()] == [own]
    assert own.read_text() == "mine"


def test_folders_of_others_below_the_output_stay(photos, tmp_path):
    inside = tmp_path / "runs" / "model" / ".weights.tmp-1"
    inside.mkdir(parents=True)
    (tmp_path / "runs" / ".card.tmp-1").mkdir()
    label_images(FolderSource(photos), Halves(), tmp_path / "runs", options=SMALL)
    assert inside.is_dir()
    (tmp_path / "runs" / "data" / ".train-00000-0000.parquet.tmp-1").touch()
    label_images(FolderSource(photos), Halves(), tmp_path / "runs", options=SMALL)
    assert not list((tmp_path / "runs" / "data").glob(".*"))


def test_two_jobs_do_not_write_one_dataset(photos, tmp_path):
    (tmp_path / "out" / ".labelling").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out" / ".labelling" / "lock"),
        pytest.raises(RuntimeError, match="another process is wri"),
    ):
        label_images(FolderSource(photos), Halves(), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "slurm"}, "engine: expected 'local' or 'ray', got 'slurm'"),
        ({"split": "a/b"}, "split: expected letters"),
        ({"num_threads": 0}, "num_threads: expected at least 1"),
        ({"num_workers": 0}, "num_workers: expected at least 1"),
    ],
)
def test_arguments_are_checked(photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        label_images(FolderSource(photos), Halves(), tmp_path / "out", **options)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replace_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        (tmp_path / "nothing").read_text()
    assert path.read_text() == "old"
    with replace_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "new")]


# --- processes


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_several_processes_write_the_same_bytes(photos, tmp_path, monkeypatch, method):
    """By `forkserver`, too, workers get all they know pickled, but the libraries are imported once for all of them."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("needs a system that forks")
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([engine.__name__])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    plant_bad_files(photos / "bad")
    labeller = ClassicalLabeller(4, fit_images=5)
    options = {"options": SMALL, "max_reject_share": 0.9}
    label_images(FolderSource(photos), labeller, tmp_path / "1" / "out", **options)
    summary = label_images(FolderSource(photos), labeller, tmp_path / "2" / "out", num_workers=2, **options)
    assert summary.rows == 23
    assert tree_checksums(tmp_path / "1" / "out") == tree_checksums(tmp_path / "2" / "out")


@pytest.mark.slow  # Ray takes half a minute to start
def test_ray_writes_the_same_bytes(photos, tmp_path):
    pytest.importorskip("ray", reason="needs the ray extra")
    plant_bad_files(photos / "bad")
    labeller = ClassicalLabeller(4, fit_images=5)
    options = {"options": SMALL, "max_reject_share": 0.9}
    label_images(FolderSource(photos), labeller, tmp_path / "1" / "out", **options)
    summary = label_images(
        FolderSource(photos), labeller, tmp_path / "2" / "out", engine="ray", num_workers=2, **options
    )
    assert summary.rows == 23
    assert tree_checksums(tmp_path / "1" / "out") == tree_checksums(tmp_path / "2" / "out")
    # Nothing is left to do, so no engine is started.
    again = label_images(
        FolderSource(photos), labeller, tmp_path / "2" / "out", engine="ray", num_workers=2, **options
    )
    assert again.labelled_now == 0


def label_words(photos: Path, out: Path, *options: str) -> list[str]:
    return [str(photos), str(out), "--num_classes", "4", "--rows_per_shard", "4", "--num_threads", "1", *options]


KILLED = """
import os, signal, sys
from c2fmae_hf.commands.main import main
from c2fmae_hf.labelling import shards

moment, name, *words = sys.argv[1:]
add, write_lines = shards.ShardWriter.add, shards.write_lines


def add_or_die(self, row):
    if moment == "rows" and self.info.name == name and self.info.records == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, row)


def write_lines_or_die(path, lines):
    if moment == "note" and path.stem == name:
        os.kill(os.getpid(), signal.SIGKILL)
    write_lines(path, lines)


shards.ShardWriter.add, shards.write_lines = add_or_die, write_lines_or_die
main(["label", *words])
"""


def test_a_killed_job_ends_with_the_same_bytes(processes, photos, tmp_path):
    """Killed within a shard, and between a shard's Parquet file and its note."""
    whole, out = tmp_path / "whole" / "out", tmp_path / "killed" / "out"
    done = processes.run(command("label"), *label_words(photos, whole))
    assert done.code == 0, done.err
    for moment, number in (("rows", 1), ("note", 4)):
        killed = processes.run(KILLED, moment, f"train-{number:05d}-0000", *label_words(photos, out))
        assert killed.code == -signal.SIGKILL, killed.err
        assert len(list((out / ".labelling/train/shards").iterdir())) == number
        assert len(list(out.rglob(".*.parquet.tmp-*"))) == (moment == "rows")
        assert len(list(out.glob("data/train-*.parquet"))) == number + (moment == "note")
    done = processes.run(command("label"), *label_words(photos, out))
    assert done.code == 0, done.err
    assert "this run: 7 images" in done.out
    assert tree_checksums(out) == tree_checksums(whole)


@pytest.mark.slow  # its processes import the libraries again and again
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_job_killed_at_any_moment_ends_with_the_same_bytes(tmp_path, workers):
    write_photographs(tmp_path / "photos", 60, width=160, height=120)

    def start(out: Path, *options: str, **popen) -> subprocess.Popen:
        words = [sys.executable, "-m", "c2fmae_hf", "label", *label_words(tmp_path / "photos", out, *options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **popen
        )

    whole = start(tmp_path / "whole" / "out")
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    out = tmp_path / "killed" / "out"
    for done in (2, 6):
        process = start(out, "--num_workers", workers, start_new_session=True)
        deadline = time.monotonic() + 120
        while len(list(out.glob("data/*.parquet"))) < done:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        # Kill only the main process: the workers must notice.
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        while _group_lives(process.pid):
            assert time.monotonic() < deadline, "a worker outlived its job"
            time.sleep(0.05)
    assert len(list(out.glob("data/*.parquet"))) < 15
    process = start(out, "--num_workers", workers)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert tree_checksums(out) == tree_checksums(tmp_path / "whole" / "out")


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_command_reports_its_results(processes, tmp_path):
    write_photographs(tmp_path / "photos", 8)
    (tmp_path / "photos" / "notes.txt").write_text("")
    bad = tmp_path / "photos" / "bad.jpg"
    bad.write_bytes(b"")
    words = label_words(tmp_path / "photos", tmp_path / "out")
    done = processes.run(command("label"), *words)
    output = done.out + done.err
    assert done.code == 3, output
    assert "8 of 9 images labelled in 3 shards, 1 rejected" in output
    assert "skipped, since these are not image files: 1 files .txt" in output
    assert "rejects.jsonl" in output
    bad.unlink()
    done = processes.run(command("label"), *words)
    assert done.code == 1
    assert "error: output_dir: split 'train'" in done.err
    assert "Traceback" not in done.err
