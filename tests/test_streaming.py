"""Streams: the order of samples, whatever reads them, and going on where a run stopped."""

from __future__ import annotations

import json
import re
from itertools import islice

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from c2fmae_hf.data.dataset import C2FMAEDataset
from c2fmae_hf.data.progress import SharedProgress
from c2fmae_hf.data.streaming import C2FMAEIterableDataset, merge_states
from c2fmae_hf.data.transforms import evaluation_transform, training_transform
from testing_utils import make_rows


TRANSFORM = training_transform((16, 16))
BATCH_SIZE = 3


@pytest.fixture(scope="module")
def many() -> datasets.Dataset:
    return make_rows(40, size=24)


class Readers:
    """Processes and their workers, as a loader asks them: batch after batch, in turns."""

    def __init__(self, rows, folder=None, state=None, num_shards=4, processes=1, workers=0, position=None, **options):
        progress = SharedProgress()
        progress.start_epoch(0, start=0.0, per_sample=0.001)
        options = {"shuffle_rows": 16, "batch_size": BATCH_SIZE, **options}
        if isinstance(rows, datasets.Dataset):
            rows = rows.to_iterable_dataset(num_shards)
        self.streams = [
            C2FMAEIterableDataset(
                rows, TRANSFORM, progress=progress, process_index=index, num_processes=processes, **options
            )
            for index in range(processes)
        ]
        self.workers, self.used = workers, 0
        for index, stream in enumerate(self.streams):
            stream.load_state_dict(state, position)
            if folder is not None:
                stream.state_folder = folder / f"{processes}-{workers}-{index}"
                stream.state_folder.mkdir()
        number = max(workers, 1)
        self.iterators = [[stream._read_on(worker, number) for worker in range(number)] for stream in self.streams]

    def read(self, steps: int, ahead: int = 0) -> list[tuple]:
        """Samples of some batches of every process; workers are then some batches ahead."""
        batches = []
        for step in range(steps + ahead):
            for stream, iterators in zip(self.streams, self.iterators):
                batches.append(list(islice(iterators[step % len(iterators)], stream.batch_size)))
        self.used += steps * len(self.streams)
        return [described(sample) for batch in batches[: steps * len(self.streams)] for sample in batch]

    def state(self) -> dict:
        states = [stream.state_dict(self.used, self.workers) for stream in self.streams]
        return json.loads(json.dumps(merge_states(states)))


def described(sample: dict) -> tuple:
    """Key, row and pixels of a sample, which identify it."""
    return sample["sample_key"], sample["image_id"], sample["pixel_values"].double().sum().item()


def rows_of(samples: list[tuple], epoch: int) -> list[str]:
    return sorted(name for key, name, _ in samples if key.epoch == epoch)


def everything(rows: datasets.Dataset) -> list[str]:
    return sorted(rows["image_id"])


