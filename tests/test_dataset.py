"""Rows to samples: decoding, checks that name the row, order and progress of samples, streaming, sources."""

from __future__ import annotations

import copy
import io
import os

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch.utils.data import BatchSampler

from bad_rows import claiming
from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.rows import check_named_classes, count_semantic_classes, semantic_id2label
from c2fmae_hf.data.sampling import EpochSampler, SampleKey
from c2fmae_hf.data.splits import load_splits
from c2fmae_hf.data.streaming import C2FMAEIterableDataset
from c2fmae_hf.data.transforms import evaluation_transform, training_transform
from c2fmae_hf.labelling.sources.open import open_source
from testing_utils import make_rows, png


TRANSFORM = training_transform((32, 32))


def replaced(rows: datasets.Dataset, index: int, **columns) -> list[dict]:
    """Convert encoded rows to dictionaries and replace columns in one of them."""
    rows = rows.cast_column("image", datasets.Image(decode=False))
    rows = rows.cast_column("semantic", datasets.Image(decode=False))
    items = rows.cast_column("instance", datasets.Image(decode=False)).to_list()
    items[index] = {**items[index], **columns}
    return items


def test_a_sample(dataset, config):
    sample = dataset[3]
    assert sample["pixel_values"].shape == (3, 32, 32)
    assert sample["pixel_values"].dtype == torch.float32
    assert sample["semantic"].shape == sample["instance"].shape == (8, 8)
    assert set(sample["semantic"].unique().tolist()) <= {-100, 0, 1, 2, 3, 4}
    assert set(sample["instance"].unique().tolist()) <= {0, 1, 2, 3}
    assert sample["sample_key"] == SampleKey(3, 0, 0.0)


def test_indices_end_where_the_rows_do(rows):
    dataset = C2FMAEDataset(rows.select(range(3)), TRANSFORM)
    assert [sample["image_id"] for sample in dataset] == rows["image_id"][:3]
    assert torch.equal(dataset[-1]["pixel_values"], dataset[2]["pixel_values"])
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"expected an index below 3, got {index}"):
            dataset[index]


def test_samples_are_a_function_of_seed_epoch_and_row(rows):
    def pixels(seed, key, transform=TRANSFORM):
        return C2FMAEDataset(rows, transform, seed=seed, progress=SharedProgress())[key]["pixel_values"]

    first = pixels(0, SampleKey(2, 1, 0.5))
    assert torch.equal(first, pixels(0, SampleKey(2, 1, 0.9)))  # progress is not part of it
    assert not torch.equal(first, pixels(1, SampleKey(2, 1, 0.5)))
    assert not torch.equal(first, pixels(0, SampleKey(2, 2, 0.5)))
    assert not torch.equal(first, pixels(0, SampleKey(3, 1, 0.5)))


def test_evaluation_has_no_epochs(rows):
    dataset = C2FMAEDataset(rows, evaluation_transform((32, 32)))
    assert dataset[1]["sample_key"] == SampleKey(1, 0, None)
    assert torch.equal(dataset[1]["pixel_values"], dataset[1]["pixel_values"])


def test_a_row_without_a_map_has_ignored_labels(rows):
    items = replaced(rows, 0, semantic=None, instance=None)
    sample = C2FMAEDataset(items, TRANSFORM)[0]
    assert sample["semantic"].unique().tolist() == [-100]
    assert sample["instance"].unique().tolist() == [-100]


