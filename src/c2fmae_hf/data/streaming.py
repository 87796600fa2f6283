"""
Streaming dataset for pre-training. Every process and each of its data-loading workers, a reader, reads shards of its
own.

The shards of all epochs, in a new order each epoch, form one endless sequence of turns. Lane `l` of `n` reads the
turns `l`, `l + n`, ..., one after another, and shuffles rows within blocks. Batch `k`, counted over all processes,
comes from lane `k % n`. The number of lanes is a multiple of the number of readers, so that a lane has one reader. If
there are more lanes than shards, a turn is a part of a shard: every `parts`-th row.

The state of a lane is small: the turn, the `datasets` state of its shard at the start of a block, and the number of
samples taken since. The same readers resume with the same samples. Other readers share the rest of the epochs in
progress first, so that each epoch still has every row once.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from .progress import SharedProgress
from .randomness import sample_seeds
from .rows import MAP_COLUMNS, OnBadRow, RowReader, undecoded
from .sampling import SampleKey
from .transforms import JointTransform


# Lanes of a stream with fewer readers.
MIN_LANES = 16
# States kept per lane; workers are ahead of training by fewer batches.
_KEPT_STATES = 64
# A lane may have this many turns without rows in succession, besides a whole epoch's.
_MAX_EMPTY = 100

# Where a block starts: `shard` (state of `datasets`), `rows` of the turn before it, `rows_per_block`, and `taken`, the
# samples of the block that an earlier division used.
BlockStart = dict[str, Any]
# `turn` (its number in the lane), `start` (`None` at the turn's beginning) and `samples` of the lane before the block.
LaneState = dict[str, Any]
# Epoch, shard, part, number of parts, and where to start.
Turn = tuple[int, int, int, int, "BlockStart | None"]


@dataclass(frozen=True)
class Division:
    """
    A stream's division among lanes.

    Args:
        num_lanes (`int`): Lanes, over all readers.
        parts (`int`): Parts of a shard.
        batch_size (`int`): Of one process.
        position (`int`): Index of the first sample.
        epoch (`int`): First epoch after the pending turns.
        pending: Turns that come first, from an earlier division.
    """

    num_lanes: int
    parts: int
    batch_size: int
    position: int = 0
    epoch: int = 0
    pending: Sequence[Turn] = field(default_factory=list)

    def samples_before(self, lane: int, num_batches: int) -> int:
        """Number of samples that the first `num_batches` batches took from a lane."""
        return len(range(lane, num_batches, self.num_lanes)) * self.batch_size

    def index(self, lane: int, count: int) -> int:
        """Index of a lane's `count`-th sample in the stream."""
        number, within = divmod(count, self.batch_size)
        return self.position + (number * self.num_lanes + lane) * self.batch_size + within


