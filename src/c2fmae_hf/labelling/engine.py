"""
Labelling a part of a source: what every engine runs. The local engine runs parts in this process or in several.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import datasets

from .labellers.base import Labeller
from .records import LabelMaps, OutputOptions, PreparedImage, Reject, SourceRecord, build_row, prepare_image
from .shards import ShardInfo, ShardStore, ShardWriter
from .sources.base import ImageSource, Part


Item = TypeVar("Item")
Result = TypeVar("Result")

# A shard of at least so many images is not taken for finished if most of them failed.
_FEW_IMAGES = 32


@dataclass
class LabellingTask:
    """All that a process needs to label parts; can be pickled."""

    source: ImageSource
    labeller: Labeller
    store: ShardStore
    features: datasets.Features
    options: OutputOptions
    num_threads: int = 2
    max_reject_share: float = 0.5

    def run_part(self, part: Part, report: Callable[[int], None] = lambda number: None) -> list[ShardInfo]:
        """
        Label what is not labelled yet of a part, shard by shard.

        Args:
            part: Of the source.
            report: Called with numbers of images that are done.

        Returns:
            The shards that were written.

        Raises:
            `RuntimeError`: if most images of a shard fail, which says that something else is wrong.
        """
        written: list[ShardInfo] = []
        chunk = 0
        while (finished := self.store.find(part.index, chunk)) is not None:
            if finished.is_last:
                return written
            chunk += 1
        records = self.source.read(part, skip=chunk * self.options.rows_per_shard)
        following = next(records, None)
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            while following is not None or chunk == 0:
                here = [] if following is None else [following]
                block = itertools.chain(here, itertools.islice(records, self.options.rows_per_shard - 1))
                info = ShardInfo(self.store.shard_name(part.index, chunk), part.index, chunk, 0, False)
                with self.store.write(info, self.features) as writer:
                    self._label(block, writer, pool, report)
                    following = next(records, None)
                    info.is_last = following is None
                    self._check_rejects(info)
                written.append(info)
                chunk += 1
        return written

    def _label(
        self, records: Iterable[SourceRecord], writer: ShardWriter, pool: Executor, report: Callable[[int], None]
    ) -> None:
        """
        Decoding and encoding run in threads ahead of and behind the labeller; rows keep the source's order. Batches
        hold only images that could be decoded, and depend on nothing but the shard's records.
        """
        size = self.labeller.batch_size
        lookahead = max(2 * size, 2 * self.num_threads)
        encoded: collections.deque[Future | Reject] = collections.deque()
        batch: list[PreparedImage] = []

        def write(limit: int) -> None:
            while len(encoded) > limit:
                entry = encoded.popleft()
                result = entry if isinstance(entry, Reject) else entry.result()
                if isinstance(result, Reject):
                    writer.reject(result)
                else:
                    writer.add(result)
                report(1)

        def label() -> None:
            for prepared, maps in zip(batch, _label_batch(self.labeller, batch)):
                if isinstance(maps, Reject):
                    encoded.append(maps)
                else:
                    encoded.append(pool.submit(_encode, prepared, maps, len(self.labeller.id2label), self.options))
            batch.clear()
            write(limit=lookahead)

        for prepared in _map_ahead(pool, lambda record: prepare_image(record, self.options), records, lookahead):
            writer.info.records += 1
            if isinstance(prepared, Reject):
                encoded.append(prepared)
                continue
            batch.append(prepared)
            if len(batch) == size:
                label()
        if batch:
            label()
        write(limit=0)

    def _check_rejects(self, info: ShardInfo) -> None:
        if info.records >= _FEW_IMAGES and len(info.rejects) > self.max_reject_share * info.records:
            raise RuntimeError(
                f"{len(info.rejects)} of {info.records} images of shard {info.name} failed, the first, "
                f"{info.rejects[0].location}: {info.rejects[0].reason}. Is the source still there, and is it the "
                f"right one? If so, raise max_reject_share (now {self.max_reject_share}) and run again"
            )


def _label_batch(labeller: Labeller, batch: Sequence[PreparedImage]) -> list[LabelMaps | Reject]:
    """The maps of a batch; if the labeller refuses it, of its images one by one."""
    try:
        return list(labeller(batch))
    except ValueError as error:
        if len(batch) == 1:
            record = batch[0].record
            return [Reject(record.image_id, record.location, f"cannot be labelled: {error}")]
    return [result for prepared in batch for result in _label_batch(labeller, [prepared])]


def _encode(prepared: PreparedImage, maps: LabelMaps, num_classes: int, options: OutputOptions) -> dict | Reject:
    try:
        return build_row(prepared, maps, num_classes, options)
    except ValueError as error:
        record = prepared.record
        return Reject(record.image_id, record.location, f"cannot be labelled: {error}")


def _map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], lookahead: int
) -> Iterator[Result]:
    """`map` in a pool, in order, never more than so many items ahead."""
    pending: collections.deque[Future[Result]] = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > lookahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


# --- several processes on one machine

_worker_task: LabellingTask
_worker_counter: Any


def _start_worker(task: LabellingTask, counter: Any, names: Any, threads_per_worker: int | None) -> None:
    global _worker_task, _worker_counter
    _worker_task, _worker_counter = task, counter
    _die_with_parent()
    if threads_per_worker is not None:
        import torch

        torch.set_num_threads(threads_per_worker)
    with names.get_lock():
        number = names.value
        names.value += 1
    task.labeller.start(number)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_part_in_worker(part: Part) -> list[ShardInfo]:
    def report(number: int) -> None:
        with _worker_counter.get_lock():
            _worker_counter.value += number

    return _worker_task.run_part(part, report)


def run_local(
    task: LabellingTask, parts: Sequence[Part], num_workers: int, report: Callable[[int], None]
) -> Iterator[ShardInfo]:
    """
    Label parts on this machine.

    Args:
        task: What to do.
        parts: Where.
        num_workers (`int`): Processes; 0 and 1 label in this one. Each holds a labeller of its own.
        report: Called with numbers of images that are done.

    Yields:
        Shards as they are finished.
    """
    if num_workers <= 1:
        task.labeller.start(0)
        for part in parts:
            yield from task.run_part(part, report)
        return

    # Not forked: libraries that have started threads, and CUDA, do not survive it.
    context = multiprocessing.get_context("spawn")
    counter, names = context.Value("q", 0), context.Value("i", 0)
    threads = max((os.cpu_count() or 1) // num_workers, 1)
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (task, counter, names, threads))
    try:
        remaining = iter(parts)
        # A million parts need not wait in a queue.
        running = {pool.submit(_run_part_in_worker, part) for part in itertools.islice(remaining, 2 * num_workers)}
        reported = 0
        while running:
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            report(counter.value - reported)
            reported = counter.value
            for future in done:
                yield from future.result()
                running.update(pool.submit(_run_part_in_worker, part) for part in itertools.islice(remaining, 1))
        report(counter.value - reported)
    except BaseException:
        # Shards that are under way are dropped; finished ones stay.
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            with contextlib.suppress(OSError):
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