@pytest.mark.parametrize("stride", [2, 4])
def test_maps_at_a_stride(rows, stride):
    """Maps stored at the label stride give the same samples as whole maps; at another stride nearly the same."""
    items = replaced(rows, 3)
    transform = evaluation_transform((48, 48), crop_pct=1.0, label_stride=4)
    whole = C2FMAEDataset(items, transform)[3]
    stored = {}
    for column in ("semantic", "instance"):
        label_map = np.array(Image.open(io.BytesIO(items[3][column]["bytes"])))
        stored[column] = png(label_map[stride // 2 :: stride, stride // 2 :: stride].copy())
    sample = C2FMAEDataset(replaced(rows, 3, **stored), transform)[3]
    for column in ("semantic", "instance"):
        assert sample[column].shape == (12, 12)
        assert (sample[column] == whole[column]).float().mean() > 0.85
    if stride == 4:
        assert torch.equal(sample["semantic"], whole["semantic"])
        assert torch.equal(sample["instance"], whole["instance"])


# What can be wrong with a dataset


def test_missing_columns_are_named(rows):
    with pytest.raises(ValueError, match=r"expected the columns \['image', 'semantic', 'instance'\].*missing \['inst"):
        C2FMAEDataset(rows.remove_columns("instance"), TRANSFORM)
    C2FMAEDataset(rows.remove_columns(["instance", "semantic"]), TRANSFORM, map_columns=())


def test_an_empty_dataset_is_refused(rows):
    with pytest.raises(ValueError, match="got an empty dataset"):
        C2FMAEDataset(rows.select([]), TRANSFORM)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": {"bytes": jpeg()[:2000], "path": None}}, r"row 5 \(r5\), column 'image': cannot be decoded"),
        ({"image": {"bytes": b"", "path": None}}, r"row 5 \(r5\), column 'image': .* got zero bytes"),
        ({"image": {"bytes": b"not an image", "path": None}}, r"row 5 \(r5\), column 'image': cannot be opened"),
        ({"image": {"bytes": None, "path": "/no/such/file.jpg"}}, r"column 'image': cannot be opened: .*No such file"),
        ({"image": None}, r"column 'image': expected an encoded image.*got NoneType"),
        (
            {"semantic": png(np.zeros((24, 48), np.uint8))},
            r"column 'semantic': expected the image's size 48x48 \(width x height\), or .* at a stride.*, got 48x24",
        ),
        (
            {"instance": png(np.zeros((48, 24), np.uint8))},
            r"column 'instance': expected the image's size .* got 24x48",
        ),
        ({"semantic": png(np.full((48, 48), 5, np.uint8))}, r"'semantic': expected class ids in \[0, .*=5\).*got 5"),
        ({"semantic": png(np.zeros((48, 48, 3), np.uint8))}, r"column 'semantic': expected a single-channel"),
        # Within Pillow's own limit
        (
            {"image": {"bytes": claiming(15_001, 10_000)}},
            r"column 'image': expected at most 150000000 pixels, got 15001",
        ),
        (
            {"instance": {"bytes": claiming(15_001, 10_000)}},
            r"'instance': expected at most 150000000 pixels, got 15001",
        ),
    ],
)
def test_a_bad_row_is_named(rows, columns, message):
    dataset = C2FMAEDataset(replaced(rows, 5, **columns), TRANSFORM, num_semantic_classes=5)
    assert dataset[4]["pixel_values"].isfinite().all()
    with pytest.raises(ValueError, match=message):
        dataset[5]


def test_a_corrupt_image_is_named_also_out_of_arrow(rows, tmp_path):
    features = rows.features
    items = replaced(rows, 2, image={"bytes": jpeg()[:2000], "path": None})
    datasets.Dataset.from_list(items, features=features).save_to_disk(tmp_path / "rows")
    dataset = C2FMAEDataset(load_splits(str(tmp_path / "rows"))["train"], TRANSFORM)
    with pytest.raises(ValueError, match=r"row 2 \(r2\), column 'image': cannot be decoded"):
        dataset[2]


def with_bad_images(rows: datasets.Dataset, bad: set[int]) -> list[dict]:
    items = replaced(rows, 0)
    return [{**item, "image": {"bytes": b"no image"}} if i in bad else item for i, item in enumerate(items)]


def test_bad_rows_are_named_once_by_each_worker(rows, caplog):
    dataset = C2FMAEDataset(with_bad_images(rows, {1, 2}), TRANSFORM, progress=SharedProgress(), on_bad_row="skip")
    workers = [copy.deepcopy(dataset) for _ in range(2)]  # copies, as in data-loading processes
    for epoch in range(3):
        for worker in workers:
            assert worker[SampleKey(1, epoch, 0.0)]["num_skipped"] == 2
    for row in (1, 2):
        assert caplog.text.count(f"Skipped: row {row} ") == 2