class C2FMAEIterableDataset(IterableDataset):
    """
    A streaming dataset for pre-training: endless, so that a run of `max_steps` is one epoch. In evaluation, without
    `progress`, each process reads its share of the rows once. A sample's index is its position in the stream, over all
    processes; the epoch of its key is the number of times that all rows were read before.

    Its arguments are those of [`C2FMAEDataset`], with `rows` a `datasets.IterableDataset`, which need not be shuffled,
    and these:

    Args:
        shuffle_rows (`int`): Rows that each process holds in memory and shuffles, over its lanes.
        batch_size (`int`): The data loader's.
        process_index, num_processes (`int`): Which share of the stream to read. [`C2FMAETrainer`] sets these and
            `batch_size`.

    Raises:
        `ValueError`: as for [`C2FMAEDataset`]; on reading, if a lane finds no row.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        transform: JointTransform,
        map_columns: Sequence[str] = MAP_COLUMNS,
        num_semantic_classes: int | None = None,
        seed: int = 0,
        progress: SharedProgress | None = None,
        on_bad_row: OnBadRow = "raise",
        shuffle_rows: int = 8192,
        batch_size: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        if shuffle_rows < 1:
            raise ValueError(f"shuffle_rows: expected at least 1, got {shuffle_rows}")
        self.read_row = RowReader(transform, map_columns, num_semantic_classes, seed, on_bad_row)
        self.on_bad_row = on_bad_row
        if rows.column_names is not None:
            self.read_row.check_columns(rows.column_names)
        self.rows = undecoded(rows)
        self.num_shards = max(rows.num_shards, 1)
        self.seed, self.progress = seed, progress
        self.shuffle_rows, self.batch_size = shuffle_rows, batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.state_folder: Path | None = None
        self._resumed: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        if self.progress is None:
            return self._read_once(worker_id, num_workers)
        self.progress.warn_if_no_epoch_started()
        return self._read_on(worker_id, num_workers)

    def _read_once(self, worker_id: int, num_workers: int) -> Iterator[dict[str, Any]]:
        num_skipped, count = 0, 0
        # `datasets` divides the process's share among the workers.
        for row in split_dataset_by_node(self.rows, self.process_index, self.num_processes):
            if count == 0:
                self.read_row.check_columns(list(row))
            index = (count * num_workers + worker_id) * self.num_processes + self.process_index
            try:
                place = f"sample {index} of the evaluation"
                sample = self.read_row(row, SampleKey(index, 0, None), None, num_skipped, place)
            except ValueError as error:
                num_skipped += 1
                self.read_row.pass_over((index, num_skipped), num_skipped, error)
                continue
            num_skipped, count = 0, count + 1
            yield sample

    # Training

    def _read_on(self, worker_id: int, num_workers: int) -> Iterator[dict[str, Any]]:
        division, num_batches, states = self.divide(num_workers)
        lanes: dict[int, Iterator[dict[str, Any]]] = {}
        # The number since this run's start decides the reader, the number since the division's start the lane.
        batch = num_batches + worker_id * self.num_processes + self.process_index
        while True:
            lane = batch % division.num_lanes
            if lane not in lanes:
                done = division.samples_before(lane, num_batches)
                lanes[lane] = self._samples(division, lane, states[lane], done)
            for _ in range(self.batch_size):
                yield next(lanes[lane])
            batch += num_workers * self.num_processes

    def _samples(self, division: Division, lane: int, state: LaneState, count: int) -> Iterator[dict[str, Any]]:
        """Samples of a lane from the `count`-th on, read from the block of `state`."""
        assert self.progress is not None
        states: list[LaneState] = []
        num_done = count - state["samples"]  # still to be read again
        num_skipped = 0
        for turn, epoch, start, block in self._blocks(division, lane, state):
            samples = count - num_done
            # Runs stop between batches: of the blocks that begin within one, keep only the last.
            if states and -(-states[-1]["samples"] // self.batch_size) == -(-samples // self.batch_size):
                states.pop()
            states = [*states[1 - _KEPT_STATES :], {"turn": turn, "start": start, "samples": samples}]
            self._keep(lane, states)
            num_done += start["taken"]
            for (shard, number), row in block:
                if num_done > 0 and self.on_bad_row == "raise":
                    num_done -= 1
                    continue
                index = division.index(lane, count)
                try:
                    place = f"shard {shard}, row {number}"
                    key = SampleKey(index, epoch, self.progress.at(index))
                    sample = self.read_row(row, key, None, num_skipped, place)
                except ValueError as error:
                    num_skipped += 1
                    self.read_row.pass_over((shard, number), num_skipped, error)
                    continue
                num_skipped = 0
                if num_done > 0:
                    num_done -= 1
                    continue
                count += 1
                yield sample

    def _blocks(
        self, division: Division, lane: int, state: LaneState
    ) -> Iterator[tuple[int, int, BlockStart, list[tuple[tuple[int, int], dict[str, Any]]]]]:
        """
        Yield a lane's blocks from a state on, each with its turn's number, its epoch and its start. A row has the
        number of its shard, and its own within it.
        """
        number, start = state["turn"], state["start"]
        num_empty = 0
        while True:
            epoch, shard, part, parts, pending_start = self._turn(division, lane + number * division.num_lanes)
            start = start or pending_start or self._first_block(division)
            rows = self.rows.shard(self.num_shards, shard)
            if parts > 1:
                rows = split_dataset_by_node(rows, part, parts, "examples")
            if start["shard"] is not None:
                rows.load_state_dict(start["shard"])
            # `iter(rows)` would divide them among workers once more.
            for columns in rows.iter(start["rows_per_block"]):
                names = list(columns)
                self.read_row.check_columns(names)
                block = [dict(zip(names, values)) for values in zip(*columns.values())]
                seed = (start["rows"] * self.num_shards + shard) * parts + part
                order = _random_order(self.seed, epoch, seed, len(block))
                places = [(shard, (start["rows"] + index) * parts + part) for index in order]
                yield number, epoch, start, [(place, block[index]) for place, index in zip(places, order)]
                start = {**start, "shard": rows.state_dict(), "rows": start["rows"] + len(block), "taken": 0}
            num_empty = 0 if start["rows"] else num_empty + 1
            if num_empty == self.num_shards * parts + _MAX_EMPTY:
                raise ValueError(
                    f"dataset: expected rows for each of {division.num_lanes} lanes, lane {lane} got none from "
                    f"{num_empty} shards or parts of shards in succession, the last of them shard {shard} of "
                    f"{self.num_shards}. Merge shards, or drop empty ones"
                )
            number, start = number + 1, None

    def _turn(self, division: Division, number: int) -> Turn:
        """A turn of the stream's sequence."""
        if number < len(division.pending):
            return division.pending[number]
        num_turns = self.num_shards * division.parts
        epochs, place = divmod(number - len(division.pending), num_turns)
        epoch = division.epoch + epochs
        shard, part = divmod(_random_order(self.seed, epoch, -1, num_turns)[place], division.parts)
        return epoch, shard, part, division.parts, None

    def _first_block(self, division: Division) -> BlockStart:
        lanes_of_process = division.num_lanes // self.num_processes
        rows_per_block = max(self.shuffle_rows // lanes_of_process, 1)
        return {"shard": None, "rows": 0, "rows_per_block": rows_per_block, "taken": 0}

    # Division and state

    def divide(self, num_workers: int) -> tuple[Division, int, list[LaneState]]:
        """
        Divide the stream among the readers, or continue the division of the state that was loaded.

        Args:
            num_workers (`int`): Data-loading workers of each process.

        Returns:
            The division, the number of its batches (over all processes) that were used, and the lanes' states.
        """
        readers = self.num_processes * max(num_workers, 1)
        num_lanes = readers * max(min(MIN_LANES, self.num_shards) // readers, 1)
        division = Division(num_lanes, -(-num_lanes // self.num_shards), self.batch_size)
        if self._resumed is not None:
            old, num_batches, lanes = (self._resumed[name] for name in ("division", "num_batches", "lanes"))
            old_position = old.position + num_batches * old.batch_size
            position = old_position if self._resumed["position"] is None else self._resumed["position"]
            if (old.num_lanes, old.batch_size, old_position) == (num_lanes, self.batch_size, position):
                return old, num_batches, lanes
            epoch, pending = self._rest(old, num_batches, lanes)
            division = Division(num_lanes, division.parts, self.batch_size, position, epoch, pending)
        return division, 0, [{"turn": 0, "start": None, "samples": 0} for _ in range(num_lanes)]

    def _rest(self, division: Division, num_batches: int, lanes: list[LaneState]) -> tuple[int, list[Turn]]:
        """The first epoch of which nothing was read, and the turns that are left of earlier epochs."""
        reached = 1 + max(lane + state["turn"] * division.num_lanes for lane, state in enumerate(lanes))
        turns_per_epoch = self.num_shards * division.parts
        epochs = -(-max(reached - len(division.pending), 0) // turns_per_epoch)
        rest: list[Turn] = []
        first = min(state["turn"] for state in lanes) * division.num_lanes
        for index in range(first, len(division.pending) + epochs * turns_per_epoch):
            number, lane = divmod(index, division.num_lanes)
            state = lanes[lane]
            epoch, shard, part, parts, start = self._turn(division, index)
            if number == state["turn"] and state["start"] is not None:
                used = division.samples_before(lane, num_batches) - state["samples"]
                start = {**state["start"], "taken": state["start"]["taken"] + used}
            if number >= state["turn"]:
                rest.append((epoch, shard, part, parts, start))
        return division.epoch + epochs, rest

    def _keep(self, lane: int, states: list[LaneState]) -> None:
        """Write a lane's states to a file for the training process, which writes the checkpoints."""
        if self.state_folder is None:
            return
        path = self.state_folder / f"{lane}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(states), encoding="utf-8")
        os.replace(temporary, path)

    def state_dict(self, num_batches: int, num_workers: int = 0) -> dict[str, Any]:
        """
        State to resume from, as JSON can hold it. It has the lanes of this process; [`merge_states`] adds those of the
        others.

        Args:
            num_batches (`int`): Batches used since this run was started or resumed, over all processes.
            num_workers (`int`): Data-loading workers of each process.
        """
        division, before, first_states = self.divide(num_workers)
        total = before + num_batches
        lanes = {}
        own = range((before + self.process_index) % self.num_processes, division.num_lanes, self.num_processes)
        for lane in own:
            path = (self.state_folder or Path("/nowhere")) / f"{lane}.json"
            states = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
            done = division.samples_before(lane, total)
            past = [state for state in states if state["samples"] <= done]
            lanes[str(lane)] = past[-1] if past else first_states[lane]  # not read since the run was resumed
        return {**self._identity(), "division": asdict(division), "num_batches": total, "lanes": lanes}

    def load_state_dict(self, state: Mapping[str, Any] | None, position: int | None = None) -> None:
        """
        Resume from a state, or begin anew with `None`. Call this before data-loading workers start.

        Args:
            state: Of all processes, see [`merge_states`].
            position (`int`, *optional*): Index of the next sample. Default: it continues the state's.

        Raises:
            `ValueError`: if the state is of other shards or another seed, or lacks lanes.
        """
        self._resumed = None
        if state is None:
            return
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(f"{name}: expected {state.get(name)}, as in the run to resume, got {value}")
        division = Division(**state["division"])
        missing = [lane for lane in range(division.num_lanes) if str(lane) not in state["lanes"]]
        if missing:
            raise ValueError(
                f"state: expected {division.num_lanes} lanes, lacks {missing}; merge all processes' states"
            )
        lanes = [state["lanes"][str(lane)] for lane in range(division.num_lanes)]
        self._resumed = {
            "division": division,
            "num_batches": state["num_batches"],
            "lanes": lanes,
            "position": position,
        }

    def _identity(self) -> dict[str, Any]:
        return {"num_shards": self.num_shards, "data_seed": self.seed}


@functools.lru_cache(maxsize=4)
def _random_order(seed: int, epoch: int, number: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(int(sample_seeds(seed, [epoch], [number])[0]) >> 1)
    return torch.randperm(length, generator=generator).tolist()


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the states of all processes, in any order."""
    return {**states[0], "lanes": {lane: one for state in states for lane, one in state["lanes"].items()}}


__all__ = ["C2FMAEIterableDataset", "merge_states"]
