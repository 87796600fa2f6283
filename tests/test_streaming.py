"""Streams: the order of samples, whatever reads them, and going on where a run stopped."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.streaming import C2FMAEIterableDataset
from c2fmae_hf.data.transforms import evaluation_transform, training_transform
from testing_utils import make_rows


TRANSFORM = training_transform((32, 32))
BATCH_SIZE = 3


@pytest.fixture(scope="module")
def many() -> datasets.Dataset:
    return make_rows(40)


def make_stream(rows: datasets.Dataset, num_shards: int = 4, **options) -> C2FMAEIterableDataset:
    progress = SharedProgress()
    progress.start_epoch(0, start=0.0, per_sample=0.001)
    options = {"shuffle_rows": 16, "batch_size": BATCH_SIZE, **options}
    return C2FMAEIterableDataset(rows.to_iterable_dataset(num_shards), TRANSFORM, progress=progress, **options)


def read(stream: C2FMAEIterableDataset, num_batches: int, num_workers: int = 0) -> list[tuple]:
    """Key, row and pixels of every sample, which identify it."""
    loader = DataLoader(stream, batch_size=stream.batch_size, num_workers=num_workers, collate_fn=list)
    batches = [batch for _, batch in zip(range(num_batches), loader)]
    return [
        (sample["sample_key"], sample["image_id"], sample["pixel_values"].double().sum().item())
        for batch in batches
        for sample in batch
    ]


def test_it_is_endless_and_every_epoch_has_all_rows_in_another_order(many):
    samples = read(make_stream(many), 40)
    keys = [key for key, _, _ in samples]
    assert [key.index for key in keys] == list(range(120))
    assert [key.progress for key in keys] == pytest.approx([0.001 * index for index in range(120)])
    lanes = [[name for (key, name, _) in samples if key.index // BATCH_SIZE % 4 == lane] for lane in range(4)]
    for lane, names in enumerate(lanes):
        assert sorted(names[:10]) == sorted(f"r{10 * lane + index}" for index in range(10))
        assert sorted(names[10:20]) == sorted(names[:10])
        assert names[10:20] != names[:10]
    assert lanes[0][:10] != [f"r{index}" for index in range(10)]
    assert [one for one, _, _ in samples] == [one for one, _, _ in read(make_stream(many), 40)]
    other_names = [name for _, name, _ in read(make_stream(many, seed=1), 40)]
    assert other_names != [name for _, name, _ in samples]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_do_not_change_the_order(many, num_workers):
    assert read(make_stream(many), 15, num_workers) == read(make_stream(many), 15)


@pytest.mark.parametrize(("num_batches", "num_workers"), [(1, 0), (7, 2), (18, 0), (30, 1)])
def test_it_goes_on_where_it_stopped(many, tmp_path, num_batches, num_workers):
    """With workers ahead of what was used, and other workers afterwards."""
    whole = read(make_stream(many), num_batches + 12)
    first = make_stream(many)
    first.state_folder = tmp_path
    read(first, num_batches, num_workers)
    state = json.loads(json.dumps(first.state_dict(num_batches)))
    second = make_stream(many)
    second.load_state_dict(state)
    assert read(second, 12, 2 - num_workers) == whole[num_batches * BATCH_SIZE :]
    # And once more, from a state that the second run left.
    third = make_stream(many)
    second.state_folder = tmp_path
    read(second, 5, 1)
    third.load_state_dict(json.loads(json.dumps(second.state_dict(num_batches + 5))))
    assert read(third, 7) == whole[(num_batches + 5) * BATCH_SIZE :]


def test_it_reads_no_more_than_a_block_of_a_lane_again(many, tmp_path):
    read_rows: list[str] = []

    def watched(row):
        read_rows.append(row["image_id"])
        return row

    def stream():
        rows = many.to_iterable_dataset(4).map(watched)
        progress = SharedProgress()
        progress.start_epoch(0, start=0.0, per_sample=0.001)
        return C2FMAEIterableDataset(rows, TRANSFORM, progress=progress, shuffle_rows=8, batch_size=1)

    first = stream()
    first.state_folder = tmp_path
    read(first, 32)  # eight rows of each of four lanes
    state = first.state_dict(32)
    assert {name: lane["rows"] for name, lane in state["lanes"].items()} == {str(lane): 6 for lane in range(4)}
    read_rows.clear()
    second = stream()
    second.load_state_dict(state)
    read(second, 4)
    assert len(read_rows) <= 4 * (2 + 2 + 1)  # a block again, the next one, and one row ahead
    # A run that stops before it has come to every lane knows of the others what it was told.
    brief = stream()
    brief.state_folder = tmp_path / "brief"
    brief.state_folder.mkdir()
    brief.load_state_dict(state)
    read(brief, 1)
    assert len(list(brief.state_folder.iterdir())) < 4
    after = brief.state_dict(33)
    assert set(after["lanes"]) == set(state["lanes"])
    read_rows.clear()
    last = stream()
    last.load_state_dict(after)
    read(last, 4)
    assert len(read_rows) <= 4 * (2 + 2 + 1)
    # Without the lanes' states it reads all again, and comes to the same place.
    third = stream()
    third.load_state_dict({**state, "lanes": {}})
    again = stream()
    again.load_state_dict(state)
    assert read(third, 4) == read(again, 4)


def test_small_blocks_and_a_reader_far_ahead(many, tmp_path):
    """A hundred blocks begin in a batch; a state of each lane is there for any batch that may have been the last."""
    options = {"shuffle_rows": 2, "batch_size": 30}
    stream = make_stream(many, num_shards=2, **options)
    stream.state_folder = tmp_path
    whole = read(stream, 12)
    for num_batches in (2, 7, 12):
        state = json.loads(json.dumps(stream.state_dict(num_batches)))
        assert {lane: one["samples"] >= 30 * (num_batches // 2) - 30 for lane, one in state["lanes"].items()} == {
            "0": True,
            "1": True,
        }
        again = make_stream(many, num_shards=2, **options)
        again.load_state_dict(state)
        expected = whole[30 * num_batches :][:60]
        assert read(again, 2)[: len(expected)] == expected


def test_another_order_is_no_going_on(many):
    state = make_stream(many).state_dict(3)
    for options, message in (
        ({"batch_size": 2}, "batch_size: expected 3, as in the run to resume, got 2"),
        ({"shuffle_rows": 32}, "rows_per_block: expected 4, .* got 8"),
        ({"seed": 1}, "data_seed: expected 0, .* got 1"),
        ({"num_shards": 2}, "num_shards: expected 4, .* got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make_stream(many, **options).load_state_dict(state)


def test_workers_must_divide_the_lanes(many):
    loader = DataLoader(make_stream(many, num_shards=9), batch_size=4, num_workers=3, collate_fn=list)
    with pytest.raises(ValueError, match=r"a divisor of 8, the lanes of a stream of 9 shard\(s\), got 3"):
        next(iter(loader))


def test_a_lane_without_rows_is_named(many):
    rows = many.to_iterable_dataset(4).filter(lambda row: row["image_id"] < "r3")
    stream = C2FMAEIterableDataset(rows, TRANSFORM, progress=SharedProgress())
    with pytest.raises(ValueError, match=r"for each of 4 lanes, got none for lane 3, which has the shards \[3\] of 4"):
        for _ in zip(range(100), stream):
            pass


def test_evaluation_ends(rows):
    stream = C2FMAEIterableDataset(rows.to_iterable_dataset(), evaluation_transform((32, 32)))
    samples = list(stream)
    assert len(samples) == 12
    assert samples[0]["sample_key"].progress is None


def test_evaluation_s_workers_share_the_rows(rows):
    stream = C2FMAEIterableDataset(rows.to_iterable_dataset(num_shards=2), evaluation_transform((32, 32)))
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    pixels = [sample["pixel_values"].sum().item() for sample in loader]
    dataset = C2FMAEDataset(rows, evaluation_transform((32, 32)))
    assert sorted(pixels) == pytest.approx(sorted(dataset[i]["pixel_values"].sum().item() for i in range(12)))


def test_missing_columns_are_named(rows):
    stream = rows.remove_columns("semantic").to_iterable_dataset()
    with pytest.raises(ValueError, match=r"missing \['semantic'\]"):
        C2FMAEIterableDataset(stream, TRANSFORM)
    with pytest.raises(ValueError, match="shuffle_rows: expected at least 1, got 0"):
        C2FMAEIterableDataset(rows.to_iterable_dataset(), TRANSFORM, shuffle_rows=0)


# Bad rows


def with_bad_rows(rows: datasets.Dataset, bad: set[int]) -> datasets.Dataset:
    items = rows.cast_column("image", datasets.Image(decode=False)).to_list()
    for index in bad:
        items[index]["image"] = {"bytes": b"no image", "path": None}
    return datasets.Dataset.from_list(items, features=rows.features)


def test_bad_rows_stop_or_are_passed_over_and_counted(many, tmp_path, caplog):
    rows = with_bad_rows(many, {0, 1, 17, 39})
    with pytest.raises(ValueError, match=r"column 'image': cannot be opened"):
        read(make_stream(rows), 20)
    stream = make_stream(rows, on_bad_row="skip")
    samples = [sample for _, sample in zip(range(36 * 2), stream)]
    names = [sample["image_id"] for sample in samples]
    assert not {"r0", "r1", "r17", "r39"} & set(names)
    assert sum(sample["num_skipped"] for sample in samples) >= 4
    assert [sample["sample_key"].index for sample in samples] == list(range(72))
    for name in ("r0", "r1", "r17", "r39"):  # two of them one after another, too
        assert f"({name}), column 'image'" in caplog.text
    # Going on counts good rows alone.
    stream.state_folder = tmp_path
    whole = read(make_stream(rows, on_bad_row="skip"), 16)
    read(stream, 9)
    again = make_stream(rows, on_bad_row="skip")
    again.load_state_dict(stream.state_dict(9))
    assert read(again, 7) == whole[9 * BATCH_SIZE :]


def test_too_many_bad_rows_one_after_another_are_an_error(many, monkeypatch):
    monkeypatch.setattr("c2fmae_hf.data.rows.MAX_SKIPPED", 5)
    stream = make_stream(with_bad_rows(many, set(range(40))), on_bad_row="skip")
    with pytest.raises(ValueError, match=r"expected readable rows, got 5 consecutive bad ones: row"):
        next(iter(stream))
    assert torch.is_tensor(next(iter(make_stream(many)))["pixel_values"])