def test_no_more_than_so_many_bad_rows_are_named(rows, caplog, monkeypatch):
    monkeypatch.setattr("c2fmae_hf.data.rows.MAX_LOGGED", 3)
    dataset = C2FMAEDataset(
        with_bad_images(rows, {0, 1, 2, 3, 4}), TRANSFORM, progress=SharedProgress(), on_bad_row="skip"
    )
    for epoch in range(2):
        assert dataset[SampleKey(0, epoch, 0.0)]["num_skipped"] == 5
    named = [record.getMessage() for record in caplog.records]
    assert [message.split(" (")[0] for message in named[:3]] == [f"Skipped: row {i}" for i in range(3)]
    assert named[3:] == ["Skipped 3 rows: further ones are counted, not named"]
    assert len(dataset.read_row.logged) == 3


def test_16_bit_maps(rows):
    semantic = np.full((48, 48), 300, np.uint16)
    semantic[:8] = 65535
    instance = np.full((48, 48), 40_000, np.uint16)
    items = replaced(rows, 0, semantic=png(semantic), instance=png(instance))
    sample = C2FMAEDataset(items, evaluation_transform((32, 32), crop_pct=1.0), num_semantic_classes=301)[0]
    assert sample["semantic"].unique().tolist() == [-100, 300]
    assert sample["instance"].unique().tolist() == [40_000]


# Order and progress


def test_epoch_sampler():
    progress = SharedProgress()
    sampler = EpochSampler(10, progress, seed=0)
    progress.start_epoch(0, start=0.0, per_sample=0.01)
    first = list(sampler)
    assert sorted(key.index for key in first) == list(range(10))
    assert [key.index for key in first] != list(range(10))
    assert list(sampler) == first
    assert [key.progress for key in first] == pytest.approx([0.01 * i for i in range(10)])
    progress.start_epoch(1, start=0.1, per_sample=0.01)
    second = list(sampler)
    assert [key.index for key in second] != [key.index for key in first]
    assert {key.epoch for key in second} == {1}
    assert second[-1].progress == pytest.approx(0.19)
    assert [key.index for key in EpochSampler(10, progress, seed=1)] != [key.index for key in second]


def test_processes_share_an_epoch():
    """Batches sharded as by accelerate: every row occurs once, so masks differ between processes."""
    progress = SharedProgress()
    progress.start_epoch(2, start=0.0, per_sample=0.01)
    shards = []
    for rank in range(2):
        batches = BatchSampler(EpochSampler(16, progress, seed=0), batch_size=4, drop_last=False)
        shards.append([key for batch in BatchSamplerShard(batches, 2, rank) for key in batch])
    assert sorted(key.index for shard in shards for key in shard) == list(range(16))
    # Both have the same progress, up to a batch.
    assert all(abs(a.progress - b.progress) <= 0.04 + 1e-9 for a, b in zip(*shards))


def test_progress_is_bounded():
    progress = SharedProgress()
    progress.start_epoch(3, start=0.9, per_sample=0.1)
    assert progress.at(5) == 1.0
    progress.set_current(0.5)
    assert progress.current == 0.5
    with pytest.raises(ValueError, match=r"progress: expected a number in \[0, 1\], got 1.5"):
        progress.set_current(1.5)


# Sources and classes


