"""
Streaming dataset for pre-training. Its order depends neither on the number of data-loading workers nor on
interruptions.

The shards are divided among lanes. A lane reads its shards epoch after epoch, in a new order each epoch, and shuffles
rows within blocks; the k-th batch of a run comes from lane `k % num_lanes`. A worker reads the lanes of its own
batches, which works if the number of workers divides the number of lanes. The state of a lane is small: the `datasets`
state of a shard at the start of a block. To resume, a lane reads at most one block again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .progress import SharedProgress
from .randomness import sample_seeds
from .rows import MAP_COLUMNS, OnBadRow, RowReader, undecoded
from .sampling import SampleKey
from .transforms import JointTransform


MAX_LANES = 16
# States kept per lane; workers are ahead of training by fewer batches.
_KEPT_STATES = 64

LaneState = dict[str, Any]


class C2FMAEIterableDataset(IterableDataset):
    """
    A streaming dataset for pre-training: endless, so that a run of `max_steps` is one epoch. In evaluation, without
    `progress`, it reads its rows once, in their order. A sample's index is its position in the stream.

    Args: as for [`C2FMAEDataset`], with `rows` a `datasets.IterableDataset`, which need not be shuffled, and

        shuffle_rows (`int`): Rows that are held in memory and shuffled, over all lanes.
        batch_size (`int`): The data loader's. [`C2FMAETrainer`] sets it.

    Raises:
        `ValueError`: as for [`C2FMAEDataset`]; on reading, if the number of workers does not divide the number of
            lanes (the largest power of two up to 16 and up to the number of shards), or if a lane has no row.
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
    ) -> None:
        if shuffle_rows < 1:
            raise ValueError(f"shuffle_rows: expected at least 1, got {shuffle_rows}")
        self.read_row = RowReader(transform, map_columns, num_semantic_classes, seed, on_bad_row)
        self.on_bad_row = on_bad_row
        if rows.column_names is not None:
            self.read_row.check_columns(rows.column_names)
        self.rows = undecoded(rows)
        self.seed, self.progress = seed, progress
        self.batch_size = batch_size
        self.num_lanes = 2 ** (min(max(rows.num_shards, 1), MAX_LANES).bit_length() - 1)
        self.rows_per_block = max(shuffle_rows // self.num_lanes, 1)
        self.state_folder: Path | None = None
        self._first_batch = 0
        self._lane_states: Mapping[str, LaneState] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.progress is None:
            return self._read_once()
        self.progress.warn_if_no_epoch_started()
        return self._read_on()

    def _read_once(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        num_skipped, count = 0, 0
        for row in self.rows:  # each worker gets its shards
            if count == 0:
                self.read_row.check_columns(list(row))
            key = SampleKey(count * num_workers + worker_id, 0, None)
            try:
                sample = self.read_row(row, key, num_skipped=num_skipped)
            except ValueError as error:
                num_skipped += 1
                self.read_row.pass_over((key.index, num_skipped), num_skipped, error)
                continue
            num_skipped, count = 0, count + 1
            yield sample

    # Training

    def check_workers(self, num_workers: int) -> None:
        """
        Check that the lanes can be divided among the data-loading workers.

        Raises:
            `ValueError`: if they cannot.
        """
        if self.num_lanes % max(num_workers, 1):
            raise ValueError(
                f"dataloader_num_workers: expected 0 or a divisor of {self.num_lanes}, the lanes of a stream of "
                f"{self.rows.num_shards} shard(s), got {num_workers}"
            )

    def _read_on(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        self.check_workers(num_workers)
        lanes = {lane: self._samples(lane) for lane in range(self.num_lanes)}
        # The number since this run's start decides the worker, the number since the stream's start the lane.
        batch = self._first_batch + worker_id
        while True:
            for _ in range(self.batch_size):
                yield next(lanes[batch % self.num_lanes])
            batch += num_workers

    def samples_before(self, lane: int, num_batches: int) -> int:
        """Number of samples that the first `num_batches` batches took from a lane."""
        return len(range(lane, num_batches, self.num_lanes)) * self.batch_size

    def _position(self, lane: int, count: int) -> int:
        """Position in the stream of a lane's `count`-th sample."""
        number, within = divmod(count, self.batch_size)
        return (number * self.num_lanes + lane) * self.batch_size + within

    def _samples(self, lane: int) -> Iterator[dict[str, Any]]:
        done = self.samples_before(lane, self._first_batch)
        states: list[LaneState] = []
        num_skipped = 0
        count = 0
        for state, block in self._blocks(lane, self._lane_states.get(str(lane))):
            count = state["samples"] if state["samples"] is not None else count
            # Runs stop between batches: of the blocks that begin within one, keep only the last.
            if states and -(-states[-1]["samples"] // self.batch_size) == -(-count // self.batch_size):
                states.pop()
            states = [*states[1 - _KEPT_STATES :], {**state, "samples": count}]
            self._keep(lane, states)
            for row in block:
                if count < done and self.on_bad_row == "raise":
                    count += 1
                    continue
                position = self._position(lane, count)
                assert self.progress is not None
                try:
                    key = SampleKey(position, 0, self.progress.at(position))
                    sample = self.read_row(row, key, num_skipped=num_skipped)
                except ValueError as error:
                    num_skipped += 1
                    self.read_row.pass_over((position, num_skipped), num_skipped, error)
                    continue
                count, num_skipped = count + 1, 0
                if count > done:
                    yield sample

    def _blocks(self, lane: int, state: LaneState | None) -> Iterator[tuple[LaneState, list[dict[str, Any]]]]:
        """Yield a lane's blocks of rows, each with the state at its start; only the given state knows `samples`."""
        total = self.rows.num_shards
        own = range(lane, total, self.num_lanes)
        state = state or {"epoch": 0, "turn": 0, "shard": None, "rows": 0, "samples": 0}
        epoch, turn, inner, rows_read, samples = (
            state[name] for name in ("epoch", "turn", "shard", "rows", "samples")
        )
        while True:
            read_before, is_whole_epoch = rows_read, turn == 0 and inner is None
            order = self._shuffled(list(own), epoch, -1 - lane)
            while turn < len(own):
                shard = self.rows.shard(total, order[turn])
                if inner is not None:
                    shard.load_state_dict(inner)
                # `iter(shard)` would divide it among workers once more.
                for columns in shard.iter(self.rows_per_block):
                    names = list(columns)
                    self.read_row.check_columns(names)
                    block = [dict(zip(names, values)) for values in zip(*columns.values())]
                    start = {"epoch": epoch, "turn": turn, "shard": inner, "rows": rows_read, "samples": samples}
                    yield start, self._shuffled(block, epoch, rows_read * self.num_lanes + lane)
                    rows_read, samples, inner = rows_read + len(block), None, shard.state_dict()
                turn, inner = turn + 1, None
            if is_whole_epoch and rows_read == read_before:
                raise ValueError(
                    f"dataset: expected at least one row for each of {self.num_lanes} lanes, got none for lane "
                    f"{lane}, which has the shards {list(own)} of {total}"
                )
            epoch, turn = epoch + 1, 0

    def _shuffled(self, items: list[Any], epoch: int, number: int) -> list[Any]:
        generator = torch.Generator().manual_seed(int(sample_seeds(self.seed, [epoch], [number])[0]) >> 1)
        return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]

    # State

    def _keep(self, lane: int, states: list[LaneState]) -> None:
        """Write a lane's states to a file for the training process, which writes the checkpoints."""
        if self.state_folder is None:
            return
        path = self.state_folder / f"{lane}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(states), encoding="utf-8")
        os.replace(temporary, path)

    def state_dict(self, num_batches: int) -> dict[str, Any]:
        """
        State to resume after `num_batches` batches, as JSON can hold it.

        Args:
            num_batches (`int`): Batches used since the start of the stream, over all runs.
        """
        lanes = {}
        for lane in range(self.num_lanes):
            path = (self.state_folder or Path("/nowhere")) / f"{lane}.json"
            states = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
            done = self.samples_before(lane, num_batches)
            past = [state for state in states if state["samples"] <= done]
            if past:
                lanes[str(lane)] = past[-1]
            elif str(lane) in self._lane_states:  # not read since this run was resumed
                lanes[str(lane)] = self._lane_states[str(lane)]
        return {**self._identity(), "num_batches": num_batches, "lanes": lanes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Resume from a state. Call this before data-loading workers start.

        Raises:
            `ValueError`: if the state is of a stream with another order of rows.
        """
        own = self._identity()
        for name, value in own.items():
            if state.get(name) != value:
                raise ValueError(f"{name}: expected {state.get(name)}, as in the run to resume, got {value}")
        self._first_batch, self._lane_states = state["num_batches"], state["lanes"]

    def _identity(self) -> dict[str, Any]:
        return {
            "num_shards": self.rows.num_shards,
            "batch_size": self.batch_size,
            "rows_per_block": self.rows_per_block,
            "data_seed": self.seed,
        }


__all__ = ["C2FMAEIterableDataset"]