@pytest.mark.parametrize(
    ("num_shards", "processes", "workers"), [(4, 1, 0), (4, 2, 2), (5, 2, 3), (2, 4, 0), (1, 3, 1), (7, 1, 3)]
)
def test_every_epoch_has_every_row_once_in_another_order(many, num_shards, processes, workers):
    """Also where shards do not divide by readers, and where there are more readers than shards."""
    samples = Readers(many, num_shards=num_shards, processes=processes, workers=workers).read(120 // processes)
    assert [key.index for key, _, _ in samples] == list(range(360))
    assert [key.progress for key, _, _ in samples] == pytest.approx([0.001 * index for index in range(360)])
    for epoch in range(3):
        assert rows_of(samples, epoch) == everything(many)
    orders = [[name for key, name, _ in samples if key.epoch == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]
    # No process gets ahead by more than the shards of an epoch that are still being read.
    assert {key.epoch for key, _, _ in samples[:6]} == {0}


def test_processes_read_shards_of_their_own(many):
    opened: list[set[str]] = [set(), set()]
    pair = Readers(many, processes=2)
    for index, stream in enumerate(pair.streams):
        names = opened[index]
        stream.rows = stream.rows.map(lambda row, names=names: names.add(row["image_id"]) or row)
    samples = pair.read(6)
    assert not opened[0] & opened[1]
    assert len(opened[0]) == len(opened[1]) == 20
    assert {name for _, name, _ in samples} <= opened[0] | opened[1]


def test_the_seed_decides_the_order(many):
    samples = Readers(many).read(20)
    assert samples == Readers(many).read(20)
    assert [name for _, name, _ in samples] != [name for _, name, _ in Readers(many, seed=1).read(20)]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_that_divide_the_lanes_do_not_change_the_order(many, workers):
    assert Readers(many, workers=workers).read(15) == Readers(many).read(15)


def test_a_loader_s_workers(many):
    stream = Readers(many).streams[0]
    loader = DataLoader(stream, batch_size=BATCH_SIZE, num_workers=2, collate_fn=list)
    batches = [batch for _, batch in zip(range(15), loader)]
    assert [described(sample) for batch in batches for sample in batch] == Readers(many).read(15)


@pytest.mark.parametrize(
    ("steps", "processes", "workers", "num_shards"),
    [(1, 1, 0, 4), (7, 1, 2, 4), (18, 1, 3, 5), (7, 2, 1, 4), (9, 2, 3, 5), (5, 4, 0, 2)],
)
def test_the_same_readers_go_on_where_they_stopped(many, tmp_path, steps, processes, workers, num_shards):
    """With workers ahead of what was used."""
    options = {"processes": processes, "workers": workers, "num_shards": num_shards}
    whole = Readers(many, **options).read(steps + 12)
    per_step = processes * BATCH_SIZE
    first = Readers(many, tmp_path, **options)
    assert first.read(steps, ahead=4) == whole[: steps * per_step]
    (tmp_path / "second").mkdir()
    second = Readers(many, tmp_path / "second", first.state(), **options)
    assert second.read(5, ahead=3) == whole[steps * per_step : (steps + 5) * per_step]
    # And once more, from a state that the second run left.
    assert Readers(many, None, second.state(), **options).read(7) == whole[(steps + 5) * per_step :]


@pytest.mark.parametrize(
    ("steps", "processes", "workers", "batch_size"),
    [(3, 1, 0, 3), (8, 2, 0, 6), (11, 3, 1, 2), (3, 4, 2, 1), (8, 2, 5, 3), (11, 1, 4, 4)],
)
def test_other_readers_lose_and_repeat_no_row(many, tmp_path, steps, processes, workers, batch_size):
    first = Readers(many, tmp_path, num_shards=5, processes=2, workers=3, shuffle_rows=30)
    samples = first.read(steps, ahead=2)
    options = {"num_shards": 5, "processes": processes, "workers": workers, "batch_size": batch_size}
    (tmp_path / "second").mkdir()
    second = Readers(many, tmp_path / "second", first.state(), **options)
    samples += second.read(25 // processes // batch_size + 1, ahead=1)
    (tmp_path / "third").mkdir()
    # In the middle of the first division's rest, the readers change once more.
    third = Readers(many, None, second.state(), num_shards=5, processes=2, workers=1)
    samples += third.read(30)
    for epoch in range(3):
        assert rows_of(samples, epoch) == everything(many)
    assert [key.index for key, _, _ in samples] == list(range(len(samples)))


def test_a_position_that_is_given_numbers_the_samples(many, tmp_path):
    first = Readers(many, tmp_path)
    samples = first.read(4)
    samples += Readers(many, None, first.state(), position=100).read(30)
    assert [key.index for key, _, _ in samples] == [*range(12), *range(100, 190)]
    for epoch in range(2):
        assert rows_of(samples, epoch) == everything(many)


def test_a_process_s_state_is_not_all(many, tmp_path):
    pair = Readers(many, tmp_path, processes=2)
    pair.read(2)
    with pytest.raises(ValueError, match=r"expected 4 lanes, lacks \[1, 3\]; merge all processes' states"):
        Readers(many, state=pair.streams[0].state_dict(4))


def test_it_reads_no_more_than_a_block_of_a_lane_again(many, tmp_path):
    read_rows: list[str] = []

    def watched(row):
        read_rows.append(row["image_id"])
        return row

    def readers(name, state=None):
        (tmp_path / name).mkdir()
        rows = many.to_iterable_dataset(4).map(watched)
        return Readers(rows, tmp_path / name, state, shuffle_rows=8, batch_size=1)

    first = readers("first")
    first.read(32)  # eight rows of each of four lanes
    state = first.state()
    assert {lane: one["start"]["rows"] for lane, one in state["lanes"].items()} == {str(lane): 6 for lane in range(4)}
    read_rows.clear()
    second = readers("second", state)
    expected = second.read(4)
    assert len(read_rows) <= 4 * (2 + 2 + 1)  # a block again, the next one, and one row ahead
    # A run that stops before it has come to every lane knows of the others what it was told.
    brief = readers("brief", state)
    brief.read(1)
    assert len(list(brief.streams[0].state_folder.iterdir())) == 1
    read_rows.clear()
    assert readers("last", brief.state()).read(3) == expected[1:]
    assert len(read_rows) <= 4 * (2 + 2 + 1)
    # Without the lanes' files it reads all again, and comes to the same place.
    again = Readers(many, shuffle_rows=8, batch_size=1)
    again.used = 32
    assert Readers(many, None, again.state(), shuffle_rows=8, batch_size=1).read(4) == expected


def test_small_blocks_and_a_reader_far_ahead(many, tmp_path):
    """A hundred blocks begin in a batch; a state of each lane is there for any batch that may have been the last."""
    options = {"shuffle_rows": 2, "batch_size": 30, "num_shards": 2}
    readers = Readers(many, tmp_path, **options)
    whole = readers.read(12)
    for used in (2, 7, 12):
        readers.used = used
        state = readers.state()
        assert all(one["samples"] >= 30 * (used // 2) - 30 for one in state["lanes"].values())
        expected = whole[30 * used :][:60]
        assert Readers(many, None, state, **options).read(2)[: len(expected)] == expected


def test_other_rows_or_another_seed_are_no_going_on(many):
    state = Readers(many).state()
    for options, message in (
        ({"seed": 1}, "data_seed: expected 0, .* got 1"),
        ({"num_shards": 2}, "num_shards: expected 4, .* got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Readers(many, state=state, **options)


def test_each_process_holds_the_rows_to_shuffle(many):
    for options, per_block in (({}, 4), ({"processes": 2}, 8), ({"processes": 2, "workers": 2}, 8)):
        stream = Readers(many, **options).streams[0]
        division, _, _ = stream.divide(options.get("workers", 0))
        assert stream._first_block(division)["rows_per_block"] == per_block
    many_shards = Readers(many, num_shards=40, processes=2, workers=3, shuffle_rows=12).streams[0]
    division, _, _ = many_shards.divide(3)
    assert (division.num_lanes, division.parts) == (12, 1)
    assert many_shards._first_block(division)["rows_per_block"] == 2


def test_empty_shards_are_passed_over_and_no_rows_are_an_error(many):
    rows = many.to_iterable_dataset(4)
    samples = Readers(rows.filter(lambda row: row["image_id"] < "r3")).read(30)
    assert rows_of(samples, 1) == [name for name in everything(many) if name < "r3"]
    message = r"each of 4 lanes, lane 0 got none from 104 shards .* in succession, the last of them shard \d of 4"
    with pytest.raises(ValueError, match=message):
        Readers(rows.filter(lambda row: False)).read(1)


@pytest.mark.parametrize(("num_shards", "processes"), [(1, 1), (1, 3), (3, 2), (4, 2)])
def test_evaluation_reads_every_row_once(rows, num_shards, processes):
    stream = rows.to_iterable_dataset(num_shards=num_shards)
    shares = [
        list(
            C2FMAEIterableDataset(stream, evaluation_transform((32, 32)), process_index=index, num_processes=processes)
        )
        for index in range(processes)
    ]
    assert sorted(sample["image_id"] for share in shares for sample in share) == everything(rows)
    keys = [sample["sample_key"] for share in shares for sample in share]
    assert len(set(keys)) == 12
    assert {key.progress for key in keys} == {None}


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
        Readers(rows).read(20)
    samples = [sample for _, sample in zip(range(36 * 2), Readers(rows, on_bad_row="skip").streams[0])]
    names = [sample["image_id"] for sample in samples]
    assert not {"r0", "r1", "r17", "r39"} & set(names)
    assert sum(sample["num_skipped"] for sample in samples) >= 4
    assert [sample["sample_key"].index for sample in samples] == list(range(72))
    # Two of them one after another, too; once, though the epochs went on.
    assert sorted(re.findall(r"\((r\d+)\), column 'image'", caplog.text)) == ["r0", "r1", "r17", "r39"]
    # Going on counts good rows alone.
    whole = Readers(rows, on_bad_row="skip").read(16)
    first = Readers(rows, tmp_path, on_bad_row="skip")
    first.read(9)
    assert Readers(rows, None, first.state(), on_bad_row="skip").read(7) == whole[9 * BATCH_SIZE :]
    others = Readers(rows, None, first.state(), on_bad_row="skip", processes=2).read(20)
    good = [name for name in everything(many) if name not in {"r0", "r1", "r17", "r39"}]
    assert rows_of([*whole[: 9 * BATCH_SIZE], *others], 0) == good


@pytest.mark.parametrize("num_shards", [4, 2, 1])
def test_a_bad_row_is_told_by_its_shard(many, num_shards, caplog):
    """Also if shards are read in parts."""
    rows = with_bad_rows(many, {0, 13, 39})
    _ = [sample for _, sample in zip(range(72), Readers(rows, on_bad_row="skip", num_shards=num_shards).streams[0])]
    found = re.findall(r"shard (\d+), row (\d+) \(r(\d+)\)", caplog.text)
    assert sorted(int(name) for _, _, name in found) == [0, 13, 39]
    for shard, row, name in found:
        assert int(shard) * (40 // num_shards) + int(row) == int(name)


def test_too_many_bad_rows_one_after_another_are_an_error(many, monkeypatch):
    monkeypatch.setattr("c2fmae_hf.data.rows.MAX_SKIPPED", 5)
    with pytest.raises(ValueError, match=r"expected readable rows, got 5 consecutive bad ones: shard"):
        Readers(with_bad_rows(many, set(range(40))), on_bad_row="skip").read(1)
    assert torch.is_tensor(next(iter(Readers(many).streams[0]))["pixel_values"])