def test_load_splits_from_disk_and_parquet(rows, tmp_path):
    datasets.DatasetDict({"train": rows, "validation": rows.select([0])}).save_to_disk(tmp_path / "saved")
    splits = load_splits(str(tmp_path / "saved"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "validation": 1}
    assert isinstance(load_splits(str(tmp_path / "saved"), streaming=True)["train"], datasets.IterableDataset)

    rows.to_parquet(tmp_path / "things_train-00000-of-00001.parquet")
    rows.select(range(3)).to_parquet(tmp_path / "things_val.parquet")
    splits = load_splits(str(tmp_path / "things_*.parquet"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "validation": 3}
    assert C2FMAEDataset(splits["validation"], TRANSFORM)[2]["semantic"].shape == (8, 8)
    stream = load_splits(str(tmp_path / "things_*.parquet"), streaming=True)["train"]
    assert next(iter(C2FMAEIterableDataset(stream, TRANSFORM)))["pixel_values"].shape == (3, 32, 32)


@pytest.mark.parametrize(
    "names",
    [
        {"a_train-0": "train", "a_eval-0": "test", "a-dev": "validation"},
        {"train/0": "train", "val/0": "validation", "testing/0": "test"},
        {"val/train-0": "train", "other/1": "train", "evaluation/2": "test"},
        {"evaluator-0": "train", "contest": "train"},
    ],
)
def test_splits_are_those_of_a_folder(rows, tmp_path, names):
    """A pattern of files has the splits that `datasets` gives the folder; a shared folder tells none."""
    folder = tmp_path / "test" / "mine"
    for number, name in enumerate(names, 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows.select(range(number)).to_parquet(folder / f"{name}.parquet")
    expected: dict[str, int] = {}
    for number, split in enumerate(names.values(), 1):
        expected[split] = expected.get(split, 0) + number
    pattern = str(folder / ("*/*.parquet" if any("/" in name for name in names) else "*.parquet"))
    assert {name: len(split) for name, split in load_splits(pattern).items()} == expected
    if len(expected) == 3:
        assert {name: len(split) for name, split in load_splits(str(folder)).items()} == expected


def test_a_configuration_is_one_of_a_folder_s_card(rows, tmp_path):
    rows.to_parquet(tmp_path / "a.parquet")
    rows.select([0]).to_parquet(tmp_path / "b.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("a", "b"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert len(load_splits(str(tmp_path), "b")["train"]) == 1
    with pytest.raises(ValueError, match=r"dataset: expected no configuration of files, .*, got 'b'"):
        load_splits(str(tmp_path / "*.parquet"), "b")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "/no/such/*.parquet"])
def test_a_source_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match="dataset: expected"):
        load_splits(name)


def test_class_names_travel_with_the_dataset(rows, tmp_path):
    assert semantic_id2label(rows.features) is None
    names = [f"class {i}" for i in range(5)]
    labelled = rows.add_column("semantic_classes", [[0, 1]] * 12)
    labelled = labelled.cast_column("semantic_classes", datasets.List(datasets.ClassLabel(names=names)))
    labelled.to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        features = load_splits(str(tmp_path / "train.parquet"), streaming=streaming)["train"].features
        assert semantic_id2label(features) == dict(enumerate(names))


def test_count_semantic_classes(rows):
    assert count_semantic_classes([rows]) == 5
    ignored = png(np.full((48, 48), 255, np.uint8))
    empty = rows.select([0]).map(lambda row: {"semantic": ignored})
    with pytest.raises(ValueError, match="got only the ignore value"):
        count_semantic_classes([empty])
    assert count_semantic_classes([rows, empty]) == 5  # held-out rows need no map


def test_real_photographs(shared_data):
    rows = load_splits(str(shared_data / "pennfudan_*.parquet"))
    assert set(rows) == {"train", "validation"}
    dataset = C2FMAEDataset(rows["validation"], evaluation_transform((224, 224)), num_semantic_classes=2)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["pixel_values"].abs().max() < 4
        # An instance is a pedestrian.
        assert sample["semantic"][sample["instance"] > 0].unique().tolist() in ([], [1])


def test_rows_are_those_of_make_rows():
    first, second = make_rows(2), make_rows(2)
    assert first[1]["image"].tobytes() == second[1]["image"].tobytes()


def test_plain_indices_see_the_epoch(config, rows):
    """With other trainers, a row has a new crop in every epoch, and the same one within an epoch."""
    progress = SharedProgress()
    transform = training_transform(config.image_height_width, label_stride=config.label_stride)
    dataset = C2FMAEDataset(rows, transform, num_semantic_classes=5, progress=progress)
    crops = []
    for epoch in range(3):
        progress.start_epoch(epoch, start=epoch / 3, per_sample=0.01)
        sample = dataset[4]
        assert torch.equal(sample["pixel_values"], dataset[4]["pixel_values"])
        assert sample["sample_key"].epoch == epoch
        crops.append(sample["pixel_values"])
    assert not torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[1], crops[2])


@pytest.mark.parametrize("form", ["arrow", "pandas", "numpy", "torch", "transform"])
def test_the_format_of_rows_makes_no_difference(config, rows, form, caplog):
    transform = evaluation_transform(config.image_height_width, label_stride=config.label_stride)
    plain = C2FMAEDataset(rows, transform, num_semantic_classes=5)[3]
    formatted = rows.with_transform(lambda batch: {}) if form == "transform" else rows.with_format(form)
    sample = C2FMAEDataset(formatted, transform, num_semantic_classes=5)[3]
    assert torch.equal(sample["pixel_values"], plain["pixel_values"])
    assert torch.equal(sample["semantic"], plain["semantic"])
    assert ("with_transform is not applied" in caplog.text) is (form == "transform")
    if form != "transform":
        stream = rows.to_iterable_dataset().with_format(form)
        sample = next(iter(C2FMAEIterableDataset(stream, transform, num_semantic_classes=5)))
        assert sample["pixel_values"].shape == plain["pixel_values"].shape


def test_paths_with_brackets_and_of_the_home_folder(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "v[2]").mkdir()
    rows.to_parquet(tmp_path / "v[2]" / "train.parquet")
    for name in (str(tmp_path / "v[2]" / "train.parquet"), "~/v[2]/train.parquet"):
        assert len(load_splits(name)["train"]) == len(rows)
        assert len(list(open_source(name).read(open_source(name).parts(100)[0]))) == len(rows)
    assert len(open_source("~/v*/train.parquet").parts(100)) == 1
    rows.save_to_disk(tmp_path / "saved")
    assert len(load_splits("~/saved")["train"]) == len(rows)
    (tmp_path / "v[2]/deep/er").mkdir(parents=True)
    for folder in ("deep", "deep/er"):
        rows.to_parquet(tmp_path / "v[2]" / folder / "train.parquet")
    assert len(load_splits("~/v*/**/*.parquet")["train"]) == 3 * len(rows)
    assert len(open_source("~/v*/**/*.parquet").parts(100)) == 3


def test_named_classes_without_a_pixel_are_told(rows, caplog):
    names = {label: f"class {label}" for label in range(7)}
    check_named_classes(rows, names, "training rows")
    assert "training rows: 2 of 7 classes have no pixel: class 5, class 6" in caplog.text
    masks = [
        png(np.where(np.arange(48 * 48).reshape(48, 48) % 7 == index, 255, 0).astype(np.uint8)) for index in range(3)
    ]
    binary = datasets.Dataset.from_dict({"semantic": masks}, features=datasets.Features(semantic=datasets.Image()))
    with pytest.raises(ValueError, match=r"at least two classes, got only class 0; .* store its objects as 1"):
        check_named_classes(binary, {0: "ground", 1: "thing"}, "training rows")


def test_what_load_splits_cannot_read_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    make_rows(2).to_parquet(tmp_path / "data/train.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"dataset: expected .*README\.md to begin with YAML"):
        load_splits(str(tmp_path))
    (tmp_path / "README.md").unlink()
    os.mkfifo(tmp_path / "data/pipe.parquet")  # opening it would wait
    with pytest.raises(ValueError, match=r"expected a Parquet file, got .*pipe\.parquet: it is not a file"):
        load_splits(str(tmp_path))
    (tmp_path / "data/pipe.parquet").unlink()
    (tmp_path / "data/half.parquet").write_bytes((tmp_path / "data/train.parquet").read_bytes()[:300])
    for name in (tmp_path, tmp_path / "data/half.parquet"):
        with pytest.raises(ValueError, match=r"expected a Parquet file, got .*half\.parquet"):
            load_splits(str(name))
    make_rows(2).select([]).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"split 'train': expected at least one row, got none in .*empty\.parquet"):
        load_splits(str(tmp_path / "empty.parquet"))
